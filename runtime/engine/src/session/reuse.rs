//! Reuse of the first tokens of a prompt.
//!
//! A prompt is compared with the current conversation, with others that the session keeps and with
//! prefixes in files. The longest common prefix is continued.

use edge_lmm_models::language::DecoderState;
use edge_lmm_models::reduce::LanguageReduction;
use edge_lmm_ops::{KernelBackend, KvStore, probe};
use serde::Serialize;

use super::kept::Conversations;
use super::past::{Past, PastToken};
use super::prepare::Prepared;
use super::state::{Session, capacity_for};
use crate::error::EngineError;

/// Tokens of a shared prefix from which it is worth a copy of its keys and values.
const WORTH_A_COPY: usize = 32;

/// Source of the tokens of a prompt that were not computed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ReusedFrom {
    /// In the state of a conversation of the session.
    Memory,
    /// In a file.
    Disk,
}

/// First tokens of a prompt that are in the state.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reused {
    pub tokens: usize,
    /// `None` if there are no such tokens.
    pub from: Option<ReusedFrom>,
}

impl<B: KernelBackend> Session<B> {
    /// Keeps the states of up to `count` conversations, as long as they have at most `bytes` bytes
    /// together, the least recently used ones forgotten first. A new session keeps one. The current
    /// conversation is kept in any case.
    ///
    /// A request continues the conversation that it has the longest prefix in common with. If that
    /// is less than half of the conversation, a copy of the prefix is continued, so that the
    /// conversation stays as it is.
    pub fn keep_conversations(&mut self, count: usize, bytes: usize) {
        let mut kept = self.kept();
        kept.limits = Conversations {
            count: count.max(1),
            bytes,
        };
        kept.forget_oldest(self.past.as_ref());
    }

    /// Forgets all conversations but the current one; without a current one, all but the most
    /// recently used one. Returns `false` if there is no other.
    pub fn forget_others(&mut self) -> bool {
        let mut kept = self.kept();
        let latest = match self.past {
            Some(_) => None,
            None => kept.pasts.pop(),
        };
        let others = !kept.pasts.is_empty();
        kept.pasts = latest.into_iter().collect();
        others
    }

    /// Makes room for the prompt and `max_tokens` more and keeps what a state shares with the
    /// prompt; returns the tokens that need not be computed again.
    pub(super) fn reuse(
        &mut self,
        prepared: &Prepared<B>,
        prompt_tokens: &[PastToken],
        reduction: Option<LanguageReduction>,
        max_tokens: usize,
    ) -> Result<Reused, EngineError> {
        let needed = self.language().positions(prompt_tokens.len(), max_tokens);
        let (index, in_memory) = self.best(prepared, prompt_tokens, reduction);
        // Prefixes in files are not reduced.
        let stored = match reduction {
            None => self.load_prefix(prepared, prompt_tokens, in_memory, needed),
            Some(_) => None,
        };
        let common = match stored {
            Some(past) => {
                let common = past.state.len();
                self.replace(Some(past));
                common
            }
            None => self.select(index, in_memory),
        };
        let reused = match self.keep_common(common, needed) {
            true => common,
            false => {
                self.start_anew(needed)?;
                0
            }
        };
        self.kept().forget_oldest(self.past.as_ref());
        log::debug!(
            "{reused} of {} prompt tokens are known",
            prompt_tokens.len()
        );
        let loaded = self.past.as_ref().is_some_and(|past| past.loaded);
        let from = match loaded {
            true => ReusedFrom::Disk,
            false => ReusedFrom::Memory,
        };
        Ok(Reused {
            tokens: reused,
            from: (reused > 0).then_some(from),
        })
    }

    /// Returns the conversation with the longest usable prefix, the most recently used of equals, and
    /// the length of the prefix. The index behind those that are kept stands for the current one.
    fn best(
        &self,
        prepared: &Prepared<B>,
        prompt_tokens: &[PastToken],
        reduction: Option<LanguageReduction>,
    ) -> (usize, usize) {
        let kept = self.kept();
        let all = kept.pasts.iter().map(Some).chain([self.past.as_ref()]);
        let usable = |past: &Past<B>| self.usable(past, prepared, prompt_tokens, reduction);
        (0..)
            .zip(all.map(|past| past.map_or(0, usable)))
            .reduce(|best, next| if next.1 >= best.1 { next } else { best })
            .unwrap_or_default()
    }

