//! The audio encoder of Whisper (Radford et al. 2022, <https://arxiv.org/abs/2212.04356>, section
//! 2.2): two convolutions over a log-mel spectrogram, the second one with stride 2, stored
//! positions, and pre-norm transformer blocks. The reference is `modeling_whisper.py` of
//! `transformers`. The norm after the blocks is a separate step, because families pool before it.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use edge_lmm_ops::{Activation, Columns, Heads, KernelBackend, Mask, encoder_attention, stage};
use serde::Deserialize;

use crate::encoders::block::equal_heads;
use crate::error::ModelError;
use crate::layers::{LayerNorm, Linear};
use crate::monitor::Monitor;
use crate::sizes::{self, Section};
use crate::weights::{Inputs, Scope};

/// Epsilon of the norms: PyTorch's default, used by the reference.
pub(super) const NORM_EPS: f64 = 1e-5;

/// Kernel width of both convolutions.
pub(super) const KERNEL: usize = 3;

/// Configuration of the encoder, named as in `config.json`. The defaults are those of the
/// reference's `Qwen2AudioEncoderConfig`, which equal Whisper's large model.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct WhisperConfig {
    /// Mel bins of the spectrogram.
    pub num_mel_bins: usize,
    /// Number of blocks.
    pub encoder_layers: usize,
    /// Attention heads.
    pub encoder_attention_heads: usize,
    /// Width of the MLPs.
    pub encoder_ffn_dim: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of positions, half the maximum number of frames.
    pub max_source_positions: usize,
    /// Activation of the MLPs.
    pub activation_function: String,
}

impl Default for WhisperConfig {
    fn default() -> Self {
        Self {
            num_mel_bins: 128,
            encoder_layers: 32,
            encoder_attention_heads: 20,
            encoder_ffn_dim: 5120,
            d_model: 1280,
            max_source_positions: 1500,
            activation_function: "gelu".to_owned(),
        }
    }
}

impl WhisperConfig {
    /// Checks that the sizes describe a valid model.
    ///
    /// # Errors
    /// If a size is zero or implausible, the width is not divisible by the heads, or the activation
    /// is not supported.
    pub fn check(&self) -> Result<(), ModelError> {
        let section = Section("audio_config");
        section.sizes(&[
            ("num_mel_bins", self.num_mel_bins, 1 << 10),
            ("encoder_layers", self.encoder_layers, sizes::LAYERS),
            (
                "encoder_attention_heads",
                self.encoder_attention_heads,
                sizes::HEADS,
            ),
            ("encoder_ffn_dim", self.encoder_ffn_dim, sizes::FFN),
            ("d_model", self.d_model, sizes::WIDTH),
            ("max_source_positions", self.max_source_positions, 1 << 16),
        ])?;
        section.heads(self.d_model, self.encoder_attention_heads)?;
        section.only("activation_function", &self.activation_function, "gelu")
    }

    /// Returns the maximum number of frames of a spectrogram.
    pub fn max_frames(&self) -> usize {
        2 * self.max_source_positions
    }
}

/// A log-mel spectrogram.
#[derive(Debug, Clone, Copy)]
pub struct Spectrogram<'a> {
    /// `[num_mel_bins, frames]`, row-major.
    pub values: &'a [f32],
    /// Number of frames.
    pub frames: usize,
}

/// The audio encoder.
#[derive(Module, Debug)]
pub struct WhisperEncoder<B: KernelBackend> {
    conv1: Linear<B>,
    conv2: Linear<B>,
    positions: Param<Tensor<B, 2>>,
    layers: Vec<EncoderLayer<B>>,
    norm: LayerNorm<B>,
    #[module(skip)]
    heads: Heads,
}

