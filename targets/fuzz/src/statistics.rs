//! Fuzz target for files of input statistics.

use edge_lmm_convert::calibration::SavedStatistics;

use crate::checkpoint::source_support::GgufBuilder;
use crate::memory_file::MemoryFile;
use crate::mutate::Form;
use crate::{Target, errors};

/// Statistics of the converter, or an importance matrix of llama.cpp in one of its two formats.
pub const STATISTICS: Target = Target {
    name: "statistics",
    form: Form::Words(&[
        b"GGUF",
        b".in_sum2",
        b".counts",
        b"blk.0.ffn_down.weight",
        b"\"dtype\":\"F32\"",
        b"\"F16\"",
        b"\"shape\":[",
        b"\x01\0\0\0",
        b"\xff\xff\xff\x7f",
        b"\xff\xff\xff\xff",
        b"\0\0\xc0\x7f",
    ]),
    seeds: || {
        let own = read(&matrix()).and_then(|statistics| statistics.to_bytes().ok());
        vec![matrix(), gguf(), own.expect("statistics")]
    },
    run: |input| {
        // What was accepted is written, and read again, as the same.
        if let Some(statistics) = read(input) {
            let written = statistics.to_bytes().expect("statistics are serialized");
            let again = read(&written).expect("what was written is read");
            assert_eq!(again.to_bytes().ok(), Some(written));
        }
    },
};

fn read(bytes: &[u8]) -> Option<SavedStatistics> {
    let file = MemoryFile::new(bytes);
    let read = SavedStatistics::read(&file.path());
    read.inspect_err(errors::check).ok()
}

/// Returns the older format: of each entry the name, the number of calls and the sums.
fn matrix() -> Vec<u8> {
    let mut bytes = 2i32.to_le_bytes().to_vec();
    for name in ["blk.0.ffn_down.weight", "output.weight"] {
        bytes.extend((name.len() as i32).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(2i32.to_le_bytes());
        bytes.extend(3i32.to_le_bytes());
        bytes.extend([2.0f32, 4.0, 8.0].iter().flat_map(|x| x.to_le_bytes()));
    }
    bytes
}

fn gguf() -> Vec<u8> {
    let name = "blk.0.ffn_down.weight";
    GgufBuilder::new()
        .text("general.type", "imatrix")
        .tensor(&format!("{name}.counts"), &[1, 1], &[4.0])
        .tensor(&format!("{name}.in_sum2"), &[3, 1], &[4.0, 8.0, 16.0])
        .bytes()
}
