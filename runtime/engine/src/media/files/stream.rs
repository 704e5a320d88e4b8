//! Audio that Symphonia decodes: FLAC, AIFF, MP3, and ADPCM in WAV.
//!
//! Files are checked first, because Symphonia allocates as much memory as their metadata announces.

use std::io::Cursor;

use symphonia::core::audio::{AudioBufferRef, SampleBuffer};
use symphonia::core::codecs::{CODEC_TYPE_NULL, DecoderOptions};
use symphonia::core::errors::Error;
use symphonia::core::formats::{FormatOptions, FormatReader};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};

use super::budget;
use super::error::MediaError;
use super::format::mp3_frame_len;
use super::pieces::Pieces;
use super::samples::{Audio, MAX_SAMPLES};

/// Checks that no incomplete tag precedes the frames: complete ones were skipped, and Symphonia
/// allocates as much memory as a tag announces. Warns about an MP3 that ends within a frame;
/// recorded streams do, so it is not an error.
pub(super) fn check_mp3(bytes: &[u8]) -> Result<(), MediaError> {
    if bytes.starts_with(b"ID3") {
        return Err(MediaError::truncated("MP3", "it ends within its ID3 tag"));
    }
    let mut rest = bytes;
    while let Some(len) = mp3_frame_len(rest) {
        let Some(next) = rest.get(len..) else {
            log::warn!("the MP3 ends within a frame: it may be truncated");
            break;
        };
        rest = next;
    }
    Ok(())
}

/// Returns a FLAC file (RFC 9639, section 8) with its stream info as the only metadata. Symphonia
/// allocates as much memory as a comment or an image announces, up to 4 GiB.
pub(super) fn flac_without_metadata(bytes: &[u8]) -> Result<Vec<u8>, MediaError> {
    const LAST: u8 = 0x80;
    const STREAM_INFO: u8 = 0;
    let mut pieces = Pieces(&bytes[4..]);
    let mut block = || -> Option<(u8, &[u8])> {
        let [kind, a, b, c] = pieces.array()?;
        let data = pieces.take(u32::from_be_bytes([0, a, b, c]) as usize)?;
        Some((kind, data))
    };
    let mut info = None;
    loop {
        let (kind, data) =
            block().ok_or_else(|| MediaError::truncated("FLAC", "it ends within its metadata"))?;
        if kind & !LAST == STREAM_INFO {
            info = info.or(Some(data));
        }
        if kind & LAST != 0 {
            break;
        }
    }
    let info = info.ok_or_else(|| MediaError::damaged("FLAC", "it has no stream info"))?;
    let len = (info.len() as u32).to_be_bytes();
    let header: [&[u8]; 4] = [b"fLaC", &[LAST | STREAM_INFO], &len[1..], info];
    Ok([&header.concat(), pieces.0].concat())
}

/// Checks that an AIFF has the length in its header.
pub(super) fn check_aiff(bytes: &[u8]) -> Result<(), MediaError> {
    let announced = Pieces(&bytes[4..]).array().map_or(0, u32::from_be_bytes);
    let announced = u64::from(announced) + 8;
    if (bytes.len() as u64) < announced - announced % 2 {
        let message = format!(
            "it ends after {} bytes, its header announces {announced}",
            bytes.len()
        );
        return Err(MediaError::truncated("AIFF", message));
    }
    Ok(())
}

/// Decodes audio with Symphonia's reader of this format. Its probe would also find another format
/// within the file, whose metadata was not checked.
pub(super) fn decode<R: FormatReader + 'static>(
    format: &'static str,
    bytes: Vec<u8>,
) -> Result<Audio, MediaError> {
    let source = Cursor::new(bytes);
    let stream = MediaSourceStream::new(Box::new(source), MediaSourceStreamOptions::default());
    let formats = FormatOptions {
        enable_gapless: true,
        ..FormatOptions::default()
    };
    let reader = R::try_new(stream, &formats).map_err(|error| match error {
        // The reader looks for a beginning until the file ends.
        Error::IoError(_) => MediaError::damaged(format, "no audio was found in it"),
        error => failed(format, error),
    })?;
    decode_track(format, reader)
}

/// Converts an error of Symphonia, which does not expose the cause as its source.
pub(super) fn failed(format: &'static str, error: Error) -> MediaError {
    match error {
        Error::IoError(error) => MediaError::decoding(format, &error),
        error => MediaError::decoding(format, &error),
    }
}

