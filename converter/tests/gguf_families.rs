//! Multimodal models as GGUF files, built here from checkpoints in the hub's layout with the names of
//! llama.cpp's converter, give the reference's values at every stage.

mod common;
mod source_support;

use std::collections::{BTreeMap, BTreeSet};

use common::check::check_sample;
use common::manifest::Manifest;
use common::{F32, engine_of};
use edge_lmm_convert::source::Checkpoint;
use edge_lmm_models::media::MediaOptions;
use serde_json::{Value, json};
use source_support::{GgufBuilder, assert_says, error, model, plain_safetensors, values};
use tempfile::TempDir;

/// Names of the parts of a layer and their names in GGUF files.
type Rules = &'static [(&'static str, &'static str)];

const QWEN_TEXT: Rules = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("model.layers.", "blk."),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];

const QWEN_VISION: Rules = &[
    ("visual.patch_embed.proj", "v.patch_embd"),
    ("visual.merger.ln_q", "v.post_ln"),
    ("visual.merger.mlp.", "mm."),
    ("visual.blocks.", "v.blk."),
    ("attn.proj", "attn_out"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("norm1", "ln1"),
    ("norm2", "ln2"),
];

const LFM2_TEXT: Rules = &[
    ("model.language_model.embed_tokens", "token_embd"),
    ("model.language_model.embedding_norm", "token_embd_norm"),
    ("model.language_model.layers.", "blk."),
    ("self_attn.out_proj", "attn_output"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.q_layernorm", "attn_q_norm"),
    ("self_attn.k_layernorm", "attn_k_norm"),
    ("conv.conv", "shortconv.conv"),
    (".conv.in_proj", ".shortconv.in_proj"),
    (".conv.out_proj", ".shortconv.out_proj"),
    ("feed_forward.w1", "ffn_gate"),
    ("feed_forward.w2", "ffn_down"),
    ("feed_forward.w3", "ffn_up"),
    ("operator_norm", "attn_norm"),
];

const LFM2_VISION: Rules = &[
    ("model.multi_modal_projector.layer_norm", "mm.input_norm"),
    ("model.multi_modal_projector.linear_", "mm."),
    ("model.vision_tower.vision_model.", "v."),
    ("embeddings.patch_embedding", "patch_embd"),
    ("embeddings.position_embedding", "position_embd"),
    ("encoder.layers.", "blk."),
    ("self_attn.out_proj", "attn_out"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("mlp.fc1", "ffn_up"),
    ("mlp.fc2", "ffn_down"),
    ("layer_norm1", "ln1"),
    ("layer_norm2", "ln2"),
    ("post_layernorm", "post_ln"),
];

/// A checkpoint in the hub's layout.
struct Hub {
    config: Value,
    tokenizer: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Hub {
    fn open(name: &str) -> Self {
        let json = |file: &str| -> Value {
            let text = std::fs::read_to_string(model(name).join(file)).unwrap();
            serde_json::from_str(&text).unwrap()
        };
        Self {
            config: json("config.json"),
            tokenizer: json("tokenizer.json"),
            tensors: plain_safetensors(&model(name).join("model.safetensors")),
        }
    }

    /// Adds the tensors whose names begin with the first part of a rule.
    fn tensors(&self, mut builder: GgufBuilder, rules: Rules) -> GgufBuilder {
        let ours = |name: &str| rules.iter().any(|(start, _)| name.starts_with(start));
        for (name, (shape, values)) in self.tensors.iter().filter(|(name, _)| ours(name)) {
            let to = |name: &str| {
                rules
                    .iter()
                    .fold(name.to_owned(), |name, (a, b)| name.replace(a, b))
            };
            for (name, shape, values) in stored(name, shape, values) {
                let dims: Vec<u64> = shape.iter().rev().map(|&dim| dim as u64).collect();
                builder = builder.tensor(&to(&name), &dims, &values);
            }
        }
        builder
    }

    /// Adds the vocabulary.
    fn vocabulary(&self, builder: GgufBuilder, pre: &str, rows: usize) -> GgufBuilder {
        let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
        let mut kinds = vec![5; rows];
        let vocabulary = self.tokenizer["model"]["vocab"].as_object().unwrap();
        for (token, id) in vocabulary {
            let id = id.as_u64().unwrap() as usize;
            (tokens[id], kinds[id]) = (token.clone(), 1);
        }
        for token in self.tokenizer["added_tokens"].as_array().unwrap() {
            let id = token["id"].as_u64().unwrap() as usize;
            let text = token["content"].as_str().unwrap();
            (tokens[id], kinds[id]) = (text.to_owned(), 3);
        }
        let merges = self.tokenizer["model"]["merges"].as_array().unwrap();
        let pair = |merge: &Value| {
            format!(
                "{} {}",
                merge[0].as_str().unwrap(),
                merge[1].as_str().unwrap()
            )
        };
        let merges: Vec<String> = merges.iter().map(pair).collect();
        builder
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", pre)
            .texts("tokenizer.ggml.tokens", &tokens)
            .i32s("tokenizer.ggml.token_type", &kinds)
            .texts("tokenizer.ggml.merges", &merges)
    }
}

/// Returns a tensor as llama.cpp's converter stores it, in one piece or several, with the rules still
/// to be applied to its name.
fn stored(name: &str, shape: &[usize], values: &[f32]) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    if let (true, &[outputs, inputs, frames, height, width]) =
        (name.ends_with("patch_embed.proj.weight"), shape)
    {
        let pixels = height * width;
        let frame = |frame: usize| {
            let chunks = values.chunks(pixels).skip(frame).step_by(frames);
            let suffix = [String::new(), format!(".{frame}")][frame.min(1)].clone();
            let values: Vec<f32> = chunks.flatten().copied().collect();
            (
                format!("{name}{suffix}"),
                vec![outputs, inputs, height, width],
                values,
            )
        };
        return (0..frames).map(frame).collect();
    }
    if name.contains(".attn.qkv.") {
        let mut shape = shape.to_vec();
        shape[0] /= 3;
        let parts = values.chunks(values.len() / 3).zip(["q", "k", "v"]);
        return parts
            .map(|(values, letter)| {
                let name = name.replace(".attn.qkv", &format!(".attn_{letter}"));
                (name, shape.clone(), values.to_vec())
            })
            .collect();
    }
    if name.ends_with("patch_embedding.weight") {
        let side = (shape[1] / 3).isqrt();
        let rows = values.chunks(shape[1]);
        let planes = rows.flat_map(|row| (0..3).flat_map(|c| row.iter().skip(c).step_by(3)));
        return vec![(
            name.to_owned(),
            vec![shape[0], 3, side, side],
            planes.copied().collect(),
        )];
    }
    let shape = match name.ends_with("conv.conv.weight") {
        true => vec![shape[0], shape[2]],
        false => shape.to_vec(),
    };
    vec![(name.to_owned(), shape, values.to_vec())]
}

/// Adds sizes, read from a section of the configuration.
fn sizes(builder: GgufBuilder, section: &Value, keys: &[(&str, &str)]) -> GgufBuilder {
    keys.iter().fold(builder, |builder, (key, field)| {
        let size = section[*field]
            .as_u64()
            .unwrap_or_else(|| panic!("no {field}"));
        builder.u32(key, size as u32)
    })
}

fn qwen2_5_text(hub: &Hub) -> GgufBuilder {
    let builder = GgufBuilder::new()
        .text("general.architecture", "qwen2vl")
        .f32("qwen2vl.attention.layer_norm_rms_epsilon", 1e-6)
        .f32("qwen2vl.rope.freq_base", 200_000.0)
        .i32s("qwen2vl.rope.dimension_sections", &[3, 3, 2, 0])
        .u32("tokenizer.ggml.bos_token_id", 445)
        .u32("tokenizer.ggml.eos_token_id", 1);
    let keys = [
        ("qwen2vl.block_count", "num_hidden_layers"),
        ("qwen2vl.context_length", "max_position_embeddings"),
        ("qwen2vl.embedding_length", "hidden_size"),
        ("qwen2vl.feed_forward_length", "intermediate_size"),
        ("qwen2vl.attention.head_count", "num_attention_heads"),
        ("qwen2vl.attention.head_count_kv", "num_key_value_heads"),
    ];
    let builder = hub.vocabulary(sizes(builder, &hub.config, &keys), "qwen2", 467);
    hub.tensors(builder, QWEN_TEXT)
}

/// Builds a tower with `period` as the distance of blocks without windows.
fn qwen2_5_vision(hub: &Hub, period: u32) -> GgufBuilder {
    let builder = GgufBuilder::new()
        .text("general.architecture", "clip")
        .text("clip.projector_type", "qwen2.5vl_merger")
        .flag("clip.use_silu", true)
        .u32("clip.vision.n_wa_pattern", period)
        .f32s("clip.vision.image_mean", &[0.5; 3])
        .f32s("clip.vision.image_std", &[0.5; 3])
        .f32("clip.vision.attention.layer_norm_epsilon", 1e-6);
    let keys = [
        ("clip.vision.block_count", "depth"),
        ("clip.vision.embedding_length", "hidden_size"),
        ("clip.vision.feed_forward_length", "intermediate_size"),
        ("clip.vision.attention.head_count", "num_heads"),
        ("clip.vision.patch_size", "patch_size"),
        ("clip.vision.window_size", "window_size"),
    ];
    let builder = sizes(builder, &hub.config["vision_config"], &keys);
    hub.tensors(builder, QWEN_VISION)
}

fn lfm2_text(hub: &Hub) -> GgufBuilder {
    let builder = GgufBuilder::new()
        .text("general.architecture", "lfm2")
        .f32("lfm2.attention.layer_norm_rms_epsilon", 1e-5)
        .f32("lfm2.rope.freq_base", 1e6)
        .u32("lfm2.feed_forward_length", 192)
        .i32s("lfm2.attention.head_count_kv", &[0, 0, 2, 0, 2, 0])
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 7);
    let keys = [
        ("lfm2.block_count", "num_hidden_layers"),
        ("lfm2.context_length", "max_position_embeddings"),
        ("lfm2.embedding_length", "hidden_size"),
        ("lfm2.attention.head_count", "num_attention_heads"),
        ("lfm2.shortconv.l_cache", "conv_L_cache"),
        ("lfm2.vocab_size", "vocab_size"),
    ];
    let builder = sizes(builder, &hub.config["text_config"], &keys);
    hub.tensors(hub.vocabulary(builder, "lfm2", 671), LFM2_TEXT)
}

fn lfm2_vision(hub: &Hub) -> GgufBuilder {
    let builder = GgufBuilder::new()
        .text("general.architecture", "clip")
        .text("clip.projector_type", "lfm2")
        .flag("clip.use_gelu", true)
        .u32("clip.vision.image_size", 256)
        .u32("clip.vision.projector.scale_factor", 2)
        .f32s("clip.vision.image_mean", &[0.5; 3])
        .f32s("clip.vision.image_std", &[0.5; 3])
        .f32("clip.vision.attention.layer_norm_epsilon", 1e-6);
    let keys = [
        ("clip.vision.block_count", "num_hidden_layers"),
        ("clip.vision.embedding_length", "hidden_size"),
        ("clip.vision.feed_forward_length", "intermediate_size"),
        ("clip.vision.attention.head_count", "num_attention_heads"),
        ("clip.vision.patch_size", "patch_size"),
    ];
    let builder = sizes(builder, &hub.config["vision_config"], &keys);
    hub.tensors(builder, LFM2_VISION)
}

fn open(
    text: &GgufBuilder,
    vision: &GgufBuilder,
) -> Result<Checkpoint, edge_lmm_convert::source::SourceError> {
    let folder: TempDir = tempfile::tempdir().unwrap();
    let vision = vision.write(folder.path(), "mmproj.gguf");
    Checkpoint::open(&text.write(folder.path(), "text.gguf"), Some(&vision))
}

fn assert_same_tensors(gguf: &Checkpoint, hub: &Hub) {
    let names: Vec<&str> = gguf.tensors().map(|(name, _)| name).collect();
    assert!(names.iter().eq(hub.tensors.keys()));
    for (name, (shape, expected)) in &hub.tensors {
        assert_eq!(&gguf.tensor(name).unwrap().shape, shape, "{name}");
        assert_eq!(&values(gguf, name), expected, "{name}");
    }
}

/// Compares all stages with the reference. Files do not have the settings of the image processor, which
/// are therefore those of the original.
fn assert_parity(mut gguf: Checkpoint, name: &str) {
    let original = Checkpoint::open(&model(name), None).unwrap();
    gguf.preprocessor_config = original.preprocessor_config;
    gguf.chat_template = original.chat_template;
    gguf.tokenizer = original.tokenizer;
    let manifest = Manifest::named(name);
    let mut engine = engine_of(gguf, &F32);
    let mut compared = BTreeSet::new();
    for golden in manifest.goldens() {
        let (_, stages) = check_sample(&mut engine, &manifest, &golden, &MediaOptions::default());
        compared.extend(stages.into_iter().map(|compared| compared.stage));
    }
    assert!(manifest.stages.iter().all(|stage| compared.contains(stage)));
}

fn encoded(tokenizer: &str) -> Vec<u32> {
    let tokenizer: tokenizers::Tokenizer = tokenizer.parse().unwrap();
    let text = "<|im_start|>the red 1234 circle,\n  Größe<|im_end|>";
    tokenizer.encode(text, false).unwrap().get_ids().to_vec()
}

#[test]
fn qwen2_5_vl_is_the_model_of_the_hub() {
    let hub = Hub::open("qwen25vl-odd");
    let mut gguf = open(&qwen2_5_text(&hub), &qwen2_5_vision(&hub, 3)).unwrap();
    assert_same_tensors(&gguf, &hub);
    let tower = &mut gguf.config["vision_config"];
    assert_eq!(tower["tokens_per_second"], json!(2));
    // The odd checkpoint has another value than the published ones.
    tower["tokens_per_second"] = json!(3);
    assert_eq!(tower, &hub.config["vision_config"]);
    assert_eq!(
        encoded(&gguf.tokenizer),
        encoded(&hub.tokenizer.to_string())
    );
    assert_parity(gguf, "qwen25vl-odd");
}

#[test]
fn lfm2_vl_is_the_model_of_the_hub() {
    let hub = Hub::open("lfm2vl-odd");
    let gguf = open(&lfm2_text(&hub), &lfm2_vision(&hub)).unwrap();
    assert_same_tensors(&gguf, &hub);
    let mut rows = Vec::new();
    let patches = "model.vision_tower.vision_model.embeddings.patch_embedding.weight";
    gguf.read_rows(patches, 5..7, &mut rows).unwrap();
    assert_eq!(rows, hub.tensors[patches].1[5 * 768..7 * 768]);
    assert_eq!(
        encoded(&gguf.tokenizer),
        encoded(&hub.tokenizer.to_string())
    );
    assert_parity(gguf, "lfm2vl-odd");
}

#[test]
fn towers_that_contradict_themselves_are_refused() {
    let hub = Hub::open("qwen25vl-odd");
    let text = qwen2_5_text(&hub);
    let period = error(open(&text, &qwen2_5_vision(&hub, 9)));
    assert_says(&period, &["mmproj.gguf", "n_wa_pattern 9", "4 blocks"]);
    let lfm2 = Hub::open("lfm2vl-odd");
    let other = error(open(&text, &lfm2_vision(&lfm2)));
    assert_says(&other, &["projector lfm2", "qwen2.5vl_merger"]);
    let window = lfm2_vision(&lfm2).u32("clip.vision.window_size", 7);
    let window = error(open(&lfm2_text(&lfm2), &window));
    assert_says(&window, &["clip.vision.window_size", "7"]);
    let folder = tempfile::tempdir().unwrap();
    let alone = error(Checkpoint::open(
        &lfm2_text(&lfm2).write(folder.path(), "text.gguf"),
        None,
    ));
    assert_says(&alone, &["lfm2", "--mmproj"]);
}
