//! Qwen3.5: the state of delta rules, layers of two kinds, and weights that are skipped.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::process::Command;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use edge_lmm::{Cpu, OutputRows, Record, Request, Session};
use edge_lmm_convert::calibration::Samples;
use edge_lmm_convert::prune::{Importance, prune_channels, prune_layers};
use edge_lmm_convert::source::Checkpoint;
use edge_lmm_convert::{Options, Plan, Progress, Pruning};
use edge_lmm_models::families::Registry;
use edge_lmm_models::language::{DecoderState, PREFILL_CHUNK, StepInput};
use edge_lmm_models::layout::Position;
use edge_lmm_models::monitor::Monitor;
use edge_lmm_models::mtp::MtpState;
use edge_lmm_models::prompt::{Message, Role};
use edge_lmm_ops::{Format, KernelBackend, probe};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::common::{F32, convert, data, engine, engine_from, read_tensors, relative};

fn checkpoint() -> Checkpoint {
    Checkpoint::open(&data().join("qwen35-odd"), None).expect("a checkpoint")
}

#[test]
fn gates_keep_their_precision() {
    let plan = Plan::new(&checkpoint(), &Options::default()).expect("a plan");
    let of_text = |name: &&str| name.starts_with("text.");
    let formats = plan.weights.iter().filter_map(|weight| {
        let name = &*weight.spec.name;
        Some(name).filter(of_text).zip(weight.format)
    });
    let (gates, others): (Vec<_>, Vec<_>) =
        formats.partition(|(name, _)| name.ends_with("delta.gates.weight"));
    assert_eq!(gates.len(), 5);
    assert!(gates.iter().all(|&(_, format)| format == Format::Q8));
    assert!(others.iter().all(|&(_, format)| format == Format::Q4));
}

/// Returns the names of the weights of the layer that predicts further tokens.
fn mtp_weights(plan: &Plan) -> Vec<&str> {
    let names = plan.weights.iter().map(|weight| &*weight.spec.name);
    names.filter(|name| name.starts_with("text.mtp.")).collect()
}

#[test]
fn the_layer_for_further_tokens_is_part_of_the_record_if_the_checkpoint_has_it() {
    let plan = Plan::new(&checkpoint(), &Options::default()).expect("a plan");
    // Queries, keys and values are stacked, and so are both halves of the MLP.
    assert_eq!(mtp_weights(&plan).len(), 12);
    assert_eq!(plan.skipped_parts(), BTreeMap::new());

    let folder = tempfile::tempdir().expect("a folder");
    for file in std::fs::read_dir(data().join("qwen35-odd")).expect("a folder") {
        let path = file.expect("a file").path();
        if path.is_file() {
            let name = path.file_name().expect("a name");
            std::fs::copy(&path, folder.path().join(name)).expect("a copy");
        }
    }
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).expect("a file");
    let all = SafeTensors::deserialize(&bytes).expect("tensors").tensors();
    let others = all
        .into_iter()
        .filter(|(name, _)| !name.starts_with("mtp."));
    safetensors::serialize_to_file(others, None, &path).expect("a file");
    let without = Checkpoint::open(folder.path(), None).expect("a checkpoint");
    let plan = Plan::new(&without, &Options::default()).expect("a plan");
    assert!(mtp_weights(&plan).is_empty());
}

#[test]
fn the_report_names_the_layer_that_drafts() {
    let output = Command::new(env!("CARGO_BIN_EXE_edge-lmm-convert"))
        .arg(data().join("qwen35-odd"))
        .args(["-o", "qwen3.5.bpk", "--dry-run"])
        .output()
        .expect("the program runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("drafts tokens with 12 of these weights"),
        "{text}"
    );
}

