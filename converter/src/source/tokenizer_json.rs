//! Writer of `tokenizer.json`: byte-level BPE as in GPT-2, and SentencePiece BPE as in Llama.
//!
//! The layout is that of Hugging Face tokenizers; components and settings are those of the
//! published tokenizers of each kind.

use serde_json::{Map as Object, Value, json};

/// A token that is matched in the text before pre-tokenization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    /// `true` if the token is skipped when decoding for display.
    pub(super) special: bool,
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
    pub(super) single_word: bool,
    pub(super) normalized: bool,
}

impl AddedToken {
    /// Creates a token that is matched exactly as written.
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

    /// Creates a token with the flags of `flags`; missing flags are false.
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

/// A vocabulary with merges in order of rank.
///
/// `vocab` includes the added tokens: loaders number added tokens missing from it themselves, which
/// is wrong if ids have gaps.
#[derive(Debug)]
pub(super) struct Bpe<'a> {
    pub(super) vocab: Vec<(&'a str, u32)>,
    pub(super) merges: Vec<(&'a str, &'a str)>,
    pub(super) added: Vec<AddedToken>,
    /// Token prepended to every text.
    pub(super) begin: Option<(&'a str, u32)>,
    /// Token appended to every text.
    pub(super) end: Option<(&'a str, u32)>,
}

/// The pre-tokenizer of a byte-level BPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Splitter {
    /// Patterns applied in order; each splits the pieces of the previous one at its matches.
    patterns: &'static [&'static str],
    /// `true` if the byte-level step splits too, by the built-in pattern of GPT-2.
    byte_step_cuts: bool,
    /// `true` if text is normalized to NFC first.
    compose: bool,
    /// `true` if a piece that is a token is used whole, regardless of merges.
    pub(super) whole_pieces: bool,
}

/// The pre-tokenizer of GPT-2.
pub(super) const GPT2: Splitter = Splitter {
    patterns: &[],
    byte_step_cuts: true,
    compose: false,
    whole_pieces: false,
};

/// The pre-tokenizer of SmolLM: single digits, then as GPT-2.
pub(super) const SMOLLM: Splitter = Splitter {
    patterns: &[r"\p{N}"],
    ..GPT2
};

/// The pre-tokenizer of Qwen2: single digits.
pub(super) const QWEN2: Splitter = Splitter {
    patterns: &[
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    byte_step_cuts: false,
    compose: true,
    whole_pieces: false,
};

/// The pre-tokenizer of Qwen3.5: as Qwen2, but combining marks belong to letters.
pub(super) const QWEN3_5: Splitter = Splitter {
    patterns: &[
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    ..QWEN2
};

/// The pre-tokenizer of Llama 3: groups of up to three digits.
pub(super) const LLAMA3: Splitter = Splitter {
    patterns: &[
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    byte_step_cuts: false,
    compose: false,
    whole_pieces: true,
};

/// The pre-tokenizer of Smaug: as Llama 3, but always by merges.
pub(super) const SMAUG: Splitter = Splitter {
    whole_pieces: false,
    ..LLAMA3
};

/// The default pre-tokenizer of llama.cpp.
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

/// Builds a byte-level BPE tokenizer. `prefix_space` prepends a space to every text, which only
/// GPT-2's pre-tokenizer supports.
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

/// Builds a SentencePiece BPE tokenizer with byte fallback. `prefix_space` prepends a space to
/// every text.
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

/// Builds the common parts of all tokenizers.
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

/// Builds the post-processor that adds the tokens `begin` and `end`, or `None` without them.
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
