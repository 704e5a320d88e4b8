//! Changes to the logits before a token is picked, and the checkpoint's settings of them.
//!
//! The settings are those of `generation_config.json` that change greedy decoding in
//! `transformers`. Each processor here does what the one of the same name in
//! `generation/logits_process.py` of `transformers` 4.57 does, and they run in the same order.
//! Settings of sampling (`do_sample`, `temperature`, `top_k`, `top_p`, ...) and of the length of
//! an answer are not read: options of the request decide these.

use edge_lmm_models::ModelError;
use edge_lmm_models::family::ModelFiles;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::processors::{CountPenalty, LogitsProcessor};
use crate::sampler::{Sampling, is_penalty};

/// Settings that change greedy decoding and that are not supported, each with the value that has
/// no effect.
const UNSUPPORTED: [(&str, f64); 14] = [
    ("constraints", 0.0),
    ("dola_layers", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("force_words_ids", 0.0),
    ("forced_decoder_ids", 0.0),
    ("guidance_scale", 1.0),
    ("num_beams", 1.0),
    ("penalty_alpha", 0.0),
    ("max_time", 0.0),
    ("remove_invalid_values", 0.0),
    ("stop_strings", 0.0),
    ("token_healing", 0.0),
    ("watermarking_config", 0.0),
];

/// Generation settings of a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct GenerationConfig(Vec<Value>);

/// Lengths and end-of-sequence tokens of an answer, for the processors.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Tokens before the answer.
    pub prompt: usize,
    /// Largest number of tokens of the answer.
    pub max_tokens: usize,
    /// Tokens that end the answer.
    pub end_tokens: &'a [u32],
}

impl GenerationConfig {
    /// Reads `generation_config.json`, or `config.json` if that is missing, as in checkpoints of
    /// 2022 and earlier.
    pub fn new(files: &ModelFiles) -> Self {
        Self(match &files.generation {
            Some(generation) => vec![generation.clone()],
            None => {
                let text = files.config.get("text_config").cloned();
                std::iter::once(files.config.clone()).chain(text).collect()
            }
        })
    }

