//! The tokens of a model as the texts that they stand for.

use std::sync::Arc;

use edge_lmm_models::prompt::TextProcessor;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use super::ConstraintError;

/// Number of tokens whose texts are compared with the tokenizer's decoder.
const PROBES: usize = 64;

/// The texts of all tokens.
pub(super) struct Vocabulary {
    pub texts: TokEnv,
    /// Tokens whose leading blank the decoder drops at the start of an answer, each with the token
    /// of the same text without the blank, if there is one. Empty if the decoder drops nothing.
    pub at_start: Vec<(u32, Option<u32>)>,
}

impl Vocabulary {
    /// Collects the texts of a tokenizer. Tokens that its decoder skips and those that end an answer
    /// have none.
    ///
    /// # Errors
    /// If the decoder does not join these texts, or there is no end-of-sequence token.
    pub fn new(text: &TextProcessor, end_tokens: &[u32]) -> Result<Self, ConstraintError> {
        let count = text.largest_id().map_or(0, |id| id as usize + 1);
        let bytes = |id: u32| match text.is_special(id) || end_tokens.contains(&id) {
            true => Vec::new(),
            false => text.token_bytes(id),
        };
        let words: Vec<Vec<u8>> = (0..count as u32).map(bytes).collect();
        let ends: Vec<u32> = end_tokens
            .iter()
            .copied()
            .filter(|&id| (id as usize) < count)
            .collect();
        let Some(&end) = ends.first() else {
            return Err(ConstraintError::NoEndToken);
        };
        let info = TokRxInfo::new(count as u32, end);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&ends);
        let drops_blank = drops_blank(text, &words);
        if !joins(text, &words, drops_blank) {
            return Err(ConstraintError::Tokenizer);
        }
        let at_start = match drops_blank {
            true => without_blank(&trie, &words),
            false => Vec::new(),
        };
        let texts = Arc::new(ApproximateTokEnv::new(trie));
        Ok(Self { texts, at_start })
    }
}

/// Returns `true` if decoding drops a blank at the start of a text, as that of Llama does.
fn drops_blank(text: &TextProcessor, words: &[Vec<u8>]) -> bool {
    let is_word = |word: &[u8]| matches!(word, [b' ', c, ..] if c.is_ascii_alphabetic());
    let id = (0..).zip(words).find(|(_, word)| is_word(word));
    id.is_some_and(|(id, _)| {
        let decoded = text.decode(&[id]);
        decoded.is_ok_and(|decoded| !decoded.starts_with(' '))
    })
}

/// Compares the text of some tokens in a row with the decoder's.
fn joins(text: &TextProcessor, words: &[Vec<u8>], drops_blank: bool) -> bool {
    let plain: Vec<(u32, &str)> = (0..)
        .zip(words)
        .filter_map(|(id, word)| Some((id, str::from_utf8(word).ok()?)))
        .filter(|(_, word)| !word.is_empty() && !word.contains('\u{fffd}'))
        .collect();
    let step = (plain.len() / PROBES).max(1);
    let probes = plain.iter().step_by(step);
    let (ids, texts): (Vec<u32>, Vec<&str>) = probes.copied().unzip();
    let expected = texts.concat();
    let expected = match drops_blank {
        true => expected.strip_prefix(' ').unwrap_or(&expected),
        false => &expected,
    };
    text.decode(&ids).is_ok_and(|decoded| decoded == expected)
}

/// Pairs each token that begins with a blank with the token without it.
fn without_blank(trie: &TokTrie, words: &[Vec<u8>]) -> Vec<(u32, Option<u32>)> {
    let pair = |(id, word): (u32, &Vec<u8>)| {
        let rest = word.strip_prefix(b" ")?;
        Some((
            id,
            trie.token_id_at_bytes(rest).filter(|_| !rest.is_empty()),
        ))
    };
    (0..).zip(words).filter_map(pair).collect()
}
