//! RIFF WAVE files (Microsoft's "Multiple channel audio data and WAVE files"; RF64 and BW64 as in
//! ITU-R BS.2088): integers of up to 32 bits, floats of 32 or 64 bits, A-law and mu-law. Symphonia
//! decodes ADPCM and MP3.

use symphonia::default::formats::{MpaReader, WavReader};

use super::error::MediaError;
use super::pieces::{Pieces, riff_chunk, word};
use super::samples::{Audio, check_len};
use super::{budget, stream};

fn damaged(message: impl ToString) -> MediaError {
    MediaError::damaged("WAV", message)
}

/// Contents of the `fmt ` chunk.
#[derive(Debug, Clone, Copy)]
struct Layout {
    channels: usize,
    sample_rate: u32,
    sample: Sample,
}

/// Encoding of a sample, little endian.
#[derive(Debug, Clone, Copy)]
enum Sample {
    /// Offset by 128.
    Unsigned8,
    /// Signed integer of this many bytes.
    Signed(usize),
    Float32,
    Float64,
    /// ITU-T G.711.
    ALaw,
    MuLaw,
    /// Compressed, decoded by Symphonia.
    Compressed(Compression),
}

#[derive(Debug, Clone, Copy)]
enum Compression {
    Adpcm,
    Mp3,
}

/// Decodes a WAV file.
pub(super) fn decode(bytes: &[u8]) -> Result<Audio, MediaError> {
    let content = bytes
        .get(12..)
        .ok_or_else(|| MediaError::truncated("WAV", "it ends within its header"))?;
    let mut pieces = Pieces(content);
    let mut header = Header::default();
    let mut long_size = None;
    loop {
        let rest = pieces.0;
        match riff_chunk(&mut pieces) {
            Some((b"fmt ", data)) => {
                header.layout = Some(Layout::parse(data)?);
                header.format = data;
            }
            Some((b"fact", data)) => header.fact = Some(data),
            // RF64: the sizes of the file and of its samples have 64 bits.
            Some((b"ds64", &[_, _, _, _, _, _, _, _, a, b, c, d, e, f, g, h, ..])) => {
                long_size = Some(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
            }
            Some((b"data", [])) if !is_empty(bytes, pieces.0) => {
                return header.samples(pieces.0);
            }
            Some((b"data", data)) => return header.samples(data),
            Some(_) => {}
            None if rest.starts_with(b"data") && rest.len() >= 8 => {
                let data = unfinished(&rest[8..], word(rest, 4).unwrap_or(0), long_size)?;
                return header.samples(data);
            }
            None if rest.is_empty() => return Err(damaged("it has no samples")),
            None => {
                let message = format!("it ends after {} bytes, within a chunk", bytes.len());
                return Err(MediaError::truncated("WAV", message));
            }
        }
    }
}

/// Returns `true` if a data chunk of length 0 is empty. Programs that write to a pipe cannot fill
/// in the length; their samples follow.
fn is_empty(bytes: &[u8], rest: &[u8]) -> bool {
    let announced = u64::from(word(bytes, 4).unwrap_or(0)) + 8;
    let mut pieces = Pieces(rest);
    while riff_chunk(&mut pieces).is_some() {}
    pieces.0.is_empty() && (rest.is_empty() || announced == bytes.len() as u64)
}

/// Returns the samples of a data chunk whose length extends beyond the end of the file.
fn unfinished(data: &[u8], len: u32, long_size: Option<u64>) -> Result<&[u8], MediaError> {
    /// Lengths from here on are placeholders: programs that write to a pipe announce 2 or 4 GiB,
    /// less a header. Complete files of that size are not read.
    const UNKNOWN: u32 = 0x7fff_0000;
    let announced = match long_size {
        Some(size) if len == u32::MAX => size,
        _ if len >= UNKNOWN => return Ok(data),
        _ => len.into(),
    };
    if (data.len() as u64) < announced && announced != u64::MAX {
        let message = format!(
            "its header announces {announced} bytes of samples, {} are there; to use these: \
             ffmpeg -i IN.wav OUT.wav",
            data.len()
        );
        return Err(MediaError::truncated("WAV", message));
    }
    let announced = usize::try_from(announced).unwrap_or(data.len());
    Ok(&data[..announced.min(data.len())])
}

impl Layout {
    fn parse(data: &[u8]) -> Result<Self, MediaError> {
        const EXTENSIBLE: u16 = 0xfffe;
        let word = |at: usize| {
            data.get(at..at + 2)
                .map(|b| u16::from_le_bytes([b[0], b[1]]))
        };
        let short = || damaged("its fmt chunk is too short");
        let (tag, channels) = (word(0).ok_or_else(short)?, word(2).ok_or_else(short)?);
        let (low, high) = (word(4).ok_or_else(short)?, word(6).ok_or_else(short)?);
        let bits = word(14).ok_or_else(short)?;
        let tag = match tag {
            // The first two bytes of the format's identifier are the plain format tag.
            EXTENSIBLE => word(24).ok_or_else(short)?,
            tag => tag,
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
            sample: Sample::of(tag, bits)?,
        })
    }
}

