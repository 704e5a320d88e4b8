//! Tokens that are only in the files beside `tokenizer.json`. The expected ids are those of
//! `transformers` 4.57.

mod source_support;

use std::path::Path;

use edge_lmm_convert::source::Checkpoint;
use serde_json::{Value, json};
use source_support::{copy_of, model};
use tokenizers::Tokenizer;

const CHAT: &str = "<|im_start|>user\n<|image_pad|>what is it?<|im_end|>\n";

fn read(folder: &Path, name: &str) -> Value {
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn write(folder: &Path, name: &str, value: &Value) {
    std::fs::write(folder.join(name), value.to_string()).unwrap();
}

/// Returns the tokenizer of `qwen2vl-tiny` after changing `tokenizer_config.json` and
/// `tokenizer.json`, and writing `others`.
fn tokenizer(change: impl Fn(&mut Value, &mut Value), others: &[(&str, Value)]) -> Tokenizer {
    let folder = copy_of(&model("qwen2vl-tiny"));
    let mut config = read(folder.path(), "tokenizer_config.json");
    let mut tokenizer = read(folder.path(), "tokenizer.json");
    change(&mut config, &mut tokenizer);
    write(folder.path(), "tokenizer_config.json", &config);
    write(folder.path(), "tokenizer.json", &tokenizer);
    for (name, value) in others {
        write(folder.path(), name, value);
    }
    let checkpoint = Checkpoint::open(folder.path(), None).unwrap();
    checkpoint.tokenizer.parse().unwrap()
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, true).unwrap().get_ids().to_vec()
}

/// Removes the added tokens from `tokenizer.json`.
fn take_out(tokenizer: &mut Value) -> Vec<Value> {
    let added = tokenizer["added_tokens"].take();
    tokenizer["added_tokens"] = json!([]);
    added.as_array().unwrap().clone()
}

/// Returns the id of the token `content` in `added_tokens_decoder`.
fn id_of(config: &Value, content: &str) -> String {
    let decoder = config["added_tokens_decoder"].as_object().unwrap();
    let entry = decoder
        .iter()
        .find(|(_, token)| token["content"] == content);
    entry.unwrap().0.clone()
}

#[test]
fn of_tokenizer_config() {
    let own = tokenizer(|_, _| (), &[]);
    let bare = tokenizer(
        |_, tokenizer| {
            take_out(tokenizer);
        },
        &[],
    );
    assert!(ids(&own, CHAT).contains(&537));
    assert_eq!(ids(&bare, CHAT), ids(&own, CHAT));
    let text = |tokenizer: &Tokenizer| tokenizer.decode(&ids(tokenizer, CHAT), true).unwrap();
    assert_eq!(text(&bare), text(&own));
}

#[test]
fn of_the_older_files() {
    let own = tokenizer(|_, _| (), &[]);
    let folder = copy_of(&model("qwen2vl-tiny"));
    let by_content: serde_json::Map<String, Value> =
        take_out(&mut read(folder.path(), "tokenizer.json"))
            .iter()
            .map(|token| {
                (
                    token["content"].as_str().unwrap().into(),
                    token["id"].clone(),
                )
            })
            .collect();
    let map = json!({"additional_special_tokens": ["<|im_start|>", {"content": "<|im_end|>"}]});
    let older = tokenizer(
        |config, tokenizer| {
            take_out(tokenizer);
            config["added_tokens_decoder"] = Value::Null;
            config["additional_special_tokens"] = Value::Null;
        },
        &[
            ("added_tokens.json", by_content.into()),
            ("special_tokens_map.json", map),
        ],
    );
    assert_eq!(ids(&older, CHAT), ids(&own, CHAT));
    // Decoding for display skips special tokens but not others.
    let read = older.decode(&ids(&older, CHAT), true).unwrap();
    assert_eq!(read, "user\n<|image_pad|>what is it?\n");
    // With `added_tokens_decoder`, the older files are ignored.
    let newer = tokenizer(|_, _| (), &[("added_tokens.json", json!({"<new>": 539}))]);
    assert_eq!(newer.token_to_id("<new>"), None);
}

#[test]
fn flags_of_tokenizer_config_count() {
    let own = tokenizer(|_, _| (), &[]);
    let greedy = tokenizer(
        |config, _| {
            let id = id_of(config, "<|im_end|>");
            config["added_tokens_decoder"][id]["lstrip"] = json!(true);
        },
        &[],
    );
    assert_eq!(
        ids(&greedy, "hello   <|im_end|>"),
        ids(&own, "hello<|im_end|>")
    );
}

/// Special tokens given by their text alone get the next free ids, as long as the model has
/// embeddings for them.
#[test]
fn named_tokens_get_the_next_ids() {
    let named = tokenizer(|config, _| config["pad_token"] = json!("[NEW]"), &[]);
    assert_eq!(ids(&named, "[NEW]"), [539]);
    let mut small = read(&model("qwen2vl-tiny"), "config.json");
    small["vocab_size"] = json!(539);
    let named = tokenizer(
        |config, _| config["pad_token"] = json!("[NEW]"),
        &[("config.json", small)],
    );
    assert_eq!(named.token_to_id("[NEW]"), None);
}

/// An id that contradicts `tokenizer.json` or leaves a gap is ignored.
#[test]
fn numbers_follow_tokenizer_json() {
    let moved = tokenizer(
        |config, _| {
            let id = id_of(config, "<|im_end|>");
            let token = config["added_tokens_decoder"][&id].take();
            config["added_tokens_decoder"]
                .as_object_mut()
                .unwrap()
                .remove(&id);
            config["added_tokens_decoder"]["560"] = token;
            config["added_tokens_decoder"]["570"] = json!({"content": "<x>"});
        },
        &[],
    );
    assert_eq!(ids(&moved, "<|im_end|><x>"), [527, 539]);
}
