//! Counts of tokens, measured times and limits of the time to the first token.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use edge_lmm_convert::source::Checkpoint;
use edge_lmm_convert::{Options, Plan, write_record};
use serde_json::{Value, json};
use tempfile::TempDir;

fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/demo")
        .join(name)
}

/// A cache folder with the times of the demo's model: of a row and of a token of prefill.
fn folder_with_times(row_ms: f64, token_ms: f64) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let output = tokens(folder.path(), &[]);
    assert!(output.status.success(), "{output:?}");
    let path = cost_file(folder.path());
    let mut file: Value = serde_json::from_slice(&fs::read(&path).expect("times")).expect("JSON");
    let curve = |linear: f64| json!({"fixed": 0.0, "linear": linear, "quadratic": 0.0});
    file["costs"] = json!({
        "preprocess": 0.0, "vision": curve(row_ms), "audio": null, "merging": 1.0,
        "prefill": curve(token_ms),
    });
    fs::write(path, file.to_string()).expect("it can be written");
    folder
}

fn cost_file(folder: &Path) -> PathBuf {
    let mut files = fs::read_dir(folder.join("costs")).expect("the folder of times");
    files.next().expect("a file").expect("a file").path()
}

/// `edge-lmm tokens` for the demo's image.
fn tokens(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge-lmm"));
    command.arg("tokens").arg(demo("shapes.png")).arg("--model");
    command.arg(demo("qwen2vl-tiny.bpk")).args(arguments);
    command.arg("--cache").arg(folder).args(["--threads", "1"]);
    command.output().expect("the program starts")
}

/// `edge-lmm run --json` with a question about the demo's image.
fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge-lmm"));
    command
        .arg("run")
        .arg(demo("qwen2vl-tiny.bpk"))
        .arg("--image");
    command
        .arg(demo("shapes.png"))
        .args(["--json", "--prompt", "how many shapes are there?"]);
    command.arg("--cache").arg(folder).args(["--threads", "1"]);
    command
        .args(arguments)
        .output()
        .expect("the program starts")
}

fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn times_are_measured_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = tokens(folder.path(), &["--json"]);
    assert!(
        errors(&first).contains("were measured in"),
        "{}",
        errors(&first)
    );
    let report = json_of(&first);
    assert!(
        report["prompt"]["first_token_ms"].as_f64() > Some(0.0),
        "{report}"
    );
    let second = tokens(folder.path(), &["--json"]);
    assert_eq!(errors(&second), "");
    // Numbers in text are rounded in the last digit.
    let ms = |report: &Value| report["prompt"]["first_token_ms"].as_f64().expect("a time");
    assert!((ms(&json_of(&second)) / ms(&report) - 1.0).abs() < 1e-9);
    let again = tokens(folder.path(), &["--measure"]);
    assert!(errors(&again).contains("were measured in"));
    // A damaged file is reported and replaced.
    fs::write(cost_file(folder.path()), "{").expect("it can be written");
    let damaged = tokens(folder.path(), &[]);
    let found = errors(&damaged);
    assert!(
        found.contains("is ignored") && found.contains("were measured in"),
        "{found}"
    );
    assert_eq!(errors(&tokens(folder.path(), &[])), "");
}

/// The counts are those of an answer, with each kind of method.
#[test]
fn counts_are_those_of_an_answer() {
    let folder = folder_with_times(1.0, 1.0);
    for chain in [
        None,
        Some("duplicates"),
        Some("merge:0.5,diverse:0.5"),
        Some("duplicates:50%,stride:0.3,language:1:0.5"),
    ] {
        let reduce: Vec<&str> = chain
            .into_iter()
            .flat_map(|chain| ["--reduce", chain])
            .collect();
        let answer = json_of(&run(folder.path(), &reduce));
        let question = ["--json", "--prompt", "how many shapes are there?"];
        let report = json_of(&tokens(folder.path(), &[&reduce[..], &question].concat()));
        let file = &report["files"][0];
        assert_eq!(file["tokens"], answer["visual_tokens"], "{chain:?}");
        assert_eq!(
            report["prompt"]["tokens"], answer["prompt_tokens"],
            "{chain:?}"
        );
        assert_eq!(
            report["prompt"]["reductions"], answer["reductions"],
            "{chain:?}"
        );
        assert_eq!(answer["estimated_first_token_ms"], Value::Null);
        let rows = 4.0 * file["all_tokens"].as_f64().expect("a number");
        if chain.is_none() {
            assert_eq!(file["encoding_ms"], rows);
        }
    }
}

#[test]
fn the_table_has_smaller_settings() {
    let folder = folder_with_times(1.0, 1.0);
    let report = json_of(&tokens(
        folder.path(),
        &["--json", "--image-tokens", "1..100"],
    ));
    let file = &report["files"][0];
    assert_eq!(
        (&file["kind"], &file["frames"]),
        (&json!("image"), &Value::Null)
    );
    let all = file["tokens"].as_u64().expect("a number");
    let share = all as f64 / report["context_length"].as_f64().expect("a number");
    assert_eq!(file["context_share"], share);
    for smaller in file["smaller"].as_array().expect("settings") {
        assert!(smaller["tokens"].as_u64() < Some(all), "{smaller}");
        assert!(smaller["tokens"].as_u64() <= smaller["image_tokens"].as_u64());
    }
    let output = tokens(folder.path(), &["--reduce", "diverse:0.5"]);
    let table = String::from_utf8(output.stdout).expect("text");
    let expected = format!("{} of {all}", all.div_ceil(2));
    assert!(
        table.contains(&expected) && table.contains("first token after about"),
        "{table}"
    );
    assert!(table.contains("reduced by diverse:0.5"), "{table}");
}

