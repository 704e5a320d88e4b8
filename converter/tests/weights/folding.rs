//! A scale that is folded into the module before a linear layer changes nothing.

use std::collections::BTreeMap;

use edge_lmm_convert::{Options, Plan, PlannedWeight};
use edge_lmm_models::weights::Storage;
use edge_lmm_ops::Format;

use crate::common::manifest::Manifest;
use crate::common::{F32, engine_from};
use crate::observing::observed;
use crate::stages;

/// Modules whose outputs are scaled, each with the outputs that layers behind it take.
fn outputs(plan: &Plan) -> BTreeMap<String, Vec<bool>> {
    let mut modules: BTreeMap<String, Vec<bool>> = BTreeMap::new();
    for weight in &plan.weights {
        let Some(fold) = &weight.spec.folds_into else {
            continue;
        };
        let tail = format!("{}.tail.weight", fold.module);
        let of_module = |name: &str| fold.scales(name) || name == tail;
        let is_packed = |weight: &PlannedWeight| weight.format.is_some();
        let producers = (plan.weights.iter()).filter(|weight| of_module(&weight.spec.name));
        let packed = producers.clone().filter(|weight| is_packed(weight));
        let rows = match packed.map(|weight| weight.spec.rows()).sum() {
            0 => producers
                .map(|weight| weight.spec.rows())
                .max()
                .expect(tail.as_str()),
            rows => rows,
        };
        let taken = modules
            .entry(fold.module.clone())
            .or_insert_with(|| vec![false; rows]);
        (0..weight.spec.cols()).for_each(|column| taken[fold.row(column)] = true);
    }
    modules
}

/// Powers of two from 1/8 to 8, drawn by a linear congruential generator.
struct Scales(u64);

impl Scales {
    /// Scales of the outputs that are taken, 1 for the others.
    fn of(&mut self, taken: &[bool]) -> Vec<f32> {
        let scale = |&taken: &bool| if taken { self.next() } else { 1.0 };
        let scales: Vec<f32> = taken.iter().map(scale).collect();
        assert!(scales.iter().any(|&scale| scale != 1.0));
        scales
    }

    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        2f32.powi((self.0 >> 60) as i32 % 7 - 3)
    }
}

/// The layers whose inputs come from where no scale can go to: the inputs of the model, the
/// residual stream, or an activation that is not homogeneous.
fn has_no_producer(family: &str, name: &str) -> bool {
    let of_blocks = ["vision.", "audio.", "projector.", "deepstack."];
    let is_down = name.ends_with(".down.weight") && of_blocks.iter().any(|p| name.starts_with(p));
    match name {
        "vision.patch_embed.weight" | "audio.conv1.weight" | "audio.conv2.weight" => true,
        "text.embedding.weight" => true,
        // It joins the outputs of two norms.
        "text.mtp.fc.weight" => true,
        // It joins several tokens of the norm before it.
        "projector.weight" => family.starts_with("SmolVLM"),
        "projector.up.weight" => ["LLaVA-1.5", "Phi-3.5-Vision"].contains(&family),
        _ if name.starts_with("projector.qformer.layers.") => {
            [".qkv.weight", ".q.weight", ".up.weight", ".down.weight"]
                .iter()
                .any(|end| name.ends_with(end))
        }
        // The gated feed-forwards of their tower are linear in their second half.
        _ => {
            let gated = ["Qwen2.5-VL", "Qwen2.5-Omni"].contains(&family);
            is_down && !(gated && name.starts_with("vision."))
        }
    }
}

#[test]
fn folded_scales_change_no_bit() {
    for manifest in Manifest::of_the_hub() {
        let plan = Plan::new(&manifest.open(), &F32).expect("a plan");
        for weight in &plan.weights {
            let is_matrix = matches!(weight.spec.storage, Storage::Packed { .. });
            let name = &weight.spec.name;
            assert_eq!(
                is_matrix && weight.spec.folds_into.is_none(),
                is_matrix && has_no_producer(plan.family.title, name),
                "{}: {name}",
                manifest.name
            );
        }
        folding_changes_no_bit(&manifest, plan);
    }
}

