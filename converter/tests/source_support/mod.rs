//! Test data, generated files and tensor access for the tests of the checkpoint readers.
#![allow(dead_code)] // Every test program uses its own part.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use edge_lmm_convert::source::{Checkpoint, SourceError};

/// Returns a file or folder of this crate's test data.
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/source")
        .join(name)
}

/// Returns a file or folder of the checkpoints that all crates test with.
pub fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../models/tests/data")
        .join(name)
}

/// Opens the tiny Qwen2-VL in GGUF form.
pub fn tiny_gguf() -> Result<Checkpoint, SourceError> {
    Checkpoint::open(
        &model("qwen2vl-tiny-gguf/qwen2vl-tiny-f16.gguf"),
        Some(&model("qwen2vl-tiny-gguf/mmproj-qwen2vl-tiny-f16.gguf")),
    )
}

/// Reads all values of a tensor.
pub fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let rows = checkpoint.tensor(name).expect(name).rows();
    let mut out = Vec::new();
    checkpoint
        .read_rows(name, 0..rows, &mut out)
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    out
}

/// Copies the files of a folder to a temporary one.
pub fn copy_of(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    copy
}

/// Copies the JSON files of a folder to a temporary one.
pub fn json_of(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "json") {
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    copy
}

/// Reads a safetensors file of f32, f16 and bf16 tensors without the code under test: shape and
/// values by name.
pub fn plain_safetensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    use safetensors::{Dtype, SafeTensors};
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let decode = |dtype: Dtype, data: &[u8]| -> Vec<f32> {
        let pairs = || {
            data.chunks_exact(2)
                .map(|b| u16::from_le_bytes([b[0], b[1]]))
        };
        match dtype {
            Dtype::F32 => data
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect(),
            Dtype::F16 => pairs().map(|b| half::f16::from_bits(b).to_f32()).collect(),
            Dtype::BF16 => pairs()
                .map(|b| f32::from_bits(u32::from(b) << 16))
                .collect(),
            other => panic!("{other:?} is not expected here"),
        }
    };
    file.iter()
        .map(|(name, view)| {
            let values = decode(view.dtype(), view.data());
            (name.to_owned(), (view.shape().to_vec(), values))
        })
        .collect()
}

/// Various texts for comparing tokenizers.
pub const TEXTS: [&str; 22] = [
    "",
    " ",
    "a",
    "what colour is the circle? red circle, blue square",
    "  two leading spaces and  two inside",
    "tabs\tand\nnewlines\r\n\n\n and   \n more ",
    "1234567890 3.14159 ٣٤ ½ ²",
    "Zwölf große Boxkämpfer",
    "naïve café déjà vu — “quoted” …",
    "日本語のテキスト と カタカナ",
    "emoji 🦀🚀👩‍👩‍👧 and ☃",
    "control \u{0}\u{7}\u{1b}[0m",
    "CamelCase snake_case kebab-case",
    "don't can't we'll I'M HE'S 'tis",
    "trailing space ",
    "e\u{301} and A\u{30a} decomposed, \u{212b} Angstrom",
    "#!$%&/()=?*+~^|<>{}[]\\;:_-",
    "def area(width, height):\n    return width * height  # comment",
    "the the the the the there are three shapes",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\u{a0}no-break\u{2003}em\u{3000}ideographic",
    "русский текст и ελληνικά",
];

/// Builder of GGUF files with any content, valid or not.
#[derive(Default)]
pub struct GgufBuilder {
    metadata: Vec<Vec<u8>>,
    infos: Vec<Vec<u8>>,
    data: Vec<u8>,
    /// Replaces the version 3.
    pub version: Option<u32>,
    /// Replaces the number of tensors.
    pub tensor_count: Option<u64>,
    /// Replaces the number of metadata entries.
    pub key_count: Option<u64>,
}

impl GgufBuilder {
    pub fn new() -> Self {
        Self::default()
    }

    fn string(text: &str) -> Vec<u8> {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes
    }

    /// Adds a metadata entry of any type with its encoded value.
    pub fn raw(mut self, key: &str, value_type: u32, value: &[u8]) -> Self {
        let mut entry = Self::string(key);
        entry.extend(value_type.to_le_bytes());
        entry.extend(value);
        self.metadata.push(entry);
        self
    }

