//! LoRA adapters, merged while a checkpoint is read.

mod common;
mod source_support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::damage::Copy;
use edge_lmm_convert::source::Checkpoint;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use source_support::{assert_says, data, model, plain_safetensors, values};
use tempfile::TempDir;

const PREFIX: &str = "base_model.model.";
const Q: &str = "model.layers.0.self_attn.q_proj";

/// An adapter to write: configuration, and tensors of one type.
struct Adapter {
    config: Value,
    dtype: Dtype,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    seed: u32,
}

impl Adapter {
    fn new() -> Self {
        Self {
            config: json!({"peft_type": "LORA", "r": 2, "lora_alpha": 3, "bias": "none"}),
            dtype: Dtype::F32,
            tensors: BTreeMap::new(),
            seed: 1,
        }
    }

    fn set(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    /// Adds a tensor of random multiples of 1/64, which every type holds exactly.
    fn tensor(mut self, name: &str, shape: &[usize]) -> Self {
        let mut next = || {
            self.seed = self
                .seed
                .wrapping_mul(1_664_525)
                .wrapping_add(1_013_904_223);
            (self.seed >> 26) as f32 / 64.0 - 0.5
        };
        let values = (0..shape.iter().product::<usize>())
            .map(|_| next())
            .collect();
        self.tensors
            .insert(name.to_owned(), (shape.to_vec(), values));
        self
    }

    /// Adds the two factors of a layer.
    fn layer(self, module: &str, [rows, rank, columns]: [usize; 3]) -> Self {
        self.tensor(&format!("{PREFIX}{module}.lora_A.weight"), &[rank, columns])
            .tensor(&format!("{PREFIX}{module}.lora_B.weight"), &[rows, rank])
    }

    fn values(&self, name: &str) -> &[f32] {
        &self.tensors[name].1
    }

    fn write(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let bytes = |value: &f32| match self.dtype {
            Dtype::F32 => value.to_le_bytes().to_vec(),
            Dtype::F16 => half::f16::from_f32(*value).to_le_bytes().to_vec(),
            _ => half::bf16::from_f32(*value).to_le_bytes().to_vec(),
        };
        let encoded: Vec<_> = (self.tensors.iter())
            .map(|(name, (shape, values))| {
                let bytes: Vec<u8> = values.iter().flat_map(bytes).collect();
                (name, shape, bytes)
            })
            .collect();
        let views = encoded.iter().map(|(name, shape, bytes)| {
            (
                name.as_str(),
                TensorView::new(self.dtype, shape.to_vec(), bytes).unwrap(),
            )
        });
        let file = safetensors::serialize(views, None).unwrap();
        std::fs::write(folder.path().join("adapter_model.safetensors"), file).unwrap();
        let config = self.config.to_string();
        std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
        folder
    }

    /// Adds the update of a layer to its values.
    fn merged(
        &self,
        base: &[f32],
        module: &str,
        [rows, rank, columns]: [usize; 3],
        scale: f64,
    ) -> Vec<f32> {
        let a = self.values(&format!("{PREFIX}{module}.lora_A.weight"));
        let b = self.values(&format!("{PREFIX}{module}.lora_B.weight"));
        let mut merged = Vec::new();
        for row in 0..rows {
            for column in 0..columns {
                let product =
                    |k: usize| f64::from(b[row * rank + k]) * f64::from(a[k * columns + column]);
                let sum: f64 = (0..rank).map(product).sum();
                merged.push((f64::from(base[row * columns + column]) + scale * sum) as f32);
            }
        }
        merged
    }
}

fn tiny() -> Checkpoint {
    Checkpoint::open(&model("qwen2vl-tiny"), None).unwrap()
}

/// Opens the tiny model with an adapter.
fn adapted(adapter: &Adapter) -> Checkpoint {
    let mut checkpoint = tiny();
    let folder = adapter.write();
    checkpoint.add_adapter(folder.path(), 1.0).unwrap();
    checkpoint
}

fn weight(checkpoint: &Checkpoint, module: &str) -> Vec<f32> {
    values(checkpoint, &format!("{module}.weight"))
}

fn assert_near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (i, (x, y)) in found.iter().zip(expected).enumerate() {
        assert!(
            (x - y).abs() <= 1e-6 * (1.0 + y.abs()),
            "[{i}]: {x} is not {y}"
        );
    }
}

