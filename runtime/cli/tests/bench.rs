//! Experiments from the command line, with small models.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, LazyLock};

use edge_lmm_convert::source::Checkpoint;
use edge_lmm_convert::{Options, Plan, write_record};
use serde_json::Value;
use tempfile::TempDir;

/// Records of the test checkpoints.
static RECORDS: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    for name in ["blip2-tiny", "llava-tiny", "qwen2audio-tiny"] {
        let checkpoint = models.join("tests/data").join(name);
        let checkpoint = Checkpoint::open(&checkpoint, None).expect("a checkpoint");
        let plan = Plan::new(&checkpoint, &Options::default()).expect("a plan");
        let path = folder.path().join(name).with_extension("bpk");
        write_record(&plan, Arc::new(checkpoint), &path, |_, _| {}).expect("a record");
    }
    let demo = folder.path().join("qwen2vl-tiny.bpk");
    fs::copy(models.join("demo/qwen2vl-tiny.bpk"), demo).expect("a copy");
    folder
});

fn record(name: &str) -> PathBuf {
    RECORDS.path().join(name).with_extension("bpk")
}

fn command(experiment: &str, models: &[&str], options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge-lmm"));
    command.args(["bench", experiment]);
    command
        .args(models.iter().map(|name| record(name)))
        .args(options);
    command
}

fn bench(experiment: &str, models: &[&str], options: &[&str]) -> Output {
    let mut command = command(experiment, models, options);
    command.output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Asserts that a command failed with one line that contains `words`.
fn refused(output: &Output, words: &[&str]) {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    let last = error.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: "), "{error}");
    for word in words {
        assert!(last.contains(word), "no {word:?} in {error}");
    }
}

/// A folder with a question set about the demo's image.
fn questions(rows: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo/shapes.png");
    fs::copy(image, folder.path().join("shapes.png")).expect("a copy");
    let manifest = format!("id,media_path,question,answer,task\n{rows}");
    fs::write(folder.path().join("m.csv"), manifest).expect("a manifest");
    folder
}

fn path(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).to_str().expect("UTF-8").to_owned()
}

/// Returns the measurements of a folder: the answer and the number of prompt tokens by case and
/// sample. Times differ between runs.
fn measurements(folder: &str) -> BTreeMap<String, String> {
    let lines = fs::read_to_string(Path::new(folder).join("results.jsonl")).expect("results");
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let key = format!("{} {} {}", line["model"], line["setting"], line["sample"]);
        (
            key,
            format!("{} {}", line["values"]["prompt_tokens"], line["text"]),
        )
    };
    lines.lines().map(line).collect()
}

#[test]
fn every_experiment_runs() {
    let vision: &[&str] = &["qwen2vl-tiny"];
    let audio: &[&str] = &["qwen2audio-tiny"];
    let both: &[&str] = &["qwen2vl-tiny", "qwen2audio-tiny"];
    let projections: &[&str] = &["blip2-tiny", "llava-tiny"];
    // Experiment, models, values, rows of the table.
    let runs: [(&str, &[&str], &str, usize); 16] = [
        ("modality-bottleneck", both, "56", 5),
        ("projection-compare", projections, "2", 4),
        ("frame-ablation", vision, "1,2", 4),
        ("serial-vs-parallel", vision, "", 3),
        ("module-profile", both, "", 0),
        ("video-audio-encode", both, "1", 3),
        ("two-devices", vision, "56", 4),
        ("audio-length", audio, "0.5,1", 2),
        ("audio-padding", audio, "1", 2),
        ("multiturn", both, "2", 8),
        ("token-prefill", vision, "40,80", 2),
        ("defects", both, "1", 3),
        ("resolution", vision, "56,112", 2),
        ("quantization", vision, "", 0),
        ("threads", vision, "1,2", 2),
        ("parallel", vision, "1,3", 2),
    ];
    for (experiment, models, values, rows) in runs {
        let again: Vec<&str>;
        let models = match experiment {
            "quantization" => {
                again = [models, models].concat();
                &again
            }
            _ => models,
        };
        let quick = ["--repeat", "1", "--warmup", "0", "--max-tokens", "2"];
        let machine = ["--json", "--threads", "2"];
        let varied: &[&str] = match values {
            "" => &[],
            values => &["--values", values],
        };
        let options = [&quick[..], &machine, varied].concat();
        let report = report(&bench(experiment, models, &options));
        assert_eq!(report["experiment"], experiment);
        let table = report["table"]["rows"].as_array().expect("rows");
        assert!(
            !table.is_empty() && (rows == 0 || table.len() == rows),
            "{experiment}: {table:?}"
        );
        let columns = report["table"]["columns"].as_array().expect("columns");
        assert!(
            table
                .iter()
                .all(|row| row.as_array().unwrap().len() == columns.len())
        );
        for part in ["charts", "notes", "environments"] {
            let part = report[part].as_array().expect(part);
            assert!(!part.is_empty(), "{experiment}: {report}");
        }
    }
}

