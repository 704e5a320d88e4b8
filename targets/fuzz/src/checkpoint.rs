//! Fuzz targets for checkpoints read by the converter.

use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use edge_lmm_convert::source::Checkpoint;
use edge_lmm_convert::source::gguf::Header;
use edge_lmm_convert::{Options, Plan};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokenizers::Tokenizer;

use crate::data::scratch;
use crate::mutate::Form;
use crate::{Target, data, errors};

#[path = "../../../converter/tests/source_support/mod.rs"]
pub mod source_support;

use source_support::GgufBuilder;

/// Parsing of a GGUF header.
pub const GGUF_HEADER: Target = Target {
    name: "gguf_header",
    form: Form::Words(GGUF_WORDS),
    seeds: gguf_seeds,
    run: |input| {
        let header = match Header::parse(input, "fuzz") {
            Ok(header) => header,
            Err(error) => return errors::check(&error),
        };
        let mut end = 0;
        let mut tensors: Vec<_> = header.tensors.values().collect();
        tensors.sort_by_key(|tensor| tensor.bytes.start);
        for tensor in tensors {
            assert!(end <= tensor.bytes.start && tensor.bytes.end <= input.len());
            end = tensor.bytes.end;
            let elements: u64 = tensor.shape.iter().map(|&dim| dim as u64).product();
            let size = elements / tensor.element.block_len * tensor.element.block_bytes;
            assert_eq!(tensor.bytes.len() as u64, size);
        }
    },
};

/// A complete GGUF file as a language model: header, names, configuration, tokenizer, values.
pub const GGUF_MODEL: Target = Target {
    name: "gguf_model",
    form: Form::Words(GGUF_WORDS),
    seeds: gguf_seeds,
    run: |input| {
        let folder = scratch();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, input).expect("a file");
        read(&path);
    },
};

const GGUF_WORDS: &[&[u8]] = &[
    b"GGUF",
    b"general.architecture",
    b"general.alignment",
    b"qwen2",
    b"llama",
    b"phi3",
    b"qwen2vl",
    b"split.no",
    b"split.count",
    b"tokenizer.ggml.model",
    b"tokenizer.ggml.tokens",
    b"tokenizer.ggml.merges",
    b"gpt2",
    b"\x08\0\0\0",
    b"\x09\0\0\0",
    b"blk.0.",
    b".weight",
    b"token_embd.weight",
    b"\x03\0\0\0",
    b"\x02\0\0\0",
];

fn gguf_seeds() -> Vec<Vec<u8>> {
    let words = ["<s>", "a", "b", "ab", "\u{2581}"].map(str::to_owned);
    let kinds = [3, 1, 1, 1, 1];
    let plain = GgufBuilder::new()
        .small_model(words.len())
        .texts("tokenizer.ggml.tokens", &words)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .u32("tokenizer.ggml.eos_token_id", 0);
    let bpe = |builder: GgufBuilder| {
        let merges = ["a b".to_owned()];
        builder
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", "qwen2")
            .texts("tokenizer.ggml.merges", &merges)
    };
    let small = bpe(plain).bytes();
    let mut seeds = vec![small];
    seeds.extend(data::files(
        "converter/tests/data/source/blocks",
        &["gguf"],
        60_000,
    ));
    seeds
}

/// A weight file among valid JSON files.
pub const SAFETENSORS: Target = Target {
    name: "safetensors",
    form: Form::Words(&[
        b"\"dtype\":\"F32\"",
        b"\"BF16\"",
        b"\"F16\"",
        b"\"I64\"",
        b"\"F8_E4M3\"",
        b"\"shape\":[",
        b"\"data_offsets\":[",
        b"__metadata__",
        b"18446744073709551615",
        b"4294967296",
        b"{",
        b"}",
        b",",
    ]),
    seeds: || vec![safetensors()],
    run: |input| read(checkpoint(input).path()),
};

