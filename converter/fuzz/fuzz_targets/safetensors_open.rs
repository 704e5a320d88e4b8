//! A safetensors file of raw bytes beside sound json files.
#![no_main]

use edge_lmm_convert::source::Checkpoint;
use edge_lmm_convert::{read_all, scratch};
use libfuzzer_sys::fuzz_target;

const TOKENIZER: &str = r#"{"version": "1.0", "added_tokens": [],
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}"#;

fuzz_target!(|bytes: &[u8]| {
    let folder = scratch();
    let write = |name: &str, content: &[u8]| {
        std::fs::write(folder.path().join(name), content).expect("a file in the temporary folder");
    };
    write("config.json", br#"{"vocab_size": 3}"#);
    write("tokenizer.json", TOKENIZER.as_bytes());
    write("model.safetensors", bytes);
    if let Ok(checkpoint) = Checkpoint::open(folder.path(), None) {
        read_all(&checkpoint);
    }
});
