//! Checkpoints in the hub's layout, valid and damaged.

mod source_support;

use std::fs;
use std::path::Path;

use edge_lmm_convert::source::{Checkpoint, SourceError};
use proptest::prelude::*;
use serde_json::{Value, json};
use source_support::{TEXTS, copy_of, json_of, model, plain_safetensors, values};
use tokenizers::Tokenizer;

fn error(result: Result<Checkpoint, SourceError>) -> String {
    match result {
        Ok(_) => panic!("this must not open"),
        Err(e) => e.to_string(),
    }
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

fn assert_holds(checkpoint: &Checkpoint, files: &[&str]) {
    let mut count = 0;
    for file in files {
        for (name, (shape, expected)) in plain_safetensors(&model(file)) {
            count += 1;
            assert_eq!(checkpoint.tensor(&name).unwrap().shape, shape, "{name}");
            assert_eq!(values(checkpoint, &name), expected, "{name}");
        }
    }
    assert_eq!(checkpoint.tensors().count(), count);
}

#[test]
fn a_single_file_is_read() {
    let checkpoint = Checkpoint::open(&model("qwen2vl-tiny"), None).unwrap();
    assert_holds(&checkpoint, &["qwen2vl-tiny/model.safetensors"]);
    assert_eq!(
        checkpoint.tensor("model.norm.weight").unwrap().dtype,
        "BF16"
    );
    assert_eq!(checkpoint.config["model_type"], "qwen2_vl");
    assert_eq!(
        checkpoint.generation_config.as_ref().unwrap()["eos_token_id"],
        json!([527, 525])
    );
    assert_eq!(
        checkpoint.preprocessor_config.as_ref().unwrap()["patch_size"],
        14
    );
    assert!(
        checkpoint
            .chat_template
            .as_ref()
            .unwrap()
            .contains("<|vision_start|>")
    );
    let text = fs::read_to_string(model("qwen2vl-tiny/tokenizer.json")).unwrap();
    assert_eq!(checkpoint.tokenizer, text);
    let named = Checkpoint::open(&model("qwen2vl-tiny/model.safetensors"), None).unwrap();
    assert_holds(&named, &["qwen2vl-tiny/model.safetensors"]);
}

#[test]
fn shards_are_read() {
    let checkpoint = Checkpoint::open(&model("qwen2vl-odd"), None).unwrap();
    let shards = [1, 2].map(|n| format!("qwen2vl-odd/model-0000{n}-of-00002.safetensors"));
    assert_holds(&checkpoint, &[&shards[0], &shards[1]]);
    let names: Vec<&str> = checkpoint
        .files
        .iter()
        .map(|file| &*file.name)
        .take(4)
        .collect();
    let expected = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "config.json",
    ];
    assert_eq!(names, expected);
}

