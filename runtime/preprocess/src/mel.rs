//! Log-mel spectrograms for Whisper-like encoders (Radford et al. 2022,
//! <https://arxiv.org/abs/2212.04356>).
//!
//! The reference is `WhisperFeatureExtractor` of `transformers`. It computes in 32 bits with
//! PyTorch, this implementation in 64 bits, so values near the floor of the spectrogram differ by
//! up to about 1e-4.

use realfft::RealFftPlanner;
use realfft::num_complex::Complex;
use serde::Deserialize;
use serde_json::Value;

use super::error::{PreprocessError, allocate};
use super::fields::parse_file;

/// Upper frequency limit of the filters in Hz, hard-coded in the reference.
const MAX_FREQUENCY: f64 = 8000.0;
/// Smallest power distinguished from silence.
const FLOOR: f64 = 1e-10;
/// Dynamic range in powers of ten below the loudest value; smaller values are clamped.
const RANGE: f64 = 8.0;

/// Settings from `preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct MelConfig {
    /// Mel bins.
    pub feature_size: usize,
    /// Samples per second.
    pub sampling_rate: u32,
    /// Samples from one frame to the next.
    pub hop_length: usize,
    /// Samples of a frame.
    pub n_fft: usize,
    /// Length of a chunk in seconds; audio is truncated or padded to it.
    pub chunk_length: usize,
    /// Amount of added noise; only zero is supported.
    pub dither: f64,
    /// Value of padding samples; only zero is supported.
    pub padding_value: f64,
    /// Side that is padded; only `right` is supported.
    pub padding_side: String,
    /// Class of the reference; only Whisper's is supported.
    pub feature_extractor_type: String,
}

impl Default for MelConfig {
    fn default() -> Self {
        Self {
            feature_size: 80,
            sampling_rate: 16_000,
            hop_length: 160,
            n_fft: 400,
            chunk_length: 30,
            dither: 0.0,
            padding_value: 0.0,
            padding_side: "right".to_owned(),
            feature_extractor_type: "WhisperFeatureExtractor".to_owned(),
        }
    }
}

/// Padding of audio that is shorter than a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Padding {
    /// Silence up to the whole chunk, as in the reference.
    #[default]
    Chunk,
    /// No padding: only frames that begin within the audio are kept. Their values equal those of
    /// the padded spectrogram, unless one of the dropped frames, which still overlap the end of
    /// the audio, is the loudest: values are clamped relative to the loudest frame kept.
    None,
}

/// A log-mel spectrogram.
#[derive(Debug, Clone, PartialEq)]
pub struct MelFeatures {
    /// `[bins, frames]`.
    pub values: Vec<f32>,
    /// Mel bins.
    pub bins: usize,
    /// Frames, padding included.
    pub frames: usize,
    /// Frames that begin within the audio, at least 1.
    pub valid_frames: usize,
}

impl MelConfig {
    /// Reads a `preprocessor_config.json`; without one, the defaults of the reference apply.
    ///
    /// # Errors
    /// If the file contains an unsupported setting.
    pub fn parse(file: Option<&Value>) -> Result<Self, PreprocessError> {
        let config = match file {
            None => Self::default(),
            Some(file) => parse_file(file)?,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), PreprocessError> {
        PreprocessError::check_sizes(&[
            ("feature_size", self.feature_size, 1 << 10),
            ("sampling_rate", self.sampling_rate as usize, 1 << 20),
            ("hop_length", self.hop_length, 1 << 16),
            ("n_fft", self.n_fft, 1 << 16),
            ("chunk_length", self.chunk_length, 1 << 12),
        ])?;
        if self.n_fft < 2 || self.n_fft > self.chunk_samples() || self.frames() == 0 {
            return Err(PreprocessError::config(format!(
                "a chunk of {} samples has no frames of {} samples every {}",
                self.chunk_samples(),
                self.n_fft,
                self.hop_length
            )));
        }
        let default = Self::default();
        for (name, found, expected) in [
            (
                "dither",
                self.dither.to_string(),
                default.dither.to_string(),
            ),
            (
                "padding_value",
                self.padding_value.to_string(),
                default.padding_value.to_string(),
            ),
            (
                "padding_side",
                self.padding_side.clone(),
                default.padding_side,
            ),
            (
                "feature_extractor_type",
                self.feature_extractor_type.clone(),
                default.feature_extractor_type,
            ),
        ] {
            if found != expected {
                return Err(PreprocessError::config(format!(
                    "{name} is {found}, expected {expected}; other values are not supported"
                )));
            }
        }
        Ok(())
    }

    /// Returns the samples of a chunk.
    pub fn chunk_samples(&self) -> usize {
        self.chunk_length * self.sampling_rate as usize
    }

    /// Returns the frames of a chunk.
    pub fn frames(&self) -> usize {
        self.chunk_samples() / self.hop_length
    }

    /// Computes the spectrogram of mono audio at [`Self::sampling_rate`]; samples beyond a chunk
    /// are ignored.
    ///
    /// # Errors
    /// If there are no samples or one of them is not finite.
    pub fn features(
        &self,
        samples: &[f32],
        padding: Padding,
    ) -> Result<MelFeatures, PreprocessError> {
        check_samples(samples)?;
        let samples = &samples[..samples.len().min(self.chunk_samples())];
        let valid_frames = samples.len().div_ceil(self.hop_length).min(self.frames());
        let frames = match padding {
            Padding::Chunk => self.frames(),
            Padding::None => valid_frames,
        };
        let mut logs = self.log_powers(samples, frames)?;
        let loudest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        for log in &mut logs {
            *log = (log.max(loudest - RANGE) + 4.0) / 4.0;
        }
        Ok(MelFeatures {
            values: transposed(&logs, self.feature_size),
            bins: self.feature_size,
            frames,
            valid_frames,
        })
    }

    /// Computes the decimal logarithm of the power in every bin: `[frames, bins]`.
    fn log_powers(&self, samples: &[f32], frames: usize) -> Result<Vec<f64>, PreprocessError> {
        let filters = Filters::new(self);
        let window = hann(self.n_fft);
        let fft = RealFftPlanner::<f64>::new().plan_fft_forward(self.n_fft);
        let mut buffer = fft.make_input_vec();
        let mut spectrum = fft.make_output_vec();
        let mut scratch = fft.make_scratch_vec();
        let mut logs: Vec<f64> = allocate(frames.saturating_mul(self.feature_size))?;
        for frame in 0..frames {
            let start = (frame * self.hop_length) as isize - (self.n_fft / 2) as isize;
            // Silence has a known result.
            if start >= samples.len() as isize && !self.reaches_mirror(start) {
                logs.resize((frame + 1) * self.feature_size, FLOOR.log10());
                continue;
            }
            for (i, (value, weight)) in buffer.iter_mut().zip(&window).enumerate() {
                *value = self.sample(samples, start + i as isize) * weight;
            }
            // Fails only for slices of the wrong length.
            fft.process_with_scratch(&mut buffer, &mut spectrum, &mut scratch)
                .map_err(|error| PreprocessError::config(error.to_string()))?;
            logs.extend(
                filters
                    .powers(&spectrum)
                    .map(|power| power.max(FLOOR).log10()),
            );
        }
        Ok(logs)
    }

    /// Returns `true` if a frame extends beyond the chunk, where samples are mirrored.
    fn reaches_mirror(&self, start: isize) -> bool {
        start + self.n_fft as isize > self.chunk_samples() as isize
    }

    /// Returns a sample of the chunk, which is mirrored at its first and last sample.
    fn sample(&self, samples: &[f32], at: isize) -> f64 {
        let last = self.chunk_samples() as isize - 1;
        let at = at.abs();
        let at = if at > last { 2 * last - at } else { at };
        let sample = usize::try_from(at).ok().and_then(|at| samples.get(at));
        sample.copied().map_or(0.0, f64::from)
    }
}

/// Checks that there are samples and that all are finite.
pub(super) fn check_samples(samples: &[f32]) -> Result<(), PreprocessError> {
    if samples.is_empty() {
        return Err(PreprocessError::NoSamples);
    }
    match samples.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(PreprocessError::Sample {
            index,
            value: samples[index],
        }),
        None => Ok(()),
    }
}

