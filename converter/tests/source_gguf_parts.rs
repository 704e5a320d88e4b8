//! GGUF files in several parts.

mod source_support;

use std::path::{Path, PathBuf};

use edge_lmm_convert::source::Checkpoint;
use source_support::{GgufBuilder, assert_says, error, small_tensors, values};
use tempfile::TempDir;

const PARTS: usize = 3;
/// Number of the key's value type: unsigned, 16 bits.
const U16: u32 = 2;

fn name(number: usize) -> String {
    format!("small-{:05}-of-00003.gguf", number + 1)
}

/// Returns part `number` of [`PARTS`] with the tensors of which every third one is its own. The first
/// part has the metadata.
fn part(number: usize) -> GgufBuilder {
    let tensors = small_tensors(3);
    let mut builder = keys(GgufBuilder::new(), number, PARTS, tensors.len());
    if number == 0 {
        builder = builder.small_metadata().small_tokenizer();
    }
    for (name, dims, values) in tensors.into_iter().skip(number).step_by(PARTS) {
        builder = builder.tensor(&name, &dims, &values);
    }
    builder
}

fn keys(builder: GgufBuilder, number: usize, count: usize, tensors: usize) -> GgufBuilder {
    builder
        .raw("split.no", U16, &(number as u16).to_le_bytes())
        .raw("split.count", U16, &(count as u16).to_le_bytes())
        .raw("split.tensors.count", 5, &(tensors as i32).to_le_bytes())
}

fn split() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..PARTS {
        part(number).write(folder.path(), &name(number));
    }
    folder
}

fn message(path: &Path) -> String {
    error(Checkpoint::open(path, None))
}

#[test]
fn any_part_opens_all() {
    let folder = split();
    let whole = GgufBuilder::new().small_model(3).small_tokenizer();
    let whole = Checkpoint::open(&whole.write(folder.path(), "whole.gguf"), None).unwrap();
    for number in 0..PARTS {
        let split = Checkpoint::open(&folder.path().join(name(number)), None).unwrap();
        let files: Vec<&str> = split.files.iter().map(|file| &*file.name).collect();
        assert_eq!(files, [name(0), name(1), name(2)]);
        assert_eq!(split.config, whole.config);
        assert_eq!(split.tokenizer, whole.tokenizer);
        assert!(split.tensors().eq(whole.tensors()));
        for (name, _) in whole.tensors() {
            assert_eq!(values(&split, name), values(&whole, name), "{name}");
        }
    }
}

#[test]
fn missing_parts_are_named() {
    for missing in 0..PARTS {
        let folder = split();
        std::fs::remove_file(folder.path().join(name(missing))).unwrap();
        let given = name((missing + 1) % PARTS);
        let message = message(&folder.path().join(&given));
        assert_says(&message, &[&name(missing), &given, "one of 3 parts"]);
    }
}

#[test]
fn names_must_state_the_part() {
    let folder = split();
    for other in [
        "small.gguf",
        "small-00003-of-00003.gguf",
        "-00001.gguf",
        "x.gguf",
    ] {
        let folder = tempfile::tempdir_in(folder.path()).unwrap();
        let message = message(&part(1).write(folder.path(), other));
        assert_says(&message, &[other, "split.no 1", "llama-gguf-split --merge"]);
    }
}

/// Writes `builder` in place of the last part and returns the first one.
fn with_last(folder: &TempDir, builder: &GgufBuilder) -> PathBuf {
    builder.write(folder.path(), &name(2));
    folder.path().join(name(0))
}

#[test]
fn parts_of_other_files_are_refused() {
    let folder = split();
    let last = |number, count, tensors| keys(GgufBuilder::new(), number, count, tensors);
    let count = small_tensors(3).len();
    for (builder, words) in [
        (GgufBuilder::new(), ["no value in split.no", "expected 2"]),
        (last(1, 3, count), ["1 in split.no", "expected 2"]),
        (last(2, 4, count), ["4 in split.count", "expected 3"]),
        (last(2, 3, 99), ["another split.tensors.count", &name(0)]),
        (
            part(2).text("general.architecture", "llama"),
            ["another general.architecture", &name(0)],
        ),
        (
            part(2).tensor("output_norm.weight", &[4], &[1.0; 4]),
            ["the tensor output_norm.weight", "each name once"],
        ),
    ] {
        let message = message(&with_last(&folder, &builder));
        assert_says(&message, &[&name(2), "do not belong together"]);
        assert_says(&message, &words);
    }
}

#[test]
fn all_tensors_must_be_there() {
    let folder = split();
    let empty = keys(GgufBuilder::new(), 2, PARTS, small_tensors(3).len());
    let message = message(&with_last(&folder, &empty));
    assert_says(
        &message,
        &["10 tensors in all parts", "14 (split.tensors.count)"],
    );
}

#[test]
fn damaged_parts_are_named() {
    let folder = split();
    std::fs::write(folder.path().join(name(1)), b"GGUF").unwrap();
    assert_says(
        &message(&folder.path().join(name(0))),
        &[&name(1), "bytes left"],
    );
}
