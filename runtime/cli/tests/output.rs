//! Standard output that nobody reads, or that takes nothing.

#![cfg(unix)]

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn run(arguments: &[&str], output: impl Into<Stdio>, input: impl Into<Stdio>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_edge-lmm"))
        .args(arguments)
        .stdin(input)
        .stdout(output)
        .stderr(Stdio::piped())
        .output()
        .expect("the program starts")
}

/// A pipe that was closed at its other end.
fn closed() -> std::io::PipeWriter {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer
}

#[test]
fn a_closed_pipe_ends_the_program_quietly() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let record = demo.join("qwen2vl-tiny.bpk");
    let record = record.to_str().expect("a readable path");
    for arguments in [
        &["doctor"][..],
        &["completions", "bash"],
        &["demo", "--no-html"],
        &["inspect", record],
        &["run", record, "--prompt", "how many shapes are there?"],
    ] {
        let ended = run(arguments, closed(), Stdio::null());
        assert_eq!(ended.status.code(), Some(0), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.is_empty(), "{arguments:?}: {ended:?}");
    }
}

#[test]
fn a_server_ends_quietly_with_its_reader() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let record = demo.join("qwen2vl-tiny.bpk");
    let requests = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(requests.path(), "{\"id\": 1, \"prompt\": \"hi\"}\n")
        .expect("the file is written");
    let input = File::open(requests.path()).expect("the file is there");
    let arguments = ["serve", record.to_str().expect("a readable path")];
    let ended = run(&arguments, closed(), input);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    // It says only that it is ready.
    let message = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let full = File::create("/dev/full").expect("Linux has it");
    let ended = run(&["doctor"], full, Stdio::null());
    let message = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{message}");
    assert!(
        message.starts_with("error: cannot write to standard output"),
        "{message}"
    );
}