/// The layer and its drafts agree with the reference of `models/tests/oracle/mtp.py`.
#[test]
fn the_layer_for_further_tokens_drafts_what_the_reference_drafts() {
    let folder = data().join("qwen35-odd");
    let golden = read_tensors(&folder.join("goldens/mtp.safetensors"));
    let converted = convert(&folder, None, &F32).expect("a record");
    let record = Record::open(&converted.path).expect("the record opens");
    let device = Default::default();
    let registry = Registry::<Cpu>::default();
    let (mut model, _) = record.skeleton(&registry, &device).expect("a model");
    model.load(&mut record.store()).expect("weights");
    let language = model.language();
    let layer = language.mtp().expect("a layer");

    let ids = |name: &str| -> Vec<u32> {
        let (_, values) = &golden[name];
        values.iter().map(|&value| value as u32).collect()
    };
    let (tokens, places) = (ids("tokens"), ids("position_ids"));
    let count = tokens.len() - 1;
    let positions: Vec<Position> = (0..count)
        .map(|token| [0, 1, 2].map(|axis| places[axis * count + token]))
        .collect();
    let (shape, hidden) = golden["hidden"].clone();
    let hidden = Tensor::<Cpu, 2>::from_data(TensorData::new(hidden, shape), &device);
    let values = |x: Tensor<Cpu, 2>| x.into_data().into_vec::<f32>().expect("floats");

    let mut cache = Cpu::kv_cache(layer.cache_shape(32), &device).expect("a cache");
    let next = language.embed(&tokens[1..]);
    let (all, output) = (hidden.clone(), OutputRows::All);
    let found = layer.forward(all, next.clone(), &positions, output, &mut cache);
    let error = relative(&values(found), &golden["output"].1);
    println!("output {error:.1e}");
    assert!(error <= 1e-3, "{error}");

    // In parts, by a state that follows the tokens, which then drafts.
    let part = |range: std::ops::Range<usize>| {
        let rows = hidden.clone().narrow(0, range.start, range.len());
        (
            rows,
            language.embed(&tokens[range.clone()]),
            &positions[range],
        )
    };
    let mut state = MtpState::<Cpu>::new(layer, 32, &device).expect("a state");
    for range in [0..7, 7..8, 8..count] {
        let (hidden, embeddings, positions) = part(range);
        state.push(layer, hidden, embeddings, positions);
    }
    let at = positions[count - 1][0] + 1;
    let draft = state
        .draft(language, (tokens[count], at), 4)
        .expect("a draft");
    assert_eq!(draft, ids("draft"));
    // Tokens after a draft are those of the conversation, not of the draft.
    assert_eq!(state.waiting(), 1);
    let again = state
        .draft(language, (tokens[count], at), 4)
        .expect("a draft");
    assert_eq!(again, draft);
    assert!(state.remove_last(0) && !state.remove_last(1));
}

/// A step that is revised leaves the state of its first tokens, to the bit.
#[test]
fn revised_steps_leave_the_state_of_fewer_tokens() {
    for name in ["qwen35-odd", "lfm2vl-odd"] {
        let converted = convert(&data().join(name), None, &Options::default());
        let record = Record::open(&converted.expect("a record").path).expect("the record opens");
        let registry = Registry::<Cpu>::default();
        let (mut model, _) = record.skeleton(&registry, &Default::default()).expect(name);
        model.load(&mut record.store()).expect("weights");
        let language = model.language();
        let step = |state: &mut DecoderState<Cpu>, ids: &[u32], revisable| {
            let first = state.len() as u32;
            let positions: Vec<Position> = (first..).take(ids.len()).map(|at| [at; 3]).collect();
            let input = StepInput {
                revisable,
                ..StepInput::new(language.embed(ids), &positions)
            };
            let mut go_on = |_| ControlFlow::Continue(());
            let hidden = language.step(input, state, &mut Monitor::new(&mut go_on));
            let logits = language.logits(hidden.expect("a step")).into_data();
            logits.into_vec::<f32>().expect("floats")
        };
        let new = || DecoderState::<Cpu>::new(language, 64, &Default::default()).expect("a state");
        let prompt: Vec<u32> = (40..59).collect();
        let drafted: Vec<u32> = (100..108).collect();
        for kept in 1..drafted.len() {
            let mut expected = new();
            step(&mut expected, &prompt, false);
            step(&mut expected, &drafted[..kept], false);
            let mut revised = new();
            step(&mut revised, &prompt, false);
            let checkpoint = revised.checkpoint();
            step(&mut revised, &drafted, true);
            assert!(!revised.revise(&checkpoint, prompt.len()), "{name}");
            assert!(revised.revise(&checkpoint, prompt.len() + kept), "{name}");
            assert_eq!(revised.len(), expected.len());
            for ids in [&[7][..], &[8, 9, 10]] {
                let [expected, found] =
                    [&mut expected, &mut revised].map(|state| step(state, ids, false));
                assert_eq!(found, expected, "{name}: {kept} tokens");
            }
            // A step that is not revisable keeps nothing.
            let checkpoint = revised.checkpoint();
            step(&mut revised, &drafted, false);
            assert!(!revised.revise(&checkpoint, checkpoint.tokens() + 1));
        }
    }
}

/// Texts pass the layer for further tokens, so that its weights are quantized by their inputs.
#[test]
fn the_layer_for_further_tokens_is_calibrated() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("text.txt"), "Two blue squares follow. ".repeat(40)).expect("a file");
    let output = Command::new(env!("CARGO_BIN_EXE_edge-lmm-convert"))
        .arg(data().join("qwen35-odd"))
        .args(["--method", "weighted", "-o"])
        .arg(file("record.bpk"))
        .arg("--calibration")
        .arg(file("text.txt"))
        .arg("--statistics")
        .arg(file("statistics"))
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{output:?}");
    let statistics = read_tensors(&file("statistics"));
    for (name, width) in [
        ("fc", 192),
        ("layer.attention.qkv", 96),
        ("layer.attention.out", 192),
        ("layer.gate_up", 96),
        ("layer.down", 160),
    ] {
        let (shape, squares) = &statistics[&format!("text.mtp.{name}.weight")];
        assert_eq!(shape, &[width], "{name}");
        assert!(squares.iter().all(|&x| x > 0.0), "{name}");
    }
}