#[test]
fn updates_are_added_to_all_kinds_of_layers() {
    let layers = [
        (Q, [128, 2, 128]),
        ("model.layers.2.mlp.down_proj", [128, 3, 256]),
        ("visual.blocks.1.attn.qkv", [192, 4, 64]),
        ("visual.patch_embed.proj", [64, 2, 3 * 2 * 14 * 14]),
    ];
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let mut adapter = Adapter::new();
        adapter.dtype = dtype;
        for (module, sizes) in layers {
            adapter = adapter.layer(module, sizes);
        }
        let (base, merged) = (tiny(), adapted(&adapter));
        for (name, info) in base.tensors() {
            let module = name.trim_end_matches(".weight");
            let found = values(&merged, name);
            assert_eq!(merged.tensor(name).unwrap().shape, info.shape);
            match layers.iter().find(|(changed, _)| *changed == module) {
                None => assert_eq!(found, values(&base, name), "{name}"),
                Some(&(_, sizes)) => {
                    assert!(merged.is_adapted(name));
                    let base = values(&base, name);
                    let scale = 3.0 / sizes[1] as f64;
                    assert_near(&found, &adapter.merged(&base, module, sizes, scale));
                    assert_ne!(found, base);
                }
            }
        }
        let files: Vec<&str> = merged.files.iter().map(|file| &*file.name).collect();
        assert_eq!(files.last(), Some(&"adapter_model.safetensors"));
    }
}

#[test]
fn rows_and_columns_are_parts_of_the_whole() {
    let sizes = [128, 2, 128];
    let plain = Adapter::new().layer(Q, sizes);
    let magnitudes = Adapter::new()
        .set("use_dora", json!(true))
        .layer(Q, sizes)
        .tensor(&format!("{PREFIX}{Q}.lora_magnitude_vector"), &[128]);
    for adapter in [plain, magnitudes] {
        let merged = adapted(&adapter);
        let whole = weight(&merged, Q);
        let mut rows = Vec::new();
        let name = format!("{Q}.weight");
        merged.read_rows(&name, 5..8, &mut rows).unwrap();
        assert_eq!(rows, whole[5 * 128..8 * 128]);
    }
}

/// The factor is `lora_alpha / r`, or that of the first pattern that matches, by the square root with
/// `use_rslora`. `r` is the rank of the tensors.
#[test]
fn scales_follow_the_configuration() {
    let k = "model.layers.0.self_attn.k_proj";
    let (q_sizes, k_sizes) = ([128, 4, 128], [64, 2, 128]);
    let adapter = || {
        Adapter::new()
            .layer(Q, q_sizes)
            .layer(k, k_sizes)
            .set("rank_pattern", json!({"q_proj": 4}))
    };
    for (adapter, q_scale, k_scale) in [
        (adapter(), 3.0 / 4.0, 3.0 / 2.0),
        (
            adapter().set("use_rslora", json!(true)),
            3.0 / 2.0,
            3.0 / f64::sqrt(2.0),
        ),
        (
            adapter().set(
                "alpha_pattern",
                json!({"proj": 99, r"layers\.[01]\..*k_proj": 5}),
            ),
            3.0 / 4.0,
            5.0 / 2.0,
        ),
        (
            adapter().set("lora_alpha", Value::Null),
            8.0 / 4.0,
            8.0 / 2.0,
        ),
    ] {
        let (base, merged) = (tiny(), adapted(&adapter));
        for (module, sizes, scale) in [(Q, q_sizes, q_scale), (k, k_sizes, k_scale)] {
            let expected = adapter.merged(&weight(&base, module), module, sizes, scale);
            assert_near(&weight(&merged, module), &expected);
        }
    }
}

/// Names of `transformers` since 4.52, and of trainers that save parameters directly.
#[test]
fn names_of_other_versions_are_found() {
    let renamed = |name: &str| {
        let mut adapter = Adapter::new().layer(Q, [128, 2, 128]);
        adapter.tensors = (adapter.tensors.into_iter())
            .map(|(key, tensor)| {
                let part = key.rsplit('.').nth(1).unwrap().to_owned();
                (name.replace("PART", &part), tensor)
            })
            .collect();
        adapter
    };
    let expected = weight(&adapted(&Adapter::new().layer(Q, [128, 2, 128])), Q);
    for name in [
        "base_model.model.model.language_model.layers.0.self_attn.q_proj.PART.weight",
        "model.layers.0.self_attn.q_proj.PART.default.weight",
    ] {
        assert_eq!(weight(&adapted(&renamed(name)), Q), expected, "{name}");
    }
}

#[test]
fn whole_tensors_replace_those_of_the_checkpoint() {
    let adapter = Adapter::new()
        .layer(Q, [128, 2, 128])
        .tensor(&format!("{PREFIX}{Q}.base_layer.bias"), &[128])
        .tensor("base_model.model.visual.merger.mlp.2.bias", &[128])
        .tensor("model.norm.modules_to_save.default.weight", &[128]);
    let merged = adapted(&adapter);
    for (name, stored) in [
        (
            &*format!("{Q}.bias"),
            &*format!("{PREFIX}{Q}.base_layer.bias"),
        ),
        (
            "visual.merger.mlp.2.bias",
            "base_model.model.visual.merger.mlp.2.bias",
        ),
        (
            "model.norm.weight",
            "model.norm.modules_to_save.default.weight",
        ),
    ] {
        assert_eq!(values(&merged, name), adapter.values(stored), "{name}");
    }
}

