//! Memory mapping of a weight file.

use std::fs::File;
use std::path::Path;

use edge_lmm_record::{FileMap, stand_in};

use super::error::{Result, SourceError};

/// Maps the regular file at `path`.
///
/// # Errors
/// If it cannot be read, or holds only what a failed download leaves.
pub(super) fn open(path: &Path) -> Result<FileMap> {
    let io = |source| SourceError::Io {
        path: path.to_path_buf(),
        source,
    };
    // Asked before opening: opening a pipe would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(SourceError::NotACheckpoint {
            path: path.to_path_buf(),
            found: "something that is not a regular file".into(),
            expected: "a weight file".into(),
        });
    }
    let map = FileMap::whole(&File::open(path).map_err(io)?).map_err(io)?;
    if let Some(found) = stand_in::describe(&map) {
        return Err(SourceError::NotDownloaded {
            path: path.to_path_buf(),
            found,
        });
    }
    log::debug!("reading {}, {} bytes", path.display(), map.len());
    Ok(map)
}