/// Computes the periodic Hann window.
fn hann(len: usize) -> Vec<f64> {
    let step = std::f64::consts::TAU / len as f64;
    (0..len)
        .map(|i| 0.5 - 0.5 * (i as f64 * step).cos())
        .collect()
}

fn transposed(rows: &[f64], width: usize) -> Vec<f32> {
    let column = |x: usize| rows.iter().skip(x).step_by(width).map(|&v| v as f32);
    (0..width).flat_map(column).collect()
}

/// Triangles between neighboring frequencies of Slaney's mel scale, each of area one (Slaney 1998,
/// "Auditory Toolbox", as in librosa).
struct Filters {
    /// First bin of the transform, and the weights from there on.
    triangles: Vec<(usize, Vec<f64>)>,
}

impl Filters {
    fn new(config: &MelConfig) -> Self {
        let bins = config.n_fft / 2 + 1;
        let nyquist = (config.sampling_rate / 2) as f64;
        let frequency = |bin: usize| bin as f64 * nyquist / (bins - 1) as f64;
        let top = mel(MAX_FREQUENCY);
        let edge = |i: usize| hertz(top * i as f64 / (config.feature_size + 1) as f64);
        let triangle = |i: usize| {
            let (low, center, high) = (edge(i), edge(i + 1), edge(i + 2));
            let weight = |bin: usize| {
                let frequency = frequency(bin);
                let rising = (frequency - low) / (center - low);
                let falling = (high - frequency) / (high - center);
                rising.min(falling) * 2.0 / (high - low)
            };
            let first = (0..bins).find(|&bin| weight(bin) > 0.0).unwrap_or(0);
            let weights = (first..bins).map(weight).take_while(|&w| w > 0.0);
            (first, weights.collect())
        };
        Self {
            triangles: (0..config.feature_size).map(triangle).collect(),
        }
    }

    /// Computes the power in every mel bin.
    fn powers(&self, spectrum: &[Complex<f64>]) -> impl Iterator<Item = f64> {
        self.triangles.iter().map(|(first, weights)| {
            let bins = spectrum[*first..].iter().zip(weights);
            bins.map(|(bin, weight)| bin.norm_sqr() * weight).sum()
        })
    }
}

/// Slaney's mel scale is linear below 1000 Hz (15 mel) and logarithmic above.
const LINEAR_HERTZ: f64 = 1000.0;
const LINEAR_MEL: f64 = 15.0;

/// Returns the logarithm of frequency per mel above 1000 Hz: 27 mel are a factor of 6.4.
fn log_step() -> f64 {
    6.4f64.ln() / 27.0
}

fn mel(hertz: f64) -> f64 {
    if hertz < LINEAR_HERTZ {
        hertz * LINEAR_MEL / LINEAR_HERTZ
    } else {
        LINEAR_MEL + (hertz / LINEAR_HERTZ).ln() / log_step()
    }
}

fn hertz(mel: f64) -> f64 {
    if mel < LINEAR_MEL {
        mel * LINEAR_HERTZ / LINEAR_MEL
    } else {
        LINEAR_HERTZ * ((mel - LINEAR_MEL) * log_step()).exp()
    }
}
