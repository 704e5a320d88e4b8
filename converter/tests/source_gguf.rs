//! Comparison of GGUF checkpoints with the same checkpoints in the hub's layout.

mod source_support;

use std::collections::BTreeSet;

use edge_lmm_convert::source::{Checkpoint, SourceError};
use proptest::prelude::*;
use serde_json::{Value, json};
use source_support::{
    GgufBuilder, assert_says, data, error, model, plain_safetensors, tiny_gguf, values,
};

/// Largest difference between a bfloat16 and its nearest half-precision number: half a step of the
/// subnormal range, which begins at 2^-14 and has steps of 2^-24. Above it, half precision holds
/// all 8 significant bits of a bfloat16.
const BF16_TO_F16: f32 = 1.0 / (1u64 << 25) as f32;

fn assert_same_tensors(gguf: &Checkpoint, hub: &Checkpoint, tolerance: f32) {
    let shapes = |c: &Checkpoint| -> Vec<(String, Vec<usize>)> {
        c.tensors()
            .map(|(name, info)| (name.to_owned(), info.shape.clone()))
            .collect()
    };
    assert_eq!(shapes(gguf), shapes(hub));
    for (name, _) in hub.tensors() {
        let (a, b) = (values(gguf, name), values(hub, name));
        assert_eq!(a.len(), b.len(), "{name}");
        for (i, (x, y)) in a.iter().zip(&b).enumerate() {
            assert!((x - y).abs() <= tolerance, "{name}[{i}]: {x} is not {y}");
        }
    }
}

/// Checks that every value of the GGUF config is in the hub's. Values that only the hub has must be
/// in `unknown`: GGUF does not keep them, and they do not affect the computation.
fn assert_agrees(gguf: &Value, hub: &Value, unknown: &[&str]) {
    let (gguf, hub) = (gguf.as_object().unwrap(), hub.as_object().unwrap());
    for (key, value) in gguf {
        assert!(
            same_json(value, &hub[key]),
            "{key}: {value} is not {}",
            hub[key]
        );
    }
    let missing: BTreeSet<&str> = hub
        .keys()
        .map(String::as_str)
        .filter(|key| !gguf.contains_key(*key))
        .collect();
    assert_eq!(missing, unknown.iter().copied().collect());
}

/// Compares JSON values; numbers need only agree in single precision.
fn same_json(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            a.as_f64().map(|x| x as f32) == b.as_f64().map(|x| x as f32)
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_json(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(k, v)| b.get(k).is_some_and(|w| same_json(v, w)))
        }
        _ => a == b,
    }
}

const QWEN2_VL_UNKNOWN: [&str; 8] = [
    "attention_dropout",
    "initializer_range",
    "max_window_layers",
    "sliding_window",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "use_sliding_window",
];

#[test]
fn tiny_qwen2_vl_equals_its_hub_form() {
    let gguf = tiny_gguf().unwrap();
    let hub = Checkpoint::open(&model("qwen2vl-tiny"), None).unwrap();
    assert_same_tensors(&gguf, &hub, BF16_TO_F16);
    assert_agrees(&gguf.config, &hub.config, &QWEN2_VL_UNKNOWN);
    assert_agrees(
        gguf.generation_config.as_ref().unwrap(),
        hub.generation_config.as_ref().unwrap(),
        &["do_sample", "transformers_version"],
    );
    assert_agrees(
        gguf.preprocessor_config.as_ref().unwrap(),
        hub.preprocessor_config.as_ref().unwrap(),
        &[],
    );
    assert_eq!(gguf.chat_template, hub.chat_template);
    let names: Vec<&str> = gguf.files.iter().map(|file| &*file.name).collect();
    assert_eq!(
        names,
        ["qwen2vl-tiny-f16.gguf", "mmproj-qwen2vl-tiny-f16.gguf"]
    );
    let size = std::fs::metadata(model("qwen2vl-tiny-gguf/qwen2vl-tiny-f16.gguf"))
        .unwrap()
        .len();
    assert_eq!(gguf.files[0].bytes, size);
}

/// Sizes that are not powers of two, an untied head, other token ids; both forms are f16, so
/// nothing is rounded.
#[test]
fn odd_qwen2_vl_equals_its_hub_form() {
    let gguf = Checkpoint::open(
        &model("qwen2vl-odd-gguf/qwen2vl-odd-f16.gguf"),
        Some(&model("qwen2vl-odd-gguf/mmproj-qwen2vl-odd-f16.gguf")),
    )
    .unwrap();
    let hub = Checkpoint::open(&model("qwen2vl-odd"), None).unwrap();
    assert_same_tensors(&gguf, &hub, 0.0);
    assert_agrees(&gguf.config, &hub.config, &QWEN2_VL_UNKNOWN);
    assert_agrees(
        gguf.preprocessor_config.as_ref().unwrap(),
        hub.preprocessor_config.as_ref().unwrap(),
        &[],
    );
}

