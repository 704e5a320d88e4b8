//! Activation functions and products of rows.

// Slices are indexed in parallel.
#![allow(clippy::needless_range_loop)]

use super::math::{erf, fma, sigmoid};
use crate::activation::Activation;

/// Applies `activation` to one element.
#[inline(always)]
fn apply<const FMA: bool>(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::None => x,
        // `max` would turn NaN into 0.
        Activation::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        Activation::Gelu => 0.5 * x * (1.0 + erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            // 1 + tanh(u) = 2 sigmoid(2 u), and here 2 u = 2 sqrt(2 / pi) (x + 0.044715 x^3).
            let u = 1.595_769 * x * fma::<FMA>(0.044_715 * x, x, 1.0);
            x * sigmoid::<FMA>(u)
        }
        Activation::QuickGelu => x * sigmoid::<FMA>(1.702 * x),
        Activation::Silu => x * sigmoid::<FMA>(x),
    }
}

/// Evaluates `$body` with the activation as a constant, so that each loop is specialized.
macro_rules! for_activation {
    ($activation:expr, $name:ident => $body:expr) => {
        match $activation {
            Activation::None => {
                const $name: Activation = Activation::None;
                $body
            }
            Activation::Relu => {
                const $name: Activation = Activation::Relu;
                $body
            }
            Activation::Gelu => {
                const $name: Activation = Activation::Gelu;
                $body
            }
            Activation::GeluTanh => {
                const $name: Activation = Activation::GeluTanh;
                $body
            }
            Activation::QuickGelu => {
                const $name: Activation = Activation::QuickGelu;
                $body
            }
            Activation::Silu => {
                const $name: Activation = Activation::Silu;
                $body
            }
        }
    };
}

#[inline(always)]
pub(crate) fn activate<const FMA: bool>(activation: Activation, x: &mut [f32]) {
    for_activation!(activation, A => for x in x { *x = apply::<FMA>(A, *x) })
}

#[inline(always)]
pub(crate) fn gated<const FMA: bool>(
    activation: Activation,
    gate: &[f32],
    up: &[f32],
    out: &mut [f32],
) {
    assert!(
        gate.len() == out.len() && up.len() == out.len(),
        "gate, up and output"
    );
    for_activation!(activation, A => for i in 0..out.len() { out[i] = apply::<FMA>(A, gate[i]) * up[i] })
}

#[inline(always)]
pub(crate) fn multiply_add<const FMA: bool>(x: &[f32], y: &[f32], sum: &mut [f32]) {
    assert!(
        x.len() == sum.len() && y.len() == sum.len(),
        "factors and sum"
    );
    for i in 0..sum.len() {
        sum[i] = fma::<FMA>(x[i], y[i], sum[i]);
    }
}