/// A LoRA adapter of a small checkpoint: `adapter_config.json`, a null byte, and the weights.
pub const ADAPTER: Target = Target {
    name: "adapter",
    form: Form::Words(&[
        b"\"peft_type\": \"LORA\"",
        b"\"use_dora\": true",
        b"\"use_rslora\": true",
        b"\"alpha_pattern\": {\"a\": 2}",
        b"\"lora_alpha\": 1e300",
        b"base_model.model.",
        b"a.lora_A.weight",
        b"a.lora_B.weight",
        b"a.lora_embedding_A",
        b"a.lora_magnitude_vector",
        b"modules_to_save",
        b"\"dtype\":\"F32\"",
        b"\"shape\":[",
    ]),
    seeds: || vec![adapter()],
    run: |input| {
        let at = input.iter().position(|&byte| byte == 0);
        let (config, weights) = input.split_at(at.unwrap_or(input.len()));
        let (base, adapter) = (checkpoint(&safetensors()), scratch());
        let write = |name: &str, content: &[u8]| {
            std::fs::write(adapter.path().join(name), content).expect("a file");
        };
        write("adapter_config.json", config);
        let weights = weights.get(1..).unwrap_or_default();
        write("adapter_model.safetensors", weights);
        let mut checkpoint = Checkpoint::open(base.path(), None).expect("a valid checkpoint");
        match checkpoint.add_adapter(adapter.path(), 1.0) {
            Ok(()) => read_rows(&checkpoint),
            Err(error) => errors::check(&error),
        }
    },
};

/// Returns an adapter that updates one tensor and replaces another.
fn adapter() -> Vec<u8> {
    let config = br#"{"peft_type": "LORA", "lora_alpha": 2, "alpha_pattern": {"b": 3}}"#;
    let header = json!({
        "base_model.model.a.lora_A.weight":
            {"dtype": "F32", "shape": [1, 3], "data_offsets": [0, 12]},
        "base_model.model.a.lora_B.weight":
            {"dtype": "F32", "shape": [2, 1], "data_offsets": [12, 20]},
        "base_model.model.b.weight": {"dtype": "F16", "shape": [4], "data_offsets": [20, 28]},
    });
    [&config[..], b"\0", &with_header(&header, &[60; 28])].concat()
}

/// Writes a checkpoint with these weights.
fn checkpoint(weights: &[u8]) -> TempDir {
    with_config(br#"{"vocab_size": 3}"#, weights)
}

/// Writes a checkpoint with this `config.json` and these weights.
pub fn with_config(config: &[u8], weights: &[u8]) -> TempDir {
    let folder = scratch();
    let write = |name: &str, content: &[u8]| {
        std::fs::write(folder.path().join(name), content).expect("a file");
    };
    write("config.json", config);
    write("tokenizer.json", TOKENIZER.as_bytes());
    write("model.safetensors", weights);
    folder
}

const TOKENIZER: &str = r#"{"version": "1.0", "added_tokens": [],
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}"#;

fn safetensors() -> Vec<u8> {
    let header = json!({
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        "c.weight": {"dtype": "F16", "shape": [2, 2], "data_offsets": [32, 40]},
    });
    with_header(&header, &[60; 40])
}

/// Returns a weight file.
pub fn with_header(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string().into_bytes();
    let len = (header.len() as u64).to_le_bytes();
    [&len[..], &header, data].concat()
}

/// The JSON files of a checkpoint by name, with valid weights, read and planned as far as possible.
pub const CHECKPOINT_FILES: Target = Target {
    name: "checkpoint_files",
    form: Form::Json(&[b"null", b"\"", b"processor_config.json", b"chat_template"]),
    seeds: || {
        let mut seeds = Vec::new();
        for version in ["4.46.3", "4.57.6", "5.24.0"] {
            for name in [
                "blip2-t5-odd",
                "llama3-odd",
                "llava-tiny",
                "qwen2audio-tiny",
                "qwen2vl-tiny",
            ] {
                let folder = format!("converter/tests/data/layouts/{version}/{name}");
                seeds.push(layout(&folder).to_string().into_bytes());
            }
        }
        seeds
    },
    run: |input| {
        let Ok(Value::Object(files)) = serde_json::from_slice(input) else {
            return;
        };
        let folder = scratch();
        let write = |name: &str, content: &[u8]| {
            std::fs::write(folder.path().join(name), content).expect("a file");
        };
        write("model.safetensors", &safetensors());
        write("tokenizer.json", TOKENIZER.as_bytes());
        for name in FILES {
            match files.get(name) {
                Some(Value::String(text)) => write(name, text.as_bytes()),
                Some(json) => write(name, json.to_string().as_bytes()),
                None => {}
            }
        }
        read(folder.path());
    },
};

/// Files of a checkpoint other than weights.
const FILES: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
];

/// Reads the small files of a folder.
fn layout(folder: &str) -> Value {
    let file = |name: &&str| {
        let text = std::fs::read_to_string(data::path(folder).join(name)).ok()?;
        let json = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Some(((*name).to_owned(), json))
    };
    FILES.iter().filter_map(file).collect()
}

