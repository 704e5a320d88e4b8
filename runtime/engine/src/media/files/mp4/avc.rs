//! H.264 in MP4 (ISO/IEC 14496-15).

use std::collections::VecDeque;

use edge_lmm_models::preprocess::RgbImage;

use super::boxes::find;
use super::orientation::Orientation;
use super::samples::Sample;
use super::track::Track;
use crate::media::files::error::MediaError;
use crate::media::files::frame_stream::{Frames, Length, Outline};
use crate::media::files::h264::{H264Decoder, Picture, matrix_of_code};
use crate::media::files::pieces::Pieces;
use crate::media::files::shared::Bytes;
use crate::media::files::yuv::{Color, Matrix};

/// Bytes of a visual sample description before its boxes.
const DESCRIPTION: usize = 70;

/// Maximum bytes of a coded frame.
const MAX_SAMPLE: u32 = 64 << 20;

/// The frames of an H.264 track.
pub(super) struct AvcFrames {
    bytes: Bytes,
    decoder: H264Decoder,
    /// Bytes of the length before each NAL unit.
    length_size: usize,
    orientation: Orientation,
    /// In the order of decoding.
    samples: Vec<Sample>,
    /// Units of time per second.
    timescale: u32,
    /// Number of samples decoded.
    decoded: usize,
    /// Start of each frame in seconds, and the end of the last one.
    times: Vec<f64>,
    /// Number of frames passed, including the current one.
    passed: usize,
    current: Option<Picture>,
    /// The last frames, `None` until all samples are decoded.
    rest: Option<VecDeque<Picture>>,
}

impl AvcFrames {
    pub fn open(bytes: &Bytes, track: Track) -> Result<Self, MediaError> {
        let boxes = track.description.get(DESCRIPTION..).unwrap_or_default();
        let config = find(boxes, &[b"avcC"]).and_then(Config::parse);
        let config =
            config.ok_or_else(|| MediaError::damaged("MP4", "it has no H.264 configuration"))?;
        let color = find(boxes, &[b"colr"]).and_then(color);
        let color = color.unwrap_or(Color {
            matrix: Matrix::BT601,
            full_range: false,
        });
        let mut samples = track.samples;
        // An empty sample prolongs the frame before it.
        samples.retain(|sample| sample.len > 0);
        if samples.is_empty() {
            return Err(MediaError::damaged("MP4", "its video has no frames"));
        }
        Ok(Self {
            bytes: bytes.clone(),
            decoder: H264Decoder::new(config.sets.iter().copied(), color)?,
            length_size: config.length_size,
            orientation: Orientation::of(track.matrix),
            times: times(&samples, track.timescale),
            timescale: track.timescale,
            samples,
            decoded: 0,
            passed: 0,
            current: None,
            rest: None,
        })
    }

    /// Reads a sample.
    fn content(&self, sample: Sample) -> Result<Vec<u8>, MediaError> {
        if sample.len > MAX_SAMPLE {
            let message = format!("a frame has more than {MAX_SAMPLE} bytes");
            return Err(MediaError::damaged("MP4", message));
        }
        self.bytes.exact(sample.offset, sample.len as usize)
    }

    /// Decodes the next sample.
    fn decode(&mut self, sample: Sample) -> Result<Option<Picture>, MediaError> {
        let content = self.content(sample)?;
        let units = units(&content, self.length_size);
        let units = units.ok_or_else(|| {
            let message = format!("frame {} has a unit beyond its end", self.decoded);
            MediaError::damaged("MP4", message)
        })?;
        self.decoder.decode(units.into_iter())
    }

    /// Returns the next frame in the order of time.
    fn next(&mut self) -> Result<Option<Picture>, MediaError> {
        while let Some(&sample) = self.samples.get(self.decoded) {
            let picture = self.decode(sample)?;
            self.decoded += 1;
            if picture.is_some() {
                return Ok(picture);
            }
        }
        if self.rest.is_none() {
            self.rest = Some(self.decoder.finish()?.into());
        }
        Ok(self.rest.as_mut().and_then(VecDeque::pop_front))
    }
}

impl Frames for AvcFrames {
    fn outline(&self) -> Outline {
        Outline {
            format: "MP4",
            size: Some(self.orientation.size(self.decoder.size())),
            length: Some(Length {
                frames: self.samples.len(),
                seconds: self.times[self.samples.len()],
            }),
        }
    }