/// The error of the quantized files must stay within one quantization step.
#[test]
fn quantized_qwen2_vl_stays_near_the_original() {
    let hub = Checkpoint::open(&model("qwen2vl-tiny"), None).unwrap();
    for file in ["qwen2vl-tiny-Q4_0.gguf", "qwen2vl-tiny-Q4_K_M.gguf"] {
        let gguf = Checkpoint::open(
            &data(file),
            Some(&model("qwen2vl-tiny-gguf/mmproj-qwen2vl-tiny-f16.gguf")),
        )
        .unwrap();
        let mut compared = BTreeSet::new();
        for (name, info) in gguf.tensors() {
            // In a block of largest magnitude m, Q4_0 has steps of m / 8 up to 7 m / 8 on one side,
            // so the error is at most a whole step; Q5_0 likewise m / 16; Q8_0 rounds to steps of m
            // / 127.
            let share = match &*info.dtype {
                "Q4_0" => 1.0 / 8.0,
                "Q5_0" => 1.0 / 16.0,
                "Q8_0" => 0.5 / 127.0,
                _ => continue,
            };
            compared.insert(info.dtype.clone());
            let pairs = values(&gguf, name)
                .into_iter()
                .zip(values(&hub, name))
                .collect::<Vec<_>>();
            for block in pairs.chunks(32) {
                let largest = block.iter().fold(0f32, |m, (_, y)| m.max(y.abs()));
                // The scale itself is rounded to 11 bits, which changes a value by up to 2^-11 of
                // the largest.
                let bound = largest * (share + 1.0 / 2048.0) + BF16_TO_F16;
                for (x, y) in block {
                    assert!(
                        (x - y).abs() <= bound,
                        "{file} {name}: {x} for {y}, bound {bound}"
                    );
                }
            }
        }
        assert!(compared.len() >= 2, "{file} has {compared:?}");
    }
}

/// Compares every decoder with the reference decoder bit for bit: both compute in f32 in the same
/// order.
#[test]
fn blocks_decode_as_the_reference_does() {
    for (file, expected, all) in [
        (
            "blocks/blocks.gguf",
            "blocks/expected.safetensors",
            "BF16 F16 F32 IQ4_NL Q2_K Q3_K Q4_0 Q4_1 Q4_K Q5_0 Q5_1 Q5_K Q6_K Q8_0",
        ),
        (
            "blocks/codebooks.gguf",
            "blocks/codebooks.safetensors",
            "F32 IQ1_M IQ1_S IQ2_S IQ2_XS IQ2_XXS IQ3_S IQ3_XXS IQ4_XS MXFP4 NVFP4 TQ1_0 TQ2_0",
        ),
    ] {
        let gguf = Checkpoint::open(&data(file), None).unwrap();
        let expected = plain_safetensors(&data(expected));
        let mut types = BTreeSet::new();
        for (name, info) in gguf.tensors() {
            types.insert(info.dtype.clone());
            let (shape, reference) = &expected[name];
            assert_eq!(&info.shape, shape);
            for (i, (x, y)) in values(&gguf, name).iter().zip(reference).enumerate() {
                assert_eq!(
                    x.to_bits(),
                    y.to_bits(),
                    "{name} ({}) [{i}]: {x} is not {y}",
                    info.dtype
                );
            }
        }
        assert_eq!(gguf.tensors().count(), expected.len());
        assert_eq!(types.into_iter().collect::<Vec<_>>().join(" "), all);
    }
}

