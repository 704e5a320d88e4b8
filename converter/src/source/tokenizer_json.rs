//! Writing `tokenizer.json`: byte-level BPE as GPT-2 introduced it, and SentencePiece BPE as Llama uses it.
//!
//! The layout is that of Hugging Face tokenizers; the parts and their settings are those of the published tokenizers
//! of each kind.

use serde_json::{Map as Object, Value, json};

/// A token that is recognised in the text before anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    /// Left out when decoding for people.
    pub(super) special: bool,
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
    pub(super) single_word: bool,
    pub(super) normalized: bool,
}

impl AddedToken {
    /// A token that is matched exactly as it is written.
    pub(super) fn verbatim(id: u32, content: &str, special: bool) -> Self {
        Self {
            id,
            content: content.into(),
            special,
            lstrip: false,
            rstrip: false,
            single_word: false,
            normalized: false,
        }
    }

    /// A token with the flags that `flags` has: none, where it has none.
    pub(super) fn with_flags(id: u32, content: &str, flags: &Value, special: bool) -> Self {
        let flag = |key: &str| flags.get(key).and_then(Value::as_bool);
        Self {
            lstrip: flag("lstrip").unwrap_or(false),
            rstrip: flag("rstrip").unwrap_or(false),
            single_word: flag("single_word").unwrap_or(false),
            normalized: flag("normalized").unwrap_or(!special),
            ..Self::verbatim(id, content, special)
        }
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "id": self.id,
            "content": self.content,
            "single_word": self.single_word,
            "lstrip": self.lstrip,
            "rstrip": self.rstrip,
            "normalized": self.normalized,
            "special": self.special,
        })
    }
}

/// A vocabulary with the merges in order of rank.
///
/// `vocab` holds the added tokens too: a loader numbers added tokens that it does not find there by itself, and wrongly
/// where ids have gaps.
#[derive(Debug)]
pub(super) struct Bpe<'a> {
    pub(super) vocab: Vec<(&'a str, u32)>,
    pub(super) merges: Vec<(&'a str, &'a str)>,
    pub(super) added: Vec<AddedToken>,
    /// Put in front of every text.
    pub(super) begin: Option<(&'a str, u32)>,
    /// Put behind every text.
    pub(super) end: Option<(&'a str, u32)>,
}

/// How byte-level BPE cuts a text before merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Splitter {
    /// Applied one after the other; each cuts the pieces of the one before at its matches.
    patterns: &'static [&'static str],
    /// Whether the byte step cuts too, at GPT-2's pattern, which it knows by itself.
    byte_step_cuts: bool,
    /// Whether text is brought into Unicode's composed form first.
    compose: bool,
    /// Whether a piece that is a token is taken whole, without looking at merges.
    pub(super) whole_pieces: bool,
}

/// Where GPT-2 cuts.
pub(super) const GPT2: Splitter = Splitter {
    patterns: &[],
    byte_step_cuts: true,
    compose: false,
    whole_pieces: false,
};

