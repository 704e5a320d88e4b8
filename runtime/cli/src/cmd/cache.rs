//! Options that keep results for later processes.

use std::path::{Path, PathBuf};

use clap::Args;
use edge_lmm::output::Output;
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

/// Parses a number of bytes such as `512M` or `1GiB`; units are powers of 1024.
///
/// # Errors
/// If it has another form or is zero.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let factor = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "k" | "kib" => Some(1 << 10),
        "m" | "mib" => Some(1 << 20),
        "g" | "gib" => Some(1 << 30),
        _ => None,
    };
    let bytes = number.parse::<u64>().ok().zip(factor);
    match bytes.and_then(|(number, factor)| number.checked_mul(factor)) {
        Some(bytes @ 1..) => Ok(bytes),
        _ => Err("expected a size such as 512MiB or 1GiB".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use edge_lmm::store::DEFAULT_LIMIT;

    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [
            ("1GiB", Some(DEFAULT_LIMIT)),
            ("512m", Some(512 << 20)),
            ("3 KiB", Some(3072)),
            ("7", Some(7)),
            ("0", None),
            ("1.5G", None),
            ("1TB", None),
            ("", None),
            ("99999999999G", None),
        ] {
            assert_eq!(parse_bytes(text).ok(), expected, "{text}");
        }
    }
}
