//! Comparison of records, and their export.

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use common::{Converted, F32, ask, convert, data};
use edge_lmm::manifest::Manifest;
use edge_lmm::{Cpu, Engine, Record, Request};
use edge_lmm_convert::Options;
use edge_lmm_convert::compare::{ComparisonReport, Scorer, Windows, answer, predict};
use edge_lmm_convert::export::export;
use edge_lmm_convert::source::Checkpoint;
use edge_lmm_models::language::OutputRows;
use edge_lmm_ops::Format;

const Q4: Options = Options {
    text: Format::Q4,
    vision: Format::F32,
    audio: Format::F32,
    head: None,
    weights: BTreeMap::new(),
};

fn record(name: &str, options: &Options) -> Converted {
    convert(&data().join(name), None, options).expect("a record")
}

/// Writes windows of ids as a NumPy file.
fn numpy(path: &Path, rows: &[Vec<u32>]) {
    let shape = format!("({}, {})", rows.len(), rows[0].len());
    let header = format!("{{'descr': '<u4', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(rows.iter().flatten().flat_map(|id| id.to_le_bytes()));
    std::fs::write(path, bytes).expect("a file");
}

fn windows(rows: &[Vec<u32>]) -> Windows {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ids.npy");
    numpy(&path, rows);
    Windows::of_numpy(&path).expect("windows")
}

/// Ids that look random, and differ from window to window.
fn ids(windows: usize, tokens: usize, vocabulary: u32) -> Vec<Vec<u32>> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocabulary
    };
    (0..windows)
        .map(|_| (0..tokens).map(|_| next()).collect())
        .collect()
}

/// Logarithms of the probabilities after each token of a window but the first, as a session
/// computes them.
fn log_probabilities(path: &Path, ids: &[u32]) -> Vec<Vec<f64>> {
    let record = Record::open(path).expect("a record");
    let engine = Engine::<Cpu>::load(&record, Default::default()).expect("a model");
    let mut session = engine.session();
    let messages = ask(&[], "x");
    let request = Request::new(&messages);
    session
        .prefill(&request, |_| ControlFlow::Continue(()))
        .expect("a conversation");
    session.truncate(0).expect("an empty state");
    let logits = session.step(ids, OutputRows::All).expect("scores");
    (0..logits.rows())
        .map(|row| logarithms(logits.row(row)))
        .collect()
}

/// Logarithms of the probabilities of scores.
fn logarithms(scores: &[f32]) -> Vec<f64> {
    let scores = scores.iter().map(|&score| f64::from(score));
    let sum: f64 = scores.clone().map(f64::exp).sum();
    scores.map(|score| score - sum.ln()).collect()
}

#[test]
fn divergences_are_those_of_the_scores() {
    let models = [
        record("gemma3text-odd", &F32),
        record("gemma3text-odd", &Q4),
    ];
    let rows = ids(2, 31, 400);
    let mut scorers = models
        .each_ref()
        .map(|model| Scorer::open(&model.path).expect("a model"));
    let found = predict(&mut scorers, &windows(&rows), |_| {}).expect("a comparison");
    let (mut divergences, mut surprises, mut agreements) = (Vec::new(), [0.0; 2], 0);
    for ids in &rows {
        let [own, other] = models
            .each_ref()
            .map(|model| log_probabilities(&model.path, ids));
        for at in 15..30 {
            let pairs = own[at].iter().zip(&other[at]);
            divergences.push(pairs.map(|(p, q)| p.exp() * (p - q)).sum::<f64>());
            let next = ids[at + 1] as usize;
            surprises[0] -= own[at][next];
            surprises[1] -= other[at][next];
            let best = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
            agreements += usize::from(best(&own[at]) == best(&other[at]));
        }
    }
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-4 * b.abs().max(0.1), "{a} {b}");
    let count = divergences.len() as f64;
    let divergence = found[1].divergence.expect("of the candidate");
    near(divergence.mean, divergences.iter().sum::<f64>() / count);
    near(found[0].perplexity, (surprises[0] / count).exp());
    near(found[1].perplexity, (surprises[1] / count).exp());
    assert_eq!(found[1].top1, Some(f64::from(agreements as u32) / count));
    assert!(divergence.mean > 0.01 && divergence.standard_error.is_some());
    assert_eq!(found[0].divergence, None);
}

