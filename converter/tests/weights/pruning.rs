//! A selection of a checkpoint gives the record of a checkpoint whose tensors were cut by hand.

use edge_lmm::{Cpu, Session};
use edge_lmm_convert::source::Checkpoint;
use edge_lmm_convert::{Options, Plan, Pruning};
use edge_lmm_models::weights::Selection;
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::common::damage::{Copy, Tensors};
use crate::common::manifest::Manifest;
use crate::common::{F32, engine, engine_from};
use crate::stages;

/// Every second one of `count`.
fn half(count: usize) -> Vec<u32> {
    (0..count as u32).filter(|i| i % 2 == 1).collect()
}

/// Keeps `rows` of a tensor.
fn cut_rows(tensors: &mut Tensors, name: &str, rows: &[u32]) {
    let (_, shape, bytes) = tensors.get_mut(name).expect(name);
    let row = bytes.len() / shape[0];
    *bytes = rows
        .iter()
        .flat_map(|&i| bytes[i as usize * row..(i as usize + 1) * row].to_vec())
        .collect();
    shape[0] = rows.len();
}

/// Keeps `columns` of a matrix.
fn cut_columns(tensors: &mut Tensors, name: &str, columns: &[u32]) {
    let (_, shape, bytes) = tensors.get_mut(name).expect(name);
    let size = bytes.len() / shape[0] / shape[1];
    *bytes = bytes
        .chunks(size * shape[1])
        .flat_map(|row| {
            columns
                .iter()
                .map(move |&j| &row[j as usize * size..][..size])
        })
        .flatten()
        .copied()
        .collect();
    shape[1] = columns.len();
}

/// Units of `size` as single rows.
fn units(units: impl IntoIterator<Item = u32>, size: u32) -> Vec<u32> {
    let unit = |unit| (0..size).map(move |i| unit * size + i);
    units.into_iter().flat_map(unit).collect()
}

fn pruned(
    checkpoint: Checkpoint,
    options: &Options,
    config: Value,
    selection: Selection,
) -> Session<Cpu> {
    let plan = Plan::pruned(&checkpoint, options, Pruning { config, selection }).expect("a plan");
    engine_from(&plan, checkpoint)
}

/// Both give the same tokens and the same values in all stages.
fn same(found: &mut Session<Cpu>, expected: &mut Session<Cpu>, manifest: &Manifest) {
    let golden = &manifest.goldens()[0];
    let (tokens, found) = stages(found, golden);
    let (expected_tokens, expected) = stages(expected, golden);
    assert_eq!(tokens, expected_tokens);
    assert!(expected["logits_first"].values.iter().any(|&x| x != 0.0));
    for (stage, expected) in &expected {
        assert!(found[stage].values == expected.values, "{stage} differs");
    }
}

const FFN: usize = 256;
const VISION_FFN: usize = 128;

/// The sizes of the trained Qwen2-VL after half of the channels are cut out.
fn half_the_channels(config: &mut Value) {
    assert_eq!(config["intermediate_size"], FFN);
    config["intermediate_size"] = json!(FFN / 2);
    let vision = &mut config["vision_config"];
    let ratio = vision["mlp_ratio"].as_f64().expect("a ratio");
    let width = vision["embed_dim"].as_f64().expect("a width");
    assert_eq!((width * ratio) as usize, VISION_FFN);
    vision["mlp_ratio"] = json!(ratio / 2.0);
}

fn channels(config: &Value) -> Selection {
    let mut selection = Selection::default();
    let count = |value: &Value| value.as_u64().expect("a number");
    for layer in 0..count(&config["num_hidden_layers"]) {
        let name = format!("text.layers.{layer}.ffn");
        selection.keep(&name, FFN, &half(FFN)).expect(&name);
    }
    for block in 0..count(&config["vision_config"]["depth"]) {
        let name = format!("vision.blocks.{block}.ffn");
        let kept = half(VISION_FFN);
        selection.keep(&name, VISION_FFN, &kept).expect(&name);
    }
    selection
}

/// A folder with the tensors and the configuration of a checkpoint, in f32.
fn folder_of(checkpoint: &Checkpoint) -> Copy {
    let copy = Copy::of("qwen2vl-tiny");
    copy.write("config.json", checkpoint.config.to_string());
    copy.change_tensors(|tensors| {
        tensors.clear();
        for (name, info) in checkpoint.tensors() {
            let mut values = Vec::new();
            checkpoint
                .read_rows(name, 0..info.rows(), &mut values)
                .expect(name);
            let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
            tensors.insert(name.to_owned(), (Dtype::F32, info.shape.clone(), bytes));
        }
    });
    copy
}

