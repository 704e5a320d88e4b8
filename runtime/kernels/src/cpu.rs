//! Instruction sets, and the interface that each of them implements.

use crate::activation::Activation;
use crate::format::{FloatFormat, Format, QuantFormat};
use crate::names::{alternatives, named_enum};
use half::f16;
use std::ops::Range;
use std::str::FromStr;

named_enum! {
    /// An instruction set with its own kernels.
    pub enum Isa {
        /// Portable reference code, compiled for the target's baseline.
        Generic = "generic",
        /// x86-64 with AVX2, FMA and F16C (Haswell, Zen and later).
        Avx2 = "avx2",
        /// AVX2 with AVX-VNNI (Alder Lake, Zen 5 and later).
        AvxVnni = "avxvnni",
        /// AVX-512 (F, BW, DQ, VL) with VNNI (Cascade Lake, Zen 4 and later).
        Avx512Vnni = "avx512vnni",
        /// AArch64 with Advanced SIMD (Cortex-A72: Raspberry Pi 4).
        Neon = "neon",
        /// AArch64 with `sdot` (Cortex-A76: Raspberry Pi 5; A78AE: Jetson Orin).
        NeonDotprod = "neondotprod",
    }
}

impl Isa {
    /// Returns `true` if the instruction set has a dot product of bytes. Byte products are then so
    /// much faster than float products that attention gains from quantized operands, too.
    pub const fn has_dot_product(self) -> bool {
        match self {
            Isa::Generic | Isa::Avx2 | Isa::Neon => false,
            Isa::AvxVnni | Isa::Avx512Vnni | Isa::NeonDotprod => true,
        }
    }
}

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(s: &str) -> Result<Self, UnknownIsa> {
        Isa::from_name(s).ok_or_else(|| UnknownIsa(s.to_owned()))
    }
}

/// The text is not the name of an [`Isa`].
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[error(
    "unknown instruction set {0:?}: expected {names}",
    names = alternatives(Isa::ALL.map(Isa::name))
)]
pub struct UnknownIsa(pub String);

/// Scheme by which activations are quantized for a product with quantized weights.
///
/// For each token and group of 128 inputs, `scale = max |x| / max_quant`, and `x` is stored as the
/// byte `round(x / scale) + bias`. For each block of 32 inputs an offset is stored,
/// `offset_factor * sum of round(x / scale)`, which cancels the constant that a kernel adds to the
/// weights to make them unsigned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationScheme {
    /// Largest magnitude of a quant.
    pub max_quant: f32,
    /// Constant added to each quant before it is stored as a byte.
    pub bias: u8,
    /// Factor by which the sum of a block's quants is multiplied.
    pub offset_factor: i32,
    /// `true` if an offset is stored as two 16-bit halves: in the lower one the sum over the first two
    /// of every four consecutive quants, in the upper one the sum over the others.
    pub offset_pairs: bool,
}

impl ActivationScheme {
    /// Signed bytes in -127..=127 with the given offset factor.
    pub(crate) const fn signed(offset_factor: i32) -> Self {
        Self {
            max_quant: 127.0,
            bias: 0,
            offset_factor,
            offset_pairs: false,
        }
    }
}

/// Consecutive panels of quantized weights.
#[derive(Clone, Copy, Debug)]
pub struct Panels<'a> {
    /// Format of the weights.
    pub format: QuantFormat,
    /// Packed bytes, laid out as described in [`format`](mod@crate::format).
    pub bytes: &'a [u8],
    /// Bytes of one panel.
    pub panel_bytes: usize,
    /// Blocks of 32 inputs.
    pub blocks: usize,
}

impl Panels<'_> {
    /// Number of panels.
    pub fn count(&self) -> usize {
        self.bytes.len() / self.panel_bytes.max(1)
    }
}

/// Largest number of tokens in a tile. Weights are unpacked once for all tokens of a tile. A group
/// of 128 inputs of all of them fits the L1 cache of a Cortex-A76, a block that of any core.
pub const TILE_TOKENS: usize = 256;

/// Quantized activations of at most [`TILE_TOKENS`] tokens. Entry `b * tokens + t` belongs to block
/// (or group) `b` of token `t`.
#[derive(Clone, Copy, Debug)]
pub struct Tile<'a> {
    /// Number of tokens.
    pub tokens: usize,
    /// 32 bytes per block.
    pub quants: &'a [u8],
    /// One scale per group.
    pub scales: &'a [f32],
    /// One offset per block.
    pub offsets: &'a [i32],
}

/// A view of a row-major matrix.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a, T = f32> {
    /// Elements; row `i` begins at element `i * stride`.
    pub data: &'a [T],
    /// Elements from one row to the next.
    pub stride: usize,
}

/// Tokens for the gated delta rule on up to [`COLUMNS`](crate::delta_rule::COLUMNS) columns of the state
/// of a head.
#[derive(Clone, Copy, Debug)]
pub struct DeltaSteps<'a> {
    /// A key per token.
    pub keys: Strided<'a>,
    /// A query per token.
    pub queries: Strided<'a>,
    /// The values of the columns, a row per token.
    pub values: Strided<'a>,
    /// Number of columns; the others of the state and of the output are padding.
    pub columns: usize,
    /// Factors of the state, one per token.
    pub decays: &'a [f32],
    /// Factors of the update, one per token.
    pub rates: &'a [f32],
}