/// Llama's permuted rows, and the first LLaVA converters: last block dropped, names swapped.
#[test]
fn llava_equals_its_hub_form() {
    let gguf = Checkpoint::open(
        &data("llava-mini/llava-mini-f16.gguf"),
        Some(&data("llava-mini/mmproj-llava-mini-f16.gguf")),
    )
    .unwrap();
    let hub = plain_safetensors(&data("llava-mini/model.safetensors"));
    for (name, info) in gguf.tensors() {
        let (shape, expected) = &hub[name];
        assert_eq!(&info.shape, shape, "{name}");
        assert_eq!(&values(&gguf, name), expected, "{name}");
    }
    let dropped: Vec<&String> = hub
        .keys()
        .filter(|name| gguf.tensor(name).is_none())
        .collect();
    assert!(!dropped.is_empty());
    for name in dropped {
        assert!(
            name.contains("encoder.layers.2.") || name.contains("post_layernorm"),
            "{name}"
        );
    }
    let mut config = read_json("llava-mini/config.json");
    config["vision_config"]["num_hidden_layers"] = json!(2);
    config["vision_feature_layer"] = json!(-1);
    assert_agrees(&gguf.config, &config, &[]);
    let preprocessor = read_json("llava-mini/preprocessor_config.json");
    assert_agrees(
        gguf.preprocessor_config.as_ref().unwrap(),
        &preprocessor,
        &[],
    );
}

/// The original LLaVA has no image token; the hub's form adds one and rows for it.
#[test]
fn llava_gets_an_image_token_where_it_has_none() {
    let mut bytes = std::fs::read(data("llava-mini/llava-mini-f16.gguf")).unwrap();
    let at = bytes.windows(7).position(|w| w == b"<image>").unwrap();
    bytes[at + 5] = b'E';
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("original.gguf");
    std::fs::write(&path, bytes).unwrap();
    let tower = data("llava-mini/mmproj-llava-mini-f16.gguf");
    let gguf = Checkpoint::open(&path, Some(&tower)).unwrap();
    // 424 ids are stored, so the new one is 424, and the next multiple of 64 is 448.
    assert_eq!(gguf.config["image_token_index"], json!(424));
    assert_eq!(gguf.config["text_config"]["vocab_size"], json!(448));
    let tokenizer: tokenizers::Tokenizer = gguf.tokenizer.parse().unwrap();
    let ids = tokenizer.encode("a<image>b", true).unwrap();
    assert!(ids.get_ids().contains(&424));
    let hub = plain_safetensors(&data("llava-mini/model.safetensors"));
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let name = format!("language_model.{name}");
        let stored = &hub[&name].1;
        let all = values(&gguf, &name);
        assert_eq!(gguf.tensor(&name).unwrap().shape, [448, 32]);
        assert_eq!(&all[..424 * 32], &stored[..]);
        // The additional rows repeat that of `<unk>`, which is token 0.
        assert!(all[424 * 32..].chunks(32).all(|row| row == &stored[..32]));
        let mut some = Vec::new();
        gguf.read_rows(&name, 423..426, &mut some).unwrap();
        assert_eq!(some, all[423 * 32..426 * 32]);
    }
}

#[test]
fn phi3_equals_its_hub_form() {
    let gguf = Checkpoint::open(&data("phi3-mini/phi3-mini-f16.gguf"), None).unwrap();
    let hub = plain_safetensors(&data("phi3-mini/model.safetensors"));
    assert_eq!(gguf.tensors().count(), hub.len());
    for (name, info) in gguf.tensors() {
        assert_eq!(info.shape, hub[name].0, "{name}");
        assert_eq!(values(&gguf, name), hub[name].1, "{name}");
    }
    let mut hub = read_json("phi3-mini/config.json");
    // GGUF stores the attention factor that other sources compute: sqrt(1 + ln(4096 / 256) /
    // ln(256)).
    hub["rope_scaling"]["attention_factor"] = json!(1.5f64.sqrt());
    assert_agrees(&gguf.config, &hub, &[]);
    assert_eq!(gguf.preprocessor_config, None);
}

fn read_json(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(data(name)).unwrap()).unwrap()
}

proptest! {
    /// A range of rows equals the same rows of the whole tensor, for every kind of view.
    #[test]
    fn rows_are_parts_of_the_whole(pick in any::<prop::sample::Index>(), from in any::<prop::sample::Index>(), to in any::<prop::sample::Index>(), which in 0..4) {
        let gguf = match which {
            0 => tiny_gguf(),
            1 => Checkpoint::open(&data("llava-mini/llava-mini-f16.gguf"), Some(&data("llava-mini/mmproj-llava-mini-f16.gguf"))),
            2 => Checkpoint::open(&data("blocks/codebooks.gguf"), None),
            _ => Checkpoint::open(&data("blocks/blocks.gguf"), None),
        }.unwrap();
        let names: Vec<&str> = gguf.tensors().map(|(name, _)| name).collect();
        let name = *pick.get(&names);
        let info = gguf.tensor(name).unwrap();
        let (a, b) = (from.index(info.rows() + 1), to.index(info.rows() + 1));
        let rows = a.min(b)..a.max(b);
        let mut out = vec![7.0];
        gguf.read_rows(name, rows.clone(), &mut out).unwrap();
        let whole = values(&gguf, name);
        prop_assert_eq!(whole.len(), info.elements());
        prop_assert_eq!(out[0], 7.0);
        prop_assert_eq!(&out[1..], &whole[rows.start * info.row_len()..rows.end * info.row_len()]);
    }
}

