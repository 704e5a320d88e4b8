//! The vocabulary of a GGUF file and the tokenizer built from it.
//!
//! Meaning of the keys: `docs/gguf.md` of ggml and `src/llama-vocab.cpp` of llama.cpp.

use std::cmp::Reverse;
use std::collections::HashMap;

use ggus::GGmlTokenType;
use serde_json::{Map as Object, Value as Json, json};

use super::super::error::{Result, SourceError, malformed};
use super::super::tokenizer_json::{
    AddedToken, Bpe, GPT2, LLAMA_CPP_DEFAULT, LLAMA3, QWEN2, QWEN3_5, SMAUG, SMOLLM, Splitter,
    byte_level, sentencepiece,
};
use super::header::Header;

/// End-of-sequence tokens of the model families, used in addition to those of the file.
const END_TOKENS: [&str; 6] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end|>",
    "<|end_of_text|>",
    "<end_of_turn>",
];

/// Special tokens of Phi-3 that do not strip the whitespace after them; all others do.
const KEEP_BLANKS: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

/// A vocabulary with the roles of its tokens.
#[derive(Debug)]
pub(super) struct Vocabulary<'h> {
    header: &'h Header<'h>,
    tokens: &'h [&'h str],
    kinds: Vec<GGmlTokenType>,
    /// The lowest id of each text.
    ids: HashMap<&'h str, u32>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) padding: Option<u32>,
    /// A token missing from the file, with the next free id.
    pub(super) placeholder: Option<(&'static str, u32)>,
}

