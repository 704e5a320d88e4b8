//! A record of any bytes: an error, or a record whose weights all lie in the file.
#![no_main]

use std::path::Path;

use bytes::Bytes;
use edge_lmm::Record;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(record) = Record::from_bytes(Bytes::copy_from_slice(data), Path::new("fuzz.bpk")) {
        let _ = record.verify();
        for (_, tensor) in record.tensors() {
            assert!(tensor.offset + tensor.len <= record.len());
        }
    }
});
