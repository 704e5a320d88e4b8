//! The state of an answer with a constraint.

use std::fmt;
use std::sync::Arc;

use llguidance::Matcher;
use llguidance::api::StopReason;
use llguidance::toktrie::SimpleVob;

use super::ConstraintError;
use super::compile::one_line;
use super::vocabulary::Vocabulary;

/// The parser of an answer, after the tokens so far.
pub(crate) struct Matching {
    matcher: Matcher,
    kind: &'static str,
    vocabulary: Arc<Vocabulary>,
    /// Tokens of the prompt.
    prompt: usize,
    /// Tokens that the parser has taken, including those of the prompt.
    read: usize,
}

impl fmt::Debug for Matching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let taken = self.read - self.prompt;
        write!(f, "Matching({} after {taken} tokens)", self.kind)
    }
}

impl Matching {
    /// Creates the state of an answer without tokens.
    pub(super) fn new(matcher: Matcher, kind: &'static str, vocabulary: Arc<Vocabulary>) -> Self {
        Self {
            matcher,
            kind,
            vocabulary,
            prompt: 0,
            read: 0,
        }
    }

    /// Returns the state of an answer that begins after `prompt` tokens.
    #[must_use]
    pub fn after(self, prompt: usize) -> Self {
        Self {
            prompt,
            read: prompt,
            ..self
        }
    }

    /// Excludes the tokens that may not follow `tokens`, which include the prompt. From call to
    /// call, tokens are only appended.
    ///
    /// # Errors
    /// If a limit is exceeded or no token is left.
    pub fn mask(&mut self, logits: &mut [f32], tokens: &[u32]) -> Result<(), ConstraintError> {
        self.take(tokens)?;
        let allowed = match self.matcher.compute_mask_or_eos() {
            Ok(allowed) => self.at_start(allowed),
            Err(error) => return Err(self.failed(&error.to_string())),
        };
        let mut is_stuck = true;
        for (id, logit) in (0..).zip(logits.iter_mut()) {
            match (id as usize) < allowed.len() && allowed.is_allowed(id) {
                true => is_stuck = false,
                false => *logit = f32::NEG_INFINITY,
            }
        }
        match is_stuck {
            true => Err(self.failed("")),
            false => Ok(()),
        }
    }

    /// Returns `true` if nothing can follow `tokens`, which include the prompt.
    ///
    /// # Errors
    /// If a limit is exceeded.
    pub fn is_complete(&mut self, tokens: &[u32]) -> Result<bool, ConstraintError> {
        self.take(tokens)?;
        Ok(self.matcher.is_stopped())
    }

    /// Advances the parser to the end of `tokens`.
    fn take(&mut self, tokens: &[u32]) -> Result<(), ConstraintError> {
        for &id in tokens.get(self.read..).unwrap_or_default() {
            if let Err(error) = self.matcher.consume_token(self.shown(id)) {
                return Err(self.failed(&error.to_string()));
            }
            self.read += 1;
        }
        Ok(())
    }

    /// Returns the token whose text decoding shows for the next token `id`.
    fn shown(&self, id: u32) -> u32 {
        let at_start = &self.vocabulary.at_start;
        match at_start.binary_search_by_key(&id, |pair| pair.0) {
            Ok(found) if self.read == self.prompt => at_start[found].1.unwrap_or(id),
            _ => id,
        }
    }

    /// Allows the tokens of the first position by the text that decoding shows.
    fn at_start(&self, mut allowed: SimpleVob) -> SimpleVob {
        if self.read == self.prompt {
            let by_text = allowed.clone();
            for &(id, shown) in &self.vocabulary.at_start {
                allowed.set(id as usize, shown.is_some_and(|id| by_text.is_allowed(id)));
            }
        }
        allowed
    }

    fn failed(&self, reason: &str) -> ConstraintError {
        let (kind, tokens) = (self.kind, self.read - self.prompt);
        match self.matcher.stop_reason() {
            StopReason::NoExtensionBias => ConstraintError::Stuck { kind, tokens },
            _ if reason.is_empty() => ConstraintError::Stuck { kind, tokens },
            _ => ConstraintError::TooComplex {
                kind,
                tokens,
                reason: one_line(reason),
            },
        }
    }
}
