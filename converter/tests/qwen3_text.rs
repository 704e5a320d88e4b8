//! Qwen3 without images: the language model of `qwen3vl-odd`, whose positions of text are those of a
//! text-only model, in the layout of the hub and as a file of llama.cpp.

mod common;
mod source_support;

use std::collections::BTreeMap;
use std::path::Path;

use common::check::answer_sample;
use common::{F32, Golden, engine, goldens, relative};
use edge_lmm::{Cpu, Session};
use edge_lmm_models::media::MediaOptions;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use source_support::{GgufBuilder, copy_of, model, plain_safetensors};

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Returns the tensors of the language model under the names of Qwen3.
fn tensors() -> Tensors {
    let file = model("qwen3vl-odd/model.safetensors");
    let own = |(name, tensor): (String, _)| {
        let rest = name.strip_prefix("model.language_model.")?;
        Some((format!("model.{rest}"), tensor))
    };
    plain_safetensors(&file)
        .into_iter()
        .filter_map(own)
        .collect()
}

fn json_file(name: &str) -> Value {
    let text = std::fs::read_to_string(model("qwen3vl-odd").join(name)).expect(name);
    serde_json::from_str(&text).expect(name)
}

/// Returns the sample without media.
fn sample() -> Golden {
    let mut all = goldens(&model("qwen3vl-odd/goldens"));
    all.retain(|golden| golden.media.is_empty());
    all.remove(0)
}

fn check(mut session: Session<Cpu>) {
    let golden = sample();
    let found = answer_sample(&mut session, &golden, &MediaOptions::default());
    for stage in ["input_ids", "lm_hidden_last", "logits_first"] {
        let expected = &golden.tensors[stage].1;
        let error = relative(&found[stage].values[..expected.len()], expected);
        assert!(error < 1e-5, "{stage} differs by {error}");
    }
}

/// Writes the checkpoint with `rope` in its configuration.
fn hub(rope: impl Fn(&mut Value, Value)) -> tempfile::TempDir {
    let folder = copy_of(&model("qwen3vl-odd"));
    for name in ["preprocessor_config.json", "video_preprocessor_config.json"] {
        std::fs::remove_file(folder.path().join(name)).expect(name);
    }
    let mut config = json_file("config.json")["text_config"].take();
    config["model_type"] = json!("qwen3");
    config["architectures"] = json!(["Qwen3ForCausalLM"]);
    let members = config.as_object_mut().expect("an object");
    members.remove("rope_scaling");
    let theta = members.remove("rope_theta").expect("a base");
    rope(&mut config, theta);
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("a file");
    let tensors = tensors();
    let bytes =
        |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let stored: BTreeMap<&str, (&[usize], Vec<u8>)> = (tensors.iter())
        .map(|(name, (shape, values))| (&**name, (&**shape, bytes(values))))
        .collect();
    let views = stored.iter().map(|(name, (shape, bytes))| {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("a tensor");
        (*name, view)
    });
    let path = folder.path().join("model.safetensors");
    serialize_to_file(views, None, &path).expect("a file");
    folder
}

#[test]
fn both_layouts_of_the_configuration_give_the_reference() {
    let old = hub(|config, theta| config["rope_theta"] = theta);
    check(engine(old.path(), None, &F32));
    let new = hub(|config, theta| {
        config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": theta});
    });
    check(engine(new.path(), None, &F32));
}

/// Adds the tokenizer of `qwen3vl-odd` and its template.
fn with_tokenizer(mut file: GgufBuilder, rows: usize) -> GgufBuilder {
    let tokenizer = json_file("tokenizer.json");
    let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![5; rows];
    for (token, id) in tokenizer["model"]["vocab"].as_object().expect("tokens") {
        let id = id.as_u64().expect("an id") as usize;
        (tokens[id], kinds[id]) = (token.clone(), 1);
    }
    for token in tokenizer["added_tokens"].as_array().expect("tokens") {
        let id = token["id"].as_u64().expect("an id") as usize;
        tokens[id] = token["content"].as_str().expect("a text").to_owned();
        kinds[id] = if token["special"] == true { 3 } else { 4 };
    }
    let merge = |merge: &Value| match merge {
        Value::String(merge) => merge.clone(),
        pair => [0, 1].map(|i| pair[i].as_str().expect("a token")).join(" "),
    };
    let merges = tokenizer["model"]["merges"].as_array().expect("merges");
    let merges: Vec<String> = merges.iter().map(merge).collect();
    let template = &json_file("chat_template.json")["chat_template"];
    for (key, value) in [
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "qwen2"),
        (
            "tokenizer.chat_template",
            template.as_str().expect("a template"),
        ),
    ] {
        file = file.text(key, value);
    }
    file.texts("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .texts("tokenizer.ggml.merges", &merges)
        .u32("tokenizer.ggml.eos_token_id", 482)
        .flag("tokenizer.ggml.add_bos_token", false)
}

fn stored_name(name: &str) -> String {
    const NAMES: [(&str, &str); 14] = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    let rename = |name: String, (from, to): &(&str, &str)| name.replace(from, to);
    NAMES.iter().fold(name.to_owned(), rename)
}

/// Writes the model as a file of llama.cpp.
fn gguf(folder: &Path) -> std::path::PathBuf {
    let config = json_file("config.json")["text_config"].take();
    let mut file = GgufBuilder::new().text("general.architecture", "qwen3");
    for (key, field) in [
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.key_length", "head_dim"),
        ("attention.value_length", "head_dim"),
    ] {
        let value = config[field].as_u64().expect(field);
        file = file.u32(&format!("qwen3.{key}"), value as u32);
    }
    for (key, field) in [
        ("rope.freq_base", "rope_theta"),
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ] {
        let value = config[field].as_f64().expect(field);
        file = file.f32(&format!("qwen3.{key}"), value as f32);
    }
    let rows = config["vocab_size"].as_u64().expect("a size") as usize;
    file = with_tokenizer(file, rows);
    for (name, (shape, values)) in tensors() {
        let shape: Vec<u64> = shape.iter().rev().map(|&dim| dim as u64).collect();
        file = file.tensor(&stored_name(&name), &shape, &values);
    }
    file.write(folder, "qwen3.gguf")
}

#[test]
fn a_file_of_llama_cpp_gives_the_reference() {
    let folder = tempfile::tempdir().expect("a folder");
    check(engine(&gguf(folder.path()), None, &F32));
}