/// The chunks that describe the samples.
#[derive(Default)]
struct Header<'a> {
    layout: Option<Layout>,
    /// `fmt `
    format: &'a [u8],
    /// `fact`: the number of samples.
    fact: Option<&'a [u8]>,
}

impl Header<'_> {
    fn samples(&self, data: &[u8]) -> Result<Audio, MediaError> {
        let layout = self
            .layout
            .ok_or_else(|| damaged("its data chunk precedes the fmt chunk"))?;
        match layout.sample {
            Sample::Compressed(Compression::Mp3) => {
                budget::check(data.len() as u64)?;
                stream::check_mp3(data)?;
                stream::decode::<MpaReader>("MP3", data.to_vec())
            }
            Sample::Compressed(Compression::Adpcm) => {
                budget::check(data.len() as u64)?;
                stream::decode::<WavReader>("WAV", self.file(data))
            }
            _ => plain_samples(layout, data),
        }
    }

    /// Builds a file without other chunks: Symphonia allocates as much memory as a text chunk
    /// announces, up to 4 GiB.
    fn file(&self, data: &[u8]) -> Vec<u8> {
        let mut file = b"RIFF\0\0\0\0WAVE".to_vec();
        let fact = self.fact.map(|fact| (b"fact", fact));
        let chunks = [(b"fmt ", self.format)].into_iter().chain(fact);
        for (name, content) in chunks.chain([(b"data", data)]) {
            file.extend(name);
            file.extend((content.len() as u32).to_le_bytes());
            file.extend(content);
            if content.len() % 2 == 1 {
                file.push(0);
            }
        }
        let len = (file.len() - 8) as u32;
        file[4..8].copy_from_slice(&len.to_le_bytes());
        file
    }
}

fn plain_samples(layout: Layout, data: &[u8]) -> Result<Audio, MediaError> {
    let sample = layout.sample;
    let frame = sample.len() * layout.channels;
    check_len(data.len() / frame)?;
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
    /// Returns the encoding for a format tag.
    fn of(tag: u16, bits: u16) -> Result<Self, MediaError> {
        const PCM: u16 = 1;
        const MS_ADPCM: u16 = 2;
        const FLOAT: u16 = 3;
        const A_LAW: u16 = 6;
        const MU_LAW: u16 = 7;
        const IMA_ADPCM: u16 = 0x11;
        const MP3: u16 = 0x55;
        Ok(match (tag, bits) {
            (PCM, 1..=8) => Self::Unsigned8,
            // Samples of other sizes are left-aligned in their bytes.
            (PCM, 9..=32) => Self::Signed(usize::from(bits.div_ceil(8))),
            (FLOAT, 32) => Self::Float32,
            (FLOAT, 64) => Self::Float64,
            (A_LAW, 8) => Self::ALaw,
            (MU_LAW, 8) => Self::MuLaw,
            (MS_ADPCM | IMA_ADPCM, _) => Self::Compressed(Compression::Adpcm),
            (MP3, _) => Self::Compressed(Compression::Mp3),
            _ => {
                return Err(MediaError::Unsupported {
                    format: format!("WAV with {bits}-bit samples of format {tag}"),
                    advice: "convert it, for example with ffmpeg -i IN.wav -c:a pcm_s16le OUT.wav"
                        .to_owned(),
                });
            }
        })
    }

    /// Returns the bytes of a sample.
    fn len(self) -> usize {
        match self {
            Self::Unsigned8 | Self::ALaw | Self::MuLaw | Self::Compressed(_) => 1,
            Self::Signed(bytes) => bytes,
            Self::Float32 => 4,
            Self::Float64 => 8,
        }
    }

    /// Decodes a sample of exactly this many bytes to the range -1 to 1.
    fn value(self, bytes: &[u8]) -> f32 {
        match (self, bytes) {
            (Self::Unsigned8, &[b]) => (f32::from(b) - 128.0) / 128.0,
            (Self::ALaw, &[b]) => a_law(b),
            (Self::MuLaw, &[b]) => mu_law(b),
            (Self::Signed(_), bytes) => {
                // The bytes are left-aligned in an integer.
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

/// Decodes A-law (ITU-T G.711): sign, exponent and mantissa of a 13-bit sample, every other bit
/// inverted.
fn a_law(code: u8) -> f32 {
    let code = code ^ 0x55;
    let (exponent, mantissa) = (code >> 4 & 7, i16::from(code & 15));
    let magnitude = match exponent {
        0 => mantissa << 4 | 8,
        _ => (mantissa << 4 | 0x108) << (exponent - 1),
    };
    let sign = if code & 0x80 == 0 { -1.0 } else { 1.0 };
    sign * f32::from(magnitude) / 32_768.0
}

/// Decodes mu-law (ITU-T G.711): sign, exponent and mantissa of a 14-bit sample, all bits inverted.
fn mu_law(code: u8) -> f32 {
    const BIAS: i16 = 0x84;
    let code = !code;
    let magnitude = ((i16::from(code & 15) << 3 | BIAS) << (code >> 4 & 7)) - BIAS;
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    sign * f32::from(magnitude) / 32_768.0
}