/// The tokenizer built from a GGUF vocabulary: an error, or a working tokenizer.
pub const GGUF_VOCABULARY: Target = Target {
    name: "gguf_vocabulary",
    form: Form::Words(&[b"<s>", b"\xe2\x96\x81", b"<0x0A>", b"\xc4\xa0", b" "]),
    seeds: || {
        (1..9u8)
            .map(|step| (0..200).map(|at: u8| at.wrapping_mul(step)).collect())
            .collect()
    },
    run: |input| {
        let Ok(vocabulary) = Vocabulary::arbitrary_take_rest(Unstructured::new(input)) else {
            return;
        };
        let folder = scratch();
        let path = vocabulary.file().write(folder.path(), "model.gguf");
        let checkpoint = match Checkpoint::open(&path, None) {
            Ok(checkpoint) => checkpoint,
            Err(error) => return errors::check(&error),
        };
        let tokenizer: Tokenizer = checkpoint
            .tokenizer
            .parse()
            .expect("what was checked loads");
        if let Ok(encoding) = tokenizer.encode(&*vocabulary.text, true) {
            for &id in encoding.get_ids() {
                assert!((id as usize) < vocabulary.tokens.len());
            }
            let _ = tokenizer.decode(encoding.get_ids(), false);
        }
    },
};

#[derive(Arbitrary, Debug)]
struct Vocabulary {
    sentencepiece: bool,
    pre: u8,
    tokens: Vec<(String, i8, f32)>,
    /// Tokens by index, so that many merges are valid, and a few arbitrary texts.
    merges: Vec<(u8, u8)>,
    odd_merges: Vec<String>,
    bos: Option<u8>,
    eos: Option<u8>,
    add_bos: Option<bool>,
    add_eos: Option<bool>,
    space_prefix: Option<bool>,
    text: String,
}

impl Vocabulary {
    fn file(&self) -> GgufBuilder {
        let tokens: Vec<String> = self.tokens.iter().map(|token| token.0.clone()).collect();
        let kinds: Vec<i32> = self.tokens.iter().map(|token| i32::from(token.1)).collect();
        let scores: Vec<f32> = self.tokens.iter().map(|token| token.2).collect();
        let token = |number: u8| tokens.get(usize::from(number) % tokens.len().max(1));
        let sound = self
            .merges
            .iter()
            .filter_map(|&(a, b)| Some(format!("{} {}", token(a)?, token(b)?)));
        let merges: Vec<String> = sound.chain(self.odd_merges.iter().cloned()).collect();
        let pres = ["qwen2", "llama-bpe", "gpt-2", "default", "smaug-bpe"];
        let mut builder = GgufBuilder::new()
            .small_model(tokens.len().max(1))
            .text(
                "tokenizer.ggml.model",
                if self.sentencepiece { "llama" } else { "gpt2" },
            )
            .text(
                "tokenizer.ggml.pre",
                pres[usize::from(self.pre) % pres.len()],
            )
            .texts("tokenizer.ggml.tokens", &tokens)
            .i32s("tokenizer.ggml.token_type", &kinds)
            .f32s("tokenizer.ggml.scores", &scores)
            .texts("tokenizer.ggml.merges", &merges);
        for (key, id) in [("bos", self.bos), ("eos", self.eos)] {
            if let Some(id) = id {
                builder = builder.u32(&format!("tokenizer.ggml.{key}_token_id"), id.into());
            }
        }
        let flags = [
            ("add_bos_token", self.add_bos),
            ("add_eos_token", self.add_eos),
            ("add_space_prefix", self.space_prefix),
        ];
        for (key, flag) in flags {
            if let Some(flag) = flag {
                builder = builder.flag(&format!("tokenizer.ggml.{key}"), flag);
            }
        }
        builder
    }
}

/// Opens a checkpoint, reads it and plans a record.
fn read(path: &Path) {
    let checkpoint = match Checkpoint::open(path, None) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return errors::check(&error),
    };
    read_rows(&checkpoint);
    if let Err(error) = Plan::new(&checkpoint, &Options::default()) {
        errors::check(&error);
    }
}

/// Reads every tensor a few rows at a time.
pub fn read_rows(checkpoint: &Checkpoint) {
    let mut out = Vec::new();
    for (name, info) in checkpoint.tensors() {
        for row in (0..info.rows()).step_by(3) {
            out.clear();
            let rows = row..(row + 3).min(info.rows());
            let count = rows.len();
            if checkpoint.read_rows(name, rows, &mut out).is_ok() {
                assert_eq!(out.len(), count * info.row_len(), "{name}");
            }
            if info.row_len() == 0 {
                break;
            }
        }
    }
}