    /// Returns the names of settings that are ignored although they change greedy decoding.
    pub fn unsupported(&self) -> Vec<&'static str> {
        let has_effect = |(key, neutral): &(&'static str, f64)| match self.value(key) {
            None | Some(Value::Bool(false)) => false,
            Some(Value::Array(items)) => !items.is_empty(),
            Some(value) => value.as_f64() != Some(*neutral),
        };
        let keys = UNSUPPORTED.iter().filter(|entry| has_effect(entry));
        keys.map(|(key, _)| *key).collect()
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.0
            .iter()
            .filter_map(|section| section.get(key))
            .find(|value| !value.is_null())
    }

    fn read<T: DeserializeOwned>(
        &self,
        key: &str,
        expected: &str,
    ) -> Result<Option<T>, ModelError> {
        self.value(key)
            .map(|value| {
                serde_json::from_value(value.clone()).map_err(|_| invalid(key, value, expected))
            })
            .transpose()
    }

    /// Returns the ids of a list; negative ids stand for no token.
    fn ids(&self, key: &str) -> Result<Vec<u32>, ModelError> {
        let ids: Option<Vec<i64>> = match self.value(key) {
            Some(value) if value.is_number() => self.read(key, "a token id")?.map(|id| vec![id]),
            _ => self.read(key, "a list of token ids")?,
        };
        let ids = ids.unwrap_or_default().into_iter();
        Ok(ids.filter_map(|id| u32::try_from(id).ok()).collect())
    }

    fn repetition_penalty(&self) -> Result<f32, ModelError> {
        let key = "repetition_penalty";
        let expected = "a number above 0";
        match self.read::<f32>(key, expected)? {
            Some(penalty) if !is_penalty(penalty) => {
                Err(invalid(key, &Value::from(penalty), expected))
            }
            penalty => Ok(penalty.unwrap_or(1.0)),
        }
    }

    /// Creates the processors of one answer; none if the logits stay unchanged.
    ///
    /// # Errors
    /// If the checkpoint's settings are invalid.
    pub fn processors(
        &self,
        sampling: &Sampling,
        run: Run<'_>,
    ) -> Result<Vec<Box<dyn LogitsProcessor>>, ModelError> {
        let ignored = Self::default();
        let config = match sampling.ignore_generation_config {
            true => &ignored,
            false => self,
        };
        let penalty = match sampling.repetition_penalty {
            Some(penalty) => penalty,
            None => config.repetition_penalty()?,
        };
        let mut chain: Vec<Box<dyn LogitsProcessor>> = Vec::new();
        let biases = config.sequence_bias()?;
        if !biases.is_empty() {
            chain.push(Box::new(SequenceBias(biases)));
        }
        if penalty != 1.0 {
            chain.push(Box::new(RepetitionPenalty::new(penalty)));
        }
        if let Some(size @ 1..) = config.read("no_repeat_ngram_size", "a count of tokens")? {
            chain.push(Box::new(NoRepeatNgram { size }));
        }
        let bad_words = config.bad_words(run.end_tokens)?;
        if !bad_words.is_empty() {
            chain.push(Box::new(SequenceBias(bad_words)));
        }
        config.add_lengths(&mut chain, run)?;
        let (presence, frequency) = (sampling.presence_penalty, sampling.frequency_penalty);
        if presence != 0.0 || frequency != 0.0 {
            chain.push(Box::new(CountPenalty::new(presence, frequency, run.prompt)));
        }
        Ok(chain)
    }

    /// Returns the processors that act up to or from a certain number of tokens.
    fn add_lengths(
        &self,
        chain: &mut Vec<Box<dyn LogitsProcessor>>,
        run: Run<'_>,
    ) -> Result<(), ModelError> {
        let suppress = |ids: &[u32], lengths| Suppress {
            ids: ids.to_vec(),
            lengths,
        };
        let min_length: usize = self.read("min_length", "a count of tokens")?.unwrap_or(0);
        let min_new: usize = self
            .read("min_new_tokens", "a count of tokens")?
            .unwrap_or(0);
        let shortest = min_length.max(run.prompt.saturating_add(min_new));
        if shortest > run.prompt && !run.end_tokens.is_empty() {
            chain.push(Box::new(suppress(run.end_tokens, 0..shortest)));
        }
        let first = self.ids("forced_bos_token_id")?;
        if !first.is_empty() && run.prompt == 1 {
            chain.push(Box::new(Force {
                ids: first.clone(),
                length: 1,
            }));
        }
        let last = self.ids("forced_eos_token_id")?;
        let longest = run.prompt.saturating_add(run.max_tokens);
        if !last.is_empty() && run.max_tokens > 0 {
            chain.push(Box::new(Force {
                ids: last,
                length: longest - 1,
            }));
        }
        if let Some((start, factor)) =
            self.read("exponential_decay_length_penalty", "[tokens, factor]")?
        {
            chain.push(Box::new(LengthPenalty {
                start: run.prompt.saturating_add(start),
                factor,
                end_tokens: run.end_tokens.to_vec(),
            }));
        }
        let always = self.ids("suppress_tokens")?;
        if !always.is_empty() {
            chain.push(Box::new(suppress(&always, 0..usize::MAX)));
        }
        let at_begin = self.ids("begin_suppress_tokens")?;
        if !at_begin.is_empty() {
            let begin = run.prompt + usize::from(run.prompt == 1 && !first.is_empty());
            chain.push(Box::new(suppress(&at_begin, begin..begin + 1)));
        }
        Ok(())
    }

    fn sequence_bias(&self) -> Result<Vec<(Vec<u32>, f32)>, ModelError> {
        let (key, expected) = ("sequence_bias", "a list of [[token ids], number]");
        let biases: Vec<(Vec<u32>, f32)> = self.read(key, expected)?.unwrap_or_default();
        match biases.iter().find(|(_, bias)| !bias.is_finite()) {
            Some((_, bias)) => Err(invalid(key, &json!(bias.to_string()), expected)),
            None => Ok(biases),
        }
    }

    /// Reads the banned token sequences. An end-of-sequence token is not banned.
    fn bad_words(&self, end_tokens: &[u32]) -> Result<Vec<(Vec<u32>, f32)>, ModelError> {
        let words: Vec<Vec<u32>> = self
            .read("bad_words_ids", "a list of lists of token ids")?
            .unwrap_or_default();
        let is_end = |word: &[u32]| matches!(word, [id] if end_tokens.contains(id));
        let words = words.into_iter().filter(|word| !is_end(word));
        Ok(words.map(|word| (word, f32::NEG_INFINITY)).collect())
    }
}

