//! Output paths are checked before work starts, files are complete or untouched, and no temporary
//! files remain.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::damage::{Copy, command};
use common::data;

fn convert(source: &Path, record: &Path, options: &[&str]) -> Output {
    command(source, record)
        .args(options)
        .output()
        .expect("the command starts")
}

fn refused(output: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "no {word:?} in {stderr}");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The source does not exist, so only a check before reading it can reject the output.
#[test]
fn outputs_are_checked_first() {
    let nothing = Path::new("/nonexistent/model");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("directory")).expect("a folder");
    refused(
        &convert(nothing, &path("absent/model.bpk"), &[]),
        &["absent/model.bpk", "no folder"],
    );
    refused(
        &convert(nothing, &path("directory"), &["--force"]),
        &["it is a folder"],
    );
    let report = path("absent/report.json");
    let report = ["--report", report.to_str().unwrap()];
    refused(
        &convert(nothing, &path("model.bpk"), &report),
        &["report.json", "no folder"],
    );
    let same = path("./model.bpk");
    let same = ["--report", same.to_str().unwrap()];
    refused(
        &convert(nothing, &path("model.bpk"), &same),
        &["it is the report"],
    );
    assert_eq!(names(folder.path()), ["directory"]);
}

#[cfg(unix)]
#[test]
fn links_and_devices_are_told() {
    let source = data().join("qwen2vl-tiny");
    let folder = tempfile::tempdir().expect("a folder");
    let link = folder.path().join("link.bpk");
    std::os::unix::fs::symlink("elsewhere.bpk", &link).expect("a link");
    refused(&convert(&source, &link, &[]), &["broken symbolic link"]);
    refused(
        &convert(&source, &link, &["--force"]),
        &["broken symbolic link"],
    );
    refused(
        &convert(&source, Path::new("/dev/null"), &["--force"]),
        &["device"],
    );
    assert_eq!(names(folder.path()), ["link.bpk"]);
}

#[test]
fn inputs_are_not_overwritten() {
    let copy = Copy::of("qwen2vl-tiny");
    let before = fs::read(copy.path().join("model.safetensors")).expect("weights");
    for file in ["model.safetensors", "tokenizer.json"] {
        refused(
            &convert(copy.path(), &copy.path().join(file), &["--force"]),
            &[file, "an input"],
        );
    }
    let config = copy.path().join("config.json");
    refused(
        &convert(
            copy.path(),
            &copy.path().join("model.bpk"),
            &["--report", config.to_str().unwrap()],
        ),
        &["config.json", "an input"],
    );
    let after = fs::read(copy.path().join("model.safetensors")).expect("weights");
    assert_eq!(before, after);
    assert!(!copy.path().join("model.bpk").exists());
}

#[test]
fn a_report_replaces_another_when_it_is_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = folder.path().join("report.json");
    fs::write(&report, "old").expect("a file");
    let options = ["--report", report.to_str().unwrap()];
    let broken = Copy::of("qwen2vl-tiny");
    broken.change("model.safetensors", |bytes| {
        let end = bytes.len();
        bytes[end - 2..].copy_from_slice(&[0xff, 0xff]);
    });
    let record = folder.path().join("model.bpk");
    let failed = convert(broken.path(), &record, &options);
    assert_eq!(failed.status.code(), Some(1));
    assert_eq!(fs::read(&report).expect("the report"), b"old");
    assert_eq!(names(folder.path()), ["report.json"]);
    let converted = convert(&data().join("qwen2vl-tiny"), &record, &options);
    assert!(converted.status.success());
    let text = fs::read(&report).expect("the report");
    serde_json::from_slice::<serde_json::Value>(&text).expect("JSON");
    assert_eq!(names(folder.path()), ["model.bpk", "report.json"]);
}

#[test]
fn what_a_killed_conversion_left_is_used_again() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join(".model.bpk.part"), [0; 5000]).expect("a file");
    let record = folder.path().join("model.bpk");
    assert!(
        convert(&data().join("qwen2vl-tiny"), &record, &[])
            .status
            .success()
    );
    assert_eq!(names(folder.path()), ["model.bpk"]);
    let again = convert(&data().join("qwen2vl-tiny"), &folder.path().join("b"), &[]);
    assert!(again.status.success());
    assert_eq!(
        fs::read(record).expect("a record"),
        fs::read(folder.path().join("b")).expect("a record")
    );
}

#[cfg(unix)]
#[test]
fn an_interrupted_conversion_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut child = command(&data().join("blip2-tiny"), &folder.path().join("model.bpk"))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the command starts");
    let part = folder.path().join(".model.bpk.part");
    let start = Instant::now();
    while !part.exists() && start.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_micros(100));
    }
    let id = child.id().to_string();
    let sent = std::process::Command::new("kill")
        .args(["-TERM", &id])
        .status()
        .expect("kill");
    assert!(sent.success());
    let output = child.wait().map(|status| status.code()).expect("an end");
    assert_eq!(output, Some(143));
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

/// A limit of the size of files stands for a full disk: the record, and each file that exists only
/// while the record is made, are larger.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_record_before() {
    let source = data().join("qwen2vl-tiny");
    for (options, file) in [
        (&["--method", "nearest"][..], "model.bpk:"),
        (&["--method", "weighted"], "model.bpk.calibration:"),
        (&["--prune-ffn", "0.5"], "model.bpk.pruning:"),
        (&["--bits", "5"], "model.bpk.rounded:"),
        (&["--bits", "5", "--method", "nearest"], "model.bpk.mixed:"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let record = folder.path().join("model.bpk");
        fs::write(&record, "old").expect("a file");
        let mut shell = Command::new("bash");
        // A block has 1024 bytes.
        shell.args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$@\"", "bash"]);
        shell.arg(env!("CARGO_BIN_EXE_edge-lmm-convert"));
        shell.arg(&source).arg("-o").arg(&record);
        shell.arg("--force").args(options);
        let output = shell.output().expect("bash starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{options:?}: {stderr}");
        let error = stderr.lines().last().unwrap_or_default();
        assert!(error.starts_with("error: cannot write"), "{stderr}");
        assert!(error.contains(file), "{options:?}: {stderr}");
        assert_eq!(names(folder.path()), ["model.bpk"], "{options:?}");
        assert_eq!(fs::read(&record).expect("the record"), b"old");
    }
}

#[test]
fn options_that_only_refuse_do_not_exist() {
    let source = data().join("qwen2vl-tiny");
    let folder = tempfile::tempdir().expect("a folder");
    for options in [["--method", "magic"], ["--prune-layers", "1"]] {
        // The helper of the other tests gives a method already.
        let output = Command::new(env!("CARGO_BIN_EXE_edge-lmm-convert"))
            .arg(&source)
            .arg("-o")
            .arg(folder.path().join("model.bpk"))
            .args(options)
            .output()
            .expect("the command starts");
        assert_eq!(output.status.code(), Some(2));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("invalid value"), "{stderr}");
    }
}