/// With 1 ms for each row and each token, what the budget asks for is known.
#[test]
fn the_reduction_follows_the_budget() {
    let folder = folder_with_times(1.0, 1.0);
    let full = json_of(&tokens(
        folder.path(),
        &["--json", "--prompt", "how many shapes are there?"],
    ));
    let all = full["prompt"]["first_token_ms"].as_f64().expect("a number");
    let visual = full["files"][0]["tokens"].as_u64().expect("a number");
    let budget = |ms: f64| run(folder.path(), &["--first-token-budget", &ms.to_string()]);
    let enough = json_of(&budget(all));
    assert_eq!(
        (&enough["visual_tokens"], &enough["reductions"]),
        (&json!(visual), &json!([]))
    );
    assert_eq!(enough["estimated_first_token_ms"], all);
    // A little less needs fewer tokens, but not another encoder.
    let less = json_of(&budget(all - 1.0));
    assert_eq!(less["reductions"][0]["method"], "diverse");
    assert_eq!(less["reductions"][0]["tokens"], (3 * visual + 2) / 4);
    // Most of the time is spent in the encoder's rows, so that they have to be merged.
    let limit = 0.7 * all;
    let output = budget(limit);
    let short = json_of(&output);
    assert_eq!(short["reductions"][0]["method"], "merge");
    assert!(
        short["estimated_first_token_ms"].as_f64() <= Some(limit),
        "{short}"
    );
    assert_eq!(errors(&output), "");
    let auto = run(
        folder.path(),
        &[
            "--reduce",
            "auto",
            "--first-token-budget",
            &(limit).to_string(),
        ],
    );
    assert_eq!(json_of(&auto)["reductions"], short["reductions"]);
}

#[test]
fn a_budget_that_cannot_be_met_is_reported() {
    let folder = folder_with_times(1.0, 1.0);
    let output = run(folder.path(), &["--first-token-budget", "1"]);
    let answer = json_of(&output);
    let found = errors(&output);
    assert!(found.contains("more than the limit of 1 ms"), "{found}");
    assert_eq!(answer["reductions"][0]["method"], "merge");
    assert!(answer["estimated_first_token_ms"].as_f64() > Some(1.0));
}

/// A second question about the image keeps its chain, so that only the question is computed.
#[test]
fn a_conversation_keeps_its_chain() {
    let folder = folder_with_times(1.0, 1.0);
    let mut child = Command::new(env!("CARGO_BIN_EXE_edge-lmm"))
        .arg("chat")
        .arg(demo("qwen2vl-tiny.bpk"))
        .args([
            "--json",
            "--threads",
            "1",
            "--first-token-budget",
            "150",
            "--image",
        ])
        .arg(demo("shapes.png"))
        .arg("--cache")
        .arg(folder.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut input = child.stdin.take().expect("its input");
    std::io::Write::write_all(
        &mut input,
        b"list the shapes.\nhow many shapes are there?\n",
    )
    .expect("it reads");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8(output.stdout).expect("text");
    let turns: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(turns.len(), 2, "{text}");
    assert_eq!(turns[0]["visual_tokens"], turns[1]["visual_tokens"]);
    assert!(turns[1]["reused_tokens"].as_u64() >= turns[1]["visual_tokens"].as_u64());
    let estimate = |turn: &Value| {
        turn["estimated_first_token_ms"]
            .as_f64()
            .expect("an estimate")
    };
    assert!(estimate(&turns[1]) < estimate(&turns[0]), "{text}");
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    for (arguments, expected) in [
        (&["--reduce", "auto"][..], "add --first-token-budget MS"),
        (
            &["--reduce", "diverse:0.5", "--first-token-budget", "9"],
            "without --reduce diverse:0.5",
        ),
        (
            &["--first-token-budget", "0"],
            "expected milliseconds above 0",
        ),
        (
            &["--first-token-budget", "9", "--keep-visual-tokens", "0.5"],
            "cannot be used with",
        ),
    ] {
        for output in [
            run(folder.path(), arguments),
            tokens(folder.path(), arguments),
        ] {
            assert!(!output.status.success());
            assert!(errors(&output).contains(expected), "{}", errors(&output));
        }
    }
}

/// A chain that the model cannot apply is the same error as that of `run`.
#[test]
fn chains_must_suit_the_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoint = demo("../tests/data/blip2-tiny");
    let checkpoint = Checkpoint::open(&checkpoint, None).expect("a checkpoint");
    let plan = Plan::new(&checkpoint, &Options::default()).expect("a plan");
    let blip2 = folder.path().join("blip2-tiny.bpk");
    write_record(&plan, Arc::new(checkpoint), &blip2, |_, _| {}).expect("a record");
    for (model, chain, expected) in [
        (blip2, "stride:0.25,anchors:0.5", "leave anchors out"),
        (
            demo("qwen2vl-tiny.bpk"),
            "language:3:0.5",
            "expected 1 to 2",
        ),
    ] {
        let command = |name: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_edge-lmm"));
            command.arg(name).args(["--reduce", chain, "--prompt", "x"]);
            command
        };
        let run = command("run")
            .arg(&model)
            .arg("--image")
            .arg(demo("shapes.png"))
            .output();
        let tokens = command("tokens")
            .arg(demo("shapes.png"))
            .arg("--model")
            .arg(&model)
            .output();
        for output in [run, tokens] {
            let output = output.expect("the program starts");
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            assert!(errors(&output).contains(expected), "{}", errors(&output));
        }
    }
}