fn invalid(key: &str, found: &Value, expected: &str) -> ModelError {
    ModelError::GenerationConfig {
        key: key.to_owned(),
        found: found.to_string(),
        expected: expected.to_owned(),
    }
}

/// Makes every token so far less likely: its logit is divided by the penalty, or multiplied if
/// negative (Keskar et al. 2019, <https://arxiv.org/abs/1909.05858>).
#[derive(Debug)]
pub struct RepetitionPenalty {
    penalty: f32,
    /// Distinct ids of the first `read` tokens. `is_seen` is `true` for these ids.
    distinct: Vec<u32>,
    is_seen: Vec<bool>,
    read: usize,
}

impl RepetitionPenalty {
    /// Creates the processor. `penalty` is above 0; 1 changes nothing.
    pub fn new(penalty: f32) -> Self {
        Self {
            penalty,
            distinct: Vec::new(),
            is_seen: Vec::new(),
            read: 0,
        }
    }
}

impl LogitsProcessor for RepetitionPenalty {
    fn process(&mut self, logits: &mut [f32], tokens: &[u32]) {
        self.is_seen.resize(logits.len(), false);
        for &id in &tokens[self.read..] {
            if let Some(seen @ false) = self.is_seen.get_mut(id as usize) {
                *seen = true;
                self.distinct.push(id);
            }
        }
        self.read = tokens.len();
        for &id in &self.distinct {
            let logit = &mut logits[id as usize];
            let changed = match *logit < 0.0 {
                true => *logit * self.penalty,
                false => *logit / self.penalty,
            };
            *logit = changed.min(f32::MAX);
        }
    }
}

/// Excludes every token that would repeat a sequence of `size` tokens.
#[derive(Debug)]
struct NoRepeatNgram {
    size: usize,
}

impl LogitsProcessor for NoRepeatNgram {
    fn process(&mut self, logits: &mut [f32], tokens: &[u32]) {
        let Some(start) = (tokens.len() + 1).checked_sub(self.size) else {
            return;
        };
        let last = &tokens[start..];
        for ngram in tokens.windows(self.size) {
            if ngram.starts_with(last) {
                set(logits, ngram[self.size - 1], f32::NEG_INFINITY);
            }
        }
    }
}

/// Adds to the logit of the token that would complete a sequence.
#[derive(Debug)]
struct SequenceBias(Vec<(Vec<u32>, f32)>);

impl LogitsProcessor for SequenceBias {
    fn process(&mut self, logits: &mut [f32], tokens: &[u32]) {
        for (sequence, bias) in &self.0 {
            let Some((&last, before)) = sequence.split_last() else {
                continue;
            };
            // A sequence must be shorter than the context, as in the reference.
            if sequence.len() > 1 && sequence.len() > tokens.len() {
                continue;
            }
            if tokens.ends_with(before)
                && let Some(logit) = logits.get_mut(last as usize)
            {
                *logit = (*logit + bias).min(f32::MAX);
            }
        }
    }
}

/// Excludes tokens over a range of lengths.
#[derive(Debug)]
struct Suppress {
    ids: Vec<u32>,
    lengths: std::ops::Range<usize>,
}