/// The trained Qwen2-VL with half of its channels, cut by hand.
fn cut_by_hand(checkpoint: &Checkpoint) -> Copy {
    let copy = folder_of(checkpoint);
    copy.change_tensors(|tensors| {
        let names: Vec<String> = tensors.keys().cloned().collect();
        for name in &names {
            if name.contains("mlp.gate_proj") || name.contains("mlp.up_proj") {
                cut_rows(tensors, name, &half(FFN));
            } else if name.contains("mlp.down_proj") {
                cut_columns(tensors, name, &half(FFN));
            } else if name.contains("mlp.fc1") {
                cut_rows(tensors, name, &half(VISION_FFN));
            } else if name.ends_with("mlp.fc2.weight") {
                cut_columns(tensors, name, &half(VISION_FFN));
            }
        }
    });
    copy.change_json("config.json", half_the_channels);
    copy
}

fn half_of(manifest: &Manifest, options: &Options) -> Session<Cpu> {
    let checkpoint = manifest.open();
    let mut config = checkpoint.config.clone();
    let selection = channels(&config);
    half_the_channels(&mut config);
    pruned(checkpoint, options, config, selection)
}

/// In f32 and in the default formats, from either kind of file.
#[test]
fn half_of_the_channels() {
    for name in ["qwen2vl-tiny", "qwen2vl-tiny-gguf"] {
        let manifest = Manifest::named(name);
        let cut = cut_by_hand(&manifest.open());
        for options in [F32, Options::default()] {
            let mut by_hand = engine(cut.path(), None, &options);
            same(&mut half_of(&manifest, &options), &mut by_hand, &manifest);
        }
    }
}

/// Projections that are fused in the checkpoint, a layer that is left out, fewer heads and fewer
/// channels in another order, fewer tokens.
#[test]
fn fused_projections_layers_heads_and_tokens() {
    const HIDDEN: usize = 72;
    const FFN: usize = 132;
    let manifest = Manifest::named("phi35v-odd");
    let checkpoint = manifest.open();
    let mut config = checkpoint.config.clone();
    let number = |key: &str| config[key].as_u64().expect(key) as usize;
    let (heads, kv_heads) = (number("num_attention_heads"), number("num_key_value_heads"));
    let (layers, tokens) = (number("num_hidden_layers"), number("vocab_size"));
    let (head, shared) = (HIDDEN / heads, heads / kv_heads);
    let kept_layers = [0, 2];
    let kept_kv: Vec<u32> = (1..kv_heads as u32).collect();
    let kept_heads = units(kept_kv.iter().copied(), shared as u32);
    let kept_ffn: Vec<u32> = half(FFN).into_iter().rev().collect();
    // The last rows have no token.
    let kept_tokens: Vec<u32> = (0..tokens as u32 - 2).collect();

    let mut selection = Selection::default();
    let mut keep = |name: &str, of: usize, kept: &[u32]| {
        selection.keep(name, of, kept).expect(name);
    };
    keep("text.layers", layers, &kept_layers);
    keep("text.vocabulary", tokens, &kept_tokens);
    for layer in 0..kept_layers.len() {
        keep(&format!("text.layers.{layer}.heads"), heads, &kept_heads);
        keep(&format!("text.layers.{layer}.kv_heads"), kv_heads, &kept_kv);
        keep(&format!("text.layers.{layer}.ffn"), FFN, &kept_ffn);
    }
    let resize = |config: &mut Value| {
        config["num_hidden_layers"] = json!(kept_layers.len());
        config["num_attention_heads"] = json!(kept_heads.len());
        config["num_key_value_heads"] = json!(kept_kv.len());
        config["head_dim"] = json!(head);
        config["intermediate_size"] = json!(kept_ffn.len());
        config["vocab_size"] = json!(kept_tokens.len());
    };
    resize(&mut config);

    let (heads, kv_heads, head) = (heads as u32, kv_heads as u32, head as u32);
    let qkv: Vec<u32> = units(kept_heads.clone(), head)
        .into_iter()
        .chain(units(kept_kv.iter().map(|kv| heads + kv), head))
        .chain(units(kept_kv.iter().map(|kv| heads + kv_heads + kv), head))
        .collect();
    let both: Vec<u32> = (0..2)
        .flat_map(|half| kept_ffn.iter().map(move |i| half * FFN as u32 + i))
        .collect();
    let cut = Copy::of("phi35v-odd");
    cut.change_json("config.json", resize);
    cut.change_tensors(|tensors| {
        for name in ["model.embed_tokens.weight", "lm_head.weight"] {
            cut_rows(tensors, name, &kept_tokens);
        }
        let of_layer = |tensors: &Tensors, layer: u32| -> Vec<String> {
            let prefix = format!("model.layers.{layer}.");
            let own = tensors.keys().filter(|name| name.starts_with(&prefix));
            own.cloned().collect()
        };
        for layer in 0..layers as u32 {
            let place = kept_layers.iter().position(|&kept| kept == layer);
            for name in of_layer(tensors, layer) {
                let tensor = tensors.remove(&name).expect("a tensor");
                if let Some(place) = place {
                    let from = format!("layers.{layer}.");
                    tensors.insert(name.replace(&from, &format!("layers.{place}.")), tensor);
                }
            }
        }
        for layer in 0..kept_layers.len() {
            let name = |module: &str| format!("model.layers.{layer}.{module}.weight");
            cut_rows(tensors, &name("self_attn.qkv_proj"), &qkv);
            let columns = units(kept_heads.clone(), head);
            cut_columns(tensors, &name("self_attn.o_proj"), &columns);
            cut_rows(tensors, &name("mlp.gate_up_proj"), &both);
            cut_columns(tensors, &name("mlp.down_proj"), &kept_ffn);
        }
    });
    for options in [F32, Options::default()] {
        let mut by_hand = engine(cut.path(), None, &options);
        let found = (manifest.open(), config.clone(), selection.clone());
        let mut found = pruned(found.0, &options, found.1, found.2);
        same(&mut found, &mut by_hand, &manifest);
    }
}

