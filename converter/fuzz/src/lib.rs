//! The checkpoint readers alone, without the rest of the converter, and what the targets share.

#[path = "../../src/source/mod.rs"]
pub mod source;

#[path = "../../tests/source_support/mod.rs"]
pub mod source_support;

// The test support names the crate under test.
extern crate self as edge_lmm_convert;

use source::Checkpoint;

/// Reads every row of every tensor, a few at a time, and checks how much comes.
pub fn read_all(checkpoint: &Checkpoint) {
    let mut out = Vec::new();
    for (name, info) in checkpoint.tensors() {
        for row in (0..info.rows()).step_by(3) {
            out.clear();
            let rows = row..(row + 3).min(info.rows());
            let count = rows.len();
            if checkpoint.read_rows(name, rows, &mut out).is_ok() {
                assert_eq!(out.len(), count * info.row_len(), "{name}");
            }
            if info.row_len() == 0 {
                break;
            }
        }
    }
}

/// A folder for one run's files, in memory where the system has one.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a temporary folder")
}
