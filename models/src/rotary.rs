//! Tables of rotary position embeddings (Su et al. 2021), in one, two or three dimensions.

use burn::tensor::{Tensor, TensorData};
use edge_lmm_ops::{KernelBackend, rope};

/// Cosines and sines for a run of tokens, half a head wide.
#[derive(Debug, Clone)]
pub struct RotaryTable<B: KernelBackend> {
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
}

/// `theta^(-2i / dim)` for `i < dim / 2`.
pub fn inverse_frequencies(theta: f64, dim: usize) -> Vec<f32> {
    (0..dim / 2)
        .map(|i| (1.0 / theta.powf(2.0 * i as f64 / dim as f64)) as f32)
        .collect()
}

impl<B: KernelBackend> RotaryTable<B> {
    /// The table of `tokens` tokens, `half` angles each, all multiplied by `scale` after the
    /// cosine and sine.
    pub fn new(
        tokens: usize,
        half: usize,
        scale: f32,
        angle: impl Fn(usize, usize) -> f32,
        device: &B::Device,
    ) -> Self {
        let mut cos = Vec::with_capacity(tokens * half);
        let mut sin = Vec::with_capacity(tokens * half);
        for token in 0..tokens {
            for i in 0..half {
                let (s, c) = angle(token, i).sin_cos();
                cos.push(c * scale);
                sin.push(s * scale);
            }
        }
        let table = |values| Tensor::from_data(TensorData::new(values, [tokens, half]), device);
        Self {
            cos: table(cos),
            sin: table(sin),
        }
    }

    /// Rotates `heads` heads of `head_dim` elements from column `column` on.
    pub fn rotate(
        &self,
        x: Tensor<B, 2>,
        column: usize,
        heads: usize,
        head_dim: usize,
    ) -> Tensor<B, 2> {
        rope(x, column, heads, head_dim, &self.cos, &self.sin)
    }
}
