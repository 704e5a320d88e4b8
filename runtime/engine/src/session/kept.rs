//! Conversations that a session keeps besides the current one.

use std::sync::{MutexGuard, PoisonError};

use edge_lmm_ops::KernelBackend;

use super::past::Past;
use super::state::Session;

/// Limits of the conversations that a session keeps, the current one included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conversations {
    pub count: usize,
    pub bytes: usize,
}

impl Default for Conversations {
    /// Only the current conversation.
    fn default() -> Self {
        Self {
            count: 1,
            bytes: usize::MAX,
        }
    }
}

/// Conversations that are not continued at the moment.
pub(super) struct Kept<B: KernelBackend> {
    /// Their states, the most recently used one last.
    pub pasts: Vec<Past<B>>,
    pub limits: Conversations,
}

impl<B: KernelBackend> Kept<B> {
    pub fn new(limits: Conversations) -> Self {
        Self {
            pasts: Vec::new(),
            limits,
        }
    }

    /// Forgets the least recently used conversations beyond the limits. `current` counts as well
    /// and stays; without it, the most recently used one stays.
    pub fn forget_oldest(&mut self, current: Option<&Past<B>>) {
        let Conversations { count, bytes } = self.limits;
        loop {
            let all = self.pasts.iter().chain(current);
            let held: usize = all.clone().map(|past| past.state.bytes()).sum();
            let n = all.count();
            if n <= 1 || (n <= count && held <= bytes) {
                return;
            }
            self.pasts.remove(0);
        }
    }
}

impl<B: KernelBackend> Session<B> {
    /// Returns the conversations besides the current one, which the answers that this session has
    /// [begun](Self::begin) share. They stay usable after a panic on another thread.
    pub(super) fn kept(&self) -> MutexGuard<'_, Kept<B>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the current conversation into a session of its own, which shares all else with this
    /// one.
    pub(super) fn detach(&mut self) -> Self {
        Self {
            shared: self.shared.clone(),
            past: self.past.take(),
            kept: self.kept.clone(),
            drafting: self.drafting.clone(),
        }
    }

    /// Makes the current conversation one of those that are kept, the most recently used one.
    pub(super) fn put_aside(&mut self) {
        let past = self.past.take();
        let mut kept = self.kept();
        kept.pasts
            .extend(past.filter(|past| !past.state.is_empty()));
        kept.forget_oldest(None);
    }
}