impl<'h> Vocabulary<'h> {
    /// Reads `tokenizer.ggml.*`.
    pub(super) fn read(header: &'h Header<'h>) -> Result<Self> {
        let tokens = header.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
        if tokens.is_empty() {
            return Err(malformed(
                &header.file,
                "no tokenizer.ggml.tokens",
                "a vocabulary; convert the model again without --no-vocab",
            ));
        }
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, &token) in tokens.iter().enumerate() {
            let first = *ids.entry(token).or_insert(id as u32);
            if first != id as u32 {
                log::warn!(
                    "{}: token {token:?} has the ids {first} and {id}; using {first}",
                    header.file
                );
            }
        }
        let role = |name: &str| -> Result<Option<u32>> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match header.token_id(&key)? {
                Some(id) if id as usize >= tokens.len() => Err(malformed(
                    &header.file,
                    format!("{key} {id}"),
                    format!("one of the {} tokens", tokens.len()),
                )),
                id => Ok(id),
            }
        };
        Ok(Self {
            header,
            tokens,
            kinds: kinds(header, tokens.len())?,
            ids,
            bos: role("bos")?,
            eos: role("eos")?,
            padding: role("padding")?,
            placeholder: None,
        })
    }

    /// Returns the id of a required token.
    pub(super) fn need(&self, token: &str) -> Result<u32> {
        self.ids.get(token).copied().ok_or_else(|| {
            malformed(
                &self.header.file,
                format!("a vocabulary without {token}"),
                "one with the placeholder token of this multimodal model; convert the checkpoint \
                 on the hub that has it",
            )
        })
    }

    /// Returns the id of a placeholder token, adding it to the vocabulary if it is missing.
    pub(super) fn need_or_add(&mut self, token: &'static str) -> u32 {
        match self.ids.get(token) {
            Some(&id) => id,
            None => self.placeholder.insert((token, self.tokens.len() as u32)).1,
        }
    }

    /// Returns the id of the unknown token.
    pub(super) fn unknown(&self) -> Option<u32> {
        let kind = |&kind: &GGmlTokenType| kind == GGmlTokenType::Unknown;
        self.kinds.iter().position(kind).map(|id| id as u32)
    }

    /// Builds `generation_config.json`: end-of-sequence tokens, and recommended sampling parameters
    /// if the file has them.
    pub(super) fn generation_config(&self) -> Result<Json> {
        let mut config = Object::new();
        for (key, id) in [("bos_token_id", self.bos), ("pad_token_id", self.padding)] {
            if let Some(id) = id {
                config.insert(key.into(), json!(id));
            }
        }
        match self.end_ids()?[..] {
            [] => None,
            [only] => config.insert("eos_token_id".into(), json!(only)),
            ref several => config.insert("eos_token_id".into(), json!(several)),
        };
        for (key, stored) in [
            ("repetition_penalty", "penalty_repeat"),
            ("temperature", "temp"),
            ("top_p", "top_p"),
            ("top_k", "top_k"),
        ] {
            if let Some(number) = self.header.number(&format!("general.sampling.{stored}"))? {
                let number = if key == "top_k" {
                    json!(number as i64)
                } else {
                    json!(number)
                };
                config.insert(key.into(), number);
            }
        }
        Ok(config.into())
    }

    /// Returns the end-of-sequence tokens, those of the file first.
    fn end_ids(&self) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = self.eos.into_iter().collect();
        let turn_ends = ["eot", "eom"].map(|name| format!("tokenizer.ggml.{name}_token_id"));
        let stated = turn_ends
            .iter()
            .map(|key| self.header.token_id(key))
            .collect::<Result<Vec<_>>>()?;
        let named = END_TOKENS.iter().filter_map(|token| {
            let id = *self.ids.get(token)?;
            (self.kinds[id as usize] == GGmlTokenType::Control).then_some(id)
        });
        for id in stated.into_iter().flatten().chain(named) {
            if !ids.contains(&id) && (id as usize) < self.tokens.len() {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// Builds the text of a `tokenizer.json` that produces the same ids.
    pub(super) fn tokenizer(&self) -> Result<String> {
        match self.header.need_text("tokenizer.ggml.model")? {
            "gpt2" => self.byte_level(),
            "llama" => self.sentencepiece(),
            other => Err(SourceError::Unsupported {
                file: self.header.file.clone(),
                what: "tokenizer.ggml.model".into(),
                found: other.into(),
                supported: "gpt2 (byte-level BPE), llama (SentencePiece BPE)".into(),
            }),
        }
    }

    fn byte_level(&self) -> Result<String> {
        let splitter = self.splitter()?;
        let stored = self
            .header
            .texts("tokenizer.ggml.merges")?
            .unwrap_or_default();
        let merges = stored
            .iter()
            .map(|merge| {
                split_merge(merge).ok_or_else(|| {
                    malformed(
                        &self.header.file,
                        format!("the merge {merge:?}"),
                        "two tokens with a space between",
                    )
                })
            })
            .collect::<Result<Vec<_>>>()?;
        // Llama 3's files rely on it; see the llama.cpp sources named above.
        let begin_by_default = splitter.whole_pieces;
        let bpe = self.bpe(merges, begin_by_default)?;
        Ok(byte_level(&bpe, splitter, false))
    }

    /// Returns the pre-tokenizer named by `tokenizer.ggml.pre`.
    fn splitter(&self) -> Result<Splitter> {
        match self.header.text("tokenizer.ggml.pre")? {
            Some("qwen2" | "deepseek-r1-qwen") => Ok(QWEN2),
            Some("qwen35") => Ok(QWEN3_5),
            Some("llama-bpe" | "llama3" | "llama-v3" | "lfm2") => Ok(LLAMA3),
            Some("smaug-bpe") => Ok(SMAUG),
            Some("gpt-2" | "gpt2") => Ok(GPT2),
            Some("smollm") => Ok(SMOLLM),
            Some("default") => Ok(LLAMA_CPP_DEFAULT),
            None => {
                log::warn!(
                    "{}: tokenizer.ggml.pre is missing, so text may be split differently than \
                     in training; convert the model again with a current llama.cpp",
                    self.header.file
                );
                Ok(LLAMA_CPP_DEFAULT)
            }
            Some(other) => Err(SourceError::Unsupported {
                file: self.header.file.clone(),
                what: "tokenizer.ggml.pre".into(),
                found: other.into(),
                supported: "qwen2, qwen35, llama-bpe, lfm2, smaug-bpe, gpt-2, smollm, default"
                    .into(),
            }),
        }
    }

    fn sentencepiece(&self) -> Result<String> {
        let merges = self.merges_by_score()?;
        let bpe = self.bpe(merges, true)?;
        let unknown = self.unknown().map(|id| self.tokens[id as usize]);
        let prefix_space = self
            .header
            .flag("tokenizer.ggml.add_space_prefix")?
            .unwrap_or(true);
        Ok(sentencepiece(&bpe, unknown, prefix_space))
    }

    /// Returns the list of merges. SentencePiece merges any two neighbors that form a token, best
    /// score first. The equivalent merges are all splits of a token into two, ordered by the
    /// token's score and then by its id.
    fn merges_by_score(&self) -> Result<Vec<(&'h str, &'h str)>> {
        const KEY: &str = "tokenizer.ggml.scores";
        let scores = self.header.numbers(KEY)?.unwrap_or_default();
        if scores.len() != self.tokens.len() {
            return Err(malformed(
                &self.header.file,
                format!("{} scores in {KEY}", scores.len()),
                format!("one for each of the {} tokens", self.tokens.len()),
            ));
        }
        let normal = |token: &str| {
            let id = *self.ids.get(token)?;
            (self.kinds[id as usize] == GGmlTokenType::Normal).then_some(id)
        };
        let mut ranked = Vec::new();
        for (id, &token) in self.tokens.iter().enumerate() {
            if self.kinds[id] != GGmlTokenType::Normal || token.len() > MAX_PIECE_BYTES {
                continue;
            }
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if normal(left).is_some() && normal(right).is_some() {
                    ranked.push((id, left, right));
                }
            }
        }
        ranked.sort_by(|a, b| {
            let by_score = scores[b.0].total_cmp(&scores[a.0]);
            by_score
                .then(a.0.cmp(&b.0))
                .then_with(|| Reverse(a.1.len()).cmp(&Reverse(b.1.len())))
        });
        Ok(ranked
            .into_iter()
            .map(|(_, left, right)| (left, right))
            .collect())
    }

    /// Builds the parts that both kinds of tokenizer share. Unused ids are left out: no text
    /// produces them.
    fn bpe(&self, merges: Vec<(&'h str, &'h str)>, begin_by_default: bool) -> Result<Bpe<'h>> {
        // The files do not state this; llama.cpp hard-codes it in `src/llama-vocab.cpp` too.
        let swallows = self.header.text("general.architecture")? == Some("phi3");
        let mut vocab = Vec::new();
        let mut added = Vec::new();
        for (id, (&token, &kind)) in self.tokens.iter().zip(&self.kinds).enumerate() {
            let id = id as u32;
            if kind == GGmlTokenType::Unused || self.ids.get(token) != Some(&id) {
                continue;
            }
            vocab.push((token, id));
            match kind {
                GGmlTokenType::Control | GGmlTokenType::Unknown => {
                    added.push(AddedToken {
                        rstrip: swallows && !KEEP_BLANKS.contains(&token),
                        ..AddedToken::verbatim(id, token, true)
                    });
                }
                GGmlTokenType::User => added.push(AddedToken::verbatim(id, token, false)),
                _ => {}
            }
        }
        if let Some((token, id)) = self.placeholder {
            vocab.push((token, id));
            added.push(AddedToken::verbatim(id, token, true));
        }
        let at_edge = |wanted: bool, id: Option<u32>| {
            let id = id.filter(|_| wanted)?;
            Some((self.tokens[id as usize], id))
        };
        let flag = |key: &str| self.header.flag(&format!("tokenizer.ggml.{key}"));
        let begin = flag("add_bos_token")?.unwrap_or(begin_by_default);
        let end = flag("add_eos_token")?.unwrap_or(false);
        Ok(Bpe {
            vocab,
            merges,
            added,
            begin: at_edge(begin, self.bos),
            end: at_edge(end, self.eos),
        })
    }
}

