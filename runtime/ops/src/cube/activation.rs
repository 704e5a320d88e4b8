//! Activation functions, and the gate of a feed-forward network.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use edge_lmm_kernels::activation::Activation;

use super::tensor::{Rows, cubes};
use crate::stage;

const UNITS: usize = 256;
const SQRT_2_OVER_PI: f32 = 0.797_884_6;

/// Applies an activation function to one element.
#[cube]
pub(super) fn activate(x: f32, #[comptime] activation: Activation) -> f32 {
    match activation {
        Activation::None => x,
        Activation::Relu => max(x, 0.0f32),
        Activation::Gelu => x * 0.5f32 * (1.0f32 + Erf::erf(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = SQRT_2_OVER_PI * (x + 0.044_715f32 * x * x * x);
            // x / 2 (1 + tanh(inner)) = x sigmoid(2 inner)
            x * sigmoid(2.0f32 * inner)
        }
        Activation::QuickGelu => x * sigmoid(1.702f32 * x),
        Activation::Silu => x * sigmoid(x),
    }
}

#[cube]
fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + f32::exp(-x))
}

#[cube(launch_unchecked)]
fn gated_kernel(
    gate_up: &Array<f32>,
    out: &mut Array<f32>,
    stride: usize,
    width: usize,
    len: usize,
    #[comptime] activation: Activation,
) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at < len {
        let gate = at / width * stride + at % width;
        out[at] = activate(gate_up[gate], activation) * gate_up[gate + width];
    }
}

/// See [`KernelBackend::gated`](crate::KernelBackend::gated).
pub(super) fn gated<R: CubeRuntime>(
    gate_up: &CubeTensor<R>,
    activation: Activation,
) -> CubeTensor<R> {
    let x = Rows::of(gate_up);
    let width = x.width / 2;
    let out = Rows::empty(&x, x.rows, width);
    let len = x.rows * width;
    if len > 0 {
        stage::launched();
        // SAFETY: units below `len` access `rows` rows of `2 width` and `width` only.
        #[allow(unsafe_code)]
        unsafe {
            gated_kernel::launch_unchecked::<R>(
                x.client(),
                cubes(len.div_ceil(UNITS)),
                CubeDim::new_1d(UNITS as u32),
                x.arg(),
                out.arg(),
                x.stride,
                width,
                len,
                activation,
            );
        }
    }
    out.into_tensor()
}