/// The values of the attention may be stored apart from queries and keys, with or without biases.
#[test]
fn scales_of_values_that_are_apart_change_no_bit() {
    for name in ["qwen2-odd", "llama3-odd"] {
        let manifest = Manifest::named(name);
        let checkpoint = manifest.open();
        let plan = Plan::new(&checkpoint, &F32).expect("a plan");
        let names = plan.weights.iter().map(|weight| &*weight.spec.name);
        let tails = names
            .filter_map(|name| name.strip_suffix(".qkv.weight"))
            .map(|attention| (format!("{attention}.qkv.tail.weight"), Format::F32));
        let options = Options {
            weights: tails.collect(),
            ..F32
        };
        assert!(!options.weights.is_empty());
        folding_changes_no_bit(&manifest, Plan::new(&checkpoint, &options).expect("a plan"));
    }
}

/// Multiplying by a power of two is exact, so each output of a scaled module is exactly the scaled
/// output, and each product of a layer behind it exactly the product: with right declarations the
/// inputs of a layer are exactly the scaled inputs, and no value after it differs in a single bit.
fn folding_changes_no_bit(manifest: &Manifest, mut plan: Plan) {
    let golden = &manifest.golden_of_all_encoders();
    let mut engine = engine_from(&plan, manifest.open());
    let (tokens, expected) = stages(&mut engine, golden);
    let inputs = observed(&mut engine, golden, |_| true);
    let mut scales = Scales(1);
    let modules: BTreeMap<String, Vec<f32>> = outputs(&plan)
        .into_iter()
        .map(|(module, taken)| (module, scales.of(&taken)))
        .collect();
    for (module, scales) in &modules {
        plan.fold(module, scales).expect(module);
    }
    let mut engine = engine_from(&plan, manifest.open());
    let (found_tokens, found) = stages(&mut engine, golden);
    assert_eq!(found_tokens, tokens, "{}", manifest.name);
    let scaled = observed(&mut engine, golden, |_| true);
    for weight in plan.weights.iter().filter(|weight| weight.spec.product) {
        let name = &weight.spec.name;
        let factor = |column| match &weight.spec.folds_into {
            Some(fold) => modules[&fold.module][fold.row(column)],
            None => 1.0,
        };
        let (width, expected) = &inputs[name];
        let expected = (0..).zip(expected).map(|(i, x)| x * factor(i % width));
        let same = expected.eq(scaled[name].1.iter().copied());
        assert!(same, "{}: inputs of {name}", manifest.name);
    }
    for stage in ["projector_out", "logits_first"] {
        let values = |stages: &BTreeMap<String, _>| stages.get(stage).cloned();
        assert_eq!(
            values(&found),
            values(&expected),
            "{}: {stage}",
            manifest.name
        );
    }
    assert!(expected["logits_first"].values.iter().any(|&x| x != 0.0));
    println!("{}: {} modules", manifest.name, modules.len());
}

#[test]
fn impossible_scales_are_refused() {
    let checkpoint = Manifest::named("qwen2vl-tiny").open();
    let mut plan = Plan::new(&checkpoint, &F32).expect("a plan");
    let refused = |plan: &mut Plan, module: &str, scales: &[f32]| {
        plan.fold(module, scales).expect_err(module).to_string()
    };
    let error = refused(&mut plan, "text.layers.0.down", &[2.0; 128]);
    assert!(error.contains("no layer folds into it"), "{error}");
    let error = refused(&mut plan, "text.layers.0.mlp_norm", &[2.0; 127]);
    assert!(error.contains("127 scales, expected 128"), "{error}");
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let error = refused(&mut plan, "text.layers.0.mlp_norm", &[scale; 128]);
        assert!(error.contains("more than 0"), "{error}");
    }
    // The gate goes through the activation.
    let error = refused(&mut plan, "text.layers.0.gate_up", &[2.0; 512]);
    assert!(error.contains("output 0 goes elsewhere"), "{error}");
    let before = plan.weights.clone();
    plan.fold("text.layers.0.mlp_norm", &[2.0; 128])
        .expect("a scale");
    assert_ne!(plan.weights, before);
}
