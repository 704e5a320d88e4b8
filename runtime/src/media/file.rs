//! Reading files without trusting their size.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use super::error::MediaError;

/// Most bytes of a file that is read as a whole.
const MAX_FILE: u64 = 512 << 20;

/// Bytes from which a format can be told.
pub const HEAD: usize = 64;

/// Opens a file that is no folder.
pub fn open(path: &Path) -> Result<BufReader<File>, MediaError> {
    let file = File::open(path).map_err(MediaError::Io)?;
    if file.metadata().map_err(MediaError::Io)?.is_dir() {
        return Err(MediaError::Io(io::Error::new(
            io::ErrorKind::IsADirectory,
            "it is a folder",
        )));
    }
    Ok(BufReader::new(file))
}

/// The first bytes, at most [`HEAD`].
pub fn head(path: &Path) -> Result<Vec<u8>, MediaError> {
    let mut bytes = Vec::with_capacity(HEAD);
    open(path)?
        .take(HEAD as u64)
        .read_to_end(&mut bytes)
        .map_err(MediaError::Io)?;
    Ok(bytes)
}

/// The whole file.
pub fn read(path: &Path, wanted: &'static str) -> Result<Vec<u8>, MediaError> {
    let too_large = MediaError::FileSize {
        limit: MAX_FILE,
        wanted,
    };
    let file = open(path)?;
    let len = file.get_ref().metadata().map_err(MediaError::Io)?.len();
    if len > MAX_FILE {
        return Err(too_large);
    }
    let mut bytes = Vec::new();
    // Special files can be longer than they say.
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(MediaError::Io)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(too_large);
    }
    Ok(bytes)
}
