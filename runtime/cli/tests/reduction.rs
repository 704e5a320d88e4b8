//! Reduction of visual tokens from the command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/demo")
        .join(name)
}

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge-lmm"));
    command.args(arguments);
    command.output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn answer(options: &[&str]) -> Value {
    let (model, image) = (demo("qwen2vl-tiny.bpk"), demo("shapes.png"));
    let (model, image) = (model.to_str().unwrap(), image.to_str().unwrap());
    let question = ["--prompt", "how many shapes are there?", "--json"];
    let output = run(&[&["run", model, "--image", image], &question[..], options].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Steps are reported in the order in which they run.
#[test]
fn tokens_are_accounted_for_after_every_step() {
    let whole = answer(&[]);
    let all = whole["visual_tokens"].as_u64().unwrap();
    assert_eq!(whole["reductions"], Value::Array(Vec::new()));
    let reduced = answer(&["--reduce", "language:1:0.5,diverse:0.5,merge:0.5"]);
    let steps = reduced["reductions"].as_array().unwrap();
    let step = |i: usize| {
        let step = &steps[i];
        let name = |key: &str| step[key].as_str().unwrap().to_owned();
        (
            name("method"),
            name("stage"),
            step["tokens"].as_u64().unwrap(),
        )
    };
    let name = |method: &str, stage: &str| (method.to_owned(), stage.to_owned());
    let expected = [
        ("merge", "vision"),
        ("diverse", "projector"),
        ("language", "prefill"),
    ];
    let mut left = all;
    for (i, (method, stage)) in expected.into_iter().enumerate() {
        left = left.div_ceil(2);
        let (found, place, tokens) = step(i);
        assert_eq!(((found, place), tokens), (name(method, stage), left));
    }
    assert_eq!(reduced["visual_tokens"].as_u64(), Some(all.div_ceil(4)));
    let share = answer(&["--keep-visual-tokens", "25%"]);
    assert_eq!(share["visual_tokens"].as_u64(), Some((all + 2) / 4));
}

#[test]
fn wrong_chains_are_wrong_usage() {
    let model = demo("qwen2vl-tiny.bpk");
    for (chain, part) in [
        ("prune:0.5", "there is no method \"prune\""),
        ("diverse:2", "the share of tokens to keep"),
        ("merge:0.5,merge:0.25", "merge occurs twice"),
        ("language:0:0.5", "at least 1"),
    ] {
        let output = run(&[
            "run",
            model.to_str().unwrap(),
            "--prompt",
            "x",
            "--reduce",
            chain,
        ]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(part), "{error}");
    }
    // The model has three layers.
    let image = demo("shapes.png");
    let arguments = [
        "--image",
        image.to_str().unwrap(),
        "--reduce",
        "language:3:0.5",
    ];
    let output = run(&[
        &["run", model.to_str().unwrap(), "--prompt", "x"],
        &arguments[..],
    ]
    .concat());
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("expected 1 to 2"), "{error}");
}

/// The experiment answers every question without reduction and with each chain, and compares the
/// right answers with those of a file.
#[test]
fn chains_are_compared_on_a_question_set() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::copy(demo("shapes.png"), path("shapes.png")).unwrap();
    let manifest = "id,media_path,question,answer,task\n\
                    a,shapes.png,how many shapes are there?,nonsense,count\n\
                    b,shapes.png,what color is the circle?,nonsense,color\n";
    fs::write(path("manifest.csv"), manifest).unwrap();
    let reference = "reduce,task,right,questions\n,all,1,2\nmerge:0.5,all,2,2\n";
    fs::write(path("reference.csv"), reference).unwrap();
    let model = demo("qwen2vl-tiny.bpk");
    let bench = |more: &[&str]| {
        let manifest = path("manifest.csv");
        let fixed = [
            "bench",
            "token-reduction",
            model.to_str().unwrap(),
            "--manifest",
            &manifest,
        ];
        let chains = [
            "--chain",
            "merge:0.5",
            "--chain",
            "diverse:0.25,language:1:0.5",
        ];
        let output = run(&[&fixed[..], &chains, more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let report: Value = serde_json::from_str(&bench(&["--json"])).expect("JSON");
    let columns = report["table"]["columns"].as_array().expect("columns");
    let cell = |row: usize, name: &str| {
        let column = columns.iter().position(|column| column["name"] == name);
        report["table"]["rows"][row][column.expect(name)].as_f64()
    };
    let kept: Vec<f64> = (0..3).filter_map(|row| cell(row, "tokens")).collect();
    assert!(
        kept[0] == 100.0 && kept[1] == 50.0 && kept[2] < 20.0,
        "{kept:?}"
    );
    assert_eq!(cell(2, "count"), Some(0.0));
    let table = bench(&[
        "--reference",
        &path("reference.csv"),
        "--scores",
        &path("ours.csv"),
    ]);
    assert!(
        table.contains("reference") && table.contains("100.0"),
        "{table}"
    );
    let rows = fs::read_to_string(path("ours.csv")).unwrap();
    assert!(rows.contains("merge:0.5,all,0,2"), "{rows}");
}
