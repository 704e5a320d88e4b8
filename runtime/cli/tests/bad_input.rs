//! Damaged, wrong and absurd input of the command gives one readable `error:` line and exit code 1,
//! never a panic, or an answer where that is sensible.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{ImageFormat, RgbImage};
use tempfile::TempDir;

fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/demo")
        .join(name)
}

fn edge_lmm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_edge-lmm"))
        .args(arguments)
        .output()
        .expect("the command starts")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a readable path")
}

/// Expects failure; the error line must hold all of `words`.
fn expect_error(arguments: &[&str], words: &[&str]) {
    let output = edge_lmm(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
    let errors: Vec<&str> = stderr
        .lines()
        .filter(|l| l.starts_with("error: "))
        .collect();
    assert_eq!(errors.len(), 1, "{arguments:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    for word in words {
        assert!(errors[0].contains(word), "no {word:?} in {:?}", errors[0]);
    }
}

fn expect_answer(arguments: &[&str]) -> String {
    let output = edge_lmm(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).expect("a file");
        path
    }

    fn image(&self, name: &str, width: u32, height: u32) -> PathBuf {
        let path = self.0.path().join(name);
        RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 90]))
            .save_with_format(&path, ImageFormat::Png)
            .expect("an image");
        path
    }
}

#[test]
fn records_that_are_none() {
    let files = Files::new();
    let run = |file: &Path, words: &[&str]| {
        expect_error(&["run", path(file), "--prompt", "hello"], words);
        expect_error(&["inspect", path(file)], words);
    };
    run(
        &files.0.path().join("absent.bpk"),
        &["absent.bpk", "No such file"],
    );
    run(files.0.path(), &["is a folder"]);
    run(&files.write("empty.bpk", b""), &["not a record", "0 bytes"]);
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 44\n";
    run(&files.write("lfs.bpk", pointer), &["Git LFS pointer"]);
    run(
        &files.write("text.bpk", b"just some text in a file"),
        &["not a record", "edge-lmm-convert"],
    );
    run(
        &files.write("gguf.bpk", b"GGUF\x03\0\0\0\0\0\0\0"),
        &["GGUF file", "edge-lmm-convert"],
    );
}

#[test]
fn truncated_records() {
    let whole = fs::read(demo("qwen2vl-tiny.bpk")).expect("the demo's record");
    let files = Files::new();
    for keep in [1, 9, 10, 11, 100, 5_000, whole.len() / 2, whole.len() - 1] {
        let file = files.write("short.bpk", &whole[..keep]);
        expect_error(&["inspect", path(&file)], &["short.bpk"]);
    }
}

#[test]
fn records_of_other_versions() {
    let whole = fs::read(demo("qwen2vl-tiny.bpk")).expect("the demo's record");
    let files = Files::new();
    let mut newer = whole.clone();
    newer[4] = 9;
    let file = files.write("newer.bpk", &newer);
    expect_error(&["inspect", path(&file)], &["version 9", "version 1"]);
    let text = br#""format_version":3"#;
    let at = whole
        .windows(text.len())
        .position(|window| window == text)
        .expect("the record says its version");
    let mut newer = whole;
    newer[at + text.len() - 1] = b'7';
    let file = files.write("newer.bpk", &newer);
    expect_error(
        &["inspect", path(&file)],
        &["record version 7", "version 3"],
    );
}

#[test]
fn flipped_bits() {
    let whole = fs::read(demo("qwen2vl-tiny.bpk")).expect("the demo's record");
    let files = Files::new();
    let header = 10 + u32::from_le_bytes(whole[6..10].try_into().expect("4 bytes")) as usize;
    for i in 0..24 {
        let mut damaged = whole.clone();
        damaged[i * header / 24] ^= 1 << (i % 8);
        let file = files.write("flipped.bpk", &damaged);
        expect_error(&["inspect", path(&file)], &["flipped.bpk"]);
    }
    let mut damaged = whole;
    let weights = damaged.len() / 2;
    damaged[weights] ^= 4;
    let file = files.write("weights.bpk", &damaged);
    expect_error(&["inspect", path(&file), "--verify"], &["checksum"]);
}

