//! Norms, with one cube per row.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::tensor::{Rows, cubes, elements};
use crate::stage;

const UNITS: usize = 256;
/// Halvings that leave one of [`UNITS`] sums.
const HALVINGS: usize = UNITS.ilog2() as usize;

/// Sums a value over all units of the cube; valid for all units.
#[cube]
fn sum_over_cube(value: f32, shared: &mut SharedMemory<f32>) -> f32 {
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for i in 0..HALVINGS {
        let half = comptime!(UNITS >> (i + 1));
        if unit < half {
            let other = shared[unit + half];
            shared[unit] += other;
        }
        sync_cube();
    }
    let sum = shared[0];
    // All units must have read this sum before the next one is written.
    sync_cube();
    sum
}

/// Returns the factor, or NaN if the mean square has overflowed. The factor is 0 then and would
/// hide the overflow by turning it into zeros.
#[cube]
fn overflow_to_nan(mean_square: f32, factor: f32) -> f32 {
    let is_finite = u32::reinterpret(mean_square) < 0x7F80_0000u32;
    let nan = f32::reinterpret(0x7FC0_0000u32);
    select(is_finite, factor, nan)
}

#[cube(launch_unchecked)]
fn rms_norm_kernel(
    x: &Array<f32>,
    gamma: &Array<f32>,
    out: &mut Array<f32>,
    rows: usize,
    width: usize,
    stride: usize,
    eps: f32,
) {
    if CUBE_POS >= rows {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let (row, unit) = (CUBE_POS * stride, UNIT_POS as usize);
    let mut sum = 0.0f32;
    for i in range_stepped(unit, width, UNITS) {
        sum += x[row + i] * x[row + i];
    }
    let mean_square = sum_over_cube(sum, &mut shared) / f32::cast_from(width);
    let factor = overflow_to_nan(mean_square, 1.0f32 / f32::sqrt(mean_square + eps));
    for i in range_stepped(unit, width, UNITS) {
        out[CUBE_POS * width + i] = x[row + i] * factor * gamma[i];
    }
}

#[cube(launch_unchecked)]
fn layer_norm_kernel(
    x: &Array<f32>,
    gamma: &Array<f32>,
    beta: &Array<f32>,
    out: &mut Array<f32>,
    rows: usize,
    width: usize,
    stride: usize,
    eps: f32,
) {
    if CUBE_POS >= rows {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let (row, unit) = (CUBE_POS * stride, UNIT_POS as usize);
    let mut sum = 0.0f32;
    for i in range_stepped(unit, width, UNITS) {
        sum += x[row + i];
    }
    let mean = sum_over_cube(sum, &mut shared) / f32::cast_from(width);
    // A separate pass, because the difference of two large sums would cancel.
    let mut squares = 0.0f32;
    for i in range_stepped(unit, width, UNITS) {
        let centered = x[row + i] - mean;
        squares += centered * centered;
    }
    let variance = sum_over_cube(squares, &mut shared) / f32::cast_from(width);
    let factor = overflow_to_nan(variance, 1.0f32 / f32::sqrt(variance + eps));
    for i in range_stepped(unit, width, UNITS) {
        out[CUBE_POS * width + i] = (x[row + i] - mean) * factor * gamma[i] + beta[i];
    }
}

/// See [`KernelBackend::fused_rms_norm`](crate::KernelBackend::fused_rms_norm).
pub(super) fn rms_norm<R: CubeRuntime>(
    x: &CubeTensor<R>,
    gamma: &CubeTensor<R>,
    eps: f32,
) -> CubeTensor<R> {
    let x = Rows::of(x);
    let out = Rows::empty(&x, x.rows, x.width);
    if x.rows > 0 {
        stage::launched();
        // SAFETY: cubes below `rows` access one row each.
        #[allow(unsafe_code)]
        unsafe {
            rms_norm_kernel::launch_unchecked::<R>(
                x.client(),
                cubes(x.rows),
                CubeDim::new_1d(UNITS as u32),
                x.arg(),
                elements(gamma),
                out.arg(),
                x.rows,
                x.width,
                x.stride,
                eps,
            );
        }
    }
    out.into_tensor()
}

/// See [`KernelBackend::fused_layer_norm`](crate::KernelBackend::fused_layer_norm).
pub(super) fn layer_norm<R: CubeRuntime>(
    x: &CubeTensor<R>,
    gamma: &CubeTensor<R>,
    beta: &CubeTensor<R>,
    eps: f32,
) -> CubeTensor<R> {
    let x = Rows::of(x);
    let out = Rows::empty(&x, x.rows, x.width);
    if x.rows > 0 {
        stage::launched();
        // SAFETY: cubes below `rows` access one row each.
        #[allow(unsafe_code)]
        unsafe {
            layer_norm_kernel::launch_unchecked::<R>(
                x.client(),
                cubes(x.rows),
                CubeDim::new_1d(UNITS as u32),
                x.arg(),
                elements(gamma),
                elements(beta),
                out.arg(),
                x.rows,
                x.width,
                x.stride,
                eps,
            );
        }
    }
    out.into_tensor()
}