/// A version 2 file has the same layout.
#[test]
fn version_two_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(data("blocks/blocks.gguf")).unwrap();
    bytes[4] = 2;
    let path = folder.path().join("v2.gguf");
    std::fs::write(&path, bytes).unwrap();
    let two = Checkpoint::open(&path, None).unwrap();
    let three = Checkpoint::open(&data("blocks/blocks.gguf"), None).unwrap();
    assert_same_tensors(&two, &three, 0.0);
}

#[test]
fn a_vision_tower_alone_or_missing_says_what_to_do() {
    let text = model("qwen2vl-tiny-gguf/qwen2vl-tiny-f16.gguf");
    let tower = model("qwen2vl-tiny-gguf/mmproj-qwen2vl-tiny-f16.gguf");
    assert_says(
        &error(Checkpoint::open(&text, None)),
        &["qwen2vl-tiny-f16.gguf", "--mmproj"],
    );
    assert_says(
        &error(Checkpoint::open(&tower, None)),
        &["vision tower", "--mmproj"],
    );
    assert_says(
        &error(Checkpoint::open(&text, Some(&text))),
        &["qwen2vl", "clip"],
    );
    let hub = model("qwen2vl-tiny");
    assert_says(
        &error(Checkpoint::open(&hub, Some(&tower))),
        &["not GGUF", "--mmproj"],
    );
}

#[test]
fn towers_and_models_that_do_not_belong_together_are_refused() {
    let text = model("qwen2vl-tiny-gguf/qwen2vl-tiny-f16.gguf");
    let llava = data("llava-mini/mmproj-llava-mini-f16.gguf");
    assert_says(
        &error(Checkpoint::open(&text, Some(&llava))),
        &["projector", "mlp", "supported", "qwen2vl_merger"],
    );
    let odd = model("qwen2vl-odd-gguf/mmproj-qwen2vl-odd-f16.gguf");
    assert_says(
        &error(Checkpoint::open(&text, Some(&odd))),
        &["mm.2.weight", "[96, 240]", "[128, 240]"],
    );
}

fn open_built(builder: &GgufBuilder) -> Result<Checkpoint, SourceError> {
    let folder = tempfile::tempdir().unwrap();
    Checkpoint::open(&builder.write(folder.path(), "built.gguf"), None)
}

#[test]
fn a_built_file_opens_and_its_faults_are_named() {
    let good = || GgufBuilder::new().small_model(3).small_tokenizer();
    let opened = open_built(&good()).unwrap();
    assert_eq!(opened.config["architectures"], json!(["Qwen2ForCausalLM"]));
    assert_eq!(opened.config["tie_word_embeddings"], json!(true));

    let extra = good().tensor("blk.0.attn_q_norm.weight", &[2], &[1.0, 1.0]);
    assert_says(
        &error(open_built(&extra)),
        &["built.gguf", "blk.0.attn_q_norm.weight", "qwen2"],
    );

    let more_tokens = GgufBuilder::new().small_model(2).small_tokenizer();
    assert_says(
        &error(open_built(&more_tokens)),
        &["largest token id is 2", "vocab_size is 2"],
    );

    let unknown = GgufBuilder::new()
        .text("general.architecture", "mamba")
        .small_tokenizer();
    assert_says(
        &error(open_built(&unknown)),
        &["architecture mamba", "supported", "phi3"],
    );

    let empty = GgufBuilder::new().text("general.architecture", "qwen2");
    assert_says(&error(open_built(&empty)), &["tokenizer.ggml.tokens"]);

    let bare = GgufBuilder::new()
        .text("general.architecture", "qwen2")
        .small_tokenizer();
    assert_says(&error(open_built(&bare)), &["qwen2.embedding_length"]);

    let split = good().raw("split.count", 2, &3u16.to_le_bytes());
    assert_says(
        &error(open_built(&split)),
        &["split.count 3", "NAME-00001-of-00003", "llama-gguf-split"],
    );

    let role = good().u32("tokenizer.ggml.bos_token_id", 3);
    assert_says(
        &error(open_built(&role)),
        &["tokenizer.ggml.bos_token_id 3", "3 tokens"],
    );
}

