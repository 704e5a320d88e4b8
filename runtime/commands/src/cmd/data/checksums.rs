//! `checksums.sha256`: the SHA-256 of every file of a folder, in the format of `sha256sum`.
//!
//! A line is appended as soon as a file is complete, so that an interrupted run is continued.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use data_encoding::HEXLOWER;
use edge_lmm::output::Output;
use sha2::{Digest, Sha256};

/// Name of the file.
const NAME: &str = "checksums.sha256";

/// Returns the SHA-256 in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}

/// Returns the SHA-256 of a file.
fn sha256_of(path: &Path) -> io::Result<String> {
    let mut hashing = Hashing::new(io::sink());
    io::copy(&mut File::open(path)?, &mut hashing)?;
    Ok(hashing.digest())
}

/// Computes the SHA-256 of what is written.
pub struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Hashing<W> {
    pub fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
        }
    }

    /// Returns the SHA-256 in hexadecimal digits.
    pub fn digest(self) -> String {
        HEXLOWER.encode(&self.hash.finalize())
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The checksums of a folder.
pub struct Checksums {
    folder: PathBuf,
    /// By the name of the file.
    digests: BTreeMap<String, String>,
}

impl Checksums {
    /// Reads the checksums of an earlier run, if there was one.
    ///
    /// # Errors
    /// If the file exists but cannot be read.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(NAME);
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        // A line that was cut off has no complete digest or names no file; both are ignored.
        let lines = text.lines().filter_map(|line| line.split_once("  "));
        let lines = lines.filter(|(digest, _)| digest.len() == 64);
        Ok(Self {
            folder: folder.to_owned(),
            digests: lines
                .map(|(digest, name)| (name.to_owned(), digest.to_owned()))
                .collect(),
        })
    }

    /// Returns the name and the digest of a file of an earlier run, by its name without extension, if
    /// its content is unchanged.
    pub fn unchanged(&self, stem: &str) -> Option<(&str, &str)> {
        let from = format!("{stem}.");
        let (name, digest) = self.digests.range(from.clone()..).next()?;
        let extension = name.strip_prefix(&from)?;
        if !extension.chars().all(|c| c.is_ascii_alphanumeric()) {
            return None;
        }
        let found = sha256_of(&self.folder.join(name)).ok()?;
        (found == *digest).then_some((name.as_str(), digest.as_str()))
    }

    /// Adds a file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add(&mut self, name: &str, digest: &str) -> anyhow::Result<()> {
        let list = self.folder.join(NAME);
        let line = format!("{digest}  {name}\n");
        File::options()
            .create(true)
            .append(true)
            .open(&list)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .with_context(|| format!("cannot write {}", list.display()))?;
        self.digests.insert(name.to_owned(), digest.to_owned());
        Ok(())
    }

    /// Writes the list again with these files only, sorted.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn finish(&self, names: &BTreeSet<&str>) -> anyhow::Result<()> {
        let lines: String = self
            .digests
            .iter()
            .filter(|(name, _)| names.contains(name.as_str()))
            .map(|(name, digest)| format!("{digest}  {name}\n"))
            .collect();
        Output::create(&self.folder.join(NAME), true)?.finish_with(lines.as_bytes())?;
        Ok(())
    }
}