#[test]
fn rows_have_the_magnitudes_of_dora() {
    let name = format!("{PREFIX}{Q}.lora_magnitude_vector");
    let adapter = Adapter::new()
        .set("use_dora", json!(true))
        .layer(Q, [128, 2, 128])
        .tensor(&name, &[128]);
    let sums = adapter.merged(&weight(&tiny(), Q), Q, [128, 2, 128], 1.5);
    let mut expected = Vec::new();
    for (row, magnitude) in sums.chunks(128).zip(adapter.values(&name)) {
        let norm = row
            .iter()
            .map(|&x| f64::from(x).powi(2))
            .sum::<f64>()
            .sqrt();
        expected.extend(
            row.iter()
                .map(|&x| (f64::from(x) * f64::from(*magnitude) / norm) as f32),
        );
    }
    assert_near(&weight(&adapted(&adapter), Q), &expected);
}

#[test]
fn tables_of_embeddings_have_transposed_factors() {
    let mut checkpoint = Checkpoint::open(&model("qwen2vl-odd"), None).unwrap();
    let table = "model.embed_tokens.weight";
    let base = values(&checkpoint, table);
    let [tokens, width] = checkpoint.tensor(table).unwrap().shape[..] else {
        panic!("a table");
    };
    let (a, b) = (
        "model.embed_tokens.lora_embedding_A",
        "model.embed_tokens.lora_embedding_B",
    );
    let adapter = Adapter::new()
        .tensor(a, &[2, tokens])
        .tensor(b, &[width, 2]);
    checkpoint.add_adapter(adapter.write().path(), 1.0).unwrap();
    let (a, b) = (adapter.values(a), adapter.values(b));
    let mut expected = Vec::new();
    for token in 0..tokens {
        for column in 0..width {
            let sum = a[token] * b[2 * column] + a[tokens + token] * b[2 * column + 1];
            expected.push(base[token * width + column] + 1.5 * sum);
        }
    }
    assert_near(&values(&checkpoint, table), &expected);
}

#[test]
fn several_adapters_are_added_with_their_weights() {
    let sizes = [128, 2, 128];
    let first = Adapter::new().layer(Q, sizes);
    let mut second = Adapter::new();
    second.seed = 7;
    let second = second.layer(Q, sizes);
    let mut checkpoint = tiny();
    checkpoint.add_adapter(first.write().path(), 0.5).unwrap();
    checkpoint.add_adapter(second.write().path(), -2.0).unwrap();
    let expected = first.merged(&weight(&tiny(), Q), Q, sizes, 0.75);
    let expected = second.merged(&expected, Q, sizes, -3.0);
    assert_near(&weight(&checkpoint, Q), &expected);
}

/// The base may be quantized, as for adapters that QLoRA trained.
#[test]
fn quantized_weights_are_dequantized_first() {
    let path = data("blocks/blocks.gguf");
    let sizes = [4, 2, 256];
    let adapter = Adapter::new().layer(Q, sizes);
    let mut checkpoint = Checkpoint::open(&path, None).unwrap();
    checkpoint.add_adapter(adapter.write().path(), 1.0).unwrap();
    let base = &plain_safetensors(&data("blocks/expected.safetensors"))[&format!("{Q}.weight")].1;
    assert_near(
        &weight(&checkpoint, Q),
        &adapter.merged(base, Q, sizes, 1.5),
    );
    let kind = &checkpoint.tensor(&format!("{Q}.weight")).unwrap().dtype;
    assert_eq!(kind, "Q5_0+LoRA");
}

fn refusal(checkpoint: &mut Checkpoint, folder: &Path, weight: f32) -> String {
    let result = checkpoint.add_adapter(folder, weight);
    result.expect_err("this must not be merged").to_string()
}

