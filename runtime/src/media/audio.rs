//! Sounds: WAV (integers of 8 to 32 bits, floats), FLAC and MP3, mixed down to one channel.

use std::io::Cursor;
use std::path::Path;

use symphonia::core::audio::{AudioBufferRef, SampleBuffer};
use symphonia::core::codecs::{CODEC_TYPE_NULL, DecoderOptions};
use symphonia::core::errors::Error;
use symphonia::core::formats::{FormatOptions, FormatReader};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::{Limit, MetadataOptions};
use symphonia::core::probe::Hint;

use super::error::MediaError;
use super::kind::{self, Format, MediaKind};
use super::{file, wav};

/// Most samples of one channel: 35 minutes at 48 kHz.
pub(super) const MAX_SAMPLES: usize = 100_000_000;

/// A sound in one channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Audio {
    /// Samples from -1 to 1; integers of n bits are divided by 2^(n-1). Several channels are
    /// averaged.
    pub samples: Vec<f32>,
    /// Samples per second.
    pub sample_rate: u32,
}

impl Audio {
    /// A sound of at least one sample, all of them numbers.
    pub(super) fn checked(
        format: &'static str,
        samples: Vec<f32>,
        sample_rate: u32,
    ) -> Result<Self, MediaError> {
        if samples.is_empty() {
            return Err(MediaError::damaged(format, "it holds no samples"));
        }
        if let Some(at) = samples.iter().position(|v| !v.is_finite()) {
            let message = format!("sample {at} is {}, no number", samples[at]);
            return Err(MediaError::damaged(format, message));
        }
        Ok(Self {
            samples,
            sample_rate,
        })
    }
}

/// Reads a sound.
///
/// # Errors
/// If the file cannot be read, is no sound of a readable format, is damaged from its beginning,
/// or if the sound is longer than fits into memory.
pub fn load_audio(path: &Path) -> Result<Audio, MediaError> {
    let load = || {
        let format = match kind::format(path, "sound")? {
            format @ (Format::Wav | Format::Flac | Format::Mp3) => format,
            Format::Other(MediaKind::Audio, name) => {
                return Err(MediaError::Unsupported {
                    format: name.to_owned(),
                    advice: "convert the sound, for example ffmpeg -i IN -ar 16000 -ac 1 OUT.wav"
                        .to_owned(),
                });
            }
            other => {
                return Err(MediaError::WrongKind {
                    wanted: "sound",
                    found: format!("a {} file", other.name()),
                    expected: kind::expected("sound"),
                });
            }
        };
        let bytes = file::read(path, "sound")?;
        match format {
            Format::Wav => wav::decode(&bytes),
            _ => decode(format.name(), bytes),
        }
    };
    load().map_err(|error: MediaError| error.of(path))
}

fn decode(format: &'static str, bytes: Vec<u8>) -> Result<Audio, MediaError> {
    let damaged = |message: String| MediaError::damaged(format, message);
    let source = Cursor::new(bytes);
    let stream = MediaSourceStream::new(Box::new(source), MediaSourceStreamOptions::default());
    let formats = FormatOptions {
        enable_gapless: true,
        ..FormatOptions::default()
    };
    // Pictures and texts inside are of no use.
    let metadata = MetadataOptions {
        limit_metadata_bytes: Limit::Maximum(1 << 20),
        limit_visual_bytes: Limit::Maximum(0),
    };
    let probed = symphonia::default::get_probe()
        .format(&Hint::new(), stream, &formats, &metadata)
        .map_err(|error| damaged(error.to_string()))?;
    decode_track(format, probed.format)
}

fn decode_track(
    format: &'static str,
    mut reader: Box<dyn FormatReader>,
) -> Result<Audio, MediaError> {
    let damaged = |message: String| MediaError::damaged(format, message);
    let track = reader
        .tracks()
        .iter()
        .find(|track| track.codec_params.codec != CODEC_TYPE_NULL)
        .ok_or_else(|| damaged("it holds no sound".to_owned()))?;
    let id = track.id;
    let mut decoder = symphonia::default::get_codecs()
        .make(&track.codec_params, &DecoderOptions::default())
        .map_err(|error| damaged(error.to_string()))?;
    let mut mixer = Mixer::default();
    let mut lost = 0;
    loop {
        let packet = match reader.next_packet() {
            Ok(packet) if packet.track_id() != id => continue,
            Ok(packet) => packet,
            // Also how the end of the file is told.
            Err(Error::IoError(_)) => break,
            Err(error) if mixer.samples.is_empty() => return Err(damaged(error.to_string())),
            Err(_) => {
                lost += 1;
                break;
            }
        };
        match decoder.decode(&packet) {
            Ok(buffer) => mixer.add(&buffer).map_err(|error| match error {
                MixError::TooLong => MediaError::TooLong { limit: MAX_SAMPLES },
                MixError::Format(message) => damaged(message),
            })?,
            Err(Error::DecodeError(_) | Error::IoError(_)) => lost += 1,
            Err(error) => return Err(damaged(error.to_string())),
        }
    }
    if lost > 0 {
        log::warn!("{format}: {lost} damaged pieces of the sound were left out");
    }
    Audio::checked(format, mixer.samples, mixer.sample_rate)
}

/// Collects samples as one channel.
#[derive(Default)]
struct Mixer {
    samples: Vec<f32>,
    sample_rate: u32,
    buffer: Option<SampleBuffer<f32>>,
}

enum MixError {
    TooLong,
    Format(String),
}

impl Mixer {
    fn add(&mut self, decoded: &AudioBufferRef<'_>) -> Result<(), MixError> {
        let spec = *decoded.spec();
        let channels = spec.channels.count();
        if channels == 0 || spec.rate == 0 {
            let message = format!("{channels} channels at {} samples per second", spec.rate);
            return Err(MixError::Format(message));
        }
        if self.samples.len() + decoded.frames() > MAX_SAMPLES {
            return Err(MixError::TooLong);
        }
        if self.sample_rate != 0 && self.sample_rate != spec.rate {
            let message = format!(
                "the sample rate changes from {} to {}",
                self.sample_rate, spec.rate
            );
            return Err(MixError::Format(message));
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
}
