//! Products with float weights.

use super::math::fma;
use crate::cpu::Strided;
use crate::element::Element;
use crate::format::{FloatFormat, PANEL, float_at, half_at};

/// Products with one token; each output is a sequence of multiply-adds in input order.
#[inline(always)]
pub(super) fn float_gemv<const FMA: bool>(
    format: FloatFormat,
    panels: &[u8],
    panel_bytes: usize,
    x: &[f32],
    acc: &mut [f32],
) {
    for (acc, panel) in acc
        .chunks_exact_mut(PANEL)
        .zip(panels.chunks_exact(panel_bytes))
    {
        for (i, x) in x.iter().enumerate() {
            for (r, acc) in acc.iter_mut().enumerate() {
                let at = i * PANEL + r;
                *acc = fma::<FMA>(float_at(format, panel, at), *x, *acc);
            }
        }
    }
}

/// Matrix product; see [`Kernels::matmul`](crate::cpu::Kernels::matmul).
#[inline(always)]
pub(super) fn matmul<const FMA: bool, T: Element>(
    [m, n, k]: [usize; 3],
    a: Strided<'_>,
    b: Strided<'_, T>,
    add: bool,
    c: &mut [f32],
    c_stride: usize,
) {
    for i in 0..m {
        let a = &a.data[i * a.stride..][..k];
        for j in (0..n).step_by(PANEL) {
            let c: &mut [f32; PANEL] = (&mut c[i * c_stride + j..][..PANEL])
                .try_into()
                .expect("8 columns");
            let mut sums = if add { *c } else { [0.0; PANEL] };
            for (p, a) in a.iter().enumerate() {
                let b: &[T; PANEL] = b.data[p * b.stride + j..][..PANEL]
                    .try_into()
                    .expect("8 columns");
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = fma::<FMA>(*a, b.to_f32(), *sum);
                }
            }
            *c = sums;
        }
    }
}

/// Converts little-endian half-precision numbers.
#[inline(always)]
pub(crate) fn widen(halves: &[u8], out: &mut [f32]) {
    assert_eq!(halves.len(), 2 * out.len(), "two bytes per number");
    for (i, out) in out.iter_mut().enumerate() {
        *out = half_at(halves, i).to_f32();
    }
}
