//! The kernels of each instruction set.

use super::detect::{Neon, NeonDotprod};
use super::{delta_rule, dotprod, float, peak, smlal};
use crate::cpu::{ActivationScheme, DeltaSteps, Isa, Kernels, Panels, Strided, Tile};
use crate::format::{FloatFormat, Format, FormatKind, QuantFormat};
use crate::generic::rows::row_kernels;
use crate::operands::Operands;
use crate::simd::simd_kernels;
use half::f16;
use std::ops::Range;

simd_kernels! {
    Neon,
    features: "neon",
    scheme: smlal::scheme,
    quantized: { Q8: smlal::q8, Q4: smlal::q4 },
    matmul: float::matmul,
    gemv: float::float_gemv,
    widen: float::widen,
    delta_rule: delta_rule::delta_rule,
    peak: { Float: peak::float, Q8: peak::q8_neon, Q4: peak::q4_neon },
}
simd_kernels! {
    NeonDotprod,
    features: "neon",
    scheme: dotprod::scheme,
    quantized: { Q8: dotprod::q8, Q4: dotprod::q4 },
    matmul: float::matmul,
    gemv: float::float_gemv,
    widen: float::widen,
    delta_rule: delta_rule::delta_rule,
    peak: { Float: peak::float, Q8: peak::dotprod, Q4: peak::dotprod },
}
