//! Files in memory, for parsers that expect a path.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};

/// A file without a location on disk.
pub struct MemoryFile(File);

impl MemoryFile {
    /// Creates a file with this content.
    ///
    /// # Panics
    /// If the system cannot create it.
    pub fn new(content: &[u8]) -> Self {
        let file = memfd_create("edge-lmm-fuzz", MemfdFlags::CLOEXEC).expect("a file in memory");
        let mut file = File::from(file);
        file.write_all(content).expect("room in memory");
        Self(file)
    }

    /// Returns the open file, positioned at its end.
    pub fn file(&mut self) -> &mut File {
        &mut self.0
    }

    /// Returns a path under which this process can open the file.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}
