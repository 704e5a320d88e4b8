//! The audio encoder of Qwen2.5-Omni: that of Whisper over blocks of a spectrogram. Each block is
//! convolved on its own, has the positions from 0 on, and attends to itself. Positions are sinusoids
//! that are not stored. The reference is `modeling_qwen2_5_omni.py` of `transformers`.

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use edge_lmm_ops::{Activation, Heads, KernelBackend, Mask, probe, stage};
use serde::Deserialize;

use crate::encoders::block::equal_heads;
use crate::encoders::whisper::{
    EncoderLayer, KERNEL, NORM_EPS, Spectrogram, WhisperConfig, pool_by_two, unfold, unfold_by_two,
};
use crate::error::ModelError;
use crate::layers::{LayerNorm, Linear};
use crate::monitor::Monitor;
use crate::sizes::{self, Section};
use crate::weights::{Inputs, Scope};

/// Longest period of the sinusoids, in positions.
const MAX_PERIOD: f64 = 1e4;

/// The encoder's section of `config.json`, with the defaults of the reference.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct AudioConfig {
    /// Sizes that Whisper has, too.
    #[serde(flatten)]
    pub whisper: WhisperConfig,
    /// Half the frames of a block.
    pub n_window: usize,
    /// Width of the language model.
    pub output_dim: usize,
}

impl Default for AudioConfig {
    fn default() -> Self {
        Self {
            whisper: WhisperConfig::default(),
            n_window: 100,
            output_dim: 3584,
        }
    }
}

impl AudioConfig {
    /// Checks the sizes for a language model of the given width.
    ///
    /// # Errors
    /// If one is out of range, or sizes do not fit together.
    pub fn check(&self, text_width: usize) -> Result<(), ModelError> {
        self.whisper.check()?;
        let section = Section("audio_config");
        section.sizes(&[
            ("n_window", self.n_window, self.whisper.max_source_positions),
            ("output_dim", self.output_dim, sizes::WIDTH),
        ])?;
        if self.output_dim != text_width {
            return Err(ModelError::config(format!(
                "audio_config.output_dim is {}, the language model has a width of {text_width}",
                self.output_dim
            )));
        }
        if !self.whisper.d_model.is_multiple_of(2) || self.whisper.d_model < 4 {
            return Err(ModelError::config(format!(
                "audio_config.d_model is {}, expected an even number of at least 4",
                self.whisper.d_model
            )));
        }
        Ok(())
    }
}

/// The encoder.
#[derive(Module, Debug)]
pub(crate) struct AudioEncoder<B: KernelBackend> {
    conv1: Linear<B>,
    conv2: Linear<B>,
    layers: Vec<EncoderLayer<B>>,
    norm: LayerNorm<B>,
    #[module(skip)]
    heads: Heads,
    #[module(skip)]
    window: usize,
}