#[test]
fn a_record_does_not_differ_from_itself() {
    let model = record("qwen2-odd", &Q4);
    let mut scorers = [0, 1].map(|_| Scorer::open(&model.path).expect("a model"));
    let windows = windows(&ids(2, 12, 400));
    let found = predict(&mut scorers, &windows, |_| {}).expect("a comparison");
    let divergence = found[1].divergence.expect("of the candidate");
    assert_eq!((divergence.mean, divergence.max), (0.0, 0.0));
    assert_eq!(found[1].top1, Some(1.0));
    assert_eq!(found[0].perplexity, found[1].perplexity);
}

/// The divergence at the tokens of the reference's answers is that of the scores of single steps, for
/// a decoder-only model and for one with an encoder of texts.
#[test]
fn answers_diverge_as_their_scores() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.csv");
    let manifest = "id,media_path,question,answer,task\n\
                    a,,what color is grass?,green,text\nb,,how many?,one,text\n";
    std::fs::write(&path, manifest).expect("a manifest");
    let manifest = Manifest::open(&path).expect("a manifest");
    for name in ["qwen2vl-tiny", "blip2-t5-odd"] {
        let models = [record(name, &F32), record(name, &Q4)];
        let records = models
            .each_ref()
            .map(|model| Record::open(&model.path).expect("a record"));
        let found = answer(records.iter().chain(&records[..1]), &manifest, |_| {});
        let found = found.expect("answers");
        let mut divergences = Vec::new();
        for question in &manifest.questions {
            let messages = ask(&[], &question.question);
            let mut tokens = Vec::new();
            let [own, other] = records.each_ref().map(|record| {
                let engine = Engine::<Cpu>::load(record, Default::default()).expect("a model");
                let mut session = engine.session();
                let mut request = Request::new(&messages);
                request.max_tokens = 32;
                let prefilled = session.prefill(&request, |_| ControlFlow::Continue(()));
                let mut rows = vec![prefilled.expect("a prompt").logits];
                if tokens.is_empty() {
                    let answer = engine
                        .session()
                        .answer(&request, |_| ControlFlow::Continue(()));
                    tokens = answer.expect("an answer").tokens;
                }
                for &token in &tokens[..tokens.len() - 1] {
                    rows.push(session.step(&[token], OutputRows::Last).expect("scores"));
                }
                let rows: Vec<Vec<f64>> = rows.iter().map(|row| logarithms(row.last())).collect();
                rows
            });
            let pairs = own.iter().zip(&other);
            divergences.extend(pairs.map(|(own, other)| {
                let pairs = own.iter().zip(other);
                pairs.map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
            }));
        }
        let expected = divergences.iter().sum::<f64>() / divergences.len() as f64;
        let [reference, candidate, same] = &found[..] else {
            panic!("{} models", found.len());
        };
        let divergence = candidate.divergence.expect("of the candidate").mean;
        let difference = (divergence - expected).abs();
        assert!(
            difference < 1e-4 * expected.max(0.1),
            "{name}: {divergence} {expected}"
        );
        assert_eq!(reference.divergence, None);
        assert_eq!(same.divergence.map(|own| own.max), Some(0.0));
        assert_eq!(same.agreement, Some(1.0));
    }
    let models = [record("llama-odd", &F32), record("qwen2-odd", &F32)];
    let records = models.map(|model| Record::open(&model.path).expect("a record"));
    let found = answer(records.iter(), &manifest, |_| {}).expect("answers");
    assert_eq!(
        found[1].divergence, None,
        "other vocabularies are not compared"
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let [llama, qwen, t5] =
        ["llama-odd", "qwen2-odd", "blip2-t5-odd"].map(|name| record(name, &F32));
    let error = |models: [&Converted; 2], rows: &[Vec<u32>]| {
        let mut scorers = models.map(|model| Scorer::open(&model.path).expect("a model"));
        let found = predict(&mut scorers, &windows(rows), |_| {});
        found.expect_err("no comparison").to_string()
    };
    assert!(error([&llama, &qwen], &ids(1, 8, 100)).contains("another tokenizer"));
    assert!(error([&llama, &llama], &ids(1, 513, 100)).contains("512"));
    assert!(error([&llama, &llama], &[vec![499; 4]]).contains("499"));
    assert!(error([&t5, &t5], &ids(1, 8, 100)).contains("decoder-only"));
}

