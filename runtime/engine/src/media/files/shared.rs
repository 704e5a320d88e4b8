//! Bytes of a medium that several decoders read independently, in memory or in a file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::budget;
use super::error::MediaError;

/// A file in memory. Clones share its bytes.
#[derive(Debug, Clone)]
pub(super) struct Shared(Arc<Vec<u8>>);

impl From<Vec<u8>> for Shared {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Arc::new(bytes))
    }
}

impl Deref for Shared {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Bytes in memory or on disk.
#[derive(Debug, Clone)]
pub(super) enum Bytes {
    Memory(Shared),
    Disk(Arc<File>),
}

impl Bytes {
    /// Returns the number of bytes.
    pub fn len(&self) -> Result<u64, MediaError> {
        match self {
            Self::Memory(bytes) => Ok(bytes.len() as u64),
            Self::Disk(file) => Ok(file.metadata().map_err(MediaError::Io)?.len()),
        }
    }

    /// Reads at a position; returns fewer bytes than `buffer` has only at the end.
    fn read_at(&self, position: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Memory(bytes) => {
                let start = usize::try_from(position).unwrap_or(usize::MAX);
                let rest = bytes.get(start..).unwrap_or_default();
                let len = rest.len().min(buffer.len());
                buffer[..len].copy_from_slice(&rest[..len]);
                Ok(len)
            }
            Self::Disk(file) => file.read_at(buffer, position),
        }
    }

    /// Reads exactly `len` bytes at a position.
    pub fn exact(&self, position: u64, len: usize) -> Result<Vec<u8>, MediaError> {
        budget::check(len as u64)?;
        let mut bytes = vec![0; len];
        let mut reader = self.reader(position);
        reader.read_exact(&mut bytes).map_err(MediaError::Io)?;
        Ok(bytes)
    }

    /// Returns a reader that starts at a position.
    pub fn reader(&self, position: u64) -> BytesReader {
        BytesReader {
            bytes: self.clone(),
            position,
        }
    }
}

/// A reader with a position of its own, which the other readers of the file do not move.
#[derive(Debug)]
pub(super) struct BytesReader {
    bytes: Bytes,
    position: u64,
}

impl Read for BytesReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.bytes.read_at(self.position, buffer)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for BytesReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
            SeekFrom::End(_) => None,
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
