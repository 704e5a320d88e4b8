//! Qwen3.5 as GGUF files: what llama.cpp's converter changes is undone.

mod source_support;

use std::collections::BTreeMap;
use std::path::Path;

use edge_lmm_convert::source::{Checkpoint, SourceError};
use edge_lmm_models::text::qwen3_5::Qwen35TextConfig;
use serde_json::{Value, json};
use source_support::{GgufBuilder, TEXTS, assert_says, error, model, values};
use tokenizers::Tokenizer;

fn open(text: &Path) -> Result<Checkpoint, SourceError> {
    let tower = model("qwen35-odd-gguf/mmproj-qwen35-odd-f16.gguf");
    Checkpoint::open(text, Some(&tower))
}

fn odd() -> (Checkpoint, Checkpoint) {
    let gguf = open(&model("qwen35-odd-gguf/qwen35-odd-f16.gguf")).expect("a GGUF file");
    let hub = Checkpoint::open(&model("qwen35-odd"), None).expect("a checkpoint");
    (gguf, hub)
}

/// Half precision rounds bfloat16 by up to 2^-25. Adding 1 to the scale of a norm, of less than 1,
/// rounds by up to 2^-24. An exponential that is rounded by at most 2^-22 relative to it, four
/// times the error of one correctly rounded, changes its logarithm by as much.
const ROUNDING: f32 = 1.0 / (1 << 22) as f32;

#[test]
fn tensors_are_those_of_the_hub() {
    let (gguf, hub) = odd();
    let shapes = |checkpoint: &Checkpoint| -> Vec<(String, Vec<usize>)> {
        let tensors = checkpoint.tensors();
        let shape = |(name, info): (&str, _)| {
            let info: &edge_lmm_convert::source::TensorInfo = info;
            (name.to_owned(), info.shape.clone())
        };
        tensors.map(shape).collect()
    };
    assert_eq!(shapes(&gguf), shapes(&hub));
    for (name, _) in hub.tensors() {
        let pairs = values(&gguf, name).into_iter().zip(values(&hub, name));
        for (i, (found, expected)) in pairs.enumerate() {
            let difference = (found - expected).abs();
            assert!(
                difference <= ROUNDING,
                "{name}[{i}]: {found} is not {expected}"
            );
        }
    }
}

#[test]
fn configurations_are_those_of_the_hub() {
    let (gguf, hub) = odd();
    let [a, b] = [&gguf, &hub].map(|checkpoint| {
        Qwen35TextConfig::parse(&checkpoint.config["text_config"]).expect("a configuration")
    });
    assert_eq!(a, b);
    for (key, value) in gguf.config.as_object().expect("an object") {
        match key.as_str() {
            "text_config" => {}
            "vision_config" => agrees(value, &hub.config[key]),
            _ => assert_eq!(value, &hub.config[key], "{key}"),
        }
    }
    assert_eq!(
        gguf.config["text_config"]["mtp_num_hidden_layers"],
        json!(1)
    );
    let image = gguf.preprocessor_config.as_ref().expect("a processor");
    agrees(
        image,
        hub.preprocessor_config.as_ref().expect("a processor"),
    );
    assert_eq!(gguf.chat_template, hub.chat_template);
    let ends = |checkpoint: &Checkpoint| {
        checkpoint.generation_config.as_ref().expect("ends")["eos_token_id"].clone()
    };
    assert_eq!(ends(&gguf), ends(&hub));
}

/// Checks that the values of `gguf` are in `hub`.
fn agrees(gguf: &Value, hub: &Value) {
    for (key, value) in gguf.as_object().expect("an object") {
        assert_eq!(value, &hub[key], "{key}");
    }
}

/// Combining marks belong to letters, unlike in Qwen2.
#[test]
fn ids_equal_the_hub_form() {
    let (gguf, hub) = odd();
    let [rebuilt, reference] = [gguf, hub].map(|checkpoint| {
        checkpoint
            .tokenizer
            .parse::<Tokenizer>()
            .expect("a tokenizer")
    });
    let ids = |tokenizer: &Tokenizer, text: &str| {
        tokenizer.encode(text, true).expect(text).get_ids().to_vec()
    };
    let more = [
        "q\u{301}a क\u{947}वल",
        "<|im_start|>user\n<|vision_start|><|image_pad|>",
    ];
    for text in TEXTS.into_iter().chain(more) {
        assert_eq!(ids(&rebuilt, text), ids(&reference, text), "{text:?}");
    }
}

