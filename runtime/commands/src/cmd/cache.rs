//! Options that keep results for later processes.

use std::path::{Path, PathBuf};

use clap::Args;
use edge_lmm::output::Output;
use edge_lmm::units::parse_bytes;
use edge_lmm::{AnyEngine, AnySession, Store};

/// Options for the cache folder.
#[derive(Debug, Clone, Args)]
pub struct CacheOptions {
    /// Keep encoder outputs and the state of prompts up to their last image, video or audio in a
    /// folder, so that later questions about the same media start at the text, also in other
    /// processes; the folder contains conversations and is readable by its owner only
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Maximum size of the cache folder; the least recently used files are removed first
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_bytes)]
    cache_size: u64,
}

impl CacheOptions {
    /// Returns the cache folder.
    pub fn folder(&self) -> Option<&Path> {
        self.cache.as_deref()
    }

    /// Makes the engine use the cache folder, if there is one.
    pub fn apply(&self, engine: &AnyEngine) -> anyhow::Result<()> {
        if let Some(folder) = &self.cache {
            engine.use_store(Store::open(folder, self.cache_size)?);
        }
        Ok(())
    }
}

/// Option for a snapshot of the first prompt.
#[derive(Debug, Clone, Args)]
pub struct PromptCacheOptions {
    /// Snapshot of a conversation: if the file exists, what the prompt has in common with it is not
    /// computed again; otherwise it is written after the first answer, with the prompt's state
    #[arg(long, value_name = "FILE")]
    prompt_cache: Option<PathBuf>,
}

impl PromptCacheOptions {
    /// Loads the snapshot into a session, or reserves the file if it does not exist.
    pub fn load(&self, session: &mut AnySession) -> anyhow::Result<Option<Output>> {
        match &self.prompt_cache {
            Some(path) if path.exists() => {
                session.load_snapshot(path)?;
                Ok(None)
            }
            Some(path) => reserve(session, path).map(Some),
            None => Ok(None),
        }
    }
}

/// Reserves a file for a snapshot of a session.
pub fn reserve(session: &AnySession, path: &Path) -> anyhow::Result<Output> {
    match session.can_be_saved() {
        true => Ok(Output::private(path, true)?),
        false => Err(edge_lmm::SnapshotError::Unsupported.into()),
    }
}