/// Metadata that changes the computation is honored or reported, never ignored.
#[test]
fn metadata_that_change_the_model_are_honoured_or_named() {
    let good = || GgufBuilder::new().small_model(3).small_tokenizer();
    for (file, words) in [
        (
            good().text("qwen2.rope.scaling.type", "ntk"),
            ["qwen2.rope.scaling.type", "ntk"],
        ),
        (
            good().u32("qwen2.rope.dimension_count", 1),
            ["qwen2.rope.dimension_count", "1"],
        ),
        (good().u32("qwen2.expert_count", 8), ["expert_count", "8"]),
        (good().f32("qwen2.logit_scale", 0.5), ["logit_scale", "0.5"]),
        (
            good().flag("qwen2.attention.causal", false),
            ["attention.causal", "false"],
        ),
    ] {
        assert_says(&error(open_built(&file)), &words);
    }
    let neutral = good()
        .text("qwen2.rope.scaling.type", "none")
        .u32("qwen2.rope.dimension_count", 2)
        .u32("qwen2.expert_count", 0)
        .flag("qwen2.attention.causal", true);
    let config = open_built(&neutral).unwrap().config;
    assert!(config.get("rope_scaling").is_none());
    let scaled = good().f32("qwen2.rope.scale_linear", 4.0);
    let config = open_built(&scaled).unwrap().config;
    assert_eq!(
        config["rope_scaling"],
        json!({"type": "linear", "factor": 4.0})
    );
}

/// Adds a metadata entry to a vision tower, before its own. A second entry pads to the alignment of
/// the tensors.
fn with_entry(name: &str, key: &str, value: &str) -> tempfile::NamedTempFile {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let entry =
        |key: &str, value: &str| [text(key), 8u32.to_le_bytes().into(), text(value)].concat();
    let mut added = entry(key, value);
    let filler = added.len() + entry("filler", "").len();
    let filler = "-".repeat(filler.next_multiple_of(32) - filler);
    added.extend(entry("filler", &filler));
    let mut bytes = std::fs::read(data(name)).unwrap();
    let count = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
    bytes[16..24].copy_from_slice(&(count + 2).to_le_bytes());
    bytes.splice(24..24, added);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

#[test]
fn llava_pads_where_the_tower_says_so() {
    let open = |ratio: &str| {
        let tower = "llava-mini/mmproj-llava-mini-f16.gguf";
        let tower = with_entry(tower, "clip.vision.image_aspect_ratio", ratio);
        let text = data("llava-mini/llava-mini-f16.gguf");
        Checkpoint::open(&text, Some(tower.path()))
    };
    let padding = |ratio| {
        let config = open(ratio).unwrap().preprocessor_config.unwrap();
        (
            config.get("do_pad").is_some(),
            config["image_processor_type"].clone(),
        )
    };
    assert_eq!(padding("pad"), (true, json!("LlavaImageProcessor")));
    assert_eq!(padding("square"), (false, json!("CLIPImageProcessor")));
    assert_says(&error(open("anyres")), &["image_aspect_ratio", "anyres"]);
}

/// A type without a decoder can be listed; reading its rows is an error that names it.
#[test]
fn types_without_a_decoder_are_refused_by_name() {
    let mut bytes = std::fs::read(data("blocks/blocks.gguf")).unwrap();
    let name = b"blk.0.attn_q.bias";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len();
    // One dimension: its count (4 bytes), the dimension (8), then the type: I32, which has the size
    // of F32.
    bytes[at + 12..at + 16].copy_from_slice(&26u32.to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("i32.gguf");
    std::fs::write(&path, &bytes).unwrap();
    let checkpoint = Checkpoint::open(&path, None).unwrap();
    let tensor = "model.layers.0.self_attn.q_proj.bias";
    assert_eq!(checkpoint.tensor(tensor).unwrap().dtype, "I32");
    let mut out = vec![1.0];
    let message = checkpoint
        .read_rows(tensor, 0..1, &mut out)
        .unwrap_err()
        .to_string();
    assert_says(&message, &["i32.gguf", tensor, "I32", "Q4_K"]);
    assert_eq!(out, [1.0]);

    bytes[at + 12..at + 16].copy_from_slice(&36u32.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    assert_says(
        &error(Checkpoint::open(&path, None)),
        &["blk.0.attn_q.bias", "type number 36", "supported"],
    );
}
