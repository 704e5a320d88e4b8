//! Detection of file formats by their signatures.

use edge_lmm_models::media::MediaKind;
use edge_lmm_record::stand_in;

use super::error::MediaError;
use super::pieces::Pieces;

/// Bytes that identify a format, unless a tag precedes it: three packets of an MPEG transport stream.
pub const HEAD: usize = 3 * TS_PACKET;
const TS_PACKET: usize = 188;

/// File formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Jpeg,
    Gif,
    WebP,
    Bmp,
    Y4m,
    Mp4,
    /// Audio in MP4.
    M4a,
    Wav,
    Aiff,
    Flac,
    Mp3,
    /// A known format that is not supported, with its kind and name.
    Other(MediaKind, &'static str),
}

impl Format {
    /// Detects the format of a file from its first bytes.
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
            (
                riff(b"WAVE") || (at(0, b"RF64") || at(0, b"BW64")) && at(8, b"WAVE"),
                Self::Wav,
            ),
            (at(0, b"FORM") && at(8, b"AIF"), Self::Aiff),
            (at(0, b"fLaC"), Self::Flac),
            (at(0, b"ID3") || mp3_frame_len(head).is_some(), Self::Mp3),
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
            (at(4, b"ftypM4A") || at(4, b"ftypM4B"), Self::M4a),
            (at(4, b"ftyp") || at(4, b"moov"), Self::Mp4),
            (
                at(0, b"\x1a\x45\xdf\xa3"),
                Self::Other(Video, "Matroska or WebM"),
            ),
            (riff(b"AVI "), Self::Other(Video, "AVI")),
            (at(0, b"\0\0\x01\xba"), Self::Other(Video, "MPEG")),
            (is_transport_stream(head), Self::Other(Video, "MPEG-TS")),
            (at(0, b"FLV\x01"), Self::Other(Video, "FLV")),
            (
                at(0, b"OggS") && at(28, b"OpusHead"),
                Self::Other(Audio, "Ogg Opus"),
            ),
            (
                at(0, b"OggS") && at(28, b"\x01vorbis"),
                Self::Other(Audio, "Ogg Vorbis"),
            ),
            (
                at(0, b"OggS") && at(28, b"\x7fFLAC"),
                Self::Other(Audio, "Ogg FLAC"),
            ),
            (
                at(0, b"OggS") && at(28, b"\x80theora"),
                Self::Other(Video, "Ogg Theora"),
            ),
            (at(0, b"OggS"), Self::Other(Audio, "Ogg")),
            (
                at(0, b"RIFX") && at(8, b"WAVE"),
                Self::Other(Audio, "big-endian WAV (RIFX)"),
            ),
            (
                at(0, b"riff\x2e\x91\xcf\x11"),
                Self::Other(Audio, "Wave64 (W64)"),
            ),
            (at(0, b"caff\0"), Self::Other(Audio, "Core Audio (CAF)")),
            (at(0, b".snd"), Self::Other(Audio, "Sun audio (AU)")),
            (at(0, b"#!AMR"), Self::Other(Audio, "AMR")),
            (at(0, b"wvpk"), Self::Other(Audio, "WavPack")),
            (at(0, b"MAC "), Self::Other(Audio, "Monkey's Audio (APE)")),
            (
                at(0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
                Self::Other(Audio, "Windows Media (ASF)"),
            ),
            (is_adts(head), Self::Other(Audio, "AAC (ADTS)")),
            (
                is_other_mpeg_audio(head),
                Self::Other(Audio, "MPEG audio, layer I or II"),
            ),
        ];
        let found = signatures.into_iter().find(|&(matches, _)| matches);
        found.map(|(_, format)| format)
    }

    /// Returns the name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::Gif => "GIF",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
            Self::Y4m => "Y4M",
            Self::Mp4 => "MP4",
            Self::M4a => "M4A",
            Self::Wav => "WAV",
            Self::Aiff => "AIFF",
            Self::Flac => "FLAC",
            Self::Mp3 => "MP3",
            Self::Other(_, name) => name,
        }
    }

    /// Returns the kind of a file of this format; animations are images here.
    pub fn kind(self) -> MediaKind {
        match self {
            Self::Png | Self::Jpeg | Self::Gif | Self::WebP | Self::Bmp => MediaKind::Image,
            Self::Y4m | Self::Mp4 => MediaKind::Video,
            Self::M4a | Self::Wav | Self::Aiff | Self::Flac | Self::Mp3 => MediaKind::Audio,
            Self::Other(kind, _) => kind,
        }
    }

    /// Returns the error for a file of this format where another kind was expected.
    pub fn wrong(self, wanted: &'static str) -> MediaError {
        MediaError::WrongKind {
            wanted,
            found: format!("a {} file", self.name()),
            expected: expected(wanted),
        }
    }
}

/// Parses version, layer, bit rate index and sample rate index of an MPEG audio header.
fn mpeg_audio(head: &[u8]) -> Option<(u8, u8, u8, u8)> {
    let &[sync, second, third, ..] = head else {
        return None;
    };
    let (version, layer) = (second >> 3 & 3, second >> 1 & 3);
    let (rate, frequency) = (third >> 4, third >> 2 & 3);
    let valid = sync == 0xff
        && second >> 5 == 7
        && version != 1
        && layer != 0
        && (1..15).contains(&rate)
        && frequency != 3;
    valid.then_some((version, layer, rate, frequency))
}