impl<B: KernelBackend> AudioEncoder<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If a weight is missing.
    pub fn init(config: &AudioConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let whisper = &config.whisper;
        let (width, bins) = (whisper.d_model, whisper.num_mel_bins);
        let layers = scope
            .layers("layers", whisper.encoder_layers, |i| format!("layers.{i}"))?
            .iter()
            .map(|scope| EncoderLayer::init(whisper, scope))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            conv1: scope.linear("conv1", &[("conv1", width)], bins * KERNEL, true)?,
            conv2: scope.linear("conv2", &[("conv2", width)], width * KERNEL, true)?,
            layers,
            norm: scope.layer_norm("norm", "ln_post", width, NORM_EPS),
            heads: equal_heads(whisper.encoder_attention_heads, width),
            window: config.n_window,
        })
    }

    /// Describes the results as inputs of the next layer; `scope` is that of [`Self::init`].
    pub fn outputs(config: &AudioConfig, scope: &Scope<'_, '_, B>) -> Inputs {
        scope.normed("norm", config.whisper.d_model)
    }

    /// Returns the number of layers.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Returns the number of positions of each block of a spectrogram of `frames` frames.
    pub fn blocks(&self, frames: usize) -> Vec<usize> {
        let block = 2 * self.window;
        let of = |first: usize| (frames - first).min(block).div_ceil(2);
        (0..frames).step_by(block).map(of).collect()
    }

    /// Encodes a spectrogram: `[positions / 2, d_model]`.
    ///
    /// # Errors
    /// If `monitor` cancels.
    pub fn forward(
        &self,
        spectrogram: Spectrogram<'_>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let mut x = {
            let _stage = stage::module("conv");
            self.convolve(spectrogram)
        };
        probe::capture("audio_embed", &x);
        let mut bounds = vec![0];
        for positions in self.blocks(spectrogram.frames) {
            bounds.push(bounds[bounds.len() - 1] + positions);
        }
        let mask = Mask::Segments(&bounds);
        let rows = x.dims()[0];
        for (i, layer) in self.layers.iter().enumerate() {
            let _layer = stage::scope(format_args!("layers.{i}"));
            x = monitor.pass(i, self.layers.len(), |monitor| {
                layer.forward(x, rows, mask, self.heads, monitor)
            })?;
        }
        probe::capture("audio_out", &x);
        let _stage = stage::module("pool");
        Ok(self.norm.forward(pool_by_two(x)))
    }

    /// Applies both convolutions, as products with unfolded frames, and adds the positions.
    fn convolve(&self, spectrogram: Spectrogram<'_>) -> Tensor<B, 2> {
        let device = self.conv1.device();
        let (frames, block) = (spectrogram.frames, 2 * self.window);
        let firsts = (0..frames).step_by(block);
        let unfolded: Vec<f32> = firsts
            .clone()
            .flat_map(|first| {
                let end = (first + block).min(frames);
                let rows = spectrogram.values.chunks_exact(frames);
                let values: Vec<f32> = rows.flat_map(|row| &row[first..end]).copied().collect();
                unfold(Spectrogram {
                    values: &values,
                    frames: end - first,
                })
            })
            .collect();
        let shape = [frames, unfolded.len() / frames];
        let x = Tensor::from_data(TensorData::new(unfolded, shape), &device);
        let x = self.conv1.forward_activated(x, Activation::Gelu);
        let counts = self.blocks(frames);
        let blocks = firsts.zip(&counts).map(|(first, &count)| {
            let rows = (frames - first).min(block);
            unfold_by_two(x.clone().narrow(0, first, rows), count)
        });
        let x = Tensor::cat(blocks.collect(), 0);
        let x = self.conv2.forward_activated(x, Activation::Gelu);
        let width = x.dims()[1];
        let positions: Vec<f32> = (counts.iter())
            .flat_map(|&count| (0..count).flat_map(|position| sinusoids(position, width)))
            .collect();
        let shape = x.dims();
        x + Tensor::from_data(TensorData::new(positions, shape), &device)
    }
}

/// Returns the embedding of a position: sines of all frequencies, then cosines.
fn sinusoids(position: usize, width: usize) -> Vec<f32> {
    let half = width / 2;
    let step = MAX_PERIOD.ln() / (half - 1) as f64;
    let angle = |i: usize| position as f64 * (-step * i as f64).exp();
    let sines = (0..half).map(|i| angle(i).sin());
    let cosines = (0..half).map(|i| angle(i).cos());
    sines.chain(cosines).map(|x| x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sines_come_before_cosines() {
        let found = sinusoids(2, 4);
        let expected = [2f32.sin(), 2e-4f32.sin(), 2f32.cos(), 2e-4f32.cos()];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn impossible_sizes_are_named() {
        for (file, word) in [
            (serde_json::json!({"n_window": 0}), "n_window"),
            (serde_json::json!({"n_window": 2000}), "n_window"),
            (serde_json::json!({"output_dim": 8}), "output_dim"),
            (
                serde_json::json!({"d_model": 2, "encoder_attention_heads": 1}),
                "d_model",
            ),
        ] {
            let config: AudioConfig = serde_json::from_value(file).expect("a section");
            let error = config.check(3584).expect_err("an error").to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
