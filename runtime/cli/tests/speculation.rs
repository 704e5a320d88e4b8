//! `--speculate` and `--draft`: the answers stay the same, and reports count the drafts.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const PROMPT: &str = "list the shapes. list the shapes. list the shapes.";

fn record() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo/qwen2vl-tiny.bpk")
}

/// Runs a command about the demo's record.
fn command(name: &str, options: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_edge-lmm"))
        .arg(name)
        .arg(record())
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // A program that rejects its options does not read.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("the program ends")
}

/// The JSON object that a command prints.
fn json(name: &str, options: &[&str], input: &str) -> Value {
    let ended = command(name, options, input);
    let text = String::from_utf8_lossy(&ended.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

fn run(options: &[&str]) -> Value {
    let fixed = [
        "--prompt",
        PROMPT,
        "--max-tokens",
        "60",
        "--ignore-eos",
        "--json",
    ];
    json("run", &[&fixed, options].concat(), "")
}

#[test]
fn answers_stay_the_same_and_drafts_are_counted() {
    let expected = run(&["--speculate", "off"]);
    assert!(expected["speculation"].is_null(), "{expected}");
    let model = record();
    let model = model.to_str().expect("a readable path");
    for options in [
        // On the processor, drafts are the default.
        &[][..],
        &["--speculate", "auto"],
        &["--speculate", "4"],
        &["--draft", model],
        &["--draft", model, "--speculate", "3"],
    ] {
        let found = run(options);
        assert_eq!(found["tokens"], expected["tokens"], "{options:?}");
        let count = |name: &str| found["speculation"][name].as_u64().expect("a number");
        assert!(
            count("accepted") <= count("drafted"),
            "{options:?}: {found}"
        );
        assert!((1..60).contains(&count("steps")), "{options:?}: {found}");
        if options.contains(&"4") || options.contains(&"3") {
            assert!(count("accepted") > 0, "{options:?}: {found}");
            assert_eq!(count("steps"), 59 - count("accepted"), "{options:?}");
        }
    }
}

/// Intermediate tensors are those of single steps.
#[test]
fn a_dump_of_stages_has_no_drafts() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("stages.safetensors");
    let found = run(&["--dump-stages", file.to_str().expect("a readable path")]);
    assert!(found["speculation"].is_null(), "{found}");
}

#[test]
fn servers_and_chats_speculate() {
    let request = format!("{{\"id\": 1, \"prompt\": {PROMPT:?}, \"max_tokens\": 20}}\n");
    for options in [&[][..], &["--speculate", "2"]] {
        let chat = [&["--json", "--max-tokens", "20"], options].concat();
        let chat = json("chat", &chat, &format!("{PROMPT}\n"));
        assert!(chat["speculation"]["steps"].is_u64(), "{chat}");
        let reply = json("serve", options, &request);
        assert!(reply["speculation"]["drafted"].is_u64(), "{reply}");
    }
    let reply = json("serve", &["--speculate", "off"], &request);
    assert!(reply["speculation"].is_null(), "{reply}");
}

#[test]
fn a_draft_that_is_not_used_is_an_error() {
    let ended = command(
        "run",
        &[
            "--prompt",
            "hi",
            "--draft",
            "none.bpk",
            "--speculate",
            "off",
        ],
        "",
    );
    let message = String::from_utf8_lossy(&ended.stderr);
    assert!(message.contains("--draft has no effect"), "{message}");
    let ended = command("run", &["--prompt", "hi", "--speculate", "99"], "");
    let message = String::from_utf8_lossy(&ended.stderr);
    assert!(message.contains("from 1 to 15"), "{message}");
    assert_eq!(ended.status.code(), Some(2));
}

#[test]
fn the_gain_is_measured() {
    let options = ["--runs", "1", "--max-tokens", "8", "--json"];
    let ended = Command::new(env!("CARGO_BIN_EXE_edge-lmm"))
        .args(["bench", "speculation"])
        .arg(record())
        .args(options)
        .output()
        .expect("the program starts");
    let report: Value = serde_json::from_slice(&ended.stdout).expect("a report");
    assert_eq!(
        report["texts"].as_array().map(Vec::len),
        Some(3),
        "{report}"
    );
    assert_eq!(report["steps"][3]["tokens"], 8, "{report}");
}