#[test]
fn images() {
    let files = Files::new();
    let model = demo("qwen2vl-tiny.bpk");
    let ask = |image: &Path| {
        let arguments = ["run", path(&model), "--image", path(image), "--prompt"];
        [
            &arguments[..],
            &["how many shapes are there?", "--max-tokens", "4"],
        ]
        .concat()
        .iter()
        .map(|&argument| argument.to_owned())
        .collect::<Vec<String>>()
    };
    let refused = |image: &Path, words: &[&str]| {
        let arguments = ask(image);
        expect_error(
            &arguments.iter().map(String::as_str).collect::<Vec<_>>(),
            words,
        );
    };
    refused(&files.0.path().join("absent.png"), &["absent.png"]);
    refused(
        &files.write("text.png", b"this is not an image"),
        &["text.png", "not an image"],
    );
    refused(
        &files.write("empty.png", b""),
        &["empty.png", "an empty file"],
    );
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 44\n";
    refused(
        &files.write("lfs.png", pointer),
        &["lfs.png", "Git LFS pointer"],
    );
    refused(
        &files.write(
            "page.png",
            b"<!DOCTYPE html>\n<html><body>404</body></html>",
        ),
        &["page.png", "HTML page"],
    );
    let png = fs::read(demo("shapes.png")).expect("the demo's image");
    refused(
        &files.write("short.png", &png[..png.len() / 2]),
        &["short.png"],
    );
    // The reference refuses an aspect ratio beyond 200, too.
    refused(&files.image("wide.png", 20_000, 10), &["2000", "200"]);
    let arguments = ask(&files.image("dot.png", 1, 1));
    expect_answer(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Missing and damaged files are failures; media that the model does not take can be skipped.
#[test]
fn question_sets_with_broken_files() {
    let files = Files::new();
    let png = fs::read(demo("shapes.png")).expect("the demo's image");
    files.write("whole.png", &png);
    files.write("damaged.png", &png[..png.len() / 2]);
    let silence = [b"RIFF\x28\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3e\0\0\0\x7d\0\0\x02\0\x10\0data\x04\0\0\0\0\0\0\0" as &[u8]].concat();
    files.write("sound.wav", &silence);
    let rows = |names: &[&str]| {
        let mut text = "id,media_path,question,answer,task\n".to_owned();
        for name in names {
            text += &format!("{name},{name},how many shapes are there?,two,count\n");
        }
        files.write("manifest.csv", text.as_bytes())
    };
    let model = demo("qwen2vl-tiny.bpk");
    let eval = |manifest: &Path| {
        let arguments = ["eval", path(&model), "--manifest", path(manifest)];
        edge_lmm(&[&arguments[..], &["--skip-unsupported", "--json"]].concat())
    };
    let report = |output: &Output| -> serde_json::Value {
        serde_json::from_slice(&output.stdout).expect("one JSON object")
    };

    let output = eval(&rows(&["whole.png", "sound.wav"]));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(report(&output)["skipped"], 1);
    assert_eq!(report(&output)["right"], 1);

    let output = eval(&rows(&["damaged.png", "whole.png", "absent.png"]));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = report(&output);
    assert_eq!(report["questions"], 1);
    assert_eq!(report["skipped"], 0);
    let failures = report["failures"].as_array().expect("failures");
    let ids: Vec<_> = failures.iter().map(|failure| &failure["id"]).collect();
    assert_eq!(ids, ["damaged.png", "absent.png"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("2 of 3 questions"), "{message}");
}

/// A wrong path is found before the model is loaded, let alone run.
#[test]
fn outputs_that_cannot_be_written() {
    let (files, model) = (Files::new(), demo("qwen2vl-tiny.bpk"));
    let missing = files.0.path().join("missing/file");
    let missing = path(&missing);
    let manifest = files.write("m.csv", b"id,media_path,question,answer,task\n1,,hi,a,t\n");
    let run = ["run", path(&model), "--prompt", "hi"];
    for arguments in [
        &[&run[..], &["--dump-stages", missing]].concat()[..],
        &[&run[..], &["--dump-stages", path(&model)]].concat(),
        &["profile", path(&model), "--chrome-trace", missing],
        &["demo", "--save-image", missing],
        &[
            "eval",
            path(&model),
            "--manifest",
            path(&manifest),
            "--predictions",
            path(&manifest),
        ],
    ] {
        expect_error(arguments, &["cannot write"]);
    }
    let record = fs::read(&model).expect("the record");
    assert!(record.starts_with(b"NRUB"), "the record is unharmed");
}

#[test]
fn prompts_beyond_the_context() {
    let model = demo("qwen2vl-tiny.bpk");
    // Every digit is a token.
    let long = "7".repeat(40_000);
    expect_error(
        &["run", path(&model), "--prompt", &long],
        &["tokens", "32768", "shorten"],
    );
}

#[test]
fn options_that_make_no_sense() {
    let model = demo("qwen2vl-tiny.bpk");
    let usage = edge_lmm(&["run", path(&model)]);
    assert_eq!(usage.status.code(), Some(2));
    let usage = edge_lmm(&[
        "run",
        path(&model),
        "--prompt",
        "hi",
        "--image-tokens",
        "9..3",
    ]);
    assert_eq!(usage.status.code(), Some(2));
    let run = ["run", path(&model), "--prompt", "hi"];
    for (option, value) in [
        ("--temperature", "-1"),
        ("--temperature", "NaN"),
        ("--top-p", "0"),
        ("--device", "cuda"),
        ("--audio", "sound.wav"),
    ] {
        let option = format!("{option}={value}");
        expect_error(&[&run[..], &[&option]].concat(), &[]);
    }
}

#[test]
fn the_answer_is_all_there_is_on_standard_output() {
    let (model, image) = (demo("qwen2vl-tiny.bpk"), demo("shapes.png"));
    let arguments = [
        "run",
        path(&model),
        "--image",
        path(&image),
        "--prompt",
        "how many shapes are there?",
        "--timing",
    ];
    let answer = expect_answer(&arguments);
    assert_eq!(answer.lines().count(), 1, "{answer:?}");
    let json = expect_answer(&[&arguments[..], &["--json"]].concat());
    let report: serde_json::Value = serde_json::from_str(&json).expect("one JSON object");
    assert_eq!(report["text"], answer.trim());
    for stage in [
        "load",
        "media",
        "preprocess",
        "vision",
        "projector",
        "prefill",
        "decode",
    ] {
        let stages = report["stages"].as_array().expect("stages");
        let found = stages.iter().find(|s| s["name"] == stage);
        assert!(
            found.is_some_and(|s| s["ms"].as_f64() > Some(0.0)),
            "{stage}"
        );
    }
}
