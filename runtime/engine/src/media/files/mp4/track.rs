//! Tracks of an MP4 file.

use super::boxes::{Indices, Name, boxes, find, long, version, word};
use super::samples::{Defaults, Sample, Samples};
use crate::media::files::error::MediaError;
use crate::media::files::pieces::Pieces;
use crate::media::files::shared::Bytes;

/// A track of video or sound.
pub(super) struct Track {
    /// Units of time per second.
    pub timescale: u32,
    /// Transformation from the stored to the shown image: `[a, b, c, d]` of ISO/IEC 14496-12,
    /// section 6.2.2, each -1, 0 or 1.
    #[cfg_attr(not(feature = "h264"), expect(dead_code))]
    pub matrix: [i8; 4],
    /// Codec.
    pub codec: Name,
    /// Sample description without its header of 8 bytes.
    pub description: Vec<u8>,
    /// Time of the start in the units of the track: earlier samples only prepare the decoder.
    pub start: i64,
    /// Samples in the order of decoding.
    pub samples: Vec<Sample>,
}

/// Returns the content of the first track with this handler (`vide` or `soun`).
pub(super) fn find_track<'a>(movie: &'a [u8], handler: &Name) -> Option<&'a [u8]> {
    let is_handled = |track: &[u8]| {
        let found = find(track, &[b"mdia", b"hdlr"]);
        found.and_then(|found| found.get(8..12)) == Some(handler)
    };
    boxes(movie)
        .filter(|(name, _)| name == b"trak")
        .map(|(_, track)| track)
        .find(|track| is_handled(track))
}

impl Track {
    /// Reads the first track with this handler; `None` if there is none.
    pub fn read(bytes: &Bytes, handler: &Name) -> Result<Option<Self>, MediaError> {
        let indices = Indices::read(bytes)?;
        let Some(track) = find_track(&indices.movie, handler) else {
            return Ok(None);
        };
        let incomplete = || MediaError::damaged("MP4", "the index of a track is incomplete");
        let header = find(track, &[b"tkhd"]).ok_or_else(incomplete)?;
        let (id, matrix) = track_header(header).ok_or_else(incomplete)?;
        let header = find(track, &[b"mdia", b"mdhd"]).ok_or_else(incomplete)?;
        let timescale = timescale(header).ok_or_else(incomplete)?;
        let tables = find(track, &[b"mdia", b"minf", b"stbl"]).ok_or_else(incomplete)?;
        let descriptions = find(tables, &[b"stsd"]).ok_or_else(incomplete)?;
        let descriptions = descriptions.get(8..).ok_or_else(incomplete)?;
        let (codec, description) = boxes(descriptions).next().ok_or_else(incomplete)?;
        let description = description.get(8..).ok_or_else(incomplete)?.to_vec();
        let mut samples = Samples::new(bytes.len()?);
        samples.add_tables(tables)?;
        let defaults = Defaults::find(&indices.movie, id);
        for (position, fragment) in &indices.fragments {
            samples.add_fragment(id, defaults, (*position, fragment))?;
        }
        Ok(Some(Self {
            timescale,
            matrix,
            codec,
            description,
            start: find(track, &[b"edts", b"elst"])
                .and_then(edit_start)
                .unwrap_or(0),
            samples: samples.list,
        }))
    }
}

/// Parses number and matrix of a `tkhd` box.
fn track_header(content: &[u8]) -> Option<(u32, [i8; 4])> {
    let mut pieces = Pieces(content);
    let (version, _) = version(&mut pieces)?;
    long(&mut pieces, version)?;
    long(&mut pieces, version)?;
    let id = word(&mut pieces)?;
    word(&mut pieces)?;
    long(&mut pieces, version)?;
    // Layer, group and volume.
    pieces.take(16)?;
    // Fixed-point numbers: a, b, u, c, d, v.
    let mut numbers = [0i32; 6];
    for number in &mut numbers {
        *number = word(&mut pieces)?.cast_signed();
    }
    let [a, b, _, c, d, _] = numbers;
    let matrix = [a, b, c, d].map(|number| number.signum() as i8);
    Some((id, matrix))
}

/// Parses the units per second of an `mdhd` box, at least 1.
fn timescale(content: &[u8]) -> Option<u32> {
    let mut pieces = Pieces(content);
    let (version, _) = version(&mut pieces)?;
    long(&mut pieces, version)?;
    long(&mut pieces, version)?;
    word(&mut pieces).filter(|&units| units > 0)
}

/// Parses the time of the track at which the first edit of an `elst` box that is not empty starts.
fn edit_start(content: &[u8]) -> Option<i64> {
    let mut pieces = Pieces(content);
    let (version, _) = version(&mut pieces)?;
    let count = word(&mut pieces)?;
    for _ in 0..count {
        long(&mut pieces, version)?;
        let start = match version {
            0 => i64::from(word(&mut pieces)?.cast_signed()),
            _ => long(&mut pieces, 1)?.cast_signed(),
        };
        pieces.take(4)?;
        if start >= 0 {
            return Some(start);
        }
    }
    None
}
