//! The files that a checkpoint was read from, for the record's provenance.

use std::sync::{Arc, OnceLock};

use xxhash_rust::xxh3::xxh3_64;

use super::map::Map;

/// A file of the source.
#[derive(Debug)]
pub struct SourceFile {
    /// File name without its directory.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    content: Arc<Map>,
    hash: OnceLock<String>,
}

impl SourceFile {
    pub(super) fn new(name: String, content: Arc<Map>) -> Self {
        Self {
            name,
            bytes: content.len() as u64,
            content,
            hash: OnceLock::new(),
        }
    }

    /// XXH3 (64 bit) of the whole file as 16 hexadecimal digits. Computed at the first call, which reads the
    /// whole file: opening a checkpoint only to look at it stays cheap.
    pub fn hash(&self) -> &str {
        self.hash
            .get_or_init(|| format!("{:016x}", xxh3_64(&self.content)))
    }
}
