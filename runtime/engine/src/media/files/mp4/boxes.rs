//! The boxes that an MP4 file consists of (ISO/IEC 14496-12, section 4.2).

use crate::media::files::error::MediaError;
use crate::media::files::pieces::Pieces;
use crate::media::files::shared::Bytes;

/// Maximum bytes of an index (`moov`) or the index of a fragment (`moof`).
const MAX_INDEX: u64 = 64 << 20;

/// Four characters.
pub(super) type Name = [u8; 4];

/// Takes the next box and returns its name and content; `None` if it is incomplete.
pub(super) fn next_box<'a>(pieces: &mut Pieces<'a>) -> Option<(Name, &'a [u8])> {
    let len = u32::from_be_bytes(pieces.array()?);
    let name = pieces.array()?;
    let content = match len {
        // The box extends to the end.
        0 => pieces.take(pieces.0.len())?,
        1 => {
            let len = u64::from_be_bytes(pieces.array()?);
            pieces.take(usize::try_from(len.checked_sub(16)?).ok()?)?
        }
        len => pieces.take(usize::try_from(len.checked_sub(8)?).ok()?)?,
    };
    Some((name, content))
}

/// Iterates over the boxes in the content of another one.
pub(super) fn boxes(content: &[u8]) -> impl Iterator<Item = (Name, &[u8])> {
    let mut pieces = Pieces(content);
    std::iter::from_fn(move || next_box(&mut pieces))
}

/// Returns the content of the first box at a path of names.
pub(super) fn find<'a>(content: &'a [u8], path: &[&Name]) -> Option<&'a [u8]> {
    let mut content = content;
    for &name in path {
        content = boxes(content).find(|(found, _)| found == name)?.1;
    }
    Some(content)
}

/// Takes a big-endian integer of four bytes.
pub(super) fn word(pieces: &mut Pieces<'_>) -> Option<u32> {
    pieces.array().map(u32::from_be_bytes)
}

/// Takes version and flags of a box.
pub(super) fn version(pieces: &mut Pieces<'_>) -> Option<(u8, u32)> {
    let [version, a, b, c] = pieces.array()?;
    Some((version, u32::from_be_bytes([0, a, b, c])))
}

/// Takes an integer of eight bytes in version 1, of four bytes in version 0.
pub(super) fn long(pieces: &mut Pieces<'_>, version: u8) -> Option<u64> {
    match version {
        0 => word(pieces).map(u64::from),
        _ => pieces.array().map(u64::from_be_bytes),
    }
}

/// The indices of a file.
pub(super) struct Indices {
    /// Content of the `moov` box.
    pub movie: Vec<u8>,
    /// Positions of the `moof` boxes in the file, and their contents.
    pub fragments: Vec<(u64, Vec<u8>)>,
}

impl Indices {
    /// Reads the indices of a file; media data is skipped.
    pub fn read(bytes: &Bytes) -> Result<Self, MediaError> {
        let end = bytes.len()?;
        let mut position = 0;
        let mut movie = None;
        let mut fragments = Vec::new();
        let mut left = MAX_INDEX;
        while position < end {
            let truncated = |name: &str| {
                let message = format!("it ends after {end} bytes, within {name}");
                MediaError::truncated("MP4", message)
            };
            let (name, header, len) =
                header(bytes, position, end)?.ok_or_else(|| truncated("the header of a box"))?;
            if len > end - position {
                return Err(truncated(match &name {
                    b"moov" | b"moof" => "an index",
                    _ => "its media data",
                }));
            }
            if matches!(&name, b"moov" | b"moof") {
                left = left.checked_sub(len).ok_or_else(|| {
                    let message = format!("its index has more than {MAX_INDEX} bytes");
                    MediaError::damaged("MP4", message)
                })?;
                let content = bytes.exact(position + header, (len - header) as usize)?;
                match &name {
                    b"moov" => movie = movie.or(Some(content)),
                    _ => fragments.push((position, content)),
                }
            }
            position += len;
        }
        let movie = movie.ok_or_else(|| {
            MediaError::truncated("MP4", format!("its {end} bytes contain no index (moov)"))
        })?;
        Ok(Self { movie, fragments })
    }
}

/// Reads name, length of the header and length of the box at `position`; `None` if the file ends
/// within the header.
fn header(bytes: &Bytes, position: u64, end: u64) -> Result<Option<(Name, u64, u64)>, MediaError> {
    let left = end - position;
    if left < 8 {
        return Ok(None);
    }
    let header = bytes.exact(position, left.min(16) as usize)?;
    let mut pieces = Pieces(&header);
    let (Some(len), Some(name)) = (word(&mut pieces), pieces.array()) else {
        return Ok(None);
    };
    let (header, len) = match len {
        0 => (8, left),
        1 => match pieces.array().map(u64::from_be_bytes) {
            Some(len) => (16, len),
            None => return Ok(None),
        },
        len => (8, len.into()),
    };
    if len < header {
        let message = format!("a box at byte {position} has a length of {len} bytes");
        return Err(MediaError::damaged("MP4", message));
    }
    Ok(Some((name, header, len)))
}
