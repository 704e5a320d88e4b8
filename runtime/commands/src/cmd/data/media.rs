//! The extracted media.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use data_encoding::BASE64;
use edge_lmm::media::Source;
use edge_lmm::output::Output;
use edge_lmm::{MediaError, MediaKind, one_line};

use super::checksums::{Checksums, Hashing};
use super::names;
use super::row::{Cell, Row};

/// Maximum size of a medium in bytes.
const MAX_BYTES: u64 = 16 << 30;

/// Maximum size of a medium within a table.
const MAX_BYTES_IN_TABLE: usize = 1 << 30;

/// An extracted medium.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Relative to the output folder.
    pub path: String,
    pub sha256: String,
}

/// The media of a folder within the output, by their names. A medium that cannot be used has a reason
/// instead.
pub struct Media {
    out: PathBuf,
    /// Relative to `out`.
    folder: String,
    kind: MediaKind,
    checksums: Checksums,
    found: BTreeMap<String, Result<Stored, String>>,
    /// Number of media that an earlier run extracted.
    pub unchanged: usize,
}

impl Media {
    /// Opens a folder of the output and creates both if necessary.
    ///
    /// # Errors
    /// If a folder cannot be created or the checksums of an earlier run cannot be read.
    pub fn open(out: &Path, folder: &str, kind: MediaKind) -> anyhow::Result<Self> {
        let media = out.join(folder);
        fs::create_dir_all(&media).with_context(|| format!("cannot create {}", media.display()))?;
        Ok(Self {
            out: out.to_owned(),
            folder: folder.to_owned(),
            kind,
            checksums: Checksums::open(&media)?,
            found: BTreeMap::new(),
            unchanged: 0,
        })
    }

    /// Returns `true` if a medium was handled, now or by an earlier run.
    pub fn has(&mut self, name: &str) -> bool {
        if self.found.contains_key(name) {
            return true;
        }
        let Some((file, sha256)) = self.checksums.unchanged(&names::file_stem(name)) else {
            return false;
        };
        let stored = Stored {
            path: format!("{}/{file}", self.folder),
            sha256: sha256.to_owned(),
        };
        self.found.insert(name.to_owned(), Ok(stored));
        self.unchanged += 1;
        true
    }

    /// Returns what became of a medium; `None` if it was not found.
    pub fn get(&self, name: &str) -> Option<&Result<Stored, String>> {
        self.found.get(name)
    }

    /// Remembers why a medium cannot be used.
    pub fn reject(&mut self, name: &str, reason: String) {
        self.found.insert(name.to_owned(), Err(reason));
    }

    /// Writes a medium. One that is damaged or of another kind is rejected, not an error.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn put(&mut self, name: &str, extension: &str, content: impl Read) -> anyhow::Result<()> {
        let file = format!("{}.{extension}", names::file_stem(name));
        let path = format!("{}/{file}", self.folder);
        let mut output = Output::create(&self.out.join(&path), true)?;
        let mut hashing = Hashing::new(output.file());
        let copied = copy(content, &mut hashing)?;
        let sha256 = hashing.digest();
        let checked = copied.and_then(|()| check(output.part(), self.kind));
        if let Err(reason) = checked {
            self.reject(name, reason);
            return Ok(());
        }
        output.finish()?;
        self.checksums.add(&file, &sha256)?;
        self.found
            .insert(name.to_owned(), Ok(Stored { path, sha256 }));
        Ok(())
    }

    /// Writes the medium of a row.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn put_cell(&mut self, name: &str, row: &Row, column: &str) -> anyhow::Result<()> {
        match bytes(row.cell(column)) {
            Ok(bytes) => {
                let extension = extension(&bytes, self.kind);
                self.put(name, extension, &bytes[..])
            }
            Err(reason) => {
                self.reject(name, format!("{reason} in column {column}"));
                Ok(())
            }
        }
    }

    /// Writes the list of checksums of all media that were found now.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn finish(&self) -> anyhow::Result<()> {
        let stored = self.found.values().filter_map(|found| found.as_ref().ok());
        let files = stored.filter_map(|stored| Some(stored.path.split_once('/')?.1));
        self.checksums.finish(&files.collect())
    }

    /// Returns the path of an extracted medium.
    pub fn path(&self, stored: &Stored) -> PathBuf {
        self.out.join(&stored.path)
    }
}

