//! Snapshots of a conversation in files that the user names.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use edge_lmm_ops::KernelBackend;
use edge_lmm_record::output::{Output, OutputError};

use super::past::Past;
use super::state::Session;
use crate::error::EngineError;
use crate::store::{self, EntryError, FileError, Kind, Prefix};

/// Error of a snapshot in a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file cannot be read.
    #[error("cannot read the snapshot {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file holds no snapshot of this model.
    #[error(
        "cannot use the snapshot {}: {source}; remove it or name another file", path.display()
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Description of the error.
        source: EntryError,
    },
    /// The snapshot does not fit the model.
    #[error("cannot use the snapshot {}: {reason}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Description of the error.
        reason: String,
    },
    /// There is nothing to save.
    #[error("there is no conversation to save: ask a question first")]
    Empty,
    /// The model's state is more than keys and values.
    #[error("the state of this model cannot be saved: it is more than keys and values of tokens")]
    Unsupported,
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] OutputError),
}

impl<B: KernelBackend> Session<B> {
    /// Returns `true` if snapshots of the model's conversations can be saved. The states of
    /// encoder-decoders and of recurrent layers cannot.
    pub fn can_be_saved(&self) -> bool {
        let language = self.language();
        language.reusable(1) == 1 && language.recurrent_states(&self.shared.device).is_empty()
    }

    /// Writes the first `tokens` tokens of the conversation, or all if there are fewer, with their
    /// state. Only the owner should be able to read the file ([`Output::private`]): it contains the
    /// conversation.
    ///
    /// # Errors
    /// If there is no conversation, the model's state cannot be saved, or the file cannot be
    /// written.
    pub fn save_snapshot(&self, mut output: Output, tokens: usize) -> Result<(), SnapshotError> {
        let past = self.past.as_ref().ok_or(SnapshotError::Empty)?;
        let len = tokens.min(past.state.len());
        let body = self.shared.prefix_body(past, len);
        let body = body.ok_or(SnapshotError::Unsupported)?;
        let write = |out: &mut dyn Write| body.write(out);
        let origin = &self.shared.origin;
        store::write(
            &mut output,
            origin,
            Kind::Prefix,
            body.key,
            body.bytes,
            write,
        )
        .map_err(|error| output.io(error))?;
        output.finish()?;
        Ok(())
    }

    /// Replaces the current conversation by a saved one and returns the number of its tokens. A
    /// request then reuses the tokens that its prompt has in common with it.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, or was written with another model, by another version
    /// of the program or on another kind of device. The conversation is then unchanged.
    pub fn load_snapshot(&mut self, path: &Path) -> Result<usize, EngineError> {
        let path = || path.to_owned();
        let unusable = |source| SnapshotError::Unusable {
            path: path(),
            source,
        };
        let unfit = |reason| SnapshotError::Unfit {
            path: path(),
            reason,
        };
        let origin = &self.shared.origin;
        let stored = match store::read(&path(), origin, Kind::Prefix, None) {
            Ok(stored) => stored,
            Err(FileError::Io(source)) => {
                let path = path();
                return Err(SnapshotError::Read { path, source }.into());
            }
            Err(FileError::Entry(source)) => return Err(unusable(source).into()),
        };
        let prefix = Prefix::parse(&stored).map_err(unusable)?;
        let (tokens, language) = (prefix.tokens.len(), self.language());
        let (context, vocabulary) = (language.context_length(), language.vocabulary());
        if tokens > context {
            let reason = format!("it has {tokens} tokens, the model's context is {context}");
            return Err(unfit(reason).into());
        }
        let is_known = |id: u32| (id as usize) < vocabulary;
        if !prefix.tokens.iter().all(|token| is_known(token.id)) {
            let source = EntryError::Damaged("a token is not in the vocabulary");
            return Err(unusable(source).into());
        }
        let past = Past::new(self.new_state(tokens)?).with_prefix(&prefix);
        let past = past.map_err(|error| unfit(error.to_string()))?;
        self.past = Some(past.ok_or(SnapshotError::Unsupported)?);
        let mut features = self.shared.features();
        for (key, place) in prefix.media {
            features.insert_place(key, place);
        }
        Ok(tokens)
    }
}
