//! GGUF metadata that would change the results is rejected or causes a warning.

mod common;
mod source_support;

use std::path::{Path, PathBuf};

use common::damage::{command, expect_error};
use source_support::{GgufBuilder, model};

/// Builds a small model with a tokenizer of three tokens.
fn small() -> GgufBuilder {
    let tokens = ["a", "b", "ab"].map(str::to_owned);
    GgufBuilder::new()
        .small_model(3)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "qwen2")
        .texts("tokenizer.ggml.tokens", &tokens)
        .texts("tokenizer.ggml.merges", &["a b".to_owned()])
}

fn refused(builder: GgufBuilder, words: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    expect_error(&builder.write(folder.path(), "model.gguf"), &[], words);
}

fn said(builder: GgufBuilder) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = builder.write(folder.path(), "model.gguf");
    let output = command(&path, &folder.path().join("model.bpk"))
        .arg("--dry-run")
        .output()
        .expect("the command starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn files_that_are_no_model() {
    for (key, value, word) in [
        ("general.type", "adapter", "LoRA adapter"),
        ("adapter.type", "lora", "LoRA adapter"),
        ("general.type", "imatrix", "imatrix"),
        ("general.type", "vocab", "vocab"),
        ("general.type", "mmproj", "--mmproj"),
    ] {
        refused(small().text(key, value), &["model.gguf", word]);
    }
}

#[test]
fn a_vision_tower_as_the_model_and_a_model_as_the_tower() {
    let tower = model("qwen2vl-tiny-gguf/mmproj-qwen2vl-tiny-f16.gguf");
    let text = model("qwen2vl-tiny-gguf/qwen2vl-tiny-f16.gguf");
    expect_error(&tower, &[], &["vision tower", "--mmproj"]);
    let text_name = text.to_str().expect("a name");
    expect_error(&text, &["--mmproj", text_name], &["architecture qwen2vl"]);
}

#[test]
fn what_changes_the_results_is_refused() {
    refused(
        small().f32("qwen2.attn_logit_softcapping", 50.0),
        &["qwen2.attn_logit_softcapping", "50"],
    );
    refused(
        small().f32("qwen2.final_logit_softcapping", 30.0),
        &["final_logit_softcapping"],
    );
    refused(small().u32("qwen2.expert_count", 8), &["expert_count", "8"]);
    refused(small().f32("qwen2.logit_scale", 0.5), &["logit_scale"]);
    refused(
        small().u32("qwen2.rope.dimension_count", 1),
        &["rope.dimension_count", "size of a head"],
    );
    refused(
        small().u32("qwen2.attention.value_length", 8),
        &["attention.value_length"],
    );
    refused(
        small().flag("qwen2.attention.causal", false),
        &["attention.causal"],
    );
    refused(
        small().text("qwen2.rope.scaling.type", "dynamic"),
        &["rope.scaling.type", "dynamic"],
    );
    let scaled = small()
        .text("qwen2.rope.scaling.type", "linear")
        .f32("qwen2.rope.scaling.factor", 2.0)
        .f32("qwen2.rope.scaling.attn_factor", 1.2);
    refused(scaled, &["rope.scaling.attn_factor", "1.2"]);
    refused(
        small().flag("tokenizer.ggml.remove_extra_whitespaces", true),
        &["remove_extra_whitespaces"],
    );
}

#[test]
fn neutral_values_are_taken_without_a_word() {
    let neutral = small()
        .u32("qwen2.expert_count", 0)
        .u32("qwen2.vocab_size", 3)
        .f32("qwen2.rope.scaling.attn_factor", 1.0)
        .u32("qwen2.attention.sliding_window", 64)
        .flag("tokenizer.ggml.remove_extra_whitespaces", false);
    let said = said(neutral);
    assert!(!said.contains("WARN"), "{said}");
}

#[test]
fn unknown_keys_and_sliding_windows_are_told() {
    let unknown = said(small().f32("qwen2.attention.novelty", 1.0));
    assert!(unknown.contains("WARN"), "{unknown}");
    assert!(unknown.contains("qwen2.attention.novelty"), "{unknown}");
    let window = said(small().u32("qwen2.attention.sliding_window", 32));
    assert!(window.contains("32 tokens instead of 64"), "{window}");
}

/// Copies a vision tower and adds a key; the header grows by a multiple of the alignment.
fn tower_with(folder: &Path, entry: &[u8]) -> PathBuf {
    let bytes = std::fs::read(model("llava-odd-gguf/mmproj-llava-odd-f16.gguf")).expect("a tower");
    let keys = u64::from_le_bytes(bytes[16..24].try_into().expect("8 bytes"));
    let mut changed = bytes[..16].to_vec();
    changed.extend((keys + 1).to_le_bytes());
    changed.extend(entry);
    changed.extend(&bytes[24..]);
    let path = folder.join("mmproj.gguf");
    std::fs::write(&path, changed).expect("a file");
    path
}

/// Tiling produces other visual tokens than LLaVA-1.5.
#[test]
fn towers_of_llava_1_6() {
    let folder = tempfile::tempdir().expect("a folder");
    // Padded to a multiple of the alignment, so that tensor offsets stay the same.
    let entry = |value: &str| {
        let key = "clip.vision.mm_patch_merge_type";
        let mut bytes = (key.len() as u64).to_le_bytes().to_vec();
        bytes.extend(key.as_bytes());
        bytes.extend(8u32.to_le_bytes());
        bytes.extend((value.len() as u64).to_le_bytes());
        bytes.extend(value.as_bytes());
        bytes
    };
    let text = model("llava-odd-gguf/llava-odd-f16.gguf");
    let mut value = "spatial_unpad".to_owned();
    while entry(&value).len() % 32 != 0 {
        value.push('_');
    }
    let tower = tower_with(folder.path(), &entry(&value));
    expect_error(
        &text,
        &["--mmproj", tower.to_str().expect("a name")],
        &["mm_patch_merge_type", "spatial_unpad"],
    );
}

#[test]
fn sources_of_four_bits_are_told_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let tower = model("qwen2vl-tiny-gguf/mmproj-qwen2vl-tiny-f16.gguf");
    let warnings = |source: &str, format: &str| {
        let output = command(
            &source_support::data(source),
            &folder.path().join("model.bpk"),
        )
        .arg("--mmproj")
        .arg(&tower)
        .args(["--text-quant", format, "--dry-run"])
        .output()
        .expect("the command starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said.lines()
            .filter(|line| line.contains("WARN"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    for (source, name) in [
        ("qwen2vl-tiny-Q4_0.gguf", "Q4_0"),
        ("qwen2vl-tiny-Q4_K_M.gguf", "Q4_K"),
    ] {
        let said = warnings(source, "q4");
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains(name), "{said:?}");
        assert!(said[0].contains("a second time"), "{said:?}");
        assert_eq!(warnings(source, "q8"), Vec::<String>::new());
    }
}