#[test]
fn the_list_explains_every_experiment() {
    let list = text(&bench("list", &[], &[]).stdout);
    let help = text(&bench("--help", &[], &[]).stdout);
    for name in [
        "modality-bottleneck",
        "threads",
        "token-reduction",
        "kernels",
    ] {
        assert!(list.contains(name) && help.contains(name), "{list}\n{help}");
    }
    let varies = list
        .lines()
        .filter(|line| line.trim().starts_with("varies:"));
    assert_eq!(varies.count(), 19);
}

/// A run that was killed while it wrote a line is continued; other options are refused.
#[test]
fn a_run_is_continued() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = path(&folder, "out");
    let run = |repeat: &str, more: &[&str]| {
        let options = ["--out", &out, "--repeat", repeat, "--max-tokens", "2"];
        let values = ["--values", "56,84", "--json"];
        bench(
            "resolution",
            &["qwen2vl-tiny"],
            &[&options[..], &values, more].concat(),
        )
    };
    let first = report(&run("3", &[]));
    let file = folder.path().join("out/results.jsonl");
    let whole = fs::read(&file).expect("results");
    assert_eq!(text(&whole).lines().count(), 6);
    // Nothing is measured again: the times are the same, up to the last digit of a number that was
    // written and read.
    let rows = |report: &Value| -> Vec<Vec<String>> {
        let rows = report["table"]["rows"].as_array().expect("rows");
        let cell = |cell: &Value| match cell.as_f64() {
            Some(number) => format!("{number:.9}"),
            None => cell.to_string(),
        };
        let cells = |row: &Value| row.as_array().expect("cells").iter().map(cell).collect();
        rows.iter().map(cells).collect()
    };
    assert_eq!(rows(&report(&run("3", &[]))), rows(&first));
    // The last two lines are gone, and a part of the one before.
    let cut = text(&whole)
        .lines()
        .take(3)
        .map(|line| line.len() + 1)
        .sum::<usize>();
    fs::write(&file, &whole[..cut + 20]).unwrap();
    report(&run("3", &[]));
    let again = fs::read(&file).expect("results");
    assert!(again.starts_with(&whole[..cut]) && text(&again).lines().count() == 6);
    refused(
        &run("4", &[]),
        &["another run", "repeat is 4 here and 3 there"],
    );
    refused(
        &run("3", &["--shard", "1/2"]),
        &["the shard is 1/2 here and 1/1 there"],
    );
    // Another process holds the lock.
    let lock = File::options().write(true).open(&file).unwrap();
    lock.lock().expect("a lock");
    refused(
        &run("3", &[]),
        &["another program is writing", "another folder"],
    );
    drop(lock);
    fs::write(&file, [b"{}\n", &whole[..]].concat()).unwrap();
    refused(&run("3", &[]), &["results.jsonl is damaged in line 1"]);
}

#[test]
fn shards_are_the_whole() {
    let rows = "a,shapes.png,how many shapes are there?,two,count\n\
                b,shapes.png,is there a red circle?,no,exist\n\
                c,shapes.png,list the shapes.,\"blue square, yellow cross\",list\n";
    let folder = questions(rows);
    let manifest = path(&folder, "m.csv");
    let run = |out: &str, shard: &[&str]| {
        let out = path(&folder, out);
        let options = [
            "--manifest",
            &manifest,
            "--out",
            &out,
            "--json",
            "--threads",
            "1",
        ];
        let chains = ["--chain", "merge:0.5", "--chain", "diverse:0.25"];
        let options = [&options[..], &chains, shard].concat();
        (
            report(&bench("token-reduction", &["qwen2vl-tiny"], &options)),
            out,
        )
    };
    let (whole, all) = run("all", &[]);
    let (_, first) = run("first", &["--shard", "1/2"]);
    let (_, second) = run("second", &["--shard", "2/2"]);
    let merge = |folders: &[&str], out: &str| {
        let out = path(&folder, out);
        bench(
            "merge",
            &[],
            &[folders, &["--out", &out, "--json"]].concat(),
        )
    };
    let merged = report(&merge(&[&second, &first], "merged"));
    assert_eq!(measurements(&path(&folder, "merged")), measurements(&all));
    assert_eq!(measurements(&all).len(), 9);
    let accuracy = |report: &Value| -> Vec<Value> {
        let rows = report["table"]["rows"].as_array().unwrap().iter();
        rows.map(|row| row.as_array().unwrap().last().unwrap().clone())
            .collect()
    };
    assert_eq!(accuracy(&merged), accuracy(&whole));
    assert_eq!(accuracy(&whole)[0], 100.0);
    refused(&merge(&[&first], "x"), &["missing shards: 2/2"]);
    refused(&merge(&[&first, &first], "x"), &["both shard 1/2"]);
    refused(&merge(&[&first, &all], "x"), &["same number of shards"]);
    refused(
        &merge(&[&first, &second], "merged"),
        &["has results already"],
    );
    refused(
        &merge(&[folder.path().to_str().unwrap()], "x"),
        &["no plan.json"],
    );
    let results = Path::new(&second).join("results.jsonl");
    let lines = fs::read_to_string(&results).unwrap();
    fs::write(&results, lines.lines().next().unwrap().to_owned() + "\n").unwrap();
    refused(
        &merge(&[&first, &second], "x"),
        &["shard 2/2", "lacks 2 of 3"],
    );
    let options = [
        "--repeat",
        "1",
        "--shard",
        "2/2",
        "--out",
        &path(&folder, "empty"),
    ];
    let output = bench("resolution", &["qwen2vl-tiny"], &options);
    refused(&output, &["shard 2/2 has no measurements", "1 samples"]);
}

