//! The checked pass over a GGUF header, on raw bytes.
#![no_main]

use edge_lmm_convert::source::gguf::Header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = Header::parse(bytes, "fuzz") else {
        return;
    };
    let mut end = 0;
    let mut tensors: Vec<_> = header.tensors.values().collect();
    tensors.sort_by_key(|tensor| tensor.bytes.start);
    for tensor in tensors {
        assert!(end <= tensor.bytes.start && tensor.bytes.end <= bytes.len());
        end = tensor.bytes.end;
        let elements: u64 = tensor.shape.iter().map(|&dim| dim as u64).product();
        let size = elements / tensor.element.block_len * tensor.element.block_bytes;
        assert_eq!(tensor.bytes.len() as u64, size);
    }
});
