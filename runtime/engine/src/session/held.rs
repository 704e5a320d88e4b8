//! The session of an answer.

use std::ops::{Deref, DerefMut};

use edge_lmm_ops::KernelBackend;

use super::state::Session;

/// A session that an answer continues.
pub enum Held<'s, B: KernelBackend> {
    /// The session of the caller.
    Borrowed(&'s mut Session<B>),
    /// A session of the answer's own, whose conversation returns to those of the session that began
    /// the answer.
    Owned(Box<Session<B>>),
}

impl<B: KernelBackend> Deref for Held<'_, B> {
    type Target = Session<B>;

    fn deref(&self) -> &Session<B> {
        match self {
            Self::Borrowed(session) => session,
            Self::Owned(session) => session,
        }
    }
}

impl<B: KernelBackend> DerefMut for Held<'_, B> {
    fn deref_mut(&mut self) -> &mut Session<B> {
        match self {
            Self::Borrowed(session) => session,
            Self::Owned(session) => session,
        }
    }
}

impl<B: KernelBackend> Drop for Held<'_, B> {
    fn drop(&mut self) {
        if let Self::Owned(session) = self {
            session.put_aside();
        }
    }
}