    fn only_independent(&mut self, least: usize) -> Result<(), MediaError> {
        let mut independent = Vec::new();
        for &sample in &self.samples {
            let content = self.content(sample)?;
            let units = units(&content, self.length_size).unwrap_or_default();
            if units.iter().any(|unit| is_idr(unit)) {
                independent.push(sample);
            }
        }
        if independent.len() < least.max(1) {
            return Ok(());
        }
        let first = self.samples.iter().map(|sample| sample.time).min();
        let end = self.times.last().copied().unwrap_or_default();
        let time = |sample: &Sample| seconds(first.unwrap_or(0), sample.time, self.timescale);
        self.times = independent.iter().map(time).chain([end]).collect();
        self.samples = independent;
        Ok(())
    }

    fn advance(&mut self) -> Result<Option<f64>, MediaError> {
        let total = self.samples.len();
        if self.passed == total {
            return Ok(None);
        }
        self.current = self.next()?;
        if self.current.is_none() {
            let message = format!("only {} of {total} frames can be decoded", self.passed);
            return Err(MediaError::damaged("H.264", message));
        }
        self.passed += 1;
        Ok(Some(self.times[self.passed - 1]))
    }

    fn image(&mut self) -> Result<RgbImage, MediaError> {
        match &self.current {
            Some(picture) => self.orientation.apply(picture.rgb()?),
            None => Err(MediaError::damaged("MP4", "it has no complete frame")),
        }
    }

    fn end(&self) -> f64 {
        self.times[self.passed]
    }
}

/// Returns the seconds from `first` to `time`.
fn seconds(first: i64, time: i64, timescale: u32) -> f64 {
    time.saturating_sub(first) as f64 / f64::from(timescale)
}

/// Returns `true` for a slice of an IDR picture (ISO/IEC 14496-10, section 7.4.1).
fn is_idr(unit: &[u8]) -> bool {
    unit.first().is_some_and(|header| header & 0x1f == 5)
}

/// Returns the times of frames in order, from 0, and the end of the last one.
fn times(samples: &[Sample], timescale: u32) -> Vec<f64> {
    let mut shown: Vec<(i64, u32)> = samples
        .iter()
        .map(|sample| (sample.time, sample.duration))
        .collect();
    shown.sort_unstable();
    let first = shown.first().map_or(0, |&(time, _)| time);
    let seconds = |time: i64| seconds(first, time, timescale);
    let mut times: Vec<f64> = shown.iter().map(|&(time, _)| seconds(time)).collect();
    // A last frame without a duration is shown for one unit.
    let end = shown.last().map_or(0, |&(time, duration)| {
        time.saturating_add(duration.max(1).into())
    });
    times.push(seconds(end));
    times
}

/// An `avcC` box (ISO/IEC 14496-15, section 5.3.3.1).
struct Config<'a> {
    length_size: usize,
    /// Sequence and picture parameter sets.
    sets: Vec<&'a [u8]>,
}

impl<'a> Config<'a> {
    fn parse(content: &'a [u8]) -> Option<Self> {
        let mut pieces = Pieces(content);
        let [_, _, _, _, length_size] = pieces.array()?;
        let mut sets = Vec::new();
        for mask in [0x1f, 0xff] {
            let count = pieces.byte()? & mask;
            for _ in 0..count {
                let len = u16::from_be_bytes(pieces.array()?);
                sets.push(pieces.take(len.into())?);
            }
        }
        Some(Self {
            length_size: usize::from(length_size & 3) + 1,
            sets,
        })
    }
}

/// Parses the color of a `colr` box.
fn color(content: &[u8]) -> Option<Color> {
    let mut pieces = Pieces(content);
    let kind = pieces.array()?;
    let full_range = match &kind {
        b"nclx" => true,
        b"nclc" => false,
        _ => return None,
    };
    pieces.take(4)?;
    let matrix = u16::from_be_bytes(pieces.array()?);
    Some(Color {
        matrix: matrix_of_code(matrix.into()).unwrap_or(Matrix::BT601),
        full_range: full_range && pieces.byte()? & 0x80 != 0,
    })
}

/// Returns the NAL units of a sample; `None` if one reaches beyond its end.
fn units(sample: &[u8], length_size: usize) -> Option<Vec<&[u8]>> {
    let mut pieces = Pieces(sample);
    let mut units = Vec::new();
    while !pieces.0.is_empty() {
        let len = pieces.take(length_size)?;
        let len = len
            .iter()
            .fold(0, |len, &byte| len << 8 | usize::from(byte));
        units.push(pieces.take(len)?);
    }
    Some(units)
}
