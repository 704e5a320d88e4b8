//! What a file is.

use std::path::Path;

use super::animation::Animation;
use super::error::MediaError;
use super::{file, video};
use crate::stand_in;

pub use edge_lmm_models::model::MediaKind;

/// Formats that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Jpeg,
    Gif,
    WebP,
    Bmp,
    Y4m,
    Wav,
    Flac,
    Mp3,
    /// Known, but not readable: its kind and name.
    Other(MediaKind, &'static str),
}

impl Format {
    /// The format of a file that begins with those bytes.
    pub fn of(head: &[u8]) -> Option<Self> {
        use MediaKind::{Audio, Image, Video};
        let at = |offset: usize, signature: &[u8]| {
            head.get(offset..)
                .is_some_and(|rest| rest.starts_with(signature))
        };
        let riff = |kind: &[u8]| at(0, b"RIFF") && at(8, kind);
        let signatures = [
            (at(0, b"\x89PNG\r\n\x1a\n"), Self::Png),
            (at(0, b"\xff\xd8\xff"), Self::Jpeg),
            (at(0, b"GIF87a") || at(0, b"GIF89a"), Self::Gif),
            (riff(b"WEBP"), Self::WebP),
            (at(0, b"BM") && head.len() >= 26, Self::Bmp),
            (at(0, b"YUV4MPEG2"), Self::Y4m),
            (riff(b"WAVE"), Self::Wav),
            (at(0, b"fLaC"), Self::Flac),
            (at(0, b"ID3") || is_mp3_frame(head), Self::Mp3),
            (
                at(0, b"II*\0") || at(0, b"MM\0*"),
                Self::Other(Image, "TIFF"),
            ),
            (at(4, b"ftypavif"), Self::Other(Image, "AVIF")),
            (
                at(4, b"ftyphei") || at(4, b"ftypmif1"),
                Self::Other(Image, "HEIF"),
            ),
            (at(0, b"\0\0\0\x0cjP  "), Self::Other(Image, "JPEG 2000")),
            (
                at(0, b"\xff\x0a") || at(4, b"JXL "),
                Self::Other(Image, "JPEG XL"),
            ),
            (at(4, b"ftypM4A"), Self::Other(Audio, "M4A (AAC)")),
            (at(4, b"ftyp"), Self::Other(Video, "MP4")),
            (
                at(0, b"\x1a\x45\xdf\xa3"),
                Self::Other(Video, "Matroska or WebM"),
            ),
            (riff(b"AVI "), Self::Other(Video, "AVI")),
            (at(0, b"\0\0\x01\xba"), Self::Other(Video, "MPEG")),
            (at(0, b"FLV\x01"), Self::Other(Video, "FLV")),
            (at(0, b"OggS"), Self::Other(Audio, "Ogg")),
            (at(0, b"FORM") && at(8, b"AIF"), Self::Other(Audio, "AIFF")),
        ];
        let found = signatures.into_iter().find(|&(matches, _)| matches);
        found.map(|(_, format)| format)
    }

    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::Gif => "GIF",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
            Self::Y4m => "Y4M",
            Self::Wav => "WAV",
            Self::Flac => "FLAC",
            Self::Mp3 => "MP3",
            Self::Other(_, name) => name,
        }
    }

    /// What a file of this format is, animations aside.
    fn kind(self) -> MediaKind {
        match self {
            Self::Png | Self::Jpeg | Self::Gif | Self::WebP | Self::Bmp => MediaKind::Image,
            Self::Y4m => MediaKind::Video,
            Self::Wav | Self::Flac | Self::Mp3 => MediaKind::Audio,
            Self::Other(kind, _) => kind,
        }
    }

    /// Whether there are animations of this format.
    fn can_move(self) -> bool {
        matches!(self, Self::Gif | Self::Png | Self::WebP)
    }
}

/// Whether that is the header of a frame of MPEG audio, layer III.
fn is_mp3_frame(head: &[u8]) -> bool {
    let &[sync, second, third, ..] = head else {
        return false;
    };
    let version = second >> 3 & 3;
    let layer = second >> 1 & 3;
    let (rate, frequency) = (third >> 4, third >> 2 & 3);
    sync == 0xff
        && second >> 5 == 7
        && version != 1
        && layer == 1
        && (1..15).contains(&rate)
        && frequency != 3
}

/// What a file or folder is, by its content: a still picture, a video (an animation, a frame
/// strip or a folder among them) or a sound. Formats that cannot be read are told as well; reading
/// them gives an error with advice.
///
/// # Errors
/// If the file cannot be opened or is none of these.
pub fn kind(path: &Path) -> Result<MediaKind, MediaError> {
    if path.is_dir() {
        return Ok(MediaKind::Video);
    }
    let format = format(path, "picture, video or sound").map_err(|error| error.of(path))?;
    if format == Format::Png && video::strip_frames(path).is_some() {
        return Ok(MediaKind::Video);
    }
    if format.can_move() {
        let bytes = file::read(path, "picture").map_err(|error| error.of(path))?;
        if Animation::of(format, &bytes).is_some_and(|animation| animation.frames > 1) {
            return Ok(MediaKind::Video);
        }
    }
    Ok(format.kind())
}

/// The format of a file.
pub(super) fn format(path: &Path, wanted: &'static str) -> Result<Format, MediaError> {
    let head = file::head(path)?;
    Format::of(&head).ok_or_else(|| unknown(&head, wanted))
}

/// What can be read.
pub(super) fn expected(wanted: &str) -> &'static str {
    match wanted {
        "picture" => "PNG, JPEG, WebP, BMP or GIF",
        "video" => "an animated GIF, PNG or WebP, Y4M, a folder of pictures or a strip of frames",
        "sound" => "WAV, FLAC or MP3",
        _ => "PNG, JPEG, WebP, BMP, GIF, Y4M, WAV, FLAC or MP3",
    }
}

/// An error for content of no known format.
pub(super) fn unknown(head: &[u8], wanted: &'static str) -> MediaError {
    MediaError::WrongKind {
        wanted,
        found: describe(head),
        expected: expected(wanted),
    }
}

/// What unknown content looks like.
fn describe(head: &[u8]) -> String {
    if let Some(found) = stand_in::describe(head) {
        return found.to_owned();
    }
    // The last character may be cut in two.
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or("")
        }
        Err(_) => "",
    };
    let printable = |c: char| !c.is_control() || c.is_ascii_whitespace();
    if !text.is_empty() && text.chars().all(printable) {
        let start: String = text.chars().take(24).collect();
        return format!("text that begins with {start:?}");
    }
    let bytes: Vec<String> = head.iter().take(8).map(|b| format!("{b:02x}")).collect();
    format!(
        "unknown data that begins with the bytes {}",
        bytes.join(" ")
    )
}