/// Expected values are from the `xxhash` package of PyPI.
#[test]
fn files_are_hashed() {
    let folder = copy_of(&model("qwen2vl-tiny"));
    fs::write(folder.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
    let checkpoint = Checkpoint::open(folder.path(), None).unwrap();
    let hash = |name: &str| {
        let file = checkpoint
            .files
            .iter()
            .find(|file| file.name == name)
            .unwrap();
        (file.bytes, file.hash().to_owned())
    };
    assert_eq!(hash("chat_template.jinja"), (14, "cc418f813a04a872".into()));
    assert_eq!(
        hash("model.safetensors"),
        (1_660_712, "94b3e26f85907133".into())
    );
}

#[test]
fn rows_outside_a_tensor_are_refused() {
    let checkpoint = Checkpoint::open(&model("qwen2vl-tiny"), None).unwrap();
    let mut out = vec![1.0];
    let name = "model.embed_tokens.weight";
    #[allow(clippy::reversed_empty_ranges)]
    for rows in [0..577, 577..577, 5..4, 0..usize::MAX] {
        let message = checkpoint
            .read_rows(name, rows, &mut out)
            .unwrap_err()
            .to_string();
        assert_says(&message, &[name, "576 rows"]);
    }
    checkpoint.read_rows(name, 576..576, &mut out).unwrap();
    assert_eq!(out, [1.0]);
    let message = checkpoint
        .read_rows("model.layers.9.self_attn.q_proj.weight", 0..1, &mut out)
        .unwrap_err()
        .to_string();
    assert_says(
        &message,
        &[
            "model.layers.9.self_attn.q_proj.weight",
            "model.layers.0.self_attn.q_proj",
        ],
    );
}

proptest! {
    #[test]
    fn rows_are_parts_of_the_whole(pick in any::<prop::sample::Index>(), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()) {
        let checkpoint = Checkpoint::open(&model("qwen2vl-odd"), None).unwrap();
        let names: Vec<&str> = checkpoint.tensors().map(|(name, _)| name).collect();
        let name = *pick.get(&names);
        let info = checkpoint.tensor(name).unwrap();
        let (a, b) = (a.index(info.rows() + 1), b.index(info.rows() + 1));
        let mut out = Vec::new();
        checkpoint.read_rows(name, a.min(b)..a.max(b), &mut out).unwrap();
        let whole = values(&checkpoint, name);
        prop_assert_eq!(&out[..], &whole[a.min(b) * info.row_len()..a.max(b) * info.row_len()]);
    }
}

#[test]
fn missing_pieces_are_named() {
    let folder = copy_of(&model("qwen2vl-odd"));
    let path = |name: &str| folder.path().join(name);
    let open = || Checkpoint::open(folder.path(), None);
    let shard = "model-00002-of-00002.safetensors";

    assert_says(
        &error(Checkpoint::open(&path(shard), None)),
        &[shard, "one of 2 shards", "directory"],
    );

    fs::rename(path(shard), path("elsewhere")).unwrap();
    assert_says(&error(open()), &[shard, "missing", "more"]);
    fs::copy(path("model-00001-of-00002.safetensors"), path(shard)).unwrap();
    assert_says(
        &error(open()),
        &[shard, "tensor", "missing", "do not belong together"],
    );
    fs::rename(path("elsewhere"), path(shard)).unwrap();

    fs::rename(path("model.safetensors.index.json"), path("index")).unwrap();
    assert_says(
        &error(open()),
        &["model.safetensors.index.json", "2 safetensors files"],
    );
    fs::rename(path("index"), path("model.safetensors.index.json")).unwrap();

    fs::rename(path("config.json"), path("config")).unwrap();
    assert_says(&error(open()), &["config.json", "missing"]);
    fs::write(path("config.json"), "[1]").unwrap();
    assert_says(&error(open()), &["config.json", "not an object"]);
    fs::write(path("config.json"), "{\"a\": ").unwrap();
    assert_says(&error(open()), &["config.json", "invalid json"]);
    fs::write(path("config.json"), [0xff, 0xfe]).unwrap();
    assert_says(&error(open()), &["config.json", "utf-8"]);
    fs::rename(path("config"), path("config.json")).unwrap();

    fs::rename(path("tokenizer.json"), path("tokenizer")).unwrap();
    assert_says(&error(open()), &["tokenizer.json", "missing"]);
    fs::write(path("tokenizer.model"), "x").unwrap();
    assert_says(&error(open()), &["tokenizer.model", "use_fast"]);
    fs::write(path("tokenizer.json"), "{}").unwrap();
    assert_says(&error(open()), &["does not load"]);
    fs::rename(path("tokenizer"), path("tokenizer.json")).unwrap();
    open().unwrap();
}

#[test]
fn folders_without_safetensors_say_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Checkpoint::open(folder.path(), None);
    assert_says(&error(open()), &["without weights", "model.safetensors"]);
    fs::write(folder.path().join("a.gguf"), "x").unwrap();
    assert_says(&error(open()), &["GGUF", "name"]);
    fs::write(folder.path().join("pytorch_model.bin"), "x").unwrap();
    assert_says(&error(open()), &["pickled", "safe_serialization"]);
    assert_says(
        &error(Checkpoint::open(
            &folder.path().join("pytorch_model.bin"),
            None,
        )),
        &["pytorch_model.bin", ".safetensors", ".gguf"],
    );
    assert_says(
        &error(Checkpoint::open(&folder.path().join("no such"), None)),
        &["no such"],
    );
}

