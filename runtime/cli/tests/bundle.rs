//! A program with its record inside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/demo")
        .join(name)
}

fn run(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .expect("the program starts")
}

fn bundle() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let bundle = folder.path().join("bundle");
    let output = Command::new(env!("CARGO_BIN_EXE_edge-lmm"))
        .arg("bundle")
        .arg("--model")
        .arg(demo("qwen2vl-tiny.bpk"))
        .arg("-o")
        .arg(&bundle)
        .output()
        .expect("the command starts");
    assert!(output.status.success(), "{output:?}");
    (folder, bundle)
}

fn answer(program: &Path) -> Output {
    let image = demo("shapes.png");
    let image = image.to_str().expect("a readable path");
    run(
        program,
        &["--image", image, "--prompt", "how many shapes are there?"],
    )
}

#[test]
fn a_bundle_answers_without_naming_a_record() {
    let (_folder, bundle) = bundle();
    let output = answer(&bundle);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "two",
        "{output:?}"
    );
    let inspect = run(&bundle, &["inspect", "--verify", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&inspect.stdout).expect("JSON");
    let record = fs::metadata(demo("qwen2vl-tiny.bpk")).expect("the record");
    assert_eq!(report["file_bytes"], record.len());
    assert_eq!(report["verified"], true);
}

#[test]
fn a_bundle_is_a_record_to_the_program() {
    let (_folder, bundle) = bundle();
    let program = Path::new(env!("CARGO_BIN_EXE_edge-lmm"));
    let bundle = bundle.to_str().expect("a readable path");
    let output = run(program, &["inspect", bundle]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_damaged_bundle_is_refused() {
    let (folder, bundle) = bundle();
    let bytes = fs::read(&bundle).expect("the bundle");
    let record = fs::metadata(demo("qwen2vl-tiny.bpk"))
        .expect("the record")
        .len() as usize;
    let middle = bytes.len() - record / 2;
    let mut changed = bytes.clone();
    changed[middle] ^= 4;
    for (name, bytes) in [("changed", &changed[..]), ("cut", &bytes[..middle])] {
        let damaged = folder.path().join(name);
        fs::copy(&bundle, &damaged).expect("a copy");
        fs::write(&damaged, bytes).expect("the damage");
        let output = answer(&damaged);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {message}");
        assert!(message.contains("damaged"), "{name}: {message}");
        assert_eq!(message.lines().count(), 1, "{name}: {message}");
    }
}

#[test]
fn only_a_whole_record_is_bundled() {
    let folder = tempfile::tempdir().expect("a folder");
    let record = folder.path().join("changed.bpk");
    let mut bytes = fs::read(demo("qwen2vl-tiny.bpk")).expect("the record");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&record, bytes).expect("a record");
    let output = folder.path().join("bundle");
    let result = Command::new(env!("CARGO_BIN_EXE_edge-lmm"))
        .args(["bundle", "--model"])
        .arg(&record)
        .arg("-o")
        .arg(&output)
        .output()
        .expect("the command starts");
    let message = String::from_utf8_lossy(&result.stderr);
    assert!(message.contains("differs from its checksum"), "{message}");
    assert!(!output.exists());
}