/// Split and fused projections, and norms that the checkpoint stores less 1.
#[test]
fn exported_weights_are_those_of_the_checkpoint() {
    for name in ["gemma3text-odd", "phi3-odd", "qwen2-odd"] {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("exported");
        let model = record(name, &F32);
        let record = Record::open(&model.path).expect("a record");
        export(&record, &folder).expect("an export");
        let original = Checkpoint::open(&data().join(name), None).expect("a checkpoint");
        let exported = Checkpoint::open(&folder, None).expect("the exported one");
        assert_eq!(original.config, exported.config);
        for (tensor, info) in exported.tensors() {
            let source = original.tensor(tensor).expect("a tensor of the original");
            assert_eq!(
                (&info.shape, &*info.dtype),
                (&source.shape, "F32"),
                "{tensor}"
            );
            let [mut own, mut other] = [Vec::new(), Vec::new()];
            let rows = 0..info.rows();
            original
                .read_rows(tensor, rows.clone(), &mut own)
                .expect("rows");
            exported.read_rows(tensor, rows, &mut other).expect("rows");
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 2e-7 * (1.0 + a.abs());
            assert!(own.iter().zip(&other).all(near), "{tensor}");
        }
        let count = |checkpoint: &Checkpoint| checkpoint.tensors().count();
        assert_eq!(count(&original), count(&exported));
        let again = export(&record, &folder).expect_err("the folder has a model");
        assert!(again.to_string().contains("exists"), "{again}");
    }
}

/// The table, the report and the page of the command, with a text and with questions.
#[test]
fn the_command_compares() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let models = [record("qwen2vl-tiny", &F32), record("qwen2vl-tiny", &Q4)];
    let text = "the large red circle is left of a small blue square. ".repeat(12);
    std::fs::write(folder.join("text.txt"), text).expect("a text");
    let manifest = "id,media_path,question,answer,task\n\
                    a,,what color is grass?,green,text\nb,,how many?,one,text\n";
    std::fs::write(folder.join("m.csv"), manifest).expect("a manifest");
    let run = |extra: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_edge-lmm-convert"))
            .arg("compare")
            .args(models.each_ref().map(|model| &model.path))
            .args([
                "--text",
                "text.txt",
                "--window",
                "32",
                "--manifest",
                "m.csv",
            ])
            .args(extra)
            .current_dir(folder)
            .output()
            .expect("the program runs");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{error}");
        String::from_utf8(output.stdout).expect("text")
    };
    let report: ComparisonReport =
        serde_json::from_str(&run(&["--json", "--html", "c.html"])).expect("a report");
    let text = report.text.expect("a text");
    assert_eq!(
        (text.window_tokens, text.positions),
        (32, 15 * text.windows)
    );
    let [reference, candidate] = &report.models[..] else {
        panic!("{} models", report.models.len());
    };
    assert!(reference.size.layer_bits == 32.0 && candidate.size.layer_bits < 16.0);
    let answers = candidate.answers.as_ref().expect("answers");
    assert!(answers.agreement.is_some() && answers.stages_ms.contains_key("decode"));
    assert!(
        answers
            .divergence
            .is_some_and(|divergence| divergence.mean > 0.0)
    );
    let page = std::fs::read_to_string(folder.join("c.html")).expect("a page");
    assert!(page.contains("edge-lmm comparison") && !page.contains("https:"));
    let table = run(&["--windows", "2", "--export", "out"]);
    assert!(
        table.contains("2 windows") && table.contains("top-1"),
        "{table}"
    );
    assert!(folder.join("out/model.safetensors").exists());
}
