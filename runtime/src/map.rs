//! Maps a record into memory: the one place outside the kernels that needs `unsafe`.

use std::fs::File;
use std::io;
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

/// The content of a file, paged in as it is read.
///
/// # Errors
/// If the file cannot be opened or mapped.
pub fn map_file(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::Error::other("is a folder"));
    }
    // SAFETY: the mapping is private and read-only, and every value read from it is checked or
    // may be any bit pattern (packed weights, floats). What remains is that another process
    // shortens the file meanwhile, which ends this process by SIGBUS; records are written beside
    // their place and renamed, so nothing of ours does that.
    let map = unsafe { Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}