impl LogitsProcessor for Suppress {
    fn process(&mut self, logits: &mut [f32], tokens: &[u32]) {
        if self.lengths.contains(&tokens.len()) {
            for &id in &self.ids {
                set(logits, id, f32::NEG_INFINITY);
            }
        }
    }
}

/// Excludes all other tokens when there are `length` tokens.
#[derive(Debug)]
struct Force {
    ids: Vec<u32>,
    length: usize,
}

impl LogitsProcessor for Force {
    fn process(&mut self, logits: &mut [f32], tokens: &[u32]) {
        if tokens.len() == self.length {
            logits.fill(f32::NEG_INFINITY);
            for &id in &self.ids {
                set(logits, id, 0.0);
            }
        }
    }
}

/// Makes end-of-sequence tokens more likely with every token after the first `start`.
#[derive(Debug)]
struct LengthPenalty {
    start: usize,
    factor: f32,
    end_tokens: Vec<u32>,
}

impl LogitsProcessor for LengthPenalty {
    fn process(&mut self, logits: &mut [f32], tokens: &[u32]) {
        let Some(beyond @ 1..) = tokens.len().checked_sub(self.start) else {
            return;
        };
        let growth = self.factor.powi(i32::try_from(beyond).unwrap_or(i32::MAX)) - 1.0;
        // A number too large for f32 would make NaN of a logit of 0.
        let growth = growth.clamp(f32::MIN, f32::MAX);
        for &id in &self.end_tokens {
            if let Some(logit) = logits.get_mut(id as usize) {
                // A token that is excluded stays so.
                if logit.is_finite() {
                    *logit = (*logit + logit.abs() * growth).min(f32::MAX);
                }
            }
        }
    }
}