/// Returns the length of the MPEG audio layer III frame that starts with this header.
pub(super) fn mp3_frame_len(head: &[u8]) -> Option<usize> {
    const RATES_1: [usize; 14] = [
        32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320,
    ];
    const RATES_2: [usize; 14] = [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160];
    let (version, 1, rate, frequency) = mpeg_audio(head)? else {
        return None;
    };
    let (rates, samples, divisor) = match version {
        3 => (RATES_1, 1152, 1),
        2 => (RATES_2, 576, 2),
        _ => (RATES_2, 576, 4),
    };
    let hertz = [44_100, 48_000, 32_000][usize::from(frequency)] / divisor;
    let padding = usize::from(head[2] >> 1 & 1);
    Some(samples / 8 * rates[usize::from(rate) - 1] * 1000 / hertz + padding)
}

fn is_other_mpeg_audio(head: &[u8]) -> bool {
    mpeg_audio(head).is_some_and(|(_, layer, ..)| layer != 1)
}

/// Returns `true` if packets begin with their synchronization byte.
fn is_transport_stream(head: &[u8]) -> bool {
    head.len() > TS_PACKET && head.iter().step_by(TS_PACKET).all(|&byte| byte == 0x47)
}

fn is_adts(head: &[u8]) -> bool {
    matches!(head, [0xff, second, third, ..] if second & 0xf6 == 0xf0 && third >> 2 & 0xf < 13)
}

/// Returns `true` if a tag or zero bytes may precede the content, so that [`Format::of`] needs more
/// bytes.
pub(super) fn may_have_prefix(head: &[u8]) -> bool {
    head.starts_with(b"ID3") || head.starts_with(&[0; 4])
}

/// Returns the length of the prefix: ID3v2 tags, and zero bytes before an MP3 frame.
pub(super) fn prefix_len(bytes: &[u8]) -> usize {
    let mut pieces = Pieces(bytes);
    while skip_tag(&mut pieces).is_some() {}
    let tags = bytes.len() - pieces.0.len();
    let zeros = pieces.0.iter().take_while(|&&b| b == 0).count();
    let frame = &pieces.0[zeros..];
    // A single header may be a coincidence, two in a row are not.
    let is_mp3 = mp3_frame_len(frame)
        .and_then(|len| frame.get(len..))
        .is_some_and(|next| next.is_empty() || mp3_frame_len(next).is_some());
    if is_mp3 { tags + zeros } else { tags }
}

/// Skips a complete ID3v2 tag.
fn skip_tag(pieces: &mut Pieces<'_>) -> Option<()> {
    let &[b'I', b'D', b'3', _, _, flags, a, b, c, d, ..] = pieces.0 else {
        return None;
    };
    let footer = if flags & 0x10 != 0 { 10 } else { 0 };
    // Seven bits per byte.
    let len = [a, b, c, d]
        .iter()
        .fold(0, |len, &byte| len << 7 | usize::from(byte & 127));
    let rest = pieces.0.get(10 + len + footer..)?;
    pieces.0 = rest;
    Some(())
}

/// Lists the supported formats.
pub(super) fn expected(wanted: &str) -> &'static str {
    match wanted {
        "image" => "PNG, JPEG, WebP, BMP or GIF",
        "video" => {
            "MP4 with H.264, an animated GIF, PNG or WebP, Y4M, a folder of images or a frame strip"
        }
        "audio file" => "WAV, AIFF, FLAC, MP3 or M4A",
        _ => "PNG, JPEG, WebP, BMP, GIF, MP4, Y4M, WAV, AIFF, FLAC, MP3 or M4A",
    }
}

/// Returns the error for content of an unknown format.
pub(super) fn unknown(head: &[u8], wanted: &'static str) -> MediaError {
    MediaError::WrongKind {
        wanted,
        found: describe(&head[..head.len().min(HEAD)]).to_owned(),
        expected: expected(wanted),
    }
}

/// Describes unknown content without quoting it: the author of a request may lack permission to
/// read the file.
fn describe(head: &[u8]) -> &'static str {
    if let Some(found) = stand_in::describe(head) {
        return found;
    }
    // The last character may be incomplete.
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or("")
        }
        Err(_) => "",
    };
    let printable = |c: char| !c.is_control() || c.is_ascii_whitespace();
    match !text.is_empty() && text.chars().all(printable) {
        true => "text",
        false => "data of an unknown format",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_mp3_have_the_length_of_their_bit_rate() {
        // 128 kbit/s at 44100 Hz, without and with padding; 64 kbit/s at 22050 Hz; layer II.
        assert_eq!(mp3_frame_len(b"\xff\xfb\x90\x64"), Some(417));
        assert_eq!(mp3_frame_len(b"\xff\xfb\x92\x64"), Some(418));
        assert_eq!(mp3_frame_len(b"\xff\xf3\x80\xc4"), Some(208));
        assert_eq!(mp3_frame_len(b"\xff\xfd\x90\x64"), None);
    }

    #[test]
    fn tags_and_zeros_are_skipped() {
        let tag = b"ID3\x04\0\0\0\0\0\x02xx";
        let frame = [&b"\xff\xfb\x90\x64"[..], &[0; 413]].concat();
        for (bytes, len) in [
            ([&tag[..], b"fLaC"].concat(), 12),
            ([&tag[..], tag, b"fLaC"].concat(), 24),
            ([&[0; 99][..], &frame].concat(), 99),
            ([&tag[..], &[0; 5], &frame, &frame].concat(), 17),
            // A single header followed by other data.
            ([&[0; 9][..], &frame, b"data"].concat(), 0),
            (b"\0\0\0\x18ftypmp42".to_vec(), 0),
            (vec![0; 80], 0),
        ] {
            assert_eq!(prefix_len(&bytes), len);
        }
    }
}