/// Three key heads of 2 elements, with two value heads of 5 elements each.
const KEYS: usize = 3;
const PER_KEY: usize = 2;
const HIDDEN: usize = 96;

/// Returns a matrix or vector, stored by blocks of value heads: head `member` of a key head comes
/// after all heads with lower numbers, of any key head.
fn stored(original: &[f32], first: usize, block: usize) -> Vec<f32> {
    let (before, heads) = original.split_at(first);
    let mut out = before.to_vec();
    for row in heads.chunks(KEYS * PER_KEY * block) {
        for member in 0..PER_KEY {
            for key in 0..KEYS {
                out.extend(&row[(key * PER_KEY + member) * block..][..block]);
            }
        }
    }
    out
}

/// Values that differ from each other.
fn count(elements: usize) -> Vec<f32> {
    (1..=elements).map(|i| i as f32).collect()
}

/// Builds one layer with a delta rule. `changed` are sizes that differ.
fn delta(rates: &[f32], changed: &[(&'static str, usize)]) -> GgufBuilder {
    let (heads, width, before) = (KEYS * PER_KEY, KEYS * PER_KEY * 5, 2 * KEYS * 2);
    let all = before + width;
    let tokens = [
        "a",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ];
    let builder = GgufBuilder::new()
        .text("general.architecture", "qwen35")
        .f32("qwen35.attention.layer_norm_rms_epsilon", 1e-6)
        .i32s("qwen35.rope.dimension_sections", &[3, 3, 2, 0])
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "qwen35")
        .texts("tokenizer.ggml.tokens", &tokens.map(str::to_owned))
        .i32s("tokenizer.ggml.token_type", &[1, 3, 3, 3, 3])
        .u32("tokenizer.ggml.eos_token_id", 1);
    let mut sizes = BTreeMap::from([
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", 4),
        ("attention.head_count", 1),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 64),
        ("ssm.conv_kernel", 4),
        ("ssm.state_size", 2),
        ("ssm.group_count", KEYS),
        ("ssm.time_step_rank", heads),
        ("ssm.inner_size", width),
    ]);
    sizes.extend(changed.iter().copied());
    let builder = sizes.into_iter().fold(builder, |builder, (key, size)| {
        builder.u32(&format!("qwen35.{key}"), size as u32)
    });
    let tensors: [(&str, &[usize], usize, usize); 14] = [
        ("token_embd.weight", &[HIDDEN, 5], 0, 0),
        ("output_norm.weight", &[HIDDEN], 0, 0),
        ("blk.0.attn_norm.weight", &[HIDDEN], 0, 0),
        ("blk.0.post_attention_norm.weight", &[HIDDEN], 0, 0),
        ("blk.0.ffn_gate.weight", &[HIDDEN, 4], 0, 0),
        ("blk.0.ffn_up.weight", &[HIDDEN, 4], 0, 0),
        ("blk.0.ffn_down.weight", &[4, HIDDEN], 0, 0),
        ("blk.0.ssm_norm.weight", &[5], 0, 0),
        (
            "blk.0.attn_qkv.weight",
            &[HIDDEN, all],
            before * HIDDEN,
            5 * HIDDEN,
        ),
        ("blk.0.attn_gate.weight", &[HIDDEN, width], 0, 5 * HIDDEN),
        ("blk.0.ssm_alpha.weight", &[HIDDEN, heads], 0, HIDDEN),
        ("blk.0.ssm_beta.weight", &[HIDDEN, heads], 0, HIDDEN),
        ("blk.0.ssm_conv1d.weight", &[4, all], before * 4, 5 * 4),
        ("blk.0.ssm_out.weight", &[width, HIDDEN], 0, 5),
    ];
    let builder = tensors
        .into_iter()
        .fold(builder, |builder, (name, dims, first, block)| {
            let values = count(dims.iter().product());
            let values = match block {
                0 => values,
                _ => stored(&values, first, block),
            };
            let dims: Vec<u64> = dims.iter().map(|&dim| dim as u64).collect();
            builder.tensor(name, &dims, &values)
        });
    builder
        .tensor(
            "blk.0.ssm_dt.bias",
            &[heads as u64],
            &stored(&count(heads), 0, 1),
        )
        .tensor("blk.0.ssm_a", &[heads as u64], &stored(rates, 0, 1))
}

