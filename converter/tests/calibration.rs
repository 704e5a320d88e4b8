//! Calibrated quantization of trained checkpoints.

mod common;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::manifest::Manifest;
use common::{F32, convert_checkpoint, data, samples};
use edge_lmm::output::Output;
use edge_lmm_convert::calibration::{Calibration, Method, Samples};
use edge_lmm_convert::compare::{Scorer, Windows, predict};
use edge_lmm_convert::prune::{Importance, prune_channels};
use edge_lmm_convert::{Options, Plan, Progress, Pruning, Report, write_calibrated, write_record};
use edge_lmm_kernels::pool::{ThreadPool, scoped};
use edge_lmm_ops::Format;

/// 4 bits for the language model, whose predictions are compared.
const Q4: Options = Options {
    text: Format::Q4,
    vision: Format::F32,
    audio: Format::F32,
    head: Some(Format::Q8),
    weights: BTreeMap::new(),
};

fn questions() -> Samples {
    samples::questions(4)
}

fn calibrated(name: &str, formats: &Options, method: Method, path: &Path) -> Report {
    let checkpoint = Arc::new(Manifest::named(name).open());
    let plan = Plan::new(&checkpoint, formats).expect("a plan");
    let weights = path.with_extension("calibration");
    let calibration = Calibration::new(method, questions(), &weights);
    let output = Output::create(path, true).expect("an output");
    let report = write_calibrated(output, &plan, checkpoint, Some(calibration), |_, _| {});
    assert!(!weights.exists(), "the temporary weights are left");
    report.expect("a record")
}

/// Mean divergences of records from the first one, on the questions and answers as a text.
fn divergences(folder: &Path, records: &[PathBuf]) -> Vec<f64> {
    let text = samples::write_text(folder);
    let mut models: Vec<Scorer> = (records.iter())
        .map(|record| Scorer::open(record).expect("a record"))
        .collect();
    let windows = Windows::of_text(&text, models[0].record().tokenizer(), 32).expect("windows");
    let found = predict(&mut models, &windows.first(20), |_| {}).expect("predictions");
    let divergence = |p: &edge_lmm_convert::compare::Predictions| p.divergence.map(|d| d.mean);
    found.iter().filter_map(divergence).collect()
}

#[test]
fn each_method_is_better_than_the_one_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let float = convert_checkpoint(Manifest::named("qwen2vl-tiny").open(), &F32).expect("a record");
    let nearest =
        convert_checkpoint(Manifest::named("qwen2vl-tiny").open(), &Q4).expect("a record");
    let mut records = vec![float.path.clone(), nearest.path.clone()];
    for method in [Method::Weighted, Method::Gptq, Method::Best] {
        let path = folder.path().join(format!("{}.bpk", method.name()));
        calibrated("qwen2vl-tiny", &Q4, method, &path);
        records.push(path);
    }
    let found = divergences(folder.path(), &records);
    let [nearest, weighted, gptq, best] = found[..] else {
        panic!("{found:?}");
    };
    assert!(weighted < nearest, "{found:?}");
    assert!(gptq < 0.8 * nearest, "{found:?}");
    assert!(best < 0.5 * nearest, "{found:?}");
}

/// A weight in 8 bits makes up for what those in 4 bits have lost, which changes it by more than
/// rounding does.
#[test]
fn weights_in_eight_bits_are_moved() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.bpk");
    let name = "text.layers.2.down.weight";
    let formats = Options {
        weights: BTreeMap::from([(name.to_owned(), Format::Q8)]),
        ..Q4
    };
    let [rounded, moved] = [Method::Gptq, Method::Best].map(|method| {
        let report = calibrated("qwen2vl-tiny", &formats, method, &path);
        let weight = report.tensors.iter().find(|tensor| tensor.name == name);
        weight.expect("the weight").relative_error
    });
    // Both changes are independent, so that their squares add up.
    assert!(
        moved > std::f64::consts::SQRT_2 * rounded,
        "{moved} and {rounded}"
    );
}