/// Ids beyond the vocabulary have no logit.
fn set(logits: &mut [f32], id: u32, value: f32) {
    if let Some(logit) = logits.get_mut(id as usize) {
        *logit = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: f32 = f32::NEG_INFINITY;

    fn config(generation: Value) -> GenerationConfig {
        GenerationConfig::new(&ModelFiles {
            generation: Some(generation),
            ..Default::default()
        })
    }

    /// Applies all processors, run after run, and returns the logits.
    fn processed(generation: Value, run: Run<'_>, steps: &[(&[u32], &[f32])]) -> Vec<Vec<f32>> {
        let chain = config(generation).processors(&Sampling::default(), run);
        let mut chain = chain.expect("valid settings");
        let step = |&(tokens, logits): &(&[u32], &[f32])| {
            let mut logits = logits.to_vec();
            for processor in &mut chain {
                processor.process(&mut logits, tokens);
            }
            logits
        };
        steps.iter().map(step).collect()
    }

    fn run(prompt: usize, end_tokens: &[u32]) -> Run<'_> {
        Run {
            prompt,
            max_tokens: 10,
            end_tokens,
        }
    }

    /// Returns the tokens that are excluded after a run.
    fn excluded(generation: Value, run: Run<'_>, vocabulary: usize, tokens: &[u32]) -> Vec<u32> {
        let logits = vec![0.5; vocabulary];
        let after = processed(generation, run, &[(tokens, &logits)]).remove(0);
        let out = (0..).zip(after).filter(|&(_, logit)| logit == OUT);
        out.map(|(id, _)| id).collect()
    }

    /// Values of `test_repetition_penalty_dist_process` in transformers'
    /// `tests/generation/test_logits_process.py`; a token that is there twice counts once.
    #[test]
    fn repeated_tokens_are_penalized_once() {
        let setting = json!({"repetition_penalty": 2.0});
        let first = [-0.1, 0.1, 0.1, 0.1, 0.1, 0.1];
        let second = [0.1, 0.1, 0.1, 0.1, 0.1, 0.4];
        let steps: [(&[u32], &[f32]); 2] = [(&[0, 1, 0], &first), (&[0, 1, 0, 5], &second)];
        let found = processed(setting, run(3, &[]), &steps);
        assert_eq!(found[0], [-0.2, 0.05, 0.1, 0.1, 0.1, 0.1]);
        assert_eq!(found[1], [0.05, 0.05, 0.1, 0.1, 0.1, 0.2]);
    }

    /// Settings that contradict each other or overflow make no NaN: an excluded token stays so,
    /// and other logits stay finite.
    #[test]
    fn no_setting_makes_a_logit_undefined() {
        for generation in [
            json!({"min_length": 9, "exponential_decay_length_penalty": [0, 2.0]}),
            json!({"exponential_decay_length_penalty": [0, 1e300]}),
            json!({"exponential_decay_length_penalty": [0, -1e30]}),
            json!({"repetition_penalty": 1e-40}),
            json!({"sequence_bias": [[[1], 3e38], [[2], 3e38]], "bad_words_ids": [[1]]}),
            json!({"sequence_bias": [[[0], 3e38]], "suppress_tokens": [0], "repetition_penalty": 1e-5}),
        ] {
            let tokens = [0, 1, 2, 1];
            let logits = [0.0, 3e38, 5.0, -0.0];
            let step: (&[u32], &[f32]) = (&tokens, &logits);
            let found = processed(generation.clone(), run(1, &[0, 1]), &[step]).remove(0);
            let defined = |logit: &f32| *logit == OUT || logit.is_finite();
            assert!(found.iter().all(defined), "{generation}: {found:?}");
        }
        let infinite = config(json!({"sequence_bias": [[[1], 1e300]]}));
        let error = infinite
            .processors(&Sampling::default(), run(1, &[]))
            .unwrap_err();
        assert!(error.to_string().contains("sequence_bias"), "{error}");
    }

    /// Values of `test_no_repeat_ngram_dist_processor`.
    #[test]
    fn ngrams_are_not_repeated() {
        let of = |size: usize, tokens: &[u32]| {
            excluded(
                json!({"no_repeat_ngram_size": size}),
                run(1, &[]),
                3,
                tokens,
            )
        };
        assert_eq!(of(2, &[1, 1, 2, 1]), [1, 2]);
        assert_eq!(of(2, &[0, 1, 0, 1]), [0]);
        assert!(of(3, &[1, 1, 2, 1]).is_empty());
        assert_eq!(of(3, &[0, 1, 0, 1]), [0]);
        assert!(of(5, &[1]).is_empty());
        assert_eq!(of(1, &[2, 0]), [0, 2]);
    }

    /// Values of `test_no_bad_words_dist_processor`.
    #[test]
    fn bad_words_are_excluded() {
        let words = json!({"bad_words_ids": [[1], [4], [1, 0], [0, 1, 2], [1, 3, 1, 3]]});
        let of = |tokens: &[u32]| excluded(words.clone(), run(4, &[4]), 5, tokens);
        assert_eq!(of(&[0, 1, 3, 1]), [0, 1, 3]);
        assert_eq!(of(&[0, 1, 0, 1]), [0, 1, 2]);
    }

    /// Conditions of the processors' `__call__` in `generation/logits_process.py`.
    #[test]
    fn tokens_are_excluded_by_length() {
        let ends = [3, 4];
        let of = |setting: Value, prompt: usize, tokens: usize| {
            excluded(setting, run(prompt, &ends), 6, &vec![0; tokens])
        };
        assert_eq!(of(json!({"min_length": 5}), 2, 4), ends);
        assert!(of(json!({"min_length": 5}), 2, 5).is_empty());
        assert_eq!(of(json!({"min_new_tokens": 2}), 4, 5), ends);
        assert!(of(json!({"min_new_tokens": 2}), 4, 6).is_empty());
        assert_eq!(of(json!({"suppress_tokens": [1, -1, 99]}), 4, 9), [1]);
        assert_eq!(of(json!({"begin_suppress_tokens": [2]}), 4, 4), [2]);
        assert!(of(json!({"begin_suppress_tokens": [2]}), 4, 5).is_empty());
        assert_eq!(of(json!({"forced_bos_token_id": 2}), 1, 1), [0, 1, 3, 4, 5]);
        assert!(of(json!({"forced_bos_token_id": 2}), 2, 2).is_empty());
        assert_eq!(
            of(json!({"forced_eos_token_id": [3, 4]}), 2, 11),
            [0, 1, 2, 5]
        );
        assert!(of(json!({"forced_eos_token_id": 3}), 2, 10).is_empty());
    }

    #[test]
    fn biases_and_the_length_penalty_are_added() {
        let bias = json!({"sequence_bias": [[[1], 2.0], [[0, 2], -1.0]]});
        let logits: &[f32] = &[1.0, 1.0, 1.0];
        let steps: [(&[u32], &[f32]); 2] = [(&[2, 0], logits), (&[0, 1], logits)];
        let found = processed(bias, run(2, &[]), &steps);
        assert_eq!(found, [[1.0, 3.0, 0.0], [1.0, 3.0, 1.0]]);
        // abs(logit) * (1.5^2 - 1) more, two tokens after the first three.
        let decay = json!({"exponential_decay_length_penalty": [1, 1.5]});
        let steps: [(&[u32], &[f32]); 1] = [(&[0; 5], &[1.0, -2.0, 4.0])];
        let found = processed(decay, run(2, &[1, 2]), &steps);
        assert_eq!(found, [[1.0, 0.5, 9.0]]);
    }

    #[test]
    fn the_request_overrides_the_checkpoint() {
        let config = config(json!({"repetition_penalty": 1.2, "no_repeat_ngram_size": 2}));
        let count = |sampling: Sampling| config.processors(&sampling, run(1, &[])).unwrap().len();
        assert_eq!(count(Sampling::default()), 2);
        let off = Sampling {
            repetition_penalty: Some(1.0),
            ..Default::default()
        };
        assert_eq!(count(off), 1);
        let ignored = Sampling {
            ignore_generation_config: true,
            ..Default::default()
        };
        assert_eq!(count(ignored.clone()), 0);
        let own = Sampling {
            repetition_penalty: Some(1.1),
            ..ignored
        };
        assert_eq!(count(own), 1);
    }

    #[test]
    fn neutral_settings_and_those_of_sampling_change_nothing() {
        let neutral = config(json!({
            "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0,
            "suppress_tokens": null, "bad_words_ids": null, "num_beams": 1, "guidance_scale": null,
            "do_sample": true, "temperature": 0.01, "top_k": 1, "top_p": 0.001, "max_length": 20,
            "encoder_repetition_penalty": 1.0, "remove_invalid_values": false,
        }));
        assert!(
            neutral
                .processors(&Sampling::default(), run(1, &[2]))
                .unwrap()
                .is_empty()
        );
        assert!(neutral.unsupported().is_empty());
        let ours = config(json!({"num_beams": 4, "stop_strings": ["."], "penalty_alpha": 0.6}));
        assert_eq!(
            ours.unsupported(),
            ["num_beams", "penalty_alpha", "stop_strings"]
        );
    }

    #[test]
    fn old_checkpoints_say_it_in_config_json() {
        let files = ModelFiles {
            config: json!({"text_config": {"repetition_penalty": 1.3}}),
            ..Default::default()
        };
        let config = GenerationConfig::new(&files);
        assert_eq!(config.repetition_penalty().unwrap(), 1.3);
    }

    #[test]
    fn invalid_settings_are_named() {
        for (setting, word) in [
            (json!({"repetition_penalty": 0}), "repetition_penalty is 0"),
            (
                json!({"repetition_penalty": "2"}),
                "expected a number above 0",
            ),
            (json!({"bad_words_ids": [1]}), "bad_words_ids is [1]"),
            (json!({"min_length": -1}), "min_length is -1"),
            (json!({"suppress_tokens": {}}), "suppress_tokens"),
        ] {
            let error = config(setting).processors(&Sampling::default(), run(1, &[2]));
            let error = error.expect_err("an error").to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
