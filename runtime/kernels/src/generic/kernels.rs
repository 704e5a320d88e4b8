//! The portable kernels, compiled for the target's baseline.

use super::rows::row_kernels;
use super::{delta_rule, float, quantized};
use crate::cpu::{ActivationScheme, DeltaSteps, Isa, Kernels, Panels, Strided, Tile};
use crate::format::{FloatFormat, Format, QuantFormat};
use half::f16;
use std::ops::Range;

/// Kernels for [`Isa::Generic`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generic;

impl Kernels for Generic {
    fn isa(&self) -> Isa {
        Isa::Generic
    }

    fn activation_scheme(&self, format: QuantFormat) -> ActivationScheme {
        match format {
            // The reference multiplies signed numbers, which need no offset.
            QuantFormat::Q8 | QuantFormat::Q4 => ActivationScheme::signed(0),
        }
    }

    fn quantized(&self, panels: Panels<'_>, range: Range<usize>, tile: Tile<'_>, acc: &mut [f32]) {
        quantized::quantized(panels, range, tile, acc)
    }

    fn matmul(
        &self,
        size: [usize; 3],
        a: Strided<'_>,
        b: Strided<'_>,
        add: bool,
        c: &mut [f32],
        c_stride: usize,
    ) {
        float::matmul::<false, f32>(size, a, b, add, c, c_stride)
    }

    fn matmul_half(
        &self,
        size: [usize; 3],
        a: Strided<'_>,
        b: Strided<'_, f16>,
        c: &mut [f32],
        c_stride: usize,
    ) {
        float::matmul::<false, f16>(size, a, b, false, c, c_stride)
    }

    fn float_gemv(
        &self,
        format: FloatFormat,
        panels: &[u8],
        panel_bytes: usize,
        x: &[f32],
        acc: &mut [f32],
    ) {
        acc.fill(0.0);
        float::float_gemv::<false>(format, panels, panel_bytes, x, acc)
    }

    fn widen(&self, halves: &[u8], out: &mut [f32]) {
        float::widen(halves, out)
    }

    fn delta_rule(&self, steps: DeltaSteps<'_>, state: &mut [f32], out: &mut [f32]) {
        delta_rule::delta_rule(steps, state, out)
    }

    row_kernels!(false);

    fn peak_loop(&self, _: Format, _: u32) -> Option<u64> {
        None
    }
}