fn built(builder: &GgufBuilder) -> Result<Checkpoint, SourceError> {
    let folder = tempfile::tempdir().expect("a folder");
    open(&builder.write(folder.path(), "built.gguf"))
}

#[test]
fn value_heads_get_their_order_back() {
    let rates = [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0];
    let checkpoint = built(&delta(&rates, &[])).expect("a model");
    let layer = "model.language_model.layers.0.linear_attn";
    for name in [
        "in_proj_qkv.weight",
        "in_proj_z.weight",
        "in_proj_a.weight",
        "in_proj_b.weight",
        "conv1d.weight",
        "out_proj.weight",
        "norm.weight",
        "dt_bias",
    ] {
        let name = format!("{layer}.{name}");
        let found = values(&checkpoint, &name);
        assert_eq!(found, count(found.len()), "{name}");
        // Parts of a matrix are read as well.
        let info = checkpoint.tensor(&name).expect("a tensor");
        let (rows, row) = (info.rows(), found.len() / info.rows());
        for range in [0..1, rows / 3..rows / 2, rows - 1..rows] {
            let mut part = Vec::new();
            checkpoint
                .read_rows(&name, range.clone(), &mut part)
                .expect("rows");
            assert_eq!(part, found[range.start * row..range.end * row], "{name}");
        }
    }
    let logarithms = values(&checkpoint, &format!("{layer}.A_log"));
    assert_eq!(logarithms, rates.map(|rate| (-rate).ln()));
    let norm = values(
        &checkpoint,
        "model.language_model.layers.0.input_layernorm.weight",
    );
    assert_eq!(norm[..3], [0.0, 1.0, 2.0]);
}

#[test]
fn contradictions_are_refused() {
    let rates = [-1.0; 6];
    for (key, value, words) in [
        ("ssm.group_count", 4, "6 value heads for 4 key heads"),
        ("ssm.inner_size", 31, "31 elements in 6 value heads"),
        ("full_attention_interval", 0, "full_attention_interval = 0"),
        ("nextn_predict_layers", 1, "1 of which predict"),
        ("ssm.state_size", 3, "blk.0.attn_qkv.weight"),
    ] {
        let message = error(built(&delta(&rates, &[(key, value)])));
        assert_says(&message, &["built.gguf", words]);
    }
    let largest = i32::MAX as usize;
    let huge = [
        ("ssm.group_count", largest),
        ("ssm.time_step_rank", largest),
        ("ssm.inner_size", largest),
        ("ssm.state_size", largest),
        ("ssm.conv_kernel", largest),
    ];
    let message = error(built(&delta(&rates, &huge)));
    assert_says(&message, &["blk.0.attn_qkv.weight", "as the metadata says"]);
    let extra = delta(&rates, &[]).tensor("blk.0.attn_q.weight", &[1], &[1.0]);
    assert_says(&error(built(&extra)), &["blk.0.attn_q.weight", "qwen35"]);
    let rates = [-1.0, -1.0, 0.0, -1.0, -1.0, -1.0];
    assert_says(
        &error(built(&delta(&rates, &[]))),
        &["0 in blk.0.ssm_a", "negative"],
    );
    let text = model("qwen35-odd-gguf/qwen35-odd-f16.gguf");
    let alone = error(Checkpoint::open(&text, None));
    assert_says(&alone, &["qwen35", "--mmproj"]);
    let deep = model("qwen3vl-odd-gguf/mmproj-qwen3vl-odd-f16.gguf");
    let deep = error(Checkpoint::open(&text, Some(&deep)));
    assert_says(&deep, &["3 inner blocks", "Qwen3.5"]);
    let qwen2 = model("qwen2vl-odd-gguf/mmproj-qwen2vl-odd-f16.gguf");
    let qwen2 = error(Checkpoint::open(&text, Some(&qwen2)));
    assert_says(&qwen2, &["qwen2vl_merger", "qwen35 with qwen3vl_merger"]);
}
