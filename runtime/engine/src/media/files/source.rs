//! Sources of media: files, folders, pipes and standard input.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use edge_lmm_models::media::MediaKind;

use super::budget;
use super::error::MediaError;
use super::format::{self, Format, HEAD, unknown};
use super::guard::guarded;

/// Maximum bytes of a file that is read into memory.
const MAX_FILE: u64 = 512 << 20;

/// An opened image, video or audio file.
///
/// Opening reads the content once, so that pipes work; only Y4M videos stay on disk.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    Folder,
    /// A Y4M file, which may be larger than memory.
    Y4m(File),
    /// The content of a file of a supported format, without leading tags.
    Whole(Format, Vec<u8>),
    /// A file of an unsupported format.
    Unsupported(Format),
    /// The first bytes of an unknown format.
    Unknown(Vec<u8>),
}

impl Source {
    /// Opens a regular file or a folder.
    ///
    /// # Errors
    /// If it cannot be read, exceeds the memory limit, or is a pipe or device: reading these could
    /// block forever.
    pub fn file(path: &Path) -> Result<Self, MediaError> {
        Self::new(path, || {
            let file = open_at_once(path)?;
            let kind = file.metadata().map_err(MediaError::Io)?.file_type();
            match special(kind) {
                Some(name) => Err(MediaError::NotAFile(name)),
                None => Content::of_file(file),
            }
        })
    }

    /// Opens a file, a folder, a pipe or device, or standard input if the path is `-`. Anything but
    /// a regular file is read to its end into memory.
    ///
    /// # Errors
    /// If it cannot be read or exceeds the memory limit.
    pub fn open(path: &Path) -> Result<Self, MediaError> {
        Self::new(path, || {
            if path == Path::new("-") {
                return Content::of_stream(io::stdin().lock());
            }
            let kind = fs::metadata(path).map_err(MediaError::Io)?.file_type();
            match special(kind) {
                Some(_) => Content::of_stream(File::open(path).map_err(MediaError::Io)?),
                None => Content::of_file(open_at_once(path)?),
            }
        })
    }

    fn new(
        path: &Path,
        content: impl FnOnce() -> Result<Content, MediaError>,
    ) -> Result<Self, MediaError> {
        let path = if path == Path::new("-") {
            Path::new("standard input")
        } else {
            path
        };
        Ok(Self {
            content: content().map_err(|error| error.of(path))?,
            path: path.to_owned(),
        })
    }

    /// Runs a decoder and converts its errors and panics into errors of this file.
    pub(super) fn read<T>(
        &self,
        decode: impl FnOnce(&Path, &Content) -> Result<T, MediaError>,
    ) -> Result<T, MediaError> {
        guarded(|| decode(&self.path, &self.content)).map_err(|error| error.of(&self.path))
    }
}

/// Opens a file without blocking on a pipe that has no writer.
fn open_at_once(path: &Path) -> Result<File, MediaError> {
    File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(MediaError::Io)
}

/// Returns the name of a file type other than files and folders.
fn special(kind: fs::FileType) -> Option<&'static str> {
    if kind.is_fifo() {
        Some("a pipe")
    } else if kind.is_socket() {
        Some("a socket")
    } else if kind.is_char_device() || kind.is_block_device() {
        Some("a device")
    } else {
        None
    }
}

impl Content {
    fn of_file(file: File) -> Result<Self, MediaError> {
        let metadata = file.metadata().map_err(MediaError::Io)?;
        if metadata.is_dir() {
            return Ok(Self::Folder);
        }
        let mut head = Vec::with_capacity(HEAD);
        (&file)
            .take(HEAD as u64)
            .read_to_end(&mut head)
            .map_err(MediaError::Io)?;
        let format = Format::of(&head);
        match format {
            Some(Format::Y4m) => Ok(Self::Y4m(file)),
            // Files of unsupported formats are not read into memory.
            Some(format @ Format::Other(..)) => Ok(Self::Unsupported(format)),
            None if !format::may_have_prefix(&head) => Ok(Self::Unknown(head)),
            _ => {
                let rest = metadata.len().saturating_sub(head.len() as u64);
                check_len(metadata.len(), format)?;
                head.reserve_exact(usize::try_from(rest).unwrap_or(0));
                Self::of_rest(head, file)
            }
        }
    }

    fn of_stream(stream: impl Read) -> Result<Self, MediaError> {
        Self::of_rest(Vec::new(), stream)
    }

    /// Builds the content from its first bytes and the rest.
    fn of_rest(mut bytes: Vec<u8>, rest: impl Read) -> Result<Self, MediaError> {
        // The buffer doubles when it grows.
        let limit = MAX_FILE.min(budget::limit() / 2);
        rest.take((limit + 1).saturating_sub(bytes.len() as u64))
            .read_to_end(&mut bytes)
            .map_err(MediaError::Io)?;
        let format = Format::of(&bytes[..bytes.len().min(HEAD)]);
        if bytes.len() as u64 > limit {
            return Err(too_large(format, limit));
        }
        bytes.drain(..format::prefix_len(&bytes));
        Ok(
            match Format::of(&bytes[..bytes.len().min(HEAD)]).or(format) {
                Some(format @ Format::Other(..)) => Self::Unsupported(format),
                Some(format) => Self::Whole(format, bytes),
                None => Self::Unknown(bytes[..bytes.len().min(HEAD)].to_vec()),
            },
        )
    }

    /// Returns the error for content of another kind than expected.
    pub fn wrong(&self, wanted: &'static str) -> MediaError {
        match self {
            Self::Folder => MediaError::WrongKind {
                wanted,
                found: "a folder".to_owned(),
                expected: format::expected(wanted),
            },
            Self::Y4m(_) => Format::Y4m.wrong(wanted),
            Self::Whole(format, _) | Self::Unsupported(format) => format.wrong(wanted),
            Self::Unknown(head) => unknown(head, wanted),
        }
    }
}

/// Checks the size of a file that is read into memory.
fn check_len(len: u64, format: Option<Format>) -> Result<(), MediaError> {
    if len > MAX_FILE {
        return Err(too_large(format, MAX_FILE));
    }
    budget::check(len)
}

fn too_large(format: Option<Format>, limit: u64) -> MediaError {
    let wanted = match format.map(Format::kind) {
        Some(MediaKind::Image) => "image",
        Some(MediaKind::Video) => "video",
        Some(MediaKind::Audio) => "audio file",
        None => "file of this kind",
    };
    MediaError::FileSize { limit, wanted }
}