/// Longest token that is split into merges, in bytes. SentencePiece's default limit is 16
/// characters. Bounds the work on files with excessively long tokens.
const MAX_PIECE_BYTES: usize = 512;

/// Returns the types of the tokens; all normal if the file does not state them.
fn kinds(header: &Header<'_>, count: usize) -> Result<Vec<GGmlTokenType>> {
    const KEY: &str = "tokenizer.ggml.token_type";
    let Some(stored) = header.integers(KEY)? else {
        return Ok(vec![GGmlTokenType::Normal; count]);
    };
    if stored.len() != count {
        return Err(malformed(
            &header.file,
            format!("{} entries in {KEY}", stored.len()),
            format!("one for each of the {count} tokens"),
        ));
    }
    stored
        .into_iter()
        .map(|kind| match kind {
            1 => Ok(GGmlTokenType::Normal),
            2 => Ok(GGmlTokenType::Unknown),
            3 => Ok(GGmlTokenType::Control),
            4 => Ok(GGmlTokenType::User),
            5 => Ok(GGmlTokenType::Unused),
            6 => Ok(GGmlTokenType::Byte),
            other => Err(malformed(
                &header.file,
                format!("token type {other} in {KEY}"),
                "a type from 1 to 6",
            )),
        })
        .collect()
}

/// Splits a merge into its two tokens. The first may begin with a space.
fn split_merge(merge: &str) -> Option<(&str, &str)> {
    let (at, _) = merge
        .char_indices()
        .skip(1)
        .find(|&(_, letter)| letter == ' ')?;
    let (left, right) = (&merge[..at], &merge[at + 1..]);
    (!right.is_empty()).then_some((left, right))
}
