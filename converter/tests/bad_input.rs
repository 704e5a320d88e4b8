//! Damaged and unsuitable checkpoints: one readable error, exit status 1, and no output file.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::damage::{Copy, expect_error};
use common::data;
use serde_json::{Value, json};

#[test]
fn sources_that_are_none() {
    expect_error(
        Path::new("/nonexistent/model"),
        &[],
        &["/nonexistent/model"],
    );
    let empty = tempfile::tempdir().expect("a folder");
    expect_error(empty.path(), &[], &[]);
    let text = empty.path().join("model.gguf");
    fs::write(&text, "text").expect("a file");
    expect_error(&text, &[], &["model.gguf"]);
}

#[test]
fn truncated_weights() {
    for keep in [0, 7, 8, 1000, 100_000] {
        let copy = Copy::of("qwen2vl-tiny");
        copy.change("model.safetensors", |bytes| bytes.truncate(keep));
        copy.expect_error(&["model.safetensors"]);
    }
}

#[test]
fn flipped_header_bits() {
    for at in [0, 3, 6, 9, 40] {
        let copy = Copy::of("qwen2vl-tiny");
        copy.change("model.safetensors", |bytes| bytes[at] ^= 0x10);
        copy.expect_error(&[]);
    }
}

#[test]
fn a_missing_shard() {
    let copy = Copy::of("qwen2vl-odd");
    fs::remove_file(copy.path().join("model-00002-of-00002.safetensors")).expect("a shard");
    copy.expect_error(&["model-00002-of-00002.safetensors"]);
}

#[test]
fn a_tokenizer_of_another_model() {
    let copy = Copy::of("qwen2vl-tiny");
    copy.change_json("config.json", |config| config["vocab_size"] = json!(300));
    copy.expect_error(&["300"]);
}

#[test]
fn a_configuration_of_another_model() {
    let change = |key: &'static str, value: Value, words: &[&str]| {
        let copy = Copy::of("qwen2vl-tiny");
        copy.change_json("config.json", |config| config[key] = value);
        copy.expect_error(words);
    };
    change("hidden_size", json!(256), &["256"]);
    change("intermediate_size", json!(300), &["gate_proj", "300"]);
    change("num_hidden_layers", json!(4), &["model.layers.3"]);
    change("num_key_value_heads", json!(3), &["4", "3"]);
    change("tie_word_embeddings", json!(false), &["lm_head"]);
    change("hidden_size", json!(0), &["hidden_size"]);
    change("hidden_size", json!(-1), &["config.json"]);
    change(
        "num_hidden_layers",
        json!(1_000_000_000_000u64),
        &["num_hidden_layers"],
    );
    change("model_type", json!("bert"), &["bert", "qwen2_vl"]);
}

#[test]
fn weights_that_are_no_numbers() {
    let copy = Copy::of("qwen2vl-tiny");
    // The last bytes of the file belong to the last tensor; 0xFFFF is NaN in bf16.
    copy.change("model.safetensors", |bytes| {
        let end = bytes.len();
        bytes[end - 2..].copy_from_slice(&[0xff, 0xff]);
    });
    copy.expect_error(&["NaN"]);
}

#[test]
fn outputs_that_cannot_be_written() {
    let source = data().join("qwen2vl-tiny");
    let folder = tempfile::tempdir().expect("a folder");
    let run = |out: &Path, options: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_edge-lmm-convert"))
            .arg(&source)
            .arg("-o")
            .arg(out)
            .args(["--method", "nearest"])
            .args(options)
            .output()
            .expect("the command starts")
    };
    let out = folder.path().join("model.bpk");
    let dry = run(&out, &["--dry-run"]);
    assert!(dry.status.success());
    assert!(!out.exists(), "a dry run writes nothing");
    fs::write(&out, "precious").expect("a file");
    let refused = run(&out, &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--force"));
    assert_eq!(fs::read(&out).expect("the file"), b"precious");
    assert!(run(&out, &["--force"]).status.success());
    assert!(fs::metadata(&out).expect("the record").len() > 100_000);
    let nowhere = run(&folder.path().join("absent/model.bpk"), &[]);
    assert_eq!(nowhere.status.code(), Some(1));
}

/// Templates and tokenizers that would overflow the stack, exhaust memory or panic.
#[test]
fn rude_templates_and_tokenizers() {
    let template = |text: &str, word: &str| {
        let copy = Copy::of("qwen2vl-tiny");
        copy.change_json("chat_template.json", |json| {
            json["chat_template"] = json!(text);
        });
        copy.expect_error(&["chat template", word]);
    };
    template(&format!("{{{{ {}1 }}}}", "not ".repeat(100_000)), "bytes");
    template(&format!("{{{{ {}1 }}}}", "-".repeat(100_000)), "characters");
    template("{% if %}", "syntax error");
    let tokenizer = |part: &str, value: Value, word: &str| {
        let copy = Copy::of("qwen2vl-tiny");
        copy.change_json("tokenizer.json", |json| json[part] = value);
        copy.expect_error(&["tokenizer", word]);
    };
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let doubling = vec![replace("a", "aa"); 24];
    tokenizer("normalizer", replace("", "xx"), "empty text");
    tokenizer(
        "normalizer",
        json!({"type": "Sequence", "normalizers": doubling}),
        "times longer",
    );
    tokenizer(
        "decoder",
        json!({"type": "Sequence", "decoders": vec![replace("o", "oo"); 40]}),
        "times longer",
    );
    tokenizer(
        "pre_tokenizer",
        json!({"type": "FixedLength", "length": 0}),
        "length 0",
    );
}
