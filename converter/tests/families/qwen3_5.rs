//! Qwen3.5: the state of delta rules, layers of two kinds, and weights that are skipped.

use std::ops::ControlFlow;
use std::sync::Arc;

use edge_lmm::{Cpu, OutputRows, Request, Session};
use edge_lmm_convert::calibration::Samples;
use edge_lmm_convert::prune::{Importance, prune_layers};
use edge_lmm_convert::source::Checkpoint;
use edge_lmm_convert::{Options, Plan, Progress, Pruning};
use edge_lmm_models::language::PREFILL_CHUNK;
use edge_lmm_models::prompt::{Message, Role};
use edge_lmm_ops::{Format, probe};
use serde_json::Value;

use crate::common::{F32, data, engine, engine_from};

fn checkpoint() -> Checkpoint {
    Checkpoint::open(&data().join("qwen35-odd"), None).expect("a checkpoint")
}

#[test]
fn the_layer_for_further_tokens_is_skipped_and_gates_keep_their_precision() {
    let checkpoint = checkpoint();
    let plan = Plan::new(&checkpoint, &Options::default()).expect("a plan");
    let skipped: Vec<(&str, usize)> = plan.skipped_parts().into_iter().collect();
    assert_eq!(skipped, [("mtp", 15)]);
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
