//! A whole GGUF file as a language model: header, names, config, tokenizer, values.
#![no_main]

use edge_lmm_convert::source::Checkpoint;
use edge_lmm_convert::{read_all, scratch};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = scratch();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).expect("a file in the temporary folder");
    if let Ok(checkpoint) = Checkpoint::open(&path, None) {
        read_all(&checkpoint);
    }
});