    pub fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &Self::string(value))
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub fn flag(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[u8::from(value)])
    }

    pub fn texts(self, key: &str, values: &[String]) -> Self {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|v| bytes.extend(Self::string(v)));
        self.raw(key, 9, &bytes)
    }

    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        let mut bytes = 5u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        self.raw(key, 9, &bytes)
    }

    pub fn f32s(self, key: &str, values: &[f32]) -> Self {
        let mut bytes = 6u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        self.raw(key, 9, &bytes)
    }

    /// Adds a tensor info with any content, without data.
    pub fn info(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        let mut info = Self::string(name);
        info.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| info.extend(dim.to_le_bytes()));
        info.extend(kind.to_le_bytes());
        info.extend(offset.to_le_bytes());
        self.infos.push(info);
        self
    }

    /// Adds an f32 tensor with its data; `dims` are innermost first.
    pub fn tensor(mut self, name: &str, dims: &[u64], values: &[f32]) -> Self {
        let offset = self.data.len().next_multiple_of(32);
        self.data.resize(offset, 0);
        values
            .iter()
            .for_each(|v| self.data.extend(v.to_le_bytes()));
        self.info(name, dims, 0, offset as u64)
    }

    /// Adds bytes of data after the header, without a tensor.
    pub fn data(mut self, length: usize) -> Self {
        self.data.resize(length, 0);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.unwrap_or(3).to_le_bytes());
        let tensors = self.tensor_count.unwrap_or(self.infos.len() as u64);
        out.extend(tensors.to_le_bytes());
        let keys = self.key_count.unwrap_or(self.metadata.len() as u64);
        out.extend(keys.to_le_bytes());
        out.extend(self.metadata.concat());
        out.extend(self.infos.concat());
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }

    /// Writes the file into `folder`.
    pub fn write(&self, folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }

    /// Adds a `qwen2` model of one layer with a vocabulary of `tokens` rows, without the keys of
    /// the tokenizer.
    pub fn small_model(self, tokens: usize) -> Self {
        let add = |builder: Self, (name, dims, values): SmallTensor| {
            builder.tensor(&name, &dims, &values)
        };
        small_tensors(tokens)
            .into_iter()
            .fold(self.small_metadata(), add)
    }

    /// Adds the metadata of [`Self::small_model`].
    pub fn small_metadata(self) -> Self {
        self.text("general.architecture", "qwen2")
            .u32("qwen2.block_count", 1)
            .u32("qwen2.context_length", 64)
            .u32("qwen2.embedding_length", 4)
            .u32("qwen2.feed_forward_length", 4)
            .u32("qwen2.attention.head_count", 2)
            .u32("qwen2.attention.head_count_kv", 2)
            .f32("qwen2.attention.layer_norm_rms_epsilon", 1e-6)
    }

    /// Adds a tokenizer of three tokens.
    pub fn small_tokenizer(self) -> Self {
        let tokens = ["a", "b", "<|end|>"].map(String::from);
        self.text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", "gpt-2")
            .texts("tokenizer.ggml.tokens", &tokens)
            .i32s("tokenizer.ggml.token_type", &[1, 1, 3])
            .u32("tokenizer.ggml.eos_token_id", 2)
    }
}

/// Name, dimensions (innermost first) and values of a tensor.
pub type SmallTensor = (String, Vec<u64>, Vec<f32>);

/// Returns the tensors of [`GgufBuilder::small_model`].
pub fn small_tensors(tokens: usize) -> Vec<SmallTensor> {
    let width = 4;
    let tensor = |name: String, dims: &[u64], value: f32| {
        let count = dims.iter().product::<u64>() as usize;
        (name, dims.to_vec(), vec![value; count])
    };
    let embedding = [width, tokens as u64];
    let mut tensors = vec![
        tensor("token_embd.weight".into(), &embedding, 0.25),
        tensor("output_norm.weight".into(), &[width], 1.0),
    ];
    let matrices = "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down";
    for name in matrices.split(' ') {
        let name = format!("blk.0.{name}.weight");
        tensors.push(tensor(name, &[width, width], 0.5));
    }
    let vectors = "attn_norm.weight ffn_norm.weight attn_q.bias attn_k.bias attn_v.bias";
    for name in vectors.split(' ') {
        tensors.push(tensor(format!("blk.0.{name}"), &[width], 1.0));
    }
    tensors
}

/// Returns the message of a checkpoint that does not open.
pub fn error(result: Result<Checkpoint, SourceError>) -> String {
    match result {
        Ok(_) => panic!("this must not open"),
        Err(e) => e.to_string(),
    }
}

pub fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}
