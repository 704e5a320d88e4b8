//! Memory mapping of a weight file.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use super::error::{Result, SourceError};

/// A whole file, mapped read-only. The system reads pages on access and may drop them at any time,
/// so a checkpoint larger than memory can be converted.
#[derive(Debug)]
pub(super) struct Map(memmap2::Mmap);

impl Map {
    /// Maps the regular file at `path`.
    ///
    /// # Errors
    /// If it cannot be read, or contains only the remains of a failed download.
    #[allow(unsafe_code)] // The only way to map a file; nothing else in this module is unsafe.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = |source| SourceError::Io {
            path: path.to_path_buf(),
            source,
        };
        // Checked before opening: opening a pipe would block.
        let metadata = std::fs::metadata(path).map_err(io)?;
        if !metadata.is_file() {
            return Err(SourceError::NotACheckpoint {
                path: path.to_path_buf(),
                found: "something that is not a regular file".into(),
                expected: "a weight file".into(),
            });
        }
        let file = File::open(path).map_err(io)?;
        // SAFETY: the mapping is private and read-only and outlives every slice of it. A file
        // modified by another process is a risk of every mapping: all uses check plain bytes at run
        // time and index with bounds checks, so the worst outcomes are wrong numbers, a panic or,
        // for a truncated file, a SIGBUS.
        let map = unsafe { memmap2::MmapOptions::new().map_copy_read_only(&file) }.map_err(io)?;
        if let Some(found) = edge_lmm::stand_in::describe(&map) {
            return Err(SourceError::NotDownloaded {
                path: path.to_path_buf(),
                found,
            });
        }
        log::debug!("reading {}, {} bytes", path.display(), map.len());
        Ok(Self(map))
    }
}

impl Map {
    /// Releases the resident pages; they are read again on access. Without this, a conversion would
    /// hold the whole checkpoint until the system runs short of memory.
    pub(super) fn release(&self) {
        // SAFETY: the mapping is read-only, so every page equals the file and none is lost.
        #[cfg(unix)]
        #[allow(unsafe_code)] // The call is unsafe for mappings that can be written to.
        let released = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        #[cfg(unix)]
        if let Err(error) = released {
            log::debug!("pages of a weight file stay in memory: {error}");
        }
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