/// A sample whose medium is missing is reported, the others are measured; when the medium is there,
/// the run can be completed.
#[test]
fn failures_are_recorded() {
    let rows = "a,shapes.png,how many shapes are there?,two,count\n\
                b,other.png,how many shapes are there?,two,count\n";
    let folder = questions(rows);
    let (manifest, out) = (path(&folder, "m.csv"), path(&folder, "out"));
    let csv = path(&folder, "table.csv");
    let options = [
        "--manifest",
        &manifest,
        "--out",
        &out,
        "--csv",
        &csv,
        "--values",
        "56",
    ];
    let run = || bench("resolution", &["qwen2vl-tiny"], &options);
    let output = run();
    refused(&output, &["1 measurements failed", "sample b", "other.png"]);
    assert!(text(&output.stdout).contains("visual tokens"));
    assert!(
        fs::read_to_string(&csv)
            .unwrap()
            .starts_with("model,side px,visual tokens")
    );
    let lines = fs::read_to_string(Path::new(&out).join("results.jsonl")).unwrap();
    assert!(
        lines.lines().count() == 2 && lines.contains("\"error\":"),
        "{lines}"
    );
    fs::copy(
        folder.path().join("shapes.png"),
        folder.path().join("other.png"),
    )
    .unwrap();
    // The medium was of no known kind when the run was planned; the questions are the same.
    assert!(run().status.success(), "{}", text(&run().stderr));
}

#[test]
fn questions_must_suit_the_experiment() {
    let folder = questions("");
    let manifest = path(&folder, "m.csv");
    let run = |experiment, models: &[&str], options: &[&str]| bench(experiment, models, options);
    let with = ["--manifest", &*manifest];
    refused(
        &run("resolution", &["qwen2vl-tiny"], &with),
        &["has no questions"],
    );
    let row = "a,shapes.png,what is this?,a shape,x\n";
    let header = "id,media_path,question,answer,task\n";
    fs::write(&manifest, format!("{header}{row}")).unwrap();
    let videos = run("frame-ablation", &["qwen2vl-tiny"], &with);
    refused(&videos, &["none of its 1 questions is about videos"]);
    fs::write(&manifest, format!("{header}{row}{row}")).unwrap();
    let twice = run("resolution", &["qwen2vl-tiny"], &with);
    refused(&twice, &["two questions have the id \"a\""]);
    let sounds = run("audio-length", &["qwen2vl-tiny"], &[]);
    refused(&sounds, &["Qwen2-Audio", "qwen2vl-tiny cannot take sounds"]);
    let one = run("projection-compare", &["llava-tiny"], &[]);
    refused(&one, &["two or more records", "1 record was given"]);
    let without = run("token-reduction", &["qwen2vl-tiny"], &[]);
    refused(&without, &["--manifest"]);
    let small = run("resolution", &["qwen2vl-tiny"], &["--values", "0"]);
    refused(&small, &["--values", "0 is not a whole number from 1"]);
    let twice = run("resolution", &["qwen2vl-tiny"], &["--values", "56,56"]);
    refused(&twice, &["56 is given twice"]);
}

