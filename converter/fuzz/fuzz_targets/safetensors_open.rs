//! A safetensors file of raw bytes beside sound json files.
#![no_main]

use std::sync::LazyLock;

use edge_lmm_convert::source::Checkpoint;
use edge_lmm_convert::{read_all, scratch};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = scratch();
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).expect("a file in the temporary folder");
    };
    write("config.json", r#"{"vocab_size": 3}"#);
    let model = r#"{"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}"#;
    write(
        "tokenizer.json",
        &format!(r#"{{"version": "1.0", "added_tokens": [], "model": {model}}}"#),
    );
    folder
});

fuzz_target!(|bytes: &[u8]| {
    let path = FOLDER.path().join("model.safetensors");
    std::fs::write(&path, bytes).expect("a file in the temporary folder");
    if let Ok(checkpoint) = Checkpoint::open(FOLDER.path(), None) {
        read_all(&checkpoint);
    }
});
