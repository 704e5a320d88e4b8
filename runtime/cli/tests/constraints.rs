//! Answers with a form, on the command line.

#![cfg(feature = "constraints")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Runs a subcommand with the demo's model.
fn run(subcommand: &str, arguments: &[&str], input: &str) -> Output {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo/qwen2vl-tiny.bpk");
    let mut child = Command::new(env!("CARGO_BIN_EXE_edge-lmm"))
        .arg(subcommand)
        .arg(model)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut writer = child.stdin.take().expect("its input");
    // A program that ends before it reads is no failure of the test.
    let _ = writer.write_all(input.as_bytes());
    drop(writer);
    child.wait_with_output().expect("it ends")
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

#[test]
fn options_give_answers_a_form() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("a file");
        path.to_str().expect("a readable path").to_owned()
    };
    let prompt = ["--prompt", "list the shapes."];
    let with = |option: &[&str]| run("run", &[&prompt, option].concat(), "");
    let schema = file("schema.json", r#"{"enum": ["circle", {"a": 1}]}"#);
    let answer: Value =
        serde_json::from_str(&text(&with(&["--json-schema", &schema]))).expect("JSON");
    assert!(answer == "circle" || answer["a"] == 1, "{answer}");
    let number = text(&with(&["--regex", "[0-9]{3}"]));
    assert!(number.trim_end().parse::<u16>().is_ok(), "{number}");
    assert_eq!(number.trim_end().len(), 3);
    let grammar = file("grammar.lark", "start: \"left\" | \"right\"\n");
    let report = text(&with(&["--grammar", &grammar, "--json", "--ignore-eos"]));
    let report: Value = serde_json::from_str(&report).expect("JSON");
    assert!(
        ["left", "right"].contains(&report["text"].as_str().expect("a text")),
        "{report}"
    );
    assert_eq!(report["finish_reason"], "stop");
    let object = text(&with(&["--json-object", "--max-tokens", "2"]));
    assert!(object.starts_with('{'), "{object}");
    let turns = text(&run("chat", &["--regex", "yes|no"], "one?\ntwo?\n"));
    assert_eq!(turns.lines().count(), 2, "{turns}");
    assert!(
        turns.lines().all(|turn| ["yes", "no"].contains(&turn)),
        "{turns}"
    );
}

#[test]
fn mistakes_have_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let broken = folder.path().join("broken.json");
    std::fs::write(&broken, "{").expect("a file");
    let broken = broken.to_str().expect("a readable path");
    for (arguments, code, words) in [
        (vec!["--regex", "("], 1, "error: invalid regular expression"),
        (
            vec!["--json-schema", broken],
            1,
            "broken.json: invalid JSON schema: it is not JSON",
        ),
        (
            vec!["--grammar", "/nowhere/a.lark"],
            1,
            "cannot read /nowhere/a.lark",
        ),
        (
            vec!["--regex", "a", "--json-object"],
            2,
            "cannot be used with",
        ),
    ] {
        let arguments = [&["--prompt", "hi"], &arguments[..]].concat();
        let output = run("run", &arguments, "");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        assert!(message.contains(words), "{arguments:?}: {message}");
        assert!(code == 2 || message.lines().count() == 1, "{message}");
    }
}