#[test]
fn other_adapters_are_refused() {
    let good = || Adapter::new().layer(Q, [128, 2, 128]);
    let dora = || good().set("use_dora", json!(true));
    let magnitudes = format!("{PREFIX}{Q}.lora_magnitude_vector");
    for (adapter, words) in [
        (
            good().set("peft_type", json!("LOHA")),
            ["peft_type LOHA", "merge_and_unload"],
        ),
        (
            good().set("lora_bias", json!(true)),
            ["lora_bias", "no such variant"],
        ),
        (
            good().set("trainable_token_indices", json!([1, 2])),
            ["trainable_token_indices [1,2]", "merge_and_unload"],
        ),
        (
            good().set("init_lora_weights", json!("pissa_niter_16")),
            ["init_lora_weights pissa_niter_16", "path_initial_model"],
        ),
        (
            good().set("lora_alpha", json!("x")),
            ["lora_alpha \"x\"", "a number"],
        ),
        (
            good().set("alpha_pattern", json!({"(": 1})),
            ["pattern \"(\"", "regular expression"],
        ),
        (
            good().layer("model.layers.9.mlp.up_proj", [256, 2, 128]),
            [
                "model.layers.9.mlp.up_proj.weight is missing",
                "another model",
            ],
        ),
        (
            Adapter::new().layer(Q, [128, 2, 64]),
            ["q_proj of shape [128, 2, 2, 64]", "[128, rank, rank, 128]"],
        ),
        (
            Adapter::new().tensor(&format!("{Q}.lora_A.weight"), &[2, 128]),
            ["q_proj.lora_B is missing", "adapter_model.safetensors"],
        ),
        (
            good().tensor("model.norm.weight", &[64]),
            ["model.norm.weight of shape [64]", "[128]"],
        ),
        (
            good().tensor(&format!("{Q}.lora_B.bias"), &[128]),
            ["q_proj.lora_B.bias", "lora_A and lora_B"],
        ),
        (
            good().tensor("lm_head.weight", &[576, 128]),
            ["lm_head.weight", "shares the weights"],
        ),
        (
            good().tensor("model.embed_tokens.weight", &[576, 128]),
            ["embed_tokens.weight", "shares the weights"],
        ),
        (dora(), ["lora_magnitude_vector is missing", "use_dora"]),
        (
            good().tensor(&magnitudes, &[128]),
            ["lora_magnitude_vector", "without use_dora"],
        ),
        (
            dora().tensor(&magnitudes, &[64]),
            ["lora_magnitude_vector of shape [64]", "[128]"],
        ),
        (Adapter::new(), ["no tensors", "adapter_model.safetensors"]),
    ] {
        assert_says(&refusal(&mut tiny(), adapter.write().path(), 1.0), &words);
    }
    let weighted = dora().tensor(&magnitudes, &[128]);
    assert_says(
        &refusal(&mut tiny(), weighted.write().path(), 0.5),
        &["lora_magnitude_vector with a weight", "without a weight"],
    );
    let replacing = Adapter::new().tensor("model.norm.weight", &[128]);
    assert_says(
        &refusal(&mut tiny(), replacing.write().path(), 0.5),
        &["replaces model.norm.weight", "low-rank"],
    );
    let mut twice = adapted(&replacing);
    assert_says(
        &refusal(&mut twice, replacing.write().path(), 1.0),
        &["replaces model.norm.weight", "several"],
    );
}

#[test]
fn incomplete_folders_are_named() {
    let without = |file: &str| {
        let folder = Adapter::new().layer(Q, [128, 2, 128]).write();
        std::fs::remove_file(folder.path().join(file)).unwrap();
        folder
    };
    let folder = without("adapter_config.json");
    assert_says(
        &refusal(&mut tiny(), folder.path(), 1.0),
        &["adapter_config.json is missing"],
    );
    let folder = without("adapter_model.safetensors");
    assert_says(
        &refusal(&mut tiny(), folder.path(), 1.0),
        &["adapter_model.safetensors is missing", "whole adapter"],
    );
    std::fs::write(folder.path().join("adapter_model.bin"), "any").unwrap();
    assert_says(
        &refusal(&mut tiny(), folder.path(), 1.0),
        &["adapter_model.bin", "safe_serialization=True"],
    );
}

/// The option takes a weight, and the report names the changed sources.
#[test]
fn the_command_merges_adapters() {
    let copy = Copy::of("qwen2vl-tiny");
    let adapter = Adapter::new().layer(Q, [128, 2, 128]).write();
    let report: PathBuf = adapter.path().join("report.json");
    let option = format!("{}=0.5", adapter.path().display());
    let options = ["--adapter", &option, "--report", report.to_str().unwrap()];
    let (done, messages) = copy.convert(&options);
    assert!(done, "{messages}");
    let report = std::fs::read_to_string(report).unwrap();
    assert!(
        report.contains(&format!("{Q}.weight (BF16+LoRA)")),
        "{report}"
    );

    let (done, messages) = copy.convert(&["--adapter", "nowhere=0.5x"]);
    assert!(!done);
    assert_says(&messages, &["nowhere=0.5x", "\"0.5x\" is not a number"]);
    let (done, messages) = copy.convert(&["--adapter", "nowhere=0.5"]);
    assert!(!done);
    assert_says(
        &messages,
        &["nowhere/adapter_config.json is missing", "--adapter"],
    );
}