impl<'a> DeltaSteps<'a> {
    pub(crate) fn key(&self, token: usize, len: usize) -> &'a [f32] {
        &self.keys.data[token * self.keys.stride..][..len]
    }

    pub(crate) fn query(&self, token: usize, len: usize) -> &'a [f32] {
        &self.queries.data[token * self.queries.stride..][..len]
    }

    pub(crate) fn value(&self, token: usize) -> &'a [f32] {
        &self.values.data[token * self.values.stride..][..self.columns]
    }
}

/// The kernels of an instruction set. They run on one thread; callers divide the work into pieces
/// that fit the caches.
///
/// All methods panic if a slice is too short for the sizes given with it.
pub trait Kernels: Send + Sync {
    /// The instruction set.
    fn isa(&self) -> Isa;

    /// Scheme by which activations are quantized for weights of `format`.
    fn activation_scheme(&self, format: QuantFormat) -> ActivationScheme;

    /// Quantizes the activations `x` of one token and returns the sum of all quants.
    ///
    /// Block `b` becomes entry `b * step` of `quants` (32 bytes each) and `offsets`, group `g` entry
    /// `g * step` of `scales`. A group that contains NaN or an infinity gets a scale that is not
    /// finite, so that the products show it.
    fn quantize(
        &self,
        scheme: ActivationScheme,
        x: &[f32],
        quants: &mut [u8],
        scales: &mut [f32],
        offsets: &mut [i32],
        step: usize,
    ) -> i32;

    /// Adds the products of `panels` and `tile` over the groups `range`, in order, to
    /// `acc[(token * panels + panel) * 8 + row]`. The products of a group are summed in integers,
    /// then multiplied by the product of the two scales.
    fn quantized(&self, panels: Panels<'_>, range: Range<usize>, tile: Tile<'_>, acc: &mut [f32]);

    /// Matrix product `c[i, j] = sum of a[i, p] * b[p, j]` for `i < m`, `j < n`, with `p < k`
    /// ascending; added to `c` if `add`. `n` must be a multiple of 8.
    fn matmul(
        &self,
        size: [usize; 3],
        a: Strided<'_>,
        b: Strided<'_>,
        add: bool,
        c: &mut [f32],
        c_stride: usize,
    );

    /// As [`matmul`](Self::matmul) without `add`, with `b` in half precision. The result is the same
    /// as with `b` converted to single precision.
    fn matmul_half(
        &self,
        size: [usize; 3],
        a: Strided<'_>,
        b: Strided<'_, f16>,
        c: &mut [f32],
        c_stride: usize,
    );

    /// Products of float panels with one token: `acc[panel * 8 + row]`. The sequence of operations
    /// is that of [`matmul`](Self::matmul) without `add`.
    fn float_gemv(
        &self,
        format: FloatFormat,
        panels: &[u8],
        panel_bytes: usize,
        x: &[f32],
        acc: &mut [f32],
    );

    /// Converts little-endian half-precision numbers to single precision.
    fn widen(&self, halves: &[u8], out: &mut [f32]);

    /// Replaces `s` by `exp(s - max)` and returns the maximum and the sum. If all elements are -inf,
    /// the result is (-inf, NaN).
    fn softmax(&self, s: &mut [f32]) -> (f32, f32);

    /// `acc = acc * alpha + x * beta`.
    fn merge(&self, acc: &mut [f32], alpha: f32, x: &[f32], beta: f32);

    /// Applies an activation function in place.
    fn activate(&self, activation: Activation, x: &mut [f32]);

    /// `out = activation(gate) * up`.
    fn gated(&self, activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]);

    /// `x / sqrt(mean(x^2) + eps) * gamma`.
    fn rms_norm(&self, x: &[f32], gamma: &[f32], eps: f32, out: &mut [f32]);

    /// `(x - mean) / sqrt(variance + eps) * gamma + beta`.
    fn layer_norm(&self, x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, out: &mut [f32]);

    /// `low, high = low * cos - high * sin, high * cos + low * sin`.
    fn rotate(&self, low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32]);

    /// `sum = sum + x * y`.
    fn multiply_add(&self, x: &[f32], y: &[f32], sum: &mut [f32]);

    /// Applies the gated delta rule to columns of a state for each token in turn: with `key`, `query`,
    /// `value`, `decay` and `rate` of the token, `state = state * decay`, then
    /// `state = state + key (rate (value - stateᵀ key))ᵀ`; the output is `stateᵀ query`.
    ///
    /// `state` has a row of [`COLUMNS`](crate::delta_rule::COLUMNS) elements for each element of a key,
    /// `out` one for each token. The result does not depend on how tokens are divided into calls.
    fn delta_rule(&self, steps: DeltaSteps<'_>, state: &mut [f32], out: &mut [f32]);

    /// Runs `rounds` rounds of the multiply-add instructions used for weights of `format` on
    /// registers only, at peak throughput. Returns the number of operations, two per multiply-add,
    /// or `None` for the portable kernels, whose instructions the compiler chooses.
    fn peak_loop(&self, format: Format, rounds: u32) -> Option<u64>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        assert_eq!(
            "mmx".parse::<Isa>().unwrap_err().to_string(),
            "unknown instruction set \"mmx\": expected generic, avx2, avxvnni, avx512vnni, neon or \
             neondotprod"
        );
    }
}