/// Lists the dimensions of a decoder, of an encoder with a decoder, and of three kinds of encoders.
#[test]
fn dimensions_are_listed() {
    for (name, dimensions) in [
        (
            "phi35v-odd",
            &[
                ("text.vocabulary", 499),
                ("text.layers", 4),
                ("text.layers.3.ffn", 132),
                ("text.layers.3.heads", 6),
                ("text.layers.3.kv_heads", 3),
                ("vision.blocks.0.ffn", 100),
            ][..],
        ),
        (
            "blip2-t5-odd",
            &[
                ("text.encoder.layers", 4),
                ("text.encoder.heads", 5),
                ("text.encoder.layers.0.mlp.ffn", 92),
                ("text.decoder.layers.2.cross_heads", 5),
                ("projector.qformer.layers", 3),
                ("vision.blocks", 3),
            ],
        ),
        ("qwen2audio-odd", &[("audio.layers.2.ffn", 100)]),
    ] {
        let plan = Plan::new(&Manifest::named(name).open(), &F32).expect("a plan");
        for (dimension, size) in dimensions {
            let found = plan.dimensions.get(*dimension);
            assert_eq!(
                found,
                Some(size),
                "{name}: {dimension} of {:?}",
                plan.dimensions
            );
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let checkpoint = Manifest::named("qwen2vl-tiny").open();
    let refused = |dimension: &str, of: usize, kept: &[u32]| {
        let mut selection = Selection::default();
        selection.keep(dimension, of, kept).expect("a selection");
        let config = checkpoint.config.clone();
        Plan::pruned(&checkpoint, &F32, Pruning { config, selection })
            .expect_err(dimension)
            .to_string()
    };
    let all: Vec<u32> = (0..FFN as u32).collect();
    let error = refused("text.layers.0.ffn", FFN, &half(FFN));
    assert!(
        error.contains("128 of 256 are kept") && error.contains("has 256"),
        "{error}"
    );
    let error = refused("text.layers.9.ffn", FFN, &all);
    assert!(
        error.contains("no dimension \"text.layers.9.ffn\""),
        "{error}"
    );
    // As many as the configuration says, but of another checkpoint.
    let error = refused("text.layers.0.ffn", 2 * FFN, &all);
    assert!(
        error.contains("gate_proj") && error.contains("512 rows"),
        "{error}"
    );
}