/// Where Qwen2 cuts: digits stand alone.
pub(super) const QWEN2: Splitter = Splitter {
    patterns: &[
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    byte_step_cuts: false,
    compose: true,
    whole_pieces: false,
};

/// Where Llama 3 cuts: digits in groups of up to three.
pub(super) const LLAMA3: Splitter = Splitter {
    patterns: &[
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    byte_step_cuts: false,
    compose: false,
    whole_pieces: true,
};

/// Where Smaug cuts: as Llama 3, but always by merges.
pub(super) const SMAUG: Splitter = Splitter {
    whole_pieces: false,
    ..LLAMA3
};

/// Where llama.cpp cuts when a file does not say.
pub(super) const LLAMA_CPP_DEFAULT: Splitter = Splitter {
    patterns: &[
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    ],
    byte_step_cuts: false,
    compose: false,
    whole_pieces: false,
};

/// The text of a byte-level BPE tokenizer. `prefix_space`: whether a text starts as if a space stood before it, which
/// only GPT-2's way of cutting can do.
pub(super) fn byte_level(bpe: &Bpe<'_>, splitter: Splitter, prefix_space: bool) -> String {
    let step = |cuts: bool, prefix_space: bool| {
        json!({
            "type": "ByteLevel",
            "add_prefix_space": prefix_space,
            "trim_offsets": false,
            "use_regex": cuts,
        })
    };
    let bytes = step(false, false);
    let mut steps: Vec<Value> = splitter
        .patterns
        .iter()
        .map(|pattern| {
            json!({
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": false,
            })
        })
        .collect();
    let prefix_space = prefix_space && splitter.byte_step_cuts;
    steps.push(step(splitter.byte_step_cuts, prefix_space));
    let mut model = model(bpe);
    model["ignore_merges"] = json!(splitter.whole_pieces);
    let mut tokenizer = frame(bpe);
    if splitter.compose {
        tokenizer["normalizer"] = json!({"type": "NFC"});
    }
    tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": steps});
    tokenizer["post_processor"] = match template(bpe) {
        None => bytes.clone(),
        Some(template) => json!({"type": "Sequence", "processors": [bytes, template]}),
    };
    tokenizer["decoder"] = bytes;
    tokenizer["model"] = model;
    tokenizer.to_string()
}

/// The text of a SentencePiece BPE tokenizer with byte fallback. `prefix_space`: whether a text starts as if a space
/// stood before it.
pub(super) fn sentencepiece(bpe: &Bpe<'_>, unknown: Option<&str>, prefix_space: bool) -> String {
    let mut model = model(bpe);
    model["unk_token"] = json!(unknown);
    model["fuse_unk"] = json!(true);
    model["byte_fallback"] = json!(true);
    let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let unspace = json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "});
    let mut tokenizer = frame(bpe);
    let mut decoders = vec![
        unspace,
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let mut normalizers = vec![space];
    if prefix_space {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    tokenizer["normalizer"] = json!({"type": "Sequence", "normalizers": normalizers});
    tokenizer["post_processor"] = template(bpe).unwrap_or(Value::Null);
    tokenizer["decoder"] = json!({"type": "Sequence", "decoders": decoders});
    tokenizer["model"] = model;
    tokenizer.to_string()
}

/// What every tokenizer has.
fn frame(bpe: &Bpe<'_>) -> Value {
    let added: Vec<Value> = bpe.added.iter().map(AddedToken::json).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": null,
        "model": null,
    })
}

fn model(bpe: &Bpe<'_>) -> Value {
    let vocab: Object<String, Value> = bpe
        .vocab
        .iter()
        .map(|&(token, id)| (token.to_owned(), json!(id)))
        .collect();
    let merges: Vec<Value> = bpe.merges.iter().map(|(a, b)| json!([a, b])).collect();
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": false,
        "vocab": vocab,
        "merges": merges,
    })
}

/// The step that adds the tokens at the beginning and end of a text, where there are any.
fn template(bpe: &Bpe<'_>) -> Option<Value> {
    if bpe.begin.is_none() && bpe.end.is_none() {
        return None;
    }
    let special = |token: Option<(&str, u32)>, sequence: u32| {
        token.map(|(text, _)| json!({"SpecialToken": {"id": text, "type_id": sequence}}))
    };
    let around = |name: &str, sequence: u32| -> Vec<Value> {
        let text = json!({"Sequence": {"id": name, "type_id": sequence}});
        let first = special(bpe.begin, sequence);
        let last = special(bpe.end, sequence);
        first.into_iter().chain([text]).chain(last).collect()
    };
    let tokens: Object<String, Value> = bpe
        .begin
        .iter()
        .chain(&bpe.end)
        .map(|&(text, id)| {
            let token = json!({"id": text, "ids": [id], "tokens": [text]});
            (text.to_owned(), token)
        })
        .collect();
    let pair = [around("A", 0), around("B", 1)].concat();
    Some(json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": tokens,
    }))
}
