//! Sources that only resemble a checkpoint, or whose weights do not have their usual meaning, are
//! rejected with their kind and the remedy.

mod common;

use std::fs;

use common::damage::{Copy, Tensors, expect_error};
use edge_lmm_convert::source::Checkpoint;
use safetensors::Dtype;
use serde_json::{Value, json};

const LFS_POINTER: &str =
    "version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 4418050848\n";

/// Returns the names of the language model's linear layers without `.weight`.
fn linears(tensors: &Tensors) -> Vec<String> {
    tensors
        .keys()
        .filter(|name| name.starts_with("model.layers") && name.ends_with("_proj.weight"))
        .map(|name| name.trim_end_matches(".weight").to_owned())
        .collect()
}

fn zeros(dtype: Dtype, shape: &[usize]) -> (Dtype, Vec<usize>, Vec<u8>) {
    let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
    (dtype, shape.to_vec(), vec![0; bytes])
}

#[test]
fn adapters() {
    let adapter = json!({"peft_type": "LORA", "base_model_name_or_path": "Qwen/Base"});
    for removed in [
        &[][..],
        &["model.safetensors"],
        &["model.safetensors", "config.json"],
    ] {
        let copy = Copy::of("qwen2vl-tiny");
        removed.iter().for_each(|file| copy.remove(file));
        copy.write("adapter_config.json", adapter.to_string());
        copy.write("adapter_model.safetensors", "any");
        copy.expect_error(&["LORA adapter", "Qwen/Base", "merge_and_unload"]);
    }
    for file in ["adapter_model.bin", "pytorch_lora_weights.safetensors"] {
        let copy = Copy::of("qwen2vl-tiny");
        copy.write(file, "any");
        copy.expect_error(&["adapter", file, "merge_and_unload"]);
    }
}

