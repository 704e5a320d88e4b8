//! The kernels of each instruction set.

use super::detect::{Avx2, Avx512Vnni, AvxVnni};
use super::quantized::{avx2_scheme, q4_avx2, q4_avxvnni, q8_avx2, q8_avxvnni, vnni_scheme};
use super::{avx512, delta_rule, float, peak};
use crate::cpu::{ActivationScheme, DeltaSteps, Isa, Kernels, Panels, Strided, Tile};
use crate::format::{FloatFormat, Format, FormatKind, QuantFormat};
use crate::generic::rows::row_kernels;
use crate::operands::Operands;
use crate::simd::simd_kernels;
use half::f16;
use std::ops::Range;

simd_kernels! {
    Avx2,
    features: "avx2,fma",
    scheme: avx2_scheme,
    quantized: { Q8: q8_avx2::panels, Q4: q4_avx2::panels },
    matmul: float::avx2::matmul,
    gemv: float::avx2::float_gemv,
    widen: float::avx2::widen,
    delta_rule: delta_rule::avx2::delta_rule,
    peak: { Float: peak::float_avx2, Q8: peak::q8_avx2, Q4: peak::q4_avx2 },
}
simd_kernels! {
    AvxVnni,
    features: "avx2,fma",
    scheme: vnni_scheme,
    quantized: { Q8: q8_avxvnni::panels, Q4: q4_avxvnni::panels },
    matmul: float::avx2::matmul,
    gemv: float::avx2::float_gemv,
    widen: float::avx2::widen,
    delta_rule: delta_rule::avx2::delta_rule,
    peak: { Float: peak::float_avx2, Q8: peak::avxvnni, Q4: peak::avxvnni },
}
simd_kernels! {
    Avx512Vnni,
    features: "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma",
    scheme: vnni_scheme,
    quantized: { Q8: avx512::panels::<false>, Q4: avx512::panels::<true> },
    matmul: float::avx512::matmul,
    gemv: float::avx2::float_gemv,
    widen: float::avx2::widen,
    delta_rule: delta_rule::avx512::delta_rule,
    peak: { Float: peak::float_avx512, Q8: peak::avx512vnni, Q4: peak::avx512vnni },
}
