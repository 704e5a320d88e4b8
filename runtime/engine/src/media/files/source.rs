//! Sources of media: files, folders, pipes and standard input.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use edge_lmm_models::media::MediaKind;

use super::budget;
use super::error::MediaError;
use super::format::{self, Format, HEAD, unknown};
use super::guard::guarded;
use super::shared::{Bytes, Shared};

/// Maximum bytes of a file that is read into memory.
const MAX_FILE: u64 = 512 << 20;

/// An opened image, video or audio file.
///
/// Opening reads the content once, so that pipes work. Y4M and MP4 files stay on disk; a Y4M video
/// from a pipe is read while it is decoded, and only once.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    content: Content,
    /// The program that converts other videos, if it may be started.
    ffmpeg: Option<PathBuf>,
}

#[derive(Debug)]
pub(super) enum Content {
    Folder,
    /// A file that may be larger than memory.
    Disk(Format, Arc<File>),
    /// The content of a file of a supported format, without leading tags.
    Whole(Format, Shared),
    /// A video from a pipe.
    Stream(Format, Stream),
    /// A file of an unsupported format.
    Unsupported(Format),
    /// The first bytes of an unknown format.
    Unknown(Vec<u8>),
}

/// A pipe that can be read once.
pub(super) struct Stream(Mutex<Option<Box<dyn Read + Send>>>);

impl Stream {
    fn new(reader: impl Read + Send + 'static) -> Self {
        Self(Mutex::new(Some(Box::new(reader))))
    }

    /// Takes the reader.
    ///
    /// # Errors
    /// If it was taken before.
    pub fn take(&self) -> Result<Box<dyn Read + Send>, MediaError> {
        let mut reader = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let again = || io::Error::other("a video from a pipe can be read only once");
        reader.take().ok_or_else(|| MediaError::Io(again()))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
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

    /// Opens a file, a folder, a pipe or device, or standard input if the path is `-`. Pipes and
    /// devices are read to their end into memory, except for Y4M videos.
    ///
    /// # Errors
    /// If it cannot be read or exceeds the memory limit.
    pub fn open(path: &Path) -> Result<Self, MediaError> {
        Self::new(path, || {
            if path == Path::new("-") {
                return Content::of_stream(io::stdin());
            }
            let kind = fs::metadata(path).map_err(MediaError::Io)?.file_type();
            match special(kind) {
                Some(_) => Content::of_stream(File::open(path).map_err(MediaError::Io)?),
                None => Content::of_file(open_at_once(path)?),
            }
        })
    }

    /// Reads a stream as [`Self::open`] reads a pipe; `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn stream(name: &Path, stream: impl Read + Send + 'static) -> Result<Self, MediaError> {
        Self::new(name, || Content::of_stream(stream))
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
            ffmpeg: None,
        })
    }

    /// Lets videos that are not decoded here, and their sound tracks, be converted by this program:
    /// `ffmpeg`, which is looked up in `PATH`, or a path. By default, no program is started.
    pub fn with_ffmpeg(self, program: impl Into<PathBuf>) -> Self {
        Self {
            ffmpeg: Some(program.into()),
            ..self
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn content(&self) -> &Content {
        &self.content
    }

    /// Returns the program that may convert this source.
    pub(super) fn ffmpeg(&self) -> Option<&Path> {
        self.ffmpeg.as_deref()
    }

    /// Runs a decoder and converts its errors and panics into errors of this file.
    pub(super) fn read<T>(
        &self,
        decode: impl FnOnce() -> Result<T, MediaError>,
    ) -> Result<T, MediaError> {
        guarded(decode).map_err(|error| error.of(&self.path))
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
            Some(format @ (Format::Y4m | Format::Mp4 | Format::M4a)) => {
                Ok(Self::Disk(format, Arc::new(file)))
            }
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

    fn of_stream(mut stream: impl Read + Send + 'static) -> Result<Self, MediaError> {
        let mut head = Vec::with_capacity(HEAD);
        (&mut stream)
            .take(HEAD as u64)
            .read_to_end(&mut head)
            .map_err(MediaError::Io)?;
        match Format::of(&head) {
            Some(format @ (Format::Y4m | Format::Other(MediaKind::Video, _))) => {
                let stream = Stream::new(io::Cursor::new(head).chain(stream));
                Ok(Self::Stream(format, stream))
            }
            _ => Self::of_rest(head, stream),
        }
    }

    /// Returns the format of a file that is known.
    pub fn format(&self) -> Option<Format> {
        match self {
            Self::Folder | Self::Unknown(_) => None,
            Self::Disk(format, _)
            | Self::Whole(format, _)
            | Self::Stream(format, _)
            | Self::Unsupported(format) => Some(*format),
        }
    }

    /// Returns the bytes of a file of a supported format.
    pub fn bytes(&self) -> Option<(Format, Bytes)> {
        match self {
            Self::Disk(format, file) => Some((*format, Bytes::Disk(file.clone()))),
            Self::Whole(format, bytes) => Some((*format, Bytes::Memory(bytes.clone()))),
            _ => None,
        }
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
                Some(format) => Self::Whole(format, bytes.into()),
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
            Self::Unknown(head) => unknown(head, wanted),
            known => match known.format() {
                Some(format) => format.wrong(wanted),
                None => unknown(&[], wanted),
            },
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
