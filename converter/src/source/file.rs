//! The files that a checkpoint was read from, for the record's provenance.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use xxhash_rust::xxh3::Xxh3;

use super::json::file_name;
use edge_lmm_record::FileMap;

/// Bytes that are hashed before their pages are released.
const HASH_CHUNK: usize = 64 << 20;

/// A file of the source.
#[derive(Debug)]
pub struct SourceFile {
    /// File name without its directory.
    pub name: String,
    /// The path that it was read from.
    pub path: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
    content: Arc<FileMap>,
    hash: OnceLock<String>,
}

impl SourceFile {
    pub(super) fn new(path: &Path, content: Arc<FileMap>) -> Self {
        Self {
            name: file_name(path),
            path: path.to_path_buf(),
            bytes: content.len() as u64,
            content,
            hash: OnceLock::new(),
        }
    }

    /// XXH3 (64 bit) of the whole file as 16 hexadecimal digits. Computed at the first call, which reads the
    /// whole file: opening a checkpoint only to look at it stays cheap.
    pub fn hash(&self) -> &str {
        self.hash.get_or_init(|| {
            let mut hasher = Xxh3::new();
            for chunk in self.content.chunks(HASH_CHUNK) {
                hasher.update(chunk);
                self.content.release();
            }
            format!("{:016x}", hasher.digest())
        })
    }

    /// Takes the pages that were read out of memory; they are read again when needed.
    pub fn release(&self) {
        self.content.release();
    }
}
