//! Norms, activations and rotary embedding against double precision, on every instruction set of this machine.

mod support;

use edge_lmm_kernels::{Activation, activate, gated, layer_norm, rms_norm, rope};
use proptest::prelude::*;
use support::{Random, isas, pool};

const UNIT: f64 = f32::EPSILON as f64 / 2.0;

fn exact(a: Activation, x: f64) -> f64 {
    match a {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
        Activation::Gelu => x * normal_distribution(x),
        Activation::GeluTanh => {
            0.5 * x
                * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

/// `Phi(x) = 1/2 + phi(x) * (x + x^3/3 + x^5/15 + ...)` (Marsaglia 2004), good for |x| < 7.
fn normal_distribution(x: f64) -> f64 {
    if x.abs() > 7.0 {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut sum, mut term, mut n) = (x, x, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 2.0;
        term *= x * x / n;
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// The largest absolute error of an activation. For `x * sigmoid(u)` it is the sum of the relative errors of the
/// exponential (3e-7), of its argument (a few rounding errors of `u`, which become relative errors: `u e^-u < 0.4`)
/// and of the arithmetic. For `Gelu` it is the documented bound.
fn tolerance(a: Activation, x: f64) -> f64 {
    match a {
        Activation::None | Activation::Relu => 0.0,
        Activation::Gelu => 2e-7 * x.abs() + 8.0 * UNIT * exact(a, x).abs(),
        _ => (4e-7 + 8.0 * UNIT) * x.abs() + 1e-37,
    }
}

const ALL: [Activation; 6] = [
    Activation::None,
    Activation::Relu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Silu,
];

#[test]
fn activations_are_within_their_bounds() {
    let x: Vec<f32> = (-40_000..=40_000).map(|i| i as f32 * 5e-4).collect();
    for isa in isas() {
        for a in ALL {
            let mut y = x.clone();
            activate(&pool(isa), &mut y, a);
            for (x, y) in x.iter().zip(&y) {
                let (x, y) = (f64::from(*x), f64::from(*y));
                let error = (y - exact(a, x)).abs();
                assert!(
                    error <= tolerance(a, x),
                    "{isa} {a:?}({x}) = {y}, not {}",
                    exact(a, x)
                );
            }
        }
    }
}

/// A sum of squares that overflows shows: its reciprocal root is 0, and zeros would look like numbers.
#[test]
fn norms_that_overflow_are_nan() {
    for isa in isas() {
        for len in [1, 7, 64, 1000] {
            let x: Vec<f32> = (0..len)
                .map(|i| if i % 2 == 0 { 1e30 } else { -1e30 })
                .collect();
            let (gamma, beta) = (vec![1.0; len], vec![0.0; len]);
            let rms = rms_norm(&pool(isa), &x, &gamma, 1e-6);
            assert!(rms.iter().all(|y| y.is_nan()), "{isa} {len}");
            let large = vec![1e17; len];
            let rms = rms_norm(&pool(isa), &large, &gamma, 1e-6);
            assert!(rms.iter().all(|y| (y - 1.0).abs() < 1e-5), "{isa} {len}");
            if len > 1 {
                let layer = layer_norm(&pool(isa), &x, &gamma, &beta, 1e-6);
                assert!(layer.iter().all(|y| y.is_nan()), "{isa} {len}");
            }
        }
    }
}

#[test]
fn activations_of_extreme_values() {
    for isa in isas() {
        for a in ALL {
            let mut y = [f32::NAN, 1e30, -1e30, 0.0, 100.0, -100.0];
            activate(&pool(isa), &mut y, a);
            assert!(y[0].is_nan(), "{isa} {a:?}(NaN) = {}", y[0]);
            if a != Activation::GeluTanh {
                assert_eq!(y[1], 1e30, "{isa} {a:?}(1e30)");
            }
            assert_eq!(y[3], 0.0, "{isa} {a:?}(0)");
            assert_eq!(y[4], 100.0, "{isa} {a:?}(100)");
            if a != Activation::None {
                assert!(y[5].abs() < 1e-30, "{isa} {a:?}(-100) = {}", y[5]);
            }
        }
    }
}

proptest! {
    #![proptest_config(support::cases(32))]

    #[test]
    fn gated_is_activation_times_up(tokens in 1usize..6, width in 1usize..20_000, seed: u64) {
        let x = Random(seed).normals(tokens * 2 * width);
        for isa in isas() {
            let mut out = vec![f32::NAN; tokens * width];
            gated(&pool(isa), &x, width, Activation::Silu, &mut out);
            for (i, out) in out.iter().enumerate() {
                let (token, column) = (i / width, i % width);
                let gate = f64::from(x[token * 2 * width + column]);
                let up = f64::from(x[token * 2 * width + width + column]);
                let bound = (tolerance(Activation::Silu, gate) + 2.0 * UNIT * gate.abs()) * up.abs() + 1e-37;
                prop_assert!((f64::from(*out) - exact(Activation::Silu, gate) * up).abs() <= bound, "{isa} element {i}");
            }
        }
    }

    #[test]
    fn norms(tokens in 1usize..20, width in 1usize..3000, mean in -3.0f32..3.0, seed: u64) {
        let mut random = Random(seed);
        let x: Vec<f32> = random.normals(tokens * width).iter().map(|x| x + mean).collect();
        let (gamma, beta) = (random.normals(width), random.normals(width));
        let eps = 1e-6;
        for isa in isas() {
            let rms = rms_norm(&pool(isa), &x, &gamma, eps);
            let layer = layer_norm(&pool(isa), &x, &gamma, &beta, eps);
            for (t, row) in x.chunks(width).enumerate() {
                let wide = || row.iter().map(|x| f64::from(*x));
                let n = width as f64;
                let square = wide().map(|x| x * x).sum::<f64>() / n;
                let mu = wide().sum::<f64>() / n;
                let deviation = (wide().map(|x| (x - mu).powi(2)).sum::<f64>() / n + f64::from(eps)).sqrt();
                let root = (square + f64::from(eps)).sqrt();
                // A sum of n squares in 16 lanes has a relative error of (n / 16 + 8) u. The mean has the same error relative
                // to the mean magnitude, and its square affects the variance, which can be as small as eps.
                let sums = (n / 16.0 + 8.0) * UNIT;
                let shift = 2.0 * sums * wide().map(f64::abs).sum::<f64>() / n + 2.0 * UNIT * mu.abs();
                for i in 0..width {
                    let at = t * width + i;
                    let (g, b) = (f64::from(gamma[i]), f64::from(beta[i]));
                    let value = f64::from(row[i]) / root * g;
                    prop_assert!((f64::from(rms[at]) - value).abs() <= (sums + 8.0 * UNIT) * value.abs(), "{isa} rms {i}");
                    let value = (f64::from(row[i]) - mu) / deviation;
                    let relative = sums + 8.0 * UNIT + (shift / deviation).powi(2) + 4.0 * shift / deviation;
                    let bound = (relative * value.abs() + 2.0 * shift / deviation) * g.abs() * 2.0
                        + 4.0 * UNIT * (value * g).abs() + 4.0 * UNIT * b.abs();
                    let error = (f64::from(layer[at]) - (value * g + b)).abs();
                    prop_assert!(error <= bound, "{isa} layer {i}: off by {error}, allowed {bound}");
                }
            }
        }
    }

    #[test]
    fn rotation(tokens in 1usize..30, heads in 1usize..4, quarter in 1usize..33, extra in 0usize..5, seed: u64) {
        let (head_dim, rotary_dim) = (2 * quarter + extra, 2 * quarter);
        let stride = heads * head_dim + 7;
        let mut random = Random(seed);
        let x = random.normals(tokens * stride);
        let angles: Vec<f64> = (0..tokens * quarter).map(|_| random.uniform() * 7.0).collect();
        let cos: Vec<f32> = angles.iter().map(|a| a.cos() as f32).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin() as f32).collect();
        for isa in isas() {
            let mut y = x.clone();
            rope(&pool(isa), &mut y, stride, heads, head_dim, rotary_dim, &cos, &sin);
            for (at, y) in y.iter().enumerate() {
                let (token, column) = (at / stride, at % stride);
                let in_head = column % head_dim;
                if column >= heads * head_dim || in_head >= rotary_dim {
                    prop_assert_eq!(*y, x[at], "outside of the rotated part");
                    continue;
                }
                let i = in_head % quarter;
                let head = at - in_head;
                let (a, b) = (f64::from(x[head + i]), f64::from(x[head + quarter + i]));
                let (c, s) = (f64::from(cos[token * quarter + i]), f64::from(sin[token * quarter + i]));
                let exact = if in_head < quarter { a * c - b * s } else { b * c + a * s };
                let bound = 3.0 * UNIT * (a.abs() + b.abs());
                prop_assert!((f64::from(*y) - exact).abs() <= bound, "{isa} {y} not {exact}");
            }
        }
    }
}
