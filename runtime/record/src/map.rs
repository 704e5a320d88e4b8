//! Read-only mappings of files.

use std::fs::File;
use std::hint::black_box;
use std::io;
use std::ops::Deref;

use memmap2::{Mmap, MmapOptions};

/// The smallest page of the systems that records are used on, in bytes.
const PAGE: usize = 4096;

/// Bytes of a file. Pages are read when touched, and the system may drop them at any time, so a
/// file may be larger than the memory.
#[derive(Debug)]
pub struct FileMap(Mmap);

impl FileMap {
    /// Maps a whole file.
    ///
    /// # Errors
    /// As [`Self::of_range`].
    pub fn whole(file: &File) -> io::Result<Self> {
        Self::of_range(file, 0, file.metadata()?.len())
    }

    /// Maps `length` bytes from `offset`.
    ///
    /// # Errors
    /// If the file is a folder or cannot be mapped.
    pub fn of_range(file: &File, offset: u64, length: u64) -> io::Result<Self> {
        if file.metadata()?.is_dir() {
            return Err(io::Error::other("is a folder"));
        }
        let length = usize::try_from(length)
            .map_err(|_| io::Error::other("is larger than this machine's address space"))?;
        let mut options = MmapOptions::new();
        options.offset(offset).len(length);
        // SAFETY: the mapping is private and read-only, and lives as long as every slice of it.
        // Another process may change the file meanwhile. Readers index with bounds checks, and
        // what they read is checked or may be any bit pattern (packed weights, floats), so the
        // worst are wrong numbers, a panic or, for a file that is shortened, a SIGBUS. Records are
        // written beside their place and renamed, so nothing of ours shortens one.
        let map = unsafe { options.map_copy_read_only(file)? };
        Ok(Self(map))
    }

    /// Keeps the pages in memory.
    ///
    /// # Errors
    /// If the system refuses, usually because of a limit of the process.
    pub fn lock(&self) -> io::Result<()> {
        self.0.lock()
    }

    /// Reads all pages now, instead of when they are first touched.
    pub fn prefault(&self) {
        for page in self.0.chunks(PAGE) {
            black_box(page[0]);
        }
    }

    /// Drops the pages read so far from this process; they are read again when touched.
    pub fn release(&self) {
        // SAFETY: the mapping is read-only, so every page equals the file and none is lost.
        #[cfg(unix)]
        let released = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        #[cfg(unix)]
        if let Err(error) = released {
            log::debug!("pages of a mapped file stay in memory: {error}");
        }
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
