//! RIFF WAVE files with integer samples of 8, 16, 24 or 32 bits or floats of 32 or 64 bits
//! (Microsoft's "Multiple channel audio data and WAVE files").

use super::audio::{Audio, MAX_SAMPLES};
use super::error::MediaError;
use super::pieces::{Pieces, riff_chunk};

fn damaged(message: impl ToString) -> MediaError {
    MediaError::damaged("WAV", message)
}

/// What the `fmt ` chunk says.
#[derive(Debug, Clone, Copy)]
struct Layout {
    channels: usize,
    sample_rate: u32,
    sample: Sample,
}

/// How a sample is stored, little endian.
#[derive(Debug, Clone, Copy)]
enum Sample {
    /// Around 128.
    Unsigned8,
    /// Signed, of so many bytes.
    Signed(usize),
    Float32,
    Float64,
}

/// Decodes a file; one that ends too early has the samples up to there.
pub(super) fn decode(bytes: &[u8]) -> Result<Audio, MediaError> {
    let mut pieces = Pieces(
        bytes
            .get(12..)
            .ok_or_else(|| damaged("it ends in its header"))?,
    );
    let mut layout = None;
    loop {
        let rest = pieces.0;
        match riff_chunk(&mut pieces) {
            Some((b"fmt ", data)) => layout = Some(Layout::parse(data)?),
            Some((b"data", data)) => return samples(layout, data),
            Some(_) => {}
            // Recorders that cannot seek back leave a length beyond the end.
            None if rest.starts_with(b"data") && rest.len() > 8 => {
                return samples(layout, &rest[8..]);
            }
            None => return Err(damaged("it holds no samples")),
        }
    }
}

impl Layout {
    fn parse(data: &[u8]) -> Result<Self, MediaError> {
        const PCM: u16 = 1;
        const FLOAT: u16 = 3;
        const EXTENSIBLE: u16 = 0xfffe;
        let word = |at: usize| {
            data.get(at..at + 2)
                .map(|b| u16::from_le_bytes([b[0], b[1]]))
        };
        let short = || damaged("its description of the samples is too short");
        let (tag, channels) = (word(0).ok_or_else(short)?, word(2).ok_or_else(short)?);
        let (low, high) = (word(4).ok_or_else(short)?, word(6).ok_or_else(short)?);
        let bits = word(14).ok_or_else(short)?;
        let tag = match tag {
            // The first two bytes of the format's identifier are its plain number.
            EXTENSIBLE => word(24).ok_or_else(short)?,
            tag => tag,
        };
        let sample = match (tag, bits) {
            (PCM, 8) => Sample::Unsigned8,
            (PCM, 16 | 24 | 32) => Sample::Signed(usize::from(bits / 8)),
            (FLOAT, 32) => Sample::Float32,
            (FLOAT, 64) => Sample::Float64,
            _ => {
                return Err(MediaError::Unsupported {
                    format: format!("WAV with {bits}-bit samples of format {tag}"),
                    advice: "convert it, for example with ffmpeg -i IN.wav -c:a pcm_s16le OUT.wav"
                        .to_owned(),
                });
            }
        };
        let sample_rate = u32::from(high) << 16 | u32::from(low);
        if channels == 0 || sample_rate == 0 {
            return Err(damaged(format!(
                "{channels} channels at {sample_rate} samples per second"
            )));
        }
        Ok(Self {
            channels: usize::from(channels),
            sample_rate,
            sample,
        })
    }
}

fn samples(layout: Option<Layout>, data: &[u8]) -> Result<Audio, MediaError> {
    let layout = layout.ok_or_else(|| damaged("its samples come before their description"))?;
    let sample = layout.sample;
    let frame = sample.len() * layout.channels;
    if data.len() / frame > MAX_SAMPLES {
        return Err(MediaError::TooLong { limit: MAX_SAMPLES });
    }
    let mix = |frame: &[u8]| {
        let sum: f32 = frame
            .chunks_exact(sample.len())
            .map(|b| sample.value(b))
            .sum();
        sum / layout.channels as f32
    };
    let samples = data.chunks_exact(frame).map(mix).collect();
    Audio::checked("WAV", samples, layout.sample_rate)
}

impl Sample {
    /// Bytes.
    fn len(self) -> usize {
        match self {
            Self::Unsigned8 => 1,
            Self::Signed(bytes) => bytes,
            Self::Float32 => 4,
            Self::Float64 => 8,
        }
    }

    /// The sample in exactly so many bytes, from -1 to 1.
    fn value(self, bytes: &[u8]) -> f32 {
        match (self, bytes) {
            (Self::Unsigned8, &[b]) => (f32::from(b) - 128.0) / 128.0,
            (Self::Signed(_), bytes) => {
                // The bytes fill an integer from its most significant end.
                let mut word = [0; 4];
                word[4 - bytes.len()..].copy_from_slice(bytes);
                i32::from_le_bytes(word) as f32 / 2_147_483_648.0
            }
            (Self::Float32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Self::Float64, &[a, b, c, d, e, f, g, h]) => {
                f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32
            }
            _ => 0.0,
        }
    }
}