#[test]
fn an_index_cannot_lead_out_of_its_folder() {
    let folder = copy_of(&model("qwen2vl-odd"));
    for shard in [
        "../secret.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "",
    ] {
        let index = json!({"weight_map": {"lm_head.weight": shard}});
        fs::write(
            folder.path().join("model.safetensors.index.json"),
            index.to_string(),
        )
        .unwrap();
        assert_says(
            &error(Checkpoint::open(folder.path(), None)),
            &["lm_head.weight", "same directory"],
        );
    }
    fs::write(folder.path().join("model.safetensors.index.json"), "{}").unwrap();
    assert_says(
        &error(Checkpoint::open(folder.path(), None)),
        &["weight_map"],
    );
}

#[test]
fn a_tokenizer_larger_than_the_model_is_refused() {
    let folder = copy_of(&model("qwen2vl-tiny"));
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["vocab_size"] = json!(538);
    fs::write(&path, config.to_string()).unwrap();
    assert_says(
        &error(Checkpoint::open(folder.path(), None)),
        &["538", "vocab_size"],
    );
    config["vocab_size"] = json!(539);
    fs::write(&path, config.to_string()).unwrap();
    Checkpoint::open(folder.path(), None).unwrap();
    config.as_object_mut().unwrap().remove("vocab_size");
    config["text_config"] = json!({"vocab_size": 7});
    fs::write(&path, config.to_string()).unwrap();
    assert_says(
        &error(Checkpoint::open(folder.path(), None)),
        &["largest token id is 538", "vocab_size is 7"],
    );
}