#[test]
fn a_base_model_that_is_named_itself_is_taken_with_a_warning() {
    let copy = Copy::of("qwen2vl-tiny");
    copy.write("adapter_config.json", r#"{"peft_type": "LORA"}"#);
    let out = tempfile::tempdir().expect("a folder");
    let weights = copy.path().join("model.safetensors");
    let output = common::damage::command(&weights, &out.path().join("model.bpk"))
        .output()
        .expect("the command starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("LORA adapter"), "{stderr}");
}

#[test]
fn adapters_that_are_not_merged() {
    for (weight, extra) in [
        ("base_layer.weight", "lora_A.default.weight"),
        ("original_module.weight", "modules_to_save.default.weight"),
        ("weight", "lora_magnitude_vector"),
    ] {
        let copy = Copy::of("qwen2vl-tiny");
        copy.change_tensors(|tensors| {
            let module = "model.layers.0.self_attn.q_proj";
            let tensor = tensors.remove(&format!("{module}.weight")).expect("q_proj");
            tensors.insert(format!("{module}.{weight}"), tensor);
            tensors.insert(format!("{module}.{extra}"), zeros(Dtype::F32, &[4, 128]));
        });
        copy.expect_error(&["adapter", "unmerged", "merge_and_unload"]);
    }
}

#[test]
fn quantization_by_configuration() {
    for (section, quantization, name) in [
        (None, json!({"quant_method": "awq", "bits": 4}), "awq"),
        (None, json!({"load_in_4bit": true}), "bitsandbytes"),
        (Some("text_config"), json!({"quant_method": "gptq"}), "gptq"),
        (
            Some("vision_config"),
            json!({"quant_method": "compressed-tensors"}),
            "compressed-tensors",
        ),
    ] {
        let copy = Copy::of("llava-tiny");
        copy.change_json("config.json", |config| match section {
            Some(section) => config[section]["quantization_config"] = quantization,
            None => config["quantization_config"] = quantization,
        });
        copy.expect_error(&["quant_method", name, "not quantized"]);
    }
    let copy = Copy::of("llava-tiny");
    copy.change_json("config.json", |config| {
        config["quantization_config"] = Value::Null
    });
    assert!(copy.convert(&["--dry-run"]).0);
}

/// Changes every linear layer; `change` gets module, outputs and inputs.
fn expect_quantized(change: impl Fn(&mut Tensors, &str, [usize; 2]), name: &str) {
    let copy = Copy::of("qwen2vl-tiny");
    copy.change_tensors(|tensors| {
        for module in linears(tensors) {
            let shape = &tensors[&format!("{module}.weight")].1;
            let [outputs, inputs] = shape[..] else {
                panic!("{module} is no matrix");
            };
            change(tensors, &module, [outputs, inputs]);
        }
    });
    copy.expect_error(&[name, "quantized"]);
}

#[test]
fn quantization_by_tensors() {
    let weight = |module: &str| format!("{module}.weight");
    expect_quantized(
        |tensors, module, [outputs, inputs]| {
            tensors.remove(&weight(module));
            for (name, shape) in [
                ("qweight", [inputs, outputs / 8]),
                ("qzeros", [1, outputs / 8]),
            ] {
                tensors.insert(format!("{module}.{name}"), zeros(Dtype::I32, &shape));
            }
        },
        "awq or gptq",
    );
    expect_quantized(
        |tensors, module, [outputs, inputs]| {
            let packed = zeros(Dtype::U8, &[outputs * inputs / 2, 1]);
            tensors.insert(weight(module), packed);
            let absmax = zeros(Dtype::U8, &[outputs * inputs / 64]);
            tensors.insert(format!("{module}.weight.absmax"), absmax);
        },
        "bitsandbytes (4 bit)",
    );
    expect_quantized(
        |tensors, module, shape| {
            tensors.insert(weight(module), zeros(Dtype::I8, &shape));
            let scales = zeros(Dtype::F32, &shape[..1]);
            tensors.insert(format!("{module}.SCB"), scales);
        },
        "bitsandbytes (8 bit)",
    );
    expect_quantized(
        |tensors, module, shape| {
            tensors.insert(weight(module), zeros(Dtype::F8_E4M3, &shape));
        },
        "fp8",
    );
}

/// Weights of a readable type that have no meaning without a companion tensor.
#[test]
fn companions_of_readable_weights() {
    for companion in ["weight_scale", "weight.scale_of_rows", "alpha"] {
        expect_quantized(
            |tensors, module, _| {
                let name = format!("{module}.{companion}");
                tensors.insert(name, zeros(Dtype::F32, &[1]));
            },
            companion,
        );
    }
}

#[test]
fn a_bias_that_the_configuration_switches_off_is_told() {
    let copy = Copy::of("qwen2vl-tiny");
    copy.change_tensors(|tensors| {
        let bias = zeros(Dtype::F32, &[128]);
        tensors.insert("model.layers.0.self_attn.o_proj.bias".to_owned(), bias);
    });
    let (converted, said) = copy.convert(&["--dry-run"]);
    assert!(converted, "{said}");
    assert!(said.contains("o_proj.bias"), "{said}");
}

#[test]
fn files_that_were_not_downloaded() {
    for file in [
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "chat_template.json",
    ] {
        for (content, name) in [
            (LFS_POINTER, "Git LFS pointer"),
            ("\n<!DOCTYPE html>\n<html>", "HTML"),
            ("", "empty file"),
        ] {
            let copy = Copy::of("qwen2vl-tiny");
            copy.write(file, content);
            copy.expect_error(&[file, name]);
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let gguf = folder.path().join("model.gguf");
    fs::write(&gguf, LFS_POINTER).expect("a file");
    expect_error(&gguf, &[], &["model.gguf", "Git LFS pointer"]);
}

#[test]
fn weights_of_another_format() {
    for (content, name) in [
        (&b"PK\x03\x04 and so on"[..], "zip archive"),
        (b"GGUF\x03\0\0\0\0", "GGUF"),
        (br#"{"error": "Access denied"}"#, "JSON"),
    ] {
        let copy = Copy::of("qwen2vl-tiny");
        copy.write("model.safetensors", content);
        copy.expect_error(&["model.safetensors", name]);
    }
}

#[test]
fn stored_truncation_and_padding_are_left_out() {
    let copy = Copy::of("qwen2vl-tiny");
    copy.change_json("tokenizer.json", |tokenizer| {
        tokenizer["truncation"] = json!({"direction": "Right", "max_length": 4,
            "strategy": "LongestFirst", "stride": 9});
        tokenizer["padding"] = json!({"strategy": {"Fixed": 48}, "direction": "Left",
            "pad_to_multiple_of": null, "pad_id": 525, "pad_type_id": 0, "pad_token": "x"});
    });
    let checkpoint = Checkpoint::open(copy.path(), None).expect("a checkpoint");
    let stored: Value = serde_json::from_str(&checkpoint.tokenizer).expect("JSON");
    assert_eq!(
        (&stored["truncation"], &stored["padding"]),
        (&Value::Null, &Value::Null)
    );
    let plain = Checkpoint::open(&common::data().join("qwen2vl-tiny"), None).expect("one");
    let plain: Value = serde_json::from_str(&plain.tokenizer).expect("JSON");
    assert_eq!(stored, plain);
}

#[test]
fn parts_of_other_families() {
    for (model, section, kind) in [
        ("llava-tiny", "vision_config", "siglip_vision_model"),
        ("llava-tiny", "vision_config", "pixtral"),
        ("llava-tiny", "text_config", "mistral"),
        ("blip2-tiny", "vision_config", "clip_vision_model"),
        ("blip2-tiny", "text_config", "llama"),
        ("qwen2audio-tiny", "audio_config", "whisper"),
        ("qwen2audio-tiny", "text_config", "qwen3"),
        ("qwen2vl-tiny", "vision_config", "qwen3_vl"),
    ] {
        let copy = Copy::of(model);
        copy.change_json("config.json", |config| {
            config[section]["model_type"] = json!(kind)
        });
        copy.expect_error(&[section, kind]);
    }
}

#[test]
fn features_of_several_layers() {
    let copy = Copy::of("llava-tiny");
    let set = |layers: Value| {
        copy.change_json("config.json", |config| {
            config["vision_feature_layer"] = layers
        });
    };
    set(json!([-2, -5]));
    copy.expect_error(&["vision_feature_layer", "several layers"]);
    set(json!([-2]));
    assert!(copy.convert(&["--dry-run"]).0);
}

#[test]
fn the_layout_of_the_original_llava() {
    let copy = Copy::of("llava-tiny");
    copy.change_json("config.json", |config| {
        config["mm_vision_tower"] = json!("openai/clip-vit-large-patch14-336")
    });
    copy.expect_error(&["mm_vision_tower", "llava-hf"]);
}