impl<B: KernelBackend> WhisperEncoder<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If a weight is missing.
    pub fn init(config: &WhisperConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let width = config.d_model;
        let layers = scope
            .layers("layers", config.encoder_layers, |i| format!("layers.{i}"))?
            .iter()
            .map(|scope| EncoderLayer::init(config, scope))
            .collect::<Result<_, _>>()?;
        let bins = config.num_mel_bins;
        let positions = config.max_source_positions;
        Ok(Self {
            conv1: scope.linear("conv1", &[("conv1", width)], bins * KERNEL, true)?,
            conv2: scope.linear("conv2", &[("conv2", width)], width * KERNEL, true)?,
            positions: scope.matrix("positions", "embed_positions.weight", positions, width),
            layers,
            norm: scope.layer_norm("norm", "layer_norm", width, NORM_EPS),
            heads: equal_heads(config.encoder_attention_heads, width),
        })
    }

    /// Describes the normalized states as inputs of the next layer; `scope` is that of
    /// [`Self::init`].
    pub fn outputs(config: &WhisperConfig, scope: &Scope<'_, '_, B>) -> Inputs {
        scope.normed("norm", config.d_model)
    }

    /// Encodes `count` positions (two frames each), of which the first `valid` are attended to.
    /// Positions from `valid` on are padding and do not influence those before.
    ///
    /// # Shapes
    /// - output: `[count, d_model]`
    ///
    /// # Panics
    /// If there are more positions than stored ones, or `valid` is zero or exceeds `count`.
    pub fn forward(
        &self,
        spectrogram: Spectrogram<'_>,
        count: usize,
        valid: usize,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        assert!(0 < valid && valid <= count, "{valid} of {count} positions");
        let mut x = {
            let _stage = stage::module("conv");
            self.convolve(spectrogram, count)
        };
        for (i, layer) in self.layers.iter().enumerate() {
            let _layer = stage::scope(format_args!("layers.{i}"));
            x = monitor.pass(i, self.layers.len(), |monitor| {
                layer.forward(x, valid, Mask::Full, self.heads, monitor)
            })?;
        }
        Ok(x)
    }

    /// Returns the number of blocks.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Applies the norm after the blocks.
    pub fn normalize(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.norm.forward(x)
    }

    /// Applies both convolutions, as products with unfolded frames, and adds the positions.
    fn convolve(&self, spectrogram: Spectrogram<'_>, count: usize) -> Tensor<B, 2> {
        let positions = self.positions.val();
        let device = positions.device();
        let unfolded = unfold(spectrogram);
        let shape = [spectrogram.frames, unfolded.len() / spectrogram.frames];
        let x = Tensor::from_data(TensorData::new(unfolded, shape), &device);
        let x = self.conv1.forward_activated(x, Activation::Gelu);
        let x = unfold_by_two(x, count);
        let x = self.conv2.forward_activated(x, Activation::Gelu);
        x + positions.narrow(0, 0, count)
    }
}

/// Unfolds the frames for a convolution of width 3 with zero padding: `[frames, bins * 3]`, ordered
/// by bin, then tap, as the weights are.
pub(super) fn unfold(spectrogram: Spectrogram<'_>) -> Vec<f32> {
    let frames = spectrogram.frames;
    let bins = spectrogram.values.len() / frames;
    let mut unfolded = vec![0.0; frames * bins * KERNEL];
    for (bin, row) in spectrogram.values.chunks_exact(frames).enumerate() {
        for tap in 0..KERNEL {
            // Output frame `frame` reads input frame `frame + tap - 1`.
            let first = usize::from(tap == 0);
            let last = frames - usize::from(tap == KERNEL - 1);
            for frame in first..last {
                unfolded[(frame * bins + bin) * KERNEL + tap] = row[frame + tap - 1];
            }
        }
    }
    unfolded
}

/// Unfolds the frames for a convolution of width 3 and stride 2 with zero padding: `[frames,
/// width]` to `[count, width * 3]`, ordered by element, then tap.
pub(super) fn unfold_by_two<B: KernelBackend>(x: Tensor<B, 2>, count: usize) -> Tensor<B, 2> {
    let [frames, width] = x.dims();
    let device = x.device();
    // Output frame `i` reads input frames `2 i - 1`, `2 i` and `2 i + 1`.
    let needed = (2 * count).min(frames);
    let mut parts = vec![Tensor::zeros([1, width], &device), x.narrow(0, 0, needed)];
    if needed < 2 * count + 1 {
        parts.push(Tensor::zeros([2 * count + 1 - needed, width], &device));
    }
    let padded = Tensor::cat(parts, 0);
    let pairs = |from: usize| {
        let rows = padded.clone().narrow(0, from, 2 * count);
        rows.reshape([count, 2, width])
    };
    let taps = vec![pairs(0), pairs(2).narrow(1, 0, 1)];
    Tensor::cat(taps, 1)
        .swap_dims(1, 2)
        .reshape([count, width * KERNEL])
}

/// A pre-norm transformer block.
#[derive(Module, Debug)]
pub(super) struct EncoderLayer<B: KernelBackend> {
    attention_norm: LayerNorm<B>,
    // Keys have no bias, so they cannot be fused with queries and values.
    query_value: Linear<B>,
    key: Linear<B>,
    out: Linear<B>,
    mlp_norm: LayerNorm<B>,
    up: Linear<B>,
    down: Linear<B>,
}