    /// Makes the conversation at `index`, or a copy of its first `common` tokens, the current one;
    /// returns how many of these tokens it has.
    fn select(&mut self, index: usize, common: usize) -> usize {
        let mut kept = self.kept();
        let is_kept = index < kept.pasts.len();
        if kept.limits.count == 1 {
            // There is no room for a second one: the only one is continued in place.
            let only = match is_kept {
                true => Some(kept.pasts.remove(index)),
                false => kept.pasts.pop().filter(|_| self.past.is_none()),
            };
            drop(kept);
            if only.is_some() {
                self.past = only;
            }
            return common;
        }
        let past = kept.pasts.get(index).or(self.past.as_ref());
        let is_most = past.is_some_and(|past| 2 * common >= past.state.len());
        if common > 0 && is_most {
            let past = is_kept.then(|| kept.pasts.remove(index));
            drop(kept);
            if past.is_some() {
                self.replace(past);
            }
            return common;
        }
        let worth = past.filter(|_| common >= WORTH_A_COPY);
        // Without memory for a copy, the prefix is computed again.
        let copy = worth.and_then(|past| past.fork().ok());
        drop(kept);
        let common = copy.as_ref().map_or(0, |_| common);
        self.replace(copy);
        common
    }

    /// Makes `past` the current conversation. The one before is kept among the others.
    fn replace(&mut self, past: Option<Past<B>>) {
        let before = std::mem::replace(&mut self.past, past);
        let mut kept = self.kept();
        if kept.limits.count > 1 {
            let before = before.filter(|past| !past.state.is_empty());
            kept.pasts.extend(before);
        }
    }

    /// Returns the number of first tokens of the prompt that a state can be continued after.
    fn usable(
        &self,
        past: &Past<B>,
        prepared: &Prepared<B>,
        prompt_tokens: &[PastToken],
        reduction: Option<LanguageReduction>,
    ) -> usize {
        let language = self.language();
        let tokens = prompt_tokens.len();
        // A capture shows the whole prompt.
        if probe::active() || language.is_long(tokens) != past.state.long {
            return 0;
        }
        // The last token's hidden state is needed, so that one is always computed.
        let common = past.common(prompt_tokens, reduction).min(tokens - 1);
        let common = language.reusable(common);
        // Tokens that see later ones are computed together with these.
        let run = prepared.bidirectional_run(common);
        let common = run.map_or(common, |span| span.start);
        match past.state.can_truncate(common) {
            true => common,
            false => 0,
        }
    }

    /// Shortens the current state to `common` tokens and makes room for `needed`. Returns `false` if
    /// there is no state or no memory for both its old and its new cache.
    fn keep_common(&mut self, common: usize, needed: usize) -> bool {
        let context = self.shared.model.language().context_length();
        let Some(past) = &mut self.past else {
            return false;
        };
        let capacity = past.state.cache.capacity();
        past.truncate(common).is_ok()
            && (capacity >= needed
                || (common > 0 && {
                    let wanted = capacity_for(needed, capacity, context);
                    past.state.grow(wanted).is_ok()
                }))
    }

    /// Begins a conversation with room for `needed` tokens. Other conversations are forgotten if
    /// there is no memory besides them.
    fn start_anew(&mut self, needed: usize) -> Result<(), EngineError> {
        self.past = None;
        let mut state = self.new_state(needed);
        if state.is_err() {
            let others = std::mem::take(&mut self.kept().pasts);
            if !others.is_empty() {
                drop(others);
                state = self.new_state(needed);
            }
        }
        self.past = Some(Past::new(state?));
        Ok(())
    }

    /// Creates an empty state with room for `needed` tokens.
    pub(super) fn new_state(&self, needed: usize) -> Result<DecoderState<B>, EngineError> {
        let language = self.language();
        let capacity = capacity_for(needed, 0, language.context_length());
        let state = DecoderState::new(language, capacity, &self.shared.device);
        Ok(state.map_err(edge_lmm_models::ModelError::from)?)
    }
}
