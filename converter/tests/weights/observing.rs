//! Observers see the inputs of every product with a weight.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use edge_lmm::{Cpu, Session};
use edge_lmm_convert::Plan;
use edge_lmm_models::weights::Storage;
use edge_lmm_ops::observe;

use crate::common::manifest::Manifest;
use crate::common::{F32, Golden, engine_from, relative};
use crate::{answer, stages};

/// Inputs by weight, those of several calls one after the other.
pub type Seen = BTreeMap<String, (usize, Vec<f32>)>;

pub fn observed(
    engine: &mut Session<Cpu>,
    golden: &Golden,
    mut keep: impl FnMut(&str) -> bool + 'static,
) -> Seen {
    let seen = Rc::new(RefCell::new(Seen::new()));
    let own = seen.clone();
    let observer = observe::start(move |name, inputs| {
        let mut seen = own.borrow_mut();
        let entry = seen.entry(name.to_owned()).or_default();
        entry.0 = inputs.width;
        if keep(name) {
            entry.1.extend_from_slice(inputs.values);
        }
    });
    answer(engine, golden);
    drop(observer);
    seen.take()
}

/// The names are those of the packed weights that activations are multiplied with, those of a layer
/// that drafts included, the widths their columns.
#[test]
fn every_product_is_seen() {
    for manifest in Manifest::of_the_hub() {
        let checkpoint = manifest.open();
        let plan = Plan::new(&checkpoint, &F32).expect("a plan");
        let products: BTreeMap<String, usize> = (plan.weights.iter())
            .filter(|weight| weight.spec.product)
            .map(|weight| (weight.spec.name.clone(), weight.spec.cols()))
            .collect();
        let looked_up: BTreeSet<&str> = (plan.weights.iter())
            .map(|weight| &weight.spec)
            .filter(|spec| matches!(spec.storage, Storage::Packed { .. }) && !spec.product)
            .map(|spec| spec.name.as_str())
            .collect();
        assert!(
            looked_up
                .iter()
                .all(|name| *name == "text.embedding.weight")
        );
        let mut engine = engine_from(&plan, checkpoint);
        let seen = observed(&mut engine, &manifest.golden_of_all_encoders(), |_| false);
        let seen: BTreeMap<String, usize> = seen
            .into_iter()
            .map(|(name, (width, _))| (name, width))
            .collect();
        assert_eq!(seen, products, "{}", manifest.name);
    }
}

fn mean_squares(values: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0f64; width];
    for row in values.chunks_exact(width) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += f64::from(*value).powi(2);
        }
    }
    let rows = values.len() / width;
    sums.iter().map(|sum| (sum / rows as f64) as f32).collect()
}

/// The projector of LLaVA is a fused feed-forward. The inputs of its first layer are the stage
/// `vision_out`; those of the second, times its weight, the stage `projector_out`.
#[test]
fn inputs_are_those_of_the_stages() {
    const UP: &str = "projector.up.weight";
    const DOWN: &str = "projector.down.weight";
    let manifest = Manifest::named("llava-odd");
    let checkpoint = manifest.open();
    let plan = Plan::new(&checkpoint, &F32).expect("a plan");
    let mut weights = (Vec::new(), Vec::new());
    let module = "multi_modal_projector.linear_2";
    let read = |name: &str, out: &mut Vec<f32>| {
        let rows = checkpoint.tensor(name).expect(name).rows();
        checkpoint.read_rows(name, 0..rows, out).expect(name);
    };
    read(&format!("{module}.weight"), &mut weights.0);
    read(&format!("{module}.bias"), &mut weights.1);
    let golden = &manifest.goldens()[0];
    let mut engine = engine_from(&plan, manifest.open());
    let (_, dumped) = stages(&mut engine, golden);
    let seen = observed(&mut engine, golden, |name| [UP, DOWN].contains(&name));

    let (width, inputs) = &seen[UP];
    let expected = mean_squares(&dumped["vision_out"].values, *width);
    assert_eq!(mean_squares(inputs, *width), expected);
    assert!(expected.iter().all(|&square| square > 0.0));

    let (width, hidden) = &seen[DOWN];
    let (weight, bias) = weights;
    let found: Vec<f32> = hidden
        .chunks_exact(*width)
        .flat_map(|x| {
            weight
                .chunks_exact(*width)
                .zip(&bias)
                .map(move |(row, bias)| {
                    let product: f32 = row.iter().zip(x).map(|(w, x)| w * x).sum();
                    product + bias
                })
        })
        .collect();
    // Sums of 72 products in another order: 72 roundings of 6e-8 at most.
    let error = relative(&found, &dumped["projector_out"].values);
    assert!(error < 72.0 * 6e-8, "{error}");
}

/// Without an observer nothing is seen, and an inner observer gives way to the outer one again.
#[test]
fn observers_end_with_their_guards() {
    let manifest = Manifest::named("qwen2-odd");
    let checkpoint = manifest.open();
    let plan = Plan::new(&checkpoint, &F32).expect("a plan");
    let mut engine = engine_from(&plan, checkpoint);
    let golden = &manifest.goldens()[0];
    let calls = Rc::new(RefCell::new([0; 2]));
    let observer = |which: usize| {
        let calls = calls.clone();
        observe::start(move |_, _| calls.borrow_mut()[which] += 1)
    };
    let outer = observer(0);
    let inner = observer(1);
    stages(&mut engine, golden);
    let after_inner = *calls.borrow();
    assert!(after_inner[0] == 0 && after_inner[1] > 0, "{after_inner:?}");
    drop(inner);
    stages(&mut engine, golden);
    let after_outer = *calls.borrow();
    assert_eq!(after_outer, [after_inner[1]; 2]);
    drop(outer);
    assert!(!observe::active());
    stages(&mut engine, golden);
    assert_eq!(*calls.borrow(), after_outer);
}
