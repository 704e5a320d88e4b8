//! Which instruction set computes, and what each must be able to do.

use crate::activation::Activation;
use crate::format::Format;
use crate::generic::Generic;
use half::f16;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::OnceLock;

/// The environment variable that overrides the choice: the name of an [`Isa`].
pub const ISA_VARIABLE: &str = "EDGE_LMM_ISA";

/// An instruction set with kernels of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Portable code, compiled for the target's baseline.
    Generic,
    /// x86-64 with AVX2, FMA and F16C (Haswell, Zen and later).
    Avx2,
    /// AVX2 with AVX-VNNI (Alder Lake, Zen 5 and later).
    AvxVnni,
    /// AVX-512 (F, BW, DQ, VL) with VNNI (Cascade Lake, Zen 4 and later).
    Avx512Vnni,
    /// AArch64 with Advanced SIMD (Cortex-A72: Raspberry Pi 4).
    Neon,
    /// AArch64 with `sdot` (Cortex-A76: Raspberry Pi 5; A78AE: Jetson Orin).
    NeonDotprod,
}

impl Isa {
    /// Every instruction set, the slowest first.
    pub const ALL: [Isa; 6] = [
        Isa::Generic,
        Isa::Avx2,
        Isa::AvxVnni,
        Isa::Avx512Vnni,
        Isa::Neon,
        Isa::NeonDotprod,
    ];

    /// The instruction sets that this machine has, the slowest first.
    pub fn available() -> Vec<Isa> {
        Isa::ALL
            .into_iter()
            .filter(|isa| isa.find().is_some())
            .collect()
    }

    /// The fastest instruction set that this machine has.
    pub fn best() -> Isa {
        Isa::available().pop().unwrap_or(Isa::Generic)
    }

    /// The instruction set in use: [`best`](Self::best) unless [`ISA_VARIABLE`] names another one.
    pub fn selected() -> &'static Selection {
        static SELECTED: OnceLock<Selection> = OnceLock::new();
        SELECTED.get_or_init(|| select(std::env::var(ISA_VARIABLE).ok().as_deref()))
    }

    /// Its kernels; the portable ones where this machine does not have it.
    pub fn kernels(self) -> &'static dyn Kernels {
        self.find().unwrap_or(&Generic)
    }

    fn find(self) -> Option<&'static dyn Kernels> {
        match self {
            Isa::Generic => Some(&Generic),
            #[cfg(target_arch = "x86_64")]
            isa => crate::x86_64::find(isa),
            #[cfg(target_arch = "aarch64")]
            isa => crate::aarch64::find(isa),
            #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
            _ => None,
        }
    }
}

/// The outcome of choosing an instruction set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// What is used.
    pub isa: Isa,
    /// Why it is not what [`ISA_VARIABLE`] asked for, if so.
    pub error: Option<String>,
}

fn select(wish: Option<&str>) -> Selection {
    let Some(wish) = wish else {
        return Selection {
            isa: Isa::best(),
            error: None,
        };
    };
    match wish.parse::<Isa>() {
        Ok(isa) if isa.find().is_some() => Selection { isa, error: None },
        failed => {
            let isa = Isa::best();
            let have: Vec<String> = Isa::available().iter().map(Isa::to_string).collect();
            let what = if failed.is_ok() {
                "not available on this machine"
            } else {
                "unknown"
            };
            let have = have.join(", ");
            Selection {
                isa,
                error: Some(format!(
                    "{ISA_VARIABLE}={wish} is {what} (it has {have}): using {isa}"
                )),
            }
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Isa::Generic => "generic",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Neon => "neon",
            Isa::NeonDotprod => "neondotprod",
        })
    }
}

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(s: &str) -> Result<Self, UnknownIsa> {
        Isa::ALL
            .into_iter()
            .find(|isa| isa.to_string() == s)
            .ok_or_else(|| UnknownIsa(s.to_owned()))
    }
}

/// Not the name of an [`Isa`].
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[error(
    "unknown instruction set {0:?}: expected generic, avx2, avxvnni, avx512vnni, neon or neondotprod"
)]
pub struct UnknownIsa(pub String);

/// How activations are turned into bytes for a product with quantized weights.
///
/// Per token and group of 128 inputs, with `scale = max |x| / limit`, the byte of `x` is `round(x / scale) + bias`. For
/// each block of 32 inputs there is an offset, `sum of round(x / scale) * offset`, with which a kernel undoes what it
/// adds to weights to make them unsigned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationCode {
    /// Largest magnitude of a quant.
    pub limit: f32,
    /// Added to every quant before it is stored as a byte.
    pub bias: u8,
    /// What the sum of a block's quants is multiplied with.
    pub offset: i32,
    /// Whether the offset is stored as two equal 16-bit halves.
    pub pairs: bool,
}

/// Consecutive panels of quantized weights.
#[derive(Clone, Copy, Debug)]
pub struct Panels<'a> {
    /// [`Format::Q8`] or [`Format::Q4`].
    pub format: Format,
    /// The packed bytes, as the module [`format`](mod@crate::format) describes them.
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

/// Tokens of a tile at most. Weights are unpacked once for all of them, and 128 inputs of each fit the first cache of a
/// Cortex-A76, those of a block that of any core.
pub const TILE_TOKENS: usize = 256;

/// The quantized activations of at most [`TILE_TOKENS`] tokens: entry `b * tokens + t` belongs to block (or group) `b` of
/// token `t`.
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

