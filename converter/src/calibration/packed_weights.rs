//! Weights that are packed before the record is written.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use edge_lmm_kernels::pack::PackStats;

use crate::pack::Packed;
use crate::plan::ConvertError;

/// Packed weights in a temporary file.
#[derive(Default)]
pub(crate) struct PackedWeights {
    file: Option<Temporary>,
    places: BTreeMap<String, Place>,
}

struct Place {
    start: u64,
    len: usize,
    stats: PackStats,
}

/// A file that is removed on drop.
struct Temporary {
    file: File,
    path: PathBuf,
    len: u64,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // On Unix it has been removed already.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Temporary {
    fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        if cfg!(unix) {
            // The open file keeps the contents, and nothing is left behind whatever happens.
            std::fs::remove_file(path)?;
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            len: 0,
        })
    }

    fn write(&mut self, start: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(start))?;
        self.file.write_all(bytes)?;
        self.len = self.len.max(start + bytes.len() as u64);
        Ok(())
    }

    fn read(&mut self, start: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.file.seek(SeekFrom::Start(start))?;
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn failed(&self, error: &io::Error) -> ConvertError {
        ConvertError::Write {
            path: self.path.clone(),
            reason: error.to_string(),
        }
    }
}

impl PackedWeights {
    /// Creates the temporary file `path`.
    ///
    /// # Errors
    /// If that fails.
    pub fn create(path: &Path) -> Result<Self, ConvertError> {
        let file = Temporary::create(path).map_err(|error| ConvertError::Write {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Self {
            file: Some(file),
            places: BTreeMap::new(),
        })
    }

    /// Returns `true` if a weight is packed.
    pub fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// Adds a weight.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add(&mut self, name: &str, bytes: &[u8], stats: PackStats) -> Result<(), ConvertError> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let start = file.len;
        file.write(start, bytes)
            .map_err(|error| file.failed(&error))?;
        let len = bytes.len();
        self.places
            .insert(name.to_owned(), Place { start, len, stats });
        Ok(())
    }

    /// Replaces the bytes of a weight that was added before by as many others.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn replace(&mut self, name: &str, bytes: &[u8]) -> Result<(), ConvertError> {
        let (Some(file), Some(place)) = (&mut self.file, self.places.get(name)) else {
            return Ok(());
        };
        assert_eq!(bytes.len(), place.len, "the weight has another size");
        file.write(place.start, bytes)
            .map_err(|error| file.failed(&error))
    }

    /// Returns a weight, if it is packed.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(&mut self, name: &str) -> Result<Option<Packed>, ConvertError> {
        let (Some(file), Some(place)) = (&mut self.file, self.places.get(name)) else {
            return Ok(None);
        };
        let bytes = file.read(place.start, place.len);
        let bytes = bytes.map_err(|error| file.failed(&error))?;
        Ok(Some((bytes, place.stats)))
    }
}