/// The channels of the layer for further tokens are not measured, so that it is left out with some of
/// the channels of the others.
#[test]
fn the_layer_for_further_tokens_is_pruned_with_channels() {
    let checkpoint = Arc::new(checkpoint());
    let plan = Plan::new(&checkpoint, &F32).expect("a plan");
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("samples.txt");
    std::fs::write(&text, "A red circle follows two blue squares. ".repeat(8)).expect("a file");
    let samples = Samples::read(&[text]).expect("samples");
    let path = folder.path().join("temporary");
    let importance = Importance::measure(&plan, &checkpoint, &samples, &path, &Progress::none());
    let importance = importance.expect("importance");
    let mut pruning = Pruning::none(&checkpoint);
    prune_channels(&mut pruning, &importance, &[], 0.5).expect("a selection");
    let plan = Plan::pruned(&checkpoint, &F32, pruning).expect("a plan");
    assert!(mtp_weights(&plan).is_empty());
    assert_eq!(plan.skipped_parts(), BTreeMap::from([("mtp", 15)]));
}

/// A prompt of several chunks gives the scores of single tokens, to the bit.
#[test]
fn chunks_of_a_long_prompt_change_no_bit() {
    let mut session = engine(&data().join("qwen35-odd"), None, &F32);
    let prompt = |session: &mut Session<Cpu>, sentences: usize| {
        let text = " a red circle follows two blue squares, and then?".repeat(sentences);
        let messages = [Message::text(Role::User, text)];
        let request = Request {
            raw: true,
            ..Request::new(&messages)
        };
        session.forget();
        probe::start();
        let prefilled = session.prefill(&request, |_| ControlFlow::Continue(()));
        let ids = probe::finish()["input_ids"].values.clone();
        let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
        (ids, prefilled.expect("a prompt").logits.last().to_vec())
    };
    let (ids, expected) = prompt(&mut session, 70);
    assert!(ids.len() > 2 * PREFILL_CHUNK, "{} tokens", ids.len());
    let (start, _) = prompt(&mut session, 1);
    assert_eq!(ids[..start.len()], start);
    let mut found = Vec::new();
    for ids in ids[start.len()..].chunks(77) {
        let logits = session.step(ids, OutputRows::Last).expect("scores");
        found = logits.last().to_vec();
    }
    assert_eq!(found, expected);
}

/// The kinds of layers without `layer_types` stay with their layers when some are left out.
#[test]
fn layers_are_pruned_with_their_kinds() {
    let mut checkpoint = checkpoint();
    let types = checkpoint.config["text_config"]["layer_types"].take();
    let checkpoint = Arc::new(checkpoint);
    let plan = Plan::new(&checkpoint, &F32).expect("a plan");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("temporary");
    let text = folder.path().join("samples.txt");
    std::fs::write(&text, "A red circle follows two blue squares. ".repeat(8)).expect("a file");
    let samples = Samples::read(&[text]).expect("samples");
    let importance = Importance::measure(&plan, &checkpoint, &samples, &path, &Progress::none());
    let mut importance = importance.expect("importance");
    assert!(importance.layers.iter().all(|&x| x.is_finite() && x > 0.0));
    // The second layer and the last one go.
    importance.layers = vec![3.0, 1.0, 3.0, 3.0, 3.0, 2.0];
    let mut pruning = Pruning::none(&checkpoint);
    let removed = prune_layers(&mut pruning, &importance, 0.34).expect("a selection");
    assert_eq!(removed, [1, 5]);
    let kept: Vec<&Value> = [0, 2, 3, 4].map(|layer| &types[layer]).to_vec();
    let text = &pruning.config["text_config"];
    assert_eq!(text["layer_types"], serde_json::json!(kept));
    let plan = Plan::pruned(&checkpoint, &F32, pruning).expect("a plan");
    let checkpoint = Arc::into_inner(checkpoint).expect("the checkpoint is not in use");
    let mut session = engine_from::<Cpu>(&plan, checkpoint);
    let messages = [Message::text(Role::User, "list the shapes.")];
    let request = Request::new(&messages);
    session
        .prefill(&request, |_| ControlFlow::Continue(()))
        .expect("a prompt");
    let logits = session.step(&[1], OutputRows::Last).expect("scores");
    assert!(logits.last().iter().all(|score| score.is_finite()));
}