/// Copies a medium. The outer error is that of writing, the inner one that of reading.
fn copy(mut content: impl Read, output: &mut impl Write) -> anyhow::Result<Result<(), String>> {
    let mut buffer = vec![0; 1 << 20];
    let mut left = MAX_BYTES;
    loop {
        let read = match content.read(&mut buffer) {
            Ok(0) => return Ok(Ok(())),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Ok(Err(format!("cannot be read: {error}"))),
        };
        let Some(rest) = left.checked_sub(read as u64) else {
            return Ok(Err(format!("larger than {} GiB", MAX_BYTES >> 30)));
        };
        left = rest;
        output
            .write_all(&buffer[..read])
            .context("cannot write a medium")?;
    }
}

/// Checks that a file has this kind. Images and sounds are decoded, those aside whose format other
/// programs have to convert.
fn check(path: &Path, kind: MediaKind) -> Result<(), String> {
    let source = Source::file(path).map_err(|error| one_line(&error))?;
    let found = source.kind().map_err(|error| one_line(&error))?;
    if found != kind {
        return Err(format!("expected {kind:?}, found {found:?}").to_lowercase());
    }
    let decoded = match kind {
        MediaKind::Image => source.image().map(|_| ()),
        MediaKind::Audio => source.audio().map(|_| ()),
        MediaKind::Video => Ok(()),
    };
    match decoded {
        Ok(()) | Err(MediaError::Unsupported { .. }) => Ok(()),
        Err(error) => Err(one_line(&error)),
    }
}

/// Returns the bytes of a medium: a group with `bytes`, as `datasets` stores it, bytes, or base64.
fn bytes(cell: Option<&Cell>) -> Result<Vec<u8>, String> {
    let bytes = match cell {
        Some(Cell::Group(group)) => return bytes(group.cell("bytes")),
        Some(Cell::Bytes(bytes)) => bytes.clone(),
        Some(Cell::Text(text)) => {
            let mut text = text.clone().into_bytes();
            text.retain(|byte| !byte.is_ascii_whitespace());
            let decoded = BASE64.decode(&text);
            decoded.map_err(|error| format!("invalid base64 ({error})"))?
        }
        _ => return Err("no medium".to_owned()),
    };
    match bytes.len() {
        0 => Err("an empty medium".to_owned()),
        len if len > MAX_BYTES_IN_TABLE => Err(format!("a medium of {len} bytes")),
        _ => Ok(bytes),
    }
}

/// Returns the extension for the content; programs that read the file look at the content, too.
fn extension(bytes: &[u8], kind: MediaKind) -> &'static str {
    match (bytes, kind) {
        ([0x89, b'P', b'N', b'G', ..], _) => "png",
        ([0xff, 0xd8, 0xff, ..], _) => "jpg",
        ([b'G', b'I', b'F', b'8', ..], _) => "gif",
        ([b'B', b'M', ..], _) => "bmp",
        (
            [
                b'R',
                b'I',
                b'F',
                b'F',
                _,
                _,
                _,
                _,
                b'W',
                b'E',
                b'B',
                b'P',
                ..,
            ],
            _,
        ) => "webp",
        ([b'R', b'I', b'F', b'F', ..], _) => "wav",
        ([b'f', b'L', b'a', b'C', ..], _) => "flac",
        ([b'O', b'g', b'g', b'S', ..], _) => "ogg",
        ([b'I', b'D', b'3', ..] | [0xff, ..], MediaKind::Audio) => "mp3",
        ([_, _, _, _, b'f', b't', b'y', b'p', ..], MediaKind::Audio) => "m4a",
        ([_, _, _, _, b'f', b't', b'y', b'p', ..], _) => "mp4",
        _ => "bin",
    }
}

/// Returns the number in place of a medium, which refers to the row with this index.
pub fn reference(row: &Row, column: &str) -> Option<String> {
    match row.cell(column) {
        Some(Cell::Text(text)) => {
            let text = text.trim();
            let is_number = text.len() <= 18 && text.chars().all(|c| c.is_ascii_digit());
            (is_number && !text.is_empty()).then(|| text.to_owned())
        }
        _ => None,
    }
}

/// Checks that an output folder can be one.
///
/// # Errors
/// If it is the source, or exists and is not a folder.
pub fn check_folder(out: &Path, source: Option<&Path>) -> anyhow::Result<()> {
    ensure!(
        !out.exists() || out.is_dir(),
        "--out {} is not a folder",
        out.display()
    );
    // The output folder may not exist yet; the closest folder that does decides.
    let out_path = std::path::absolute(out)?;
    let existing = out_path
        .ancestors()
        .find_map(|path| path.canonicalize().ok());
    let source = source.and_then(|source| source.canonicalize().ok());
    let same = matches!((&existing, &source), (Some(out), Some(source)) if out.starts_with(source));
    ensure!(
        !same,
        "--out {} is within --source; choose another folder",
        out.display()
    );
    Ok(())
}