/// A disk that becomes full leaves complete lines, and the run can be continued.
#[test]
fn a_full_disk_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = path(&folder, "out");
    let options = [
        "--out",
        &*out,
        "--repeat",
        "20",
        "--values",
        "56",
        "--max-tokens",
        "1",
    ];
    let limited = {
        let program = command("resolution", &["qwen2vl-tiny"], &options);
        let mut shell = Command::new("bash");
        // A block has 1024 bytes; the plan and some lines fit.
        shell.args(["-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "bash"]);
        shell.arg(program.get_program()).args(program.get_args());
        shell.output().expect("bash starts")
    };
    refused(&limited, &["results.jsonl", "measurements are kept"]);
    let kept = fs::read_to_string(Path::new(&out).join("results.jsonl")).unwrap();
    assert!(kept.ends_with('\n') && kept.lines().count() > 1, "{kept}");
    assert!(
        bench("resolution", &["qwen2vl-tiny"], &options)
            .status
            .success()
    );
    let all = fs::read_to_string(Path::new(&out).join("results.jsonl")).unwrap();
    assert!(all.starts_with(&kept) && all.lines().count() == 20);
}

/// Each finding has figures of the study and, where a record suits it, of this program.
#[test]
fn the_study_is_compared() {
    let quick = [
        "--repeat",
        "1",
        "--warmup",
        "0",
        "--max-tokens",
        "2",
        "--json",
    ];
    let demo = report(&bench("paper", &[], &quick));
    let notes = demo["notes"].to_string();
    for part in [
        "embedded model",
        "Finding 2 was not measured",
        "Qwen2-Audio",
    ] {
        assert!(notes.contains(part), "{notes}");
    }
    let models = [
        "qwen2vl-tiny",
        "blip2-tiny",
        "llava-tiny",
        "qwen2audio-tiny",
    ];
    let all = report(&bench("paper", &models, &quick));
    assert!(
        !all["notes"].to_string().contains("not measured: it needs"),
        "{all}"
    );
    let rows = all["table"]["rows"].as_array().expect("rows");
    let figure = |quantity: &str| {
        let mut rows = rows.iter();
        let row = rows.find(|row| row[1] == quantity).expect(quantity);
        (row[3].as_f64(), row[4].as_f64())
    };
    let (study, ours) = figure("encoder, high resolution");
    assert!(study == Some(92.0) && ours.is_some_and(|share| (1.0..100.0).contains(&share)));
    let (_, tokens) = figure("MLP / Q-Former, visual tokens");
    assert_eq!(tokens, Some(4.0));
    let (_, encodings) = figure("encodings in turn 3");
    assert_eq!(encodings, Some(0.0));
}

/// Nothing starts that does not fit into the time. The same command measures what is missing.
#[test]
fn the_time_of_the_study_is_limited() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = path(&folder, "out");
    let models = ["qwen2vl-tiny", "qwen2audio-tiny"];
    let quick = ["--repeat", "2", "--warmup", "0", "--max-tokens", "2"];
    let options = |minutes: &'static str| -> Vec<&str> {
        let limit = ["--json", "--minutes", minutes, "--out", &out];
        [&quick[..], &limit].concat()
    };
    let limited = bench("paper", &models, &options("0.0001"));
    refused(
        &limited,
        &["not measured: the time limit of 0.0001 minutes"],
    );
    let limited: Value = serde_json::from_slice(&limited.stdout).expect("JSON");
    let failures = limited["failures"].as_array().expect("failures");
    let measured = || {
        let folders = fs::read_dir(&out).expect("results").map(|entry| {
            let path = entry.expect("a folder").path();
            measured_cases(path.to_str().expect("UTF-8"))
        });
        folders.fold((0, 0), |sum, (measured, failed)| {
            (sum.0 + measured, sum.1 + failed)
        })
    };
    // The limit may be over before the first measurement.
    assert!(
        measured().0 <= 1 && measured().1 == failures.len(),
        "{limited}"
    );
    let notes = limited["notes"].to_string();
    assert!(
        notes.contains("Finding 3 was not measured completely"),
        "{notes}"
    );
    let cases = measured().0 + measured().1;

    let complete = report(&bench("paper", &models, &options("60")));
    assert_eq!(complete["failures"], Value::Array(Vec::new()));
    assert_eq!(measured(), (2 * cases, 0));
    for minutes in ["0", "-1", "x", "1e300"] {
        let wrong = bench("paper", &models, &["--minutes", minutes]);
        assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong.stderr));
    }
}

/// Returns the numbers of measurements in a folder that succeeded and failed at last.
fn measured_cases(folder: &str) -> (usize, usize) {
    let lines = fs::read_to_string(Path::new(folder).join("results.jsonl")).expect("results");
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let key = format!("{} {} {}", line["model"], line["setting"], line["sample"]);
        (key, line["error"].is_null())
    };
    let last: BTreeMap<String, bool> = lines.lines().map(line).collect();
    let measured = last.values().filter(|&&measured| measured).count();
    (measured, last.len() - measured)
}
