//! Maps a record into memory.

use std::fs::File;
use std::io;

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};

/// How a mapping is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mapping {
    /// Read the whole file at once, instead of when a weight is first used.
    pub prefault: bool,
    /// Keep it in memory: the system may not drop it when other programs need room.
    pub lock: bool,
    /// Do not compare the record of a bundle with its checksum, which reads it whole.
    pub trust: bool,
}

/// `length` bytes of a file from `offset`, paged in as they are read.
///
/// # Errors
/// If the file cannot be mapped or locked.
pub fn map_file(file: &File, offset: u64, length: u64, mapping: Mapping) -> io::Result<Bytes> {
    if file.metadata()?.is_dir() {
        return Err(io::Error::other("is a folder"));
    }
    let length = usize::try_from(length)
        .map_err(|_| io::Error::other("is larger than this machine's address space"))?;
    let mut options = MmapOptions::new();
    options.offset(offset).len(length);
    if mapping.prefault {
        options.populate();
    }
    // SAFETY: the mapping is private and read-only, and every value read from it is checked or
    // may be any bit pattern (packed weights, floats). What remains is that another process
    // shortens the file meanwhile, which ends this process by SIGBUS; records are written beside
    // their place and renamed, so nothing of ours does that.
    let map = unsafe { options.map(file)? };
    if mapping.lock {
        lock(&map)?;
    }
    Ok(Bytes::from_owner(map))
}

fn lock(map: &Mmap) -> io::Result<()> {
    map.lock().map_err(|error| {
        io::Error::new(
            error.kind(),
            format!(
                "its {} bytes cannot be locked in memory ({error}): raise the limit (`ulimit -l \
                 unlimited`, or LimitMEMLOCK=infinity in a systemd unit) or leave --mlock out",
                map.len()
            ),
        )
    })
}
