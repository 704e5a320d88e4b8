//! Preparation of sounds for encoders like Whisper's whose outputs are pooled by two.

use crate::error::ModelError;
use crate::preprocess::mel::MelConfig;
use crate::preprocess::sample_rate::resample;

/// Frames of silence that follow a sound without padding. They are what a convolution of width 3
/// and another of width 3 and stride 2 see beyond its last frame, so that the features stay those
/// of the padded form: frames of silence further on are masked. The values of the frames stay, too,
/// because the loudest one, from which silence is counted, is kept: a frame that begins later than
/// these hears nothing of the sound as long as it is not longer than four steps.
pub(crate) const MARGIN: usize = 2;

/// Checks that [`MARGIN`] is enough for a spectrogram.
///
/// # Errors
/// If a frame is longer than four steps.
pub(crate) fn check_margin(mel: &MelConfig) -> Result<(), ModelError> {
    if mel.n_fft <= 2 * MARGIN * mel.hop_length {
        return Ok(());
    }
    Err(ModelError::config(format!(
        "preprocessor_config.json: n_fft is {}, expected at most four times hop_length, which is {}",
        mel.n_fft, mel.hop_length
    )))
}

/// A sound at the rate of a spectrogram.
pub(crate) struct Sound {
    /// The samples.
    pub samples: Vec<f32>,
    /// Frames of the spectrogram that begin within the sound.
    pub frames: usize,
    /// Outputs of the encoder after pooling, at least one.
    pub tokens: usize,
}

impl Sound {
    /// Resamples a sound; what is longer than a chunk is cut off, with a warning.
    ///
    /// # Errors
    /// If it is too short for an output.
    pub fn new(samples: &[f32], sample_rate: u32, mel: &MelConfig) -> Result<Self, ModelError> {
        let rate = mel.sampling_rate;
        let (beginning, shortened) = beginning(samples, sample_rate, mel);
        if shortened {
            log::warn!(
                "the sound is longer than the {} s that the model hears; the rest is cut off",
                mel.chunk_length
            );
        }
        let mut sound = resample(beginning, sample_rate, rate)?;
        sound.truncate(mel.chunk_samples());
        let frames = sound.len().div_ceil(mel.hop_length);
        let tokens = positions(frames) / 2;
        if tokens == 0 {
            let least = 2 * mel.hop_length as u64 * u64::from(sample_rate) / u64::from(rate);
            return Err(ModelError::Prompt(format!(
                "the sound has {} samples, the model hears none of less than {}",
                samples.len(),
                least + 1
            )));
        }
        Ok(Self {
            samples: sound,
            frames,
            tokens,
        })
    }
}

/// Cuts a sound to the length that the model accepts, and returns `true` if the sound was cut. The
/// rest need not be resampled. A little more is kept, because resampled values near the end depend
/// on samples after it.
fn beginning<'a>(samples: &'a [f32], sample_rate: u32, mel: &MelConfig) -> (&'a [f32], bool) {
    let rate = u64::from(mel.sampling_rate);
    let heard = (mel.chunk_samples() as u64 * u64::from(sample_rate)).div_ceil(rate);
    let heard = usize::try_from(heard).unwrap_or(usize::MAX);
    // A tenth of a second is far more than any filter reaches.
    let kept = heard.saturating_add(1 + sample_rate as usize / 10);
    (&samples[..samples.len().min(kept)], samples.len() > heard)
}

/// Returns the number of outputs of the second convolution for `frames` frames.
pub(crate) fn positions(frames: usize) -> usize {
    frames.div_ceil(2)
}