#[test]
fn the_chat_template_is_found_in_each_of_its_places() {
    let folder = copy_of(&model("qwen2vl-tiny"));
    let path = |name: &str| folder.path().join(name);
    let template = || Checkpoint::open(folder.path(), None).unwrap().chat_template;
    fs::write(path("chat_template.jinja"), "J").unwrap();
    assert_eq!(template().as_deref(), Some("J"));
    fs::remove_file(path("chat_template.jinja")).unwrap();
    fs::write(path("chat_template.json"), r#"{"chat_template": "K"}"#).unwrap();
    assert_eq!(template().as_deref(), Some("K"));
    fs::remove_file(path("chat_template.json")).unwrap();
    let named = json!([{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]);
    for (value, expected) in [
        (json!("C"), Some("C")),
        (named, Some("D")),
        (Value::Null, None),
    ] {
        let config = json!({"chat_template": value});
        fs::write(path("tokenizer_config.json"), config.to_string()).unwrap();
        assert_eq!(template().as_deref(), expected);
    }
    for value in [json!([{"name": "tool", "template": "T"}]), json!(5)] {
        let config = json!({"chat_template": value});
        fs::write(path("tokenizer_config.json"), config.to_string()).unwrap();
        assert_says(
            &error(Checkpoint::open(folder.path(), None)),
            &["chat", "template", "tokenizer_config.json"],
        );
    }
}

/// Splits a `tokenizer.json` into the files of the slow tokenizers.
fn take_apart(folder: &Path) -> Tokenizer {
    let path = folder.join("tokenizer.json");
    let text = fs::read_to_string(&path).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    fs::write(
        folder.join("vocab.json"),
        json["model"]["vocab"].to_string(),
    )
    .unwrap();
    let merges = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| match merge {
            Value::String(pair) => pair.clone(),
            pair => format!(
                "{} {}",
                pair[0].as_str().unwrap(),
                pair[1].as_str().unwrap()
            ),
        });
    let merges = merges.collect::<Vec<_>>().join("\n");
    fs::write(
        folder.join("merges.txt"),
        format!("#version: 0.2\n{merges}\n"),
    )
    .unwrap();
    fs::remove_file(path).unwrap();
    text.parse().unwrap()
}

#[test]
fn tokenizers_are_rebuilt_from_vocabulary_and_merges() {
    for name in ["qwen2vl-tiny", "qwen2vl-odd", "blip2-tiny"] {
        let folder = copy_of(&model(name));
        let reference = take_apart(folder.path());
        let checkpoint = Checkpoint::open(folder.path(), None).unwrap();
        let rebuilt: Tokenizer = checkpoint.tokenizer.parse().unwrap();
        for text in TEXTS
            .iter()
            .copied()
            .chain(["<|im_start|>user\n<|image_pad|>x<image></s>"])
        {
            let (a, b) = (
                rebuilt.encode(text, true).unwrap(),
                reference.encode(text, true).unwrap(),
            );
            assert_eq!(a.get_ids(), b.get_ids(), "{name}: {text:?}");
            let decode = |t: &Tokenizer| t.decode(b.get_ids(), true).unwrap();
            assert_eq!(decode(&rebuilt), decode(&reference), "{name}: {text:?}");
        }
    }
    let folder = copy_of(&model("qwen2vl-tiny"));
    take_apart(folder.path());
    let config = folder.path().join("tokenizer_config.json");
    fs::write(&config, r#"{"tokenizer_class": "BloomTokenizer"}"#).unwrap();
    assert_says(
        &error(Checkpoint::open(folder.path(), None)),
        &["BloomTokenizer", "supported"],
    );
    fs::remove_file(&config).unwrap();
    assert_says(
        &error(Checkpoint::open(folder.path(), None)),
        &["tokenizer_config.json"],
    );
}

/// Creates a folder with a safetensors file of the given header and data and the JSON files of the
/// tiny model.
fn with_weights(header: &str, data: &[u8]) -> tempfile::TempDir {
    let folder = json_of(&model("qwen2vl-tiny"));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

#[test]
fn types_that_are_not_weights_are_listed_but_not_read() {
    let header = r#"{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},"b":{"dtype":"F64","shape":[1,1],"data_offsets":[8,16]},"c":{"dtype":"F32","shape":[],"data_offsets":[16,20]},"d":{"dtype":"F32","shape":[0,9223372036854775807,9],"data_offsets":[20,20]}}"#;
    let folder = with_weights(header, &[0; 20]);
    let checkpoint = Checkpoint::open(folder.path(), None).unwrap();
    for (name, dtype) in [("a", "I64"), ("b", "F64")] {
        let mut out = vec![3.0];
        let message = checkpoint
            .read_rows(name, 0..1, &mut out)
            .unwrap_err()
            .to_string();
        assert_says(
            &message,
            &["model.safetensors", "tensor", name, dtype, "BF16"],
        );
        assert_eq!(out, [3.0]);
    }
    assert_eq!(values(&checkpoint, "c"), [0.0]);
    assert_eq!(values(&checkpoint, "d"), [0.0; 0]);
}

#[test]
fn headers_that_lie_are_refused() {
    let entry = |name: &str, dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let headers = [
        String::new(),
        "{".into(),
        "[]".into(),
        "nonsense".into(),
        // Overlap, a gap, a size that does not match the shape, an unknown type, an end before the
        // start.
        format!(
            "{{{},{}}}",
            entry("a", "F32", "[2]", 0, 8),
            entry("b", "F32", "[2]", 4, 12)
        ),
        format!(
            "{{{},{}}}",
            entry("a", "F32", "[1]", 0, 4),
            entry("b", "F32", "[1]", 8, 12)
        ),
        format!("{{{}}}", entry("a", "F32", "[2]", 0, 12)),
        format!("{{{}}}", entry("a", "F33", "[3]", 0, 12)),
        format!("{{{}}}", entry("a", "F32", "[3]", 12, 0)),
        // Dimensions whose product overflows, and a size at which additions overflow.
        format!(
            "{{{}}}",
            entry("a", "F32", "[4294967296,4294967296,2]", 0, 12)
        ),
        format!(
            "{{{}}}",
            entry("a", "U8", &format!("[{}]", u64::MAX), 0, u64::MAX)
        ),
        format!(
            "{{{}}}",
            entry("a", "U8", &format!("[{}]", u64::MAX - 60), 0, u64::MAX - 60)
        ),
        format!("{{{}}}", entry("a", "F32", "[4]", 0, 16)),
        format!("{{{}}}", entry("a", "F32", "[-1]", 0, 12)),
    ];
    for header in headers {
        let folder = with_weights(&header, &[0; 12]);
        assert_says(
            &error(Checkpoint::open(folder.path(), None)),
            &["model.safetensors"],
        );
    }
}

#[test]
fn every_truncation_is_an_error() {
    let folder = copy_of(&model("qwen2vl-tiny"));
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    // From long to short, so that one file can be truncated repeatedly.
    let file = fs::File::options().write(true).open(&path).unwrap();
    for length in std::iter::once(whole.len() - 1).chain((0..header + 16).rev()) {
        file.set_len(length as u64).unwrap();
        assert_says(
            &error(Checkpoint::open(folder.path(), None)),
            &["model.safetensors"],
        );
    }
    fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
    assert_says(
        &error(Checkpoint::open(folder.path(), None)),
        &["model.safetensors", "bytes of data"],
    );
}

#[test]
fn header_lengths_beyond_the_file_are_refused() {
    let folder = copy_of(&model("qwen2vl-tiny"));
    let path = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    for length in [
        u64::MAX,
        u64::MAX - 7,
        1 << 40,
        100_000_001,
        bytes.len() as u64 - 7,
    ] {
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        fs::write(&path, &bytes).unwrap();
        assert_says(
            &error(Checkpoint::open(folder.path(), None)),
            &["model.safetensors", &length.to_string()],
        );
    }
}

proptest! {
    /// A header with changed bits is rejected or can be read.
    #[test]
    fn changed_bits_are_survived(bits in prop::collection::vec(any::<prop::sample::Index>(), 1..4)) {
        let header = r#"{"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"BF16","shape":[1,3],"data_offsets":[12,18]},"c":{"dtype":"F32","shape":[5],"data_offsets":[18,38]}}"#;
        let folder = with_weights(header, &[1; 38]);
        let path = folder.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        for bit in bits {
            let bit = bit.index((8 + header.len()) * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        fs::write(&path, &bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(folder.path(), None) {
            for (name, info) in checkpoint.tensors() {
                let mut out = Vec::new();
                if checkpoint.read_rows(name, 0..info.rows(), &mut out).is_ok() {
                    prop_assert_eq!(out.len(), info.elements());
                }
            }
        }
    }
}

/// Tensors can be read from several threads at once.
#[test]
fn a_checkpoint_can_be_shared_between_threads() {
    let checkpoint = Checkpoint::open(&model("qwen2vl-tiny"), None).unwrap();
    let name = "model.embed_tokens.weight";
    let whole = values(&checkpoint, name);
    std::thread::scope(|scope| {
        for part in 0..4 {
            let (checkpoint, whole) = (&checkpoint, &whole);
            scope.spawn(move || {
                let mut out = Vec::new();
                let rows = part * 144..(part + 1) * 144;
                checkpoint.read_rows(name, rows.clone(), &mut out).unwrap();
                assert_eq!(out, whole[rows.start * 128..rows.end * 128]);
            });
        }
    });
}
