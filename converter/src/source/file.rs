//! The files that a checkpoint was read from, recorded as its provenance.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use xxhash_rust::xxh3::Xxh3;

use edge_lmm_record::FileMap;

/// Bytes hashed before their pages are released.
const HASH_CHUNK: usize = 64 << 20;

/// A file of the source.
#[derive(Debug)]
pub struct SourceFile {
    /// File name without its directory.
    pub name: String,
    /// The path it was read from.
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

    /// Returns the 64-bit XXH3 hash of the file as 16 hexadecimal digits. It is computed on the
    /// first call, so that opening a checkpoint does not read whole files.
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

    /// Releases the file's resident pages; they are read again when needed.
    pub fn release(&self) {
        self.content.release();
    }
}

/// Returns the last component of a path, for messages and provenance.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}
