//! Pruning of the vocabulary to the tokens of a corpus.
//!
//! Texts of the corpus are split into the same tokens as before: merges are removed only if their
//! result is not needed for a kept token, so each merge that applies in such a text is still there,
//! with the same rank among those that are left. Other texts are split into more and shorter tokens,
//! down to bytes or characters, which are always kept.

use std::collections::{BTreeMap, BTreeSet};

use edge_lmm_models::prompt::TextProcessor;
use serde_json::{Value, json};

use super::prompts::Prompts;
use super::token_ids;
use super::tokenizer::Vocabulary;
use crate::calibration::Samples;
use crate::plan::{ConvertError, Options, Plan, Pruning};
use crate::source::Checkpoint;

/// Characters that are encoded at a time, up to the next end of a word.
const CHUNK: usize = 1 << 16;
/// Tokens that prompts of all kinds may contain in addition to the corpus: numbers, times in videos.
const COMMON: &str = "0 1 2 3 4 5 6 7 8 9 <0.5 seconds> 12:34 A. B. C. D. yes no";

/// Prunes the vocabulary of `checkpoint` to the tokens of `corpus` and those that prompts need. The
/// tokenizer and the ids in the configurations are rewritten. Returns the number of tokens before
/// and after.
///
/// # Errors
/// If the tokenizer is of a kind that cannot be pruned, or cannot encode the corpus.
pub fn prune_vocabulary(
    checkpoint: &mut Checkpoint,
    pruning: &mut Pruning,
    corpus: &Samples,
) -> Result<(usize, usize), ConvertError> {
    let failed = |reason: String| ConvertError::Vocabulary { reason };
    let plan = Plan::new(checkpoint, &Options::default())?;
    let (dimension, &size) = (plan.dimensions.iter())
        .find(|(name, _)| name.rsplit('.').next() == Some("vocabulary"))
        .ok_or_else(|| failed("the model has none".into()))?;
    let text = TextProcessor::new(&checkpoint.tokenizer, checkpoint.chat_template.clone())?
        .with_config(&pruning.config);
    let vocabulary = Vocabulary::parse(&checkpoint.tokenizer).map_err(failed)?;

    let mut kept: BTreeSet<u32> = vocabulary.indispensable().collect();
    kept.extend(token_ids::named(&pruning.config));
    kept.extend(
        checkpoint
            .generation_config
            .iter()
            .flat_map(token_ids::named),
    );
    kept.extend(used(&text, &Prompts::new(&plan, &text)?, corpus)?);
    kept.retain(|&id| (id as usize) < size);
    vocabulary.close(&mut kept);

    let kept: Vec<u32> = kept.into_iter().collect();
    let new: BTreeMap<u32, u32> = kept.iter().copied().zip(0..).collect();
    pruning.selection.keep(dimension, size, &kept)?;
    checkpoint.tokenizer = vocabulary.keep(&new);
    let generation = checkpoint.generation_config.iter_mut();
    for config in generation.chain([&mut pruning.config]) {
        token_ids::replace(config, |id| new.get(&id).copied());
    }
    set_size(&mut pruning.config, size, kept.len());
    Ok((size, kept.len()))
}

/// Sets the vocabulary size of the language model.
fn set_size(config: &mut Value, old: usize, new: usize) {
    if replace_size(config, old, new) {
        return;
    }
    // A default of the family.
    let nested = config.get("text_config").is_some();
    let text = if nested {
        &mut config["text_config"]
    } else {
        config
    };
    text["vocab_size"] = json!(new);
}

fn replace_size(config: &mut Value, old: usize, new: usize) -> bool {
    let mut found = false;
    for (key, value) in config.as_object_mut().into_iter().flatten() {
        if key == "vocab_size" && *value == json!(old) {
            *value = json!(new);
            found = true;
        }
        // A Q-Former has a vocabulary of its own.
        if key != "qformer_config" {
            found |= replace_size(value, old, new);
        }
    }
    found
}

/// Returns the tokens of the corpus, of prompts about it and of answers.
fn used(
    text: &TextProcessor,
    prompts: &Prompts<'_>,
    corpus: &Samples,
) -> Result<BTreeSet<u32>, ConvertError> {
    let mut ids = BTreeSet::from_iter(prompts.tokens("?"));
    for piece in corpus.texts().flat_map(chunks).chain([COMMON]) {
        encode(text, piece, &mut ids)?;
        let lines = piece.lines().map(str::trim);
        for line in lines.filter(|line| !line.is_empty()) {
            encode(text, line, &mut ids)?;
            encode(text, &format!(" {line}"), &mut ids)?;
        }
    }
    let questions = corpus.manifests.iter().flat_map(|m| &m.questions);
    for question in questions {
        ids.extend(prompts.tokens(&question.question));
        let all = question.answers.iter().chain(&question.choices);
        for piece in all.chain([&question.question, &question.answer]) {
            encode(text, piece, &mut ids)?;
            encode(text, &format!(" {piece}"), &mut ids)?;
        }
    }
    Ok(ids)
}

fn encode(text: &TextProcessor, piece: &str, ids: &mut BTreeSet<u32>) -> Result<(), ConvertError> {
    ids.extend(text.encode_text(piece)?);
    Ok(())
}

/// Splits a text before words.
fn chunks(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let from = rest.ceil_char_boundary(CHUNK.min(rest.len()));
        let end = (rest[from..].match_indices(' '))
            .find(|(at, _)| rest[from + at + 1..].starts_with(char::is_alphanumeric))
            .map_or(rest.len(), |(at, _)| from + at);
        let (chunk, after) = rest.split_at(end);
        rest = after;
        (!chunk.is_empty()).then_some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_end_before_words() {
        let text = "word, ".repeat(CHUNK / 3);
        let parts: Vec<&str> = chunks(&text).collect();
        assert!(parts.len() > 1);
        assert_eq!(parts.concat(), text);
        assert!(parts[1..].iter().all(|part| part.starts_with(" word")));
        assert_eq!(chunks("").count(), 0);
        assert_eq!(chunks("é").collect::<Vec<_>>(), ["é"]);
    }
}
