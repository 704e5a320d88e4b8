//! Sound tracks.

use super::boxes::{boxes, find, version};
use super::track::Track;
use crate::media::files::aac;
use crate::media::files::error::MediaError;
use crate::media::files::pieces::Pieces;
use crate::media::files::samples::Audio;
use crate::media::files::shared::Bytes;

/// Decodes the first sound track; `None` if there is none.
///
/// # Errors
/// [`MediaError::Unsupported`] if it is not AAC.
pub(in super::super) fn decode_sound(bytes: &Bytes) -> Result<Option<Audio>, MediaError> {
    let Some(track) = Track::read(bytes, b"soun")? else {
        return Ok(None);
    };
    let config = config(&track).ok_or_else(|| MediaError::Unsupported {
        format: format!("sound in {}", String::from_utf8_lossy(&track.codec)),
        advice: "convert it with ffmpeg -c:a aac".to_owned(),
    })?;
    let mut decoder = aac::AacDecoder::new(config)?;
    for sample in &track.samples {
        let packet = bytes.exact(sample.offset, sample.len as usize)?;
        decoder.decode(&packet)?;
    }
    // Packets before the start only prepare the decoder.
    let start = track.start.max(0) as f64 / f64::from(track.timescale);
    decoder.finish(start).map(Some)
}

/// Returns the configuration of AAC in the sample description; `None` for other codecs.
fn config(track: &Track) -> Option<&[u8]> {
    if &track.codec != b"mp4a" {
        return None;
    }
    // Sound descriptions of QuickTime have a version with more fields.
    let version_of_entry = u16::from_be_bytes(*track.description.first_chunk()?);
    let fields = match version_of_entry {
        0 => 20,
        1 => 36,
        _ => 56,
    };
    let rest = track.description.get(fields..)?;
    let descriptor = boxes(rest).find_map(|(name, content)| match &name {
        b"esds" => Some(content),
        b"wave" => find(content, &[b"esds"]),
        _ => None,
    })?;
    let mut pieces = Pieces(descriptor);
    version(&mut pieces)?;
    specific_config(pieces.0)
}

/// Finds the decoder-specific configuration of AAC in an ES descriptor (ISO/IEC 14496-1, section
/// 7.2.6).
fn specific_config(descriptor: &[u8]) -> Option<&[u8]> {
    const ELEMENTARY_STREAM: u8 = 3;
    const DECODER: u8 = 4;
    const SPECIFIC: u8 = 5;
    const AAC: [u8; 4] = [0x40, 0x66, 0x67, 0x68];
    let mut stream = Pieces(content(&mut Pieces(descriptor), ELEMENTARY_STREAM)?);
    let [_, _, flags] = stream.array()?;
    if flags & 0x80 != 0 {
        stream.take(2)?;
    }
    if flags & 0x40 != 0 {
        let len = stream.byte()?;
        stream.take(len.into())?;
    }
    if flags & 0x20 != 0 {
        stream.take(2)?;
    }
    let mut decoder = Pieces(content(&mut stream, DECODER)?);
    if !AAC.contains(&decoder.byte()?) {
        return None;
    }
    decoder.take(12)?;
    content(&mut decoder, SPECIFIC)
}

/// Takes a descriptor with this tag and returns its content.
fn content<'a>(pieces: &mut Pieces<'a>, tag: u8) -> Option<&'a [u8]> {
    if pieces.byte()? != tag {
        return None;
    }
    let mut len = 0;
    // Seven bits per byte, at most four bytes.
    for _ in 0..4 {
        let byte = pieces.byte()?;
        len = len << 7 | usize::from(byte & 127);
        if byte & 128 == 0 {
            break;
        }
    }
    pieces.take(len)
}