/// A view of a row-major matrix of floats.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a, T = f32> {
    /// Row `i` begins at element `i * stride`.
    pub data: &'a [T],
    /// Elements from one row to the next.
    pub stride: usize,
}

/// What an instruction set implements. Callers cut the work into pieces that fit the caches; these methods run
/// on one thread.
///
/// All methods panic when slices are too short for the sizes given with them.
pub trait Kernels: Send + Sync {
    /// The instruction set.
    fn isa(&self) -> Isa;

    /// Whether products of bytes are so much faster than those of floats that attention gains from them, too.
    fn has_dot_product(&self) -> bool {
        matches!(
            self.isa(),
            Isa::AvxVnni | Isa::Avx512Vnni | Isa::NeonDotprod
        )
    }

    /// How activations are quantized for weights of `format`.
    fn code(&self, format: Format) -> ActivationCode;

    /// Quantizes one token's activations `x`; block `b` becomes entry `b * step` of `quants` (32 bytes) and `offsets`, group
    /// `g` entry `g * step` of `scales`. A group with a NaN or an infinity gets a NaN or infinite scale, so that the result
    /// shows it. Returns the sum of all quants.
    fn quantize(
        &self,
        code: ActivationCode,
        x: &[f32],
        quants: &mut [u8],
        scales: &mut [f32],
        offsets: &mut [i32],
        step: usize,
    ) -> i32;

    /// Adds the products of `panels` with `tile` over the groups in `range`, in their order, to
    /// `acc[(token * panels + panel) * 8 + row]`: a group's products are summed in integers, then multiplied with the
    /// product of the two scales.
    fn quantized(&self, panels: Panels<'_>, range: Range<usize>, tile: Tile<'_>, acc: &mut [f32]);

    /// `c[i, j] = sum over p of a[i, p] * b[p, j]`, `p` ascending, for `i < m`, `j < n`, `p < k`; added to what is in `c`
    /// if `add`. `n` is a multiple of 8.
    fn matmul(
        &self,
        size: [usize; 3],
        a: Strided<'_>,
        b: Strided<'_>,
        add: bool,
        c: &mut [f32],
        c_stride: usize,
    );

    /// As [`matmul`](Self::matmul) from zero, with half-precision numbers in `b`, which are widened on the way: the same
    /// numbers as with `b` in single precision.
    fn matmul_half(
        &self,
        size: [usize; 3],
        a: Strided<'_>,
        b: Strided<'_, f16>,
        c: &mut [f32],
        c_stride: usize,
    );

    /// The products of float panels (f32 or f16 as packed) with one token, `acc[panel * 8 + row]`; the same chain
    /// of operations as [`matmul`](Self::matmul) from zero.
    fn float_gemv(
        &self,
        format: Format,
        panels: &[u8],
        panel_bytes: usize,
        x: &[f32],
        acc: &mut [f32],
    );

    /// Converts half-precision numbers (little endian).
    fn widen(&self, halves: &[u8], out: &mut [f32]);

    /// `exp(s - max)` in place; returns the maximum and the sum. All -inf gives (-inf, NaN).
    fn softmax(&self, s: &mut [f32]) -> (f32, f32);

    /// `acc = acc * alpha + x * beta`.
    fn merge(&self, acc: &mut [f32], alpha: f32, x: &[f32], beta: f32);

    /// Applies an activation in place.
    fn activate(&self, activation: Activation, x: &mut [f32]);

    /// `out = activation(gate) * up`.
    fn gated(&self, activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]);

    /// `x / sqrt(mean(x^2) + eps) * gamma`.
    fn rms_norm(&self, x: &[f32], gamma: &[f32], eps: f32, out: &mut [f32]);

    /// `(x - mean) / sqrt(variance + eps) * gamma + beta`.
    fn layer_norm(&self, x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, out: &mut [f32]);

    /// `low, high = low * cos - high * sin, high * cos + low * sin`.
    fn rotate(&self, low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32]);

    /// Multiplies and adds registers as fast as this instruction set can for weights of `format`, reading nothing from
    /// memory; returns the number of operations, two for a product and its addition. `None` where that is not known.
    fn spin(&self, _format: Format, _rounds: u32) -> Option<u64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
    }

    #[test]
    fn kernels_are_what_they_say() {
        for isa in Isa::available() {
            assert_eq!(isa.kernels().isa(), isa);
        }
        let names: Vec<String> = Isa::available().iter().map(Isa::to_string).collect();
        println!("instruction sets: {}", names.join(", "));
        assert_eq!(Isa::available()[0], Isa::Generic);
        assert!(Isa::available().contains(&Isa::best()));
    }

    #[test]
    fn a_wish_is_followed_or_refused_with_a_reason() {
        assert_eq!(
            select(Some("generic")),
            Selection {
                isa: Isa::Generic,
                error: None
            }
        );
        let unknown = select(Some("mmx"));
        assert_eq!(unknown.isa, Isa::best());
        assert!(
            unknown
                .error
                .unwrap()
                .contains("EDGE_LMM_ISA=mmx is unknown")
        );
        let missing = Isa::ALL
            .into_iter()
            .find(|isa| !Isa::available().contains(isa))
            .unwrap();
        let refused = select(Some(&missing.to_string()));
        assert_eq!(refused.isa, Isa::best());
        assert!(refused.error.unwrap().contains("not available"));
    }
}