impl<B: KernelBackend> EncoderLayer<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If a weight is missing.
    pub fn init(config: &WhisperConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let width = config.d_model;
        let ffn = scope.dimension("ffn", config.encoder_ffn_dim)?;
        let normed = |norm| scope.normed(norm, width);
        let attended = scope.produced("query_value", width, width);
        let attention = scope.child("", "self_attn");
        Ok(Self {
            attention_norm: scope.layer_norm(
                "attention_norm",
                "self_attn_layer_norm",
                width,
                NORM_EPS,
            ),
            query_value: attention.linear(
                "query_value",
                &[("q_proj", width), ("v_proj", width)],
                normed("attention_norm"),
                true,
            )?,
            key: attention.linear("key", &[("k_proj", width)], normed("attention_norm"), false)?,
            out: attention.linear("out", &[("out_proj", width)], attended, true)?,
            mlp_norm: scope.layer_norm("mlp_norm", "final_layer_norm", width, NORM_EPS),
            up: scope.linear("up", &[("fc1", &ffn)], normed("mlp_norm"), true)?,
            down: scope.linear("down", &[("fc2", width)], &ffn, true)?,
        })
    }

    /// Lets every row attend to those of the first `valid` rows that `mask` selects.
    ///
    /// # Errors
    /// If `monitor` cancels.
    pub fn forward(
        &self,
        x: Tensor<B, 2>,
        valid: usize,
        mask: Mask<'_>,
        heads: Heads,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        monitor.report(0, 4)?;
        let x = {
            let _stage = stage::module("attention");
            let width = heads.heads * heads.head_dim;
            let normed = self.attention_norm.forward(x.clone());
            let key = self.key.forward(first_rows(normed.clone(), valid));
            let query_value = self.query_value.forward(normed);
            let value = Columns {
                tensor: first_rows(query_value.clone(), valid),
                column: width,
            };
            let scale = (heads.head_dim as f32).powf(-0.5);
            let quantized = self.query_value.is_quantized();
            monitor.report(1, 4)?;
            let attended =
                encoder_attention(query_value, key, value, heads, mask, scale, quantized);
            monitor.report(2, 4)?;
            self.out.forward_residual(attended, x)
        };
        monitor.report(3, 4)?;
        let _stage = stage::module("mlp");
        let normed = self.mlp_norm.forward(x.clone());
        Ok(self
            .up
            .feed_forward(normed, Activation::Gelu, &self.down, Some(x)))
    }
}

/// Averages pairs of rows; an odd last row is dropped.
pub(crate) fn pool_by_two<B: KernelBackend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let [rows, width] = x.dims();
    let pairs = x.narrow(0, 0, rows / 2 * 2);
    pairs
        .reshape([rows / 2, 2, width])
        .mean_dim(1)
        .reshape([rows / 2, width])
}

/// Returns the first `count` rows; copies only if there are more.
fn first_rows<B: KernelBackend>(x: Tensor<B, 2>, count: usize) -> Tensor<B, 2> {
    if x.dims()[0] == count {
        x
    } else {
        x.narrow(0, 0, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Cpu = burn_ndarray::NdArray<f32, i64, i8>;

    #[test]
    fn frames_see_their_neighbors() {
        let spectrogram = Spectrogram {
            values: &[1.0, 2.0, 3.0, 10.0, 20.0, 30.0],
            frames: 3,
        };
        let expected = [
            [0.0, 1.0, 2.0, 0.0, 10.0, 20.0],
            [1.0, 2.0, 3.0, 10.0, 20.0, 30.0],
            [2.0, 3.0, 0.0, 20.0, 30.0, 0.0],
        ];
        assert_eq!(unfold(spectrogram), expected.concat());
        let one = Spectrogram {
            values: &[5.0, 6.0],
            frames: 1,
        };
        assert_eq!(unfold(one), [0.0, 5.0, 0.0, 0.0, 6.0, 0.0]);
    }

    #[test]
    fn every_second_frame_sees_its_neighbors() {
        let device = Default::default();
        let x = || Tensor::<Cpu, 2>::from_floats([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]], &device);
        let values = |x: Tensor<Cpu, 2>| x.into_data().into_vec::<f32>().unwrap();
        let expected = [
            [0.0, 1.0, 2.0, 0.0, 10.0, 20.0],
            [2.0, 3.0, 0.0, 20.0, 30.0, 0.0],
        ];
        assert_eq!(values(unfold_by_two(x(), 2)), expected.concat());
        assert_eq!(values(unfold_by_two(x(), 1)), expected[0]);
    }
}