/// The channels that are left make up for the others: more than 4 or 8 bits take away.
#[test]
fn pruned_channels_are_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let float = convert_checkpoint(Manifest::named("qwen2vl-tiny").open(), &F32).expect("a record");
    let checkpoint = Arc::new(Manifest::named("qwen2vl-tiny").open());
    let whole = Plan::new(&checkpoint, &F32).expect("a plan");
    let temporary = folder.path().join("temporary");
    let importance = Importance::measure(
        &whole,
        &checkpoint,
        &questions(),
        &temporary,
        &Progress::none(),
    );
    let importance = importance.expect("importance");
    let mut pruning = Pruning::none(&checkpoint);
    prune_channels(&mut pruning, &importance, &[], 0.5).expect("a selection");
    let names = ["cut.bpk", "eight-bits.bpk", "four-bits.bpk"];
    let [cut, eight_bits, four_bits] = names.map(|name| folder.path().join(name));
    let plan = Plan::pruned(&checkpoint, &F32, pruning.clone()).expect("a plan");
    write_record(&plan, checkpoint.clone(), &cut, |_, _| {}).expect("a record");
    for (formats, path) in [(Options::eight_bits(), &eight_bits), (Q4, &four_bits)] {
        let plan = Plan::pruned(&checkpoint, &formats, pruning.clone()).expect("a plan");
        let calibration = Calibration::new(Method::Best, questions(), &temporary);
        let output = Output::create(path, true).expect("an output");
        write_calibrated(
            output,
            &plan,
            checkpoint.clone(),
            Some(calibration),
            |_, _| {},
        )
        .expect("a record");
    }
    let records = [float.path.clone(), cut, eight_bits, four_bits];
    let found = divergences(folder.path(), &records);
    assert!(found[1] < found[2] && found[2] < found[0], "{found:?}");
}

/// The number of threads changes no byte, neither of weights in 4 bits nor of those in 8 bits that make up
/// for them.
#[test]
fn a_record_is_reproducible() {
    let folder = tempfile::tempdir().expect("a folder");
    let gate_up = "text.layers.0.gate_up.weight".to_owned();
    let formats = Options {
        vision: Format::Q4,
        weights: BTreeMap::from([(gate_up, Format::Q4)]),
        ..Options::eight_bits()
    };
    let [one, other] = ["one.bpk", "other.bpk"].map(|name| folder.path().join(name));
    calibrated("qwen2vl-odd", &formats, Method::Best, &one);
    let threads = NonZeroUsize::new(1).expect("one thread");
    scoped(Arc::new(ThreadPool::new(threads)), || {
        calibrated("qwen2vl-odd", &formats, Method::Best, &other);
    });
    let read = |path: &Path| std::fs::read(path).expect("a record");
    assert!(read(&one) == read(&other), "the records differ");
}

/// Each method works with little memory, with samples and with saved statistics. The generated
/// pictures are seen by the vision encoder.
#[test]
fn little_memory_is_enough() {
    let folder = tempfile::tempdir().expect("a folder");
    let statistics = folder.path().join("statistics");
    let convert = |method: &str, memory: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_edge-lmm-convert"))
            .arg(data().join("qwen2vl-tiny"))
            .args([
                "--method",
                method,
                "--calibration-memory",
                memory,
                "--force",
                "-o",
            ])
            .arg(folder.path().join("model.bpk"))
            .arg("--statistics")
            .arg(&statistics)
            .output()
            .expect("the command starts");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), stderr)
    };
    for method in Method::ALL
        .into_iter()
        .filter(|method| method.is_calibrated())
    {
        let (done, stderr) = convert(method.name(), "0");
        assert!(done, "{stderr}");
        let saved = std::fs::read(&statistics).expect("statistics");
        for name in ["vision.blocks.0.qkv.weight", "text.layers.0.qkv.weight"] {
            let mut places = saved.windows(name.len());
            assert!(places.any(|place| place == name.as_bytes()), "{name}");
        }
        std::fs::remove_file(&statistics).expect("statistics are there");
    }
    // The command collects statistics once, and then uses those.
    let (done, stderr) = convert("weighted", "1");
    assert!(done, "{stderr}");
    let (done, stderr) = convert("best", "0");
    assert!(done, "{stderr}");
}

#[test]
fn samples_that_cannot_be_used_are_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let empty = folder.path().join("empty.txt");
    std::fs::write(&empty, " \n").expect("a file");
    let missing = folder.path().join("missing.txt");
    for (path, part) in [(&empty, "has no text"), (&missing, "cannot read")] {
        let error = Samples::read(std::slice::from_ref(path)).expect_err("an error");
        assert!(error.to_string().contains(part), "{error}");
    }
}