fn decode_track(format: &'static str, mut reader: impl FormatReader) -> Result<Audio, MediaError> {
    let damaged = |message: String| MediaError::damaged(format, message);
    let failed = |error| failed(format, error);
    let track = reader
        .tracks()
        .iter()
        .find(|track| track.codec_params.codec != CODEC_TYPE_NULL)
        .ok_or_else(|| damaged("it has no audio track".to_owned()))?;
    let id = track.id;
    let announced = track.codec_params.n_frames;
    let mut decoder = symphonia::default::get_codecs()
        .make(&track.codec_params, &DecoderOptions::default())
        .map_err(failed)?;
    let mut mixer = Mixer::new();
    let mut lost = 0;
    loop {
        let packet = match reader.next_packet() {
            Ok(packet) if packet.track_id() != id => continue,
            Ok(packet) => packet,
            // Symphonia signals the end of the file in the same way.
            Err(Error::IoError(_)) => break,
            Err(error) if mixer.samples.is_empty() => return Err(failed(error)),
            Err(_) => {
                lost += 1;
                break;
            }
        };
        match decoder.decode(&packet) {
            Ok(buffer) => mixer.add(format, &buffer)?,
            Err(Error::DecodeError(_) | Error::IoError(_)) => lost += 1,
            Err(error) => return Err(failed(error)),
        }
    }
    check_whole(format, announced, mixer.samples.len(), lost)?;
    if lost > 0 {
        log::warn!("{format}: {lost} damaged packets were skipped");
    }
    mixer.finish(format, 0.0)
}

/// Checks that no announced samples are missing. MP3 encoders announce an approximate number, which
/// may exceed the real one by a frame.
fn check_whole(
    format: &'static str,
    announced: Option<u64>,
    found: usize,
    lost: usize,
) -> Result<(), MediaError> {
    const LARGEST_FRAME: u64 = 1152;
    // Symphonia counts the header of an AIFF's samples as samples; `check_aiff` is exact.
    let Some(announced) = announced.filter(|_| lost == 0 && format != "AIFF") else {
        return Ok(());
    };
    let tolerated = if format == "MP3" { LARGEST_FRAME } else { 0 };
    if found as u64 + tolerated < announced {
        let message = format!(
            "its header announces {announced} samples, {found} are there; to use these: \
             ffmpeg -i IN OUT.wav"
        );
        return Err(MediaError::truncated(format, message));
    }
    Ok(())
}

/// Accumulator of mono samples.
pub(super) struct Mixer {
    samples: Vec<f32>,
    /// Maximum number of samples.
    limit: usize,
    sample_rate: u32,
    buffer: Option<SampleBuffer<f32>>,
}

impl Mixer {
    pub fn new() -> Self {
        // The buffer doubles when it grows.
        let fits = budget::limit() / (2 * size_of::<f32>() as u64);
        Self {
            samples: Vec::new(),
            limit: usize::try_from(fits).map_or(MAX_SAMPLES, |fits| fits.min(MAX_SAMPLES)),
            sample_rate: 0,
            buffer: None,
        }
    }

    /// Adds decoded samples.
    pub fn add(
        &mut self,
        format: &'static str,
        decoded: &AudioBufferRef<'_>,
    ) -> Result<(), MediaError> {
        let spec = *decoded.spec();
        let channels = spec.channels.count();
        if channels == 0 || spec.rate == 0 {
            let message = format!("{channels} channels at {} samples per second", spec.rate);
            return Err(MediaError::damaged(format, message));
        }
        if self.samples.len() + decoded.frames() > self.limit {
            return Err(MediaError::TooLong { limit: self.limit });
        }
        if self.sample_rate != 0 && self.sample_rate != spec.rate {
            let message = format!(
                "the sample rate changes from {} to {}",
                self.sample_rate, spec.rate
            );
            return Err(MediaError::damaged(format, message));
        }
        self.sample_rate = spec.rate;
        let needed = decoded.frames() * channels;
        let buffer = match self.buffer.take() {
            Some(buffer) if buffer.capacity() >= needed => buffer,
            _ => SampleBuffer::new(decoded.capacity() as u64, spec),
        };
        let buffer = self.buffer.insert(buffer);
        buffer.copy_interleaved_ref(decoded.clone());
        let frames = buffer.samples().chunks_exact(channels);
        self.samples
            .extend(frames.map(|frame| frame.iter().sum::<f32>() / channels as f32));
        Ok(())
    }

    /// Returns the sound from `start` on, in seconds.
    pub fn finish(mut self, format: &'static str, start: f64) -> Result<Audio, MediaError> {
        let start = (start * f64::from(self.sample_rate)).round() as usize;
        self.samples.drain(..start.min(self.samples.len()));
        Audio::checked(format, self.samples, self.sample_rate)
    }
}
