//! Rotary position embedding in place.

use burn::tensor::TensorMetadata;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::tensor::{Rows, cubes, elements};
use crate::stage;

const UNITS: usize = 256;

/// Position of the rotated heads.
#[derive(CubeType, CubeLaunch)]
struct Place {
    stride: usize,
    column: usize,
    heads: usize,
    head_dim: usize,
    /// Pairs per head.
    half: usize,
    /// Number of pairs of all heads and tokens.
    pairs: usize,
}

#[cube(launch_unchecked)]
fn rope_kernel(x: &mut Array<f32>, cos: &Array<f32>, sin: &Array<f32>, place: &Place) {
    let pair = CUBE_POS * UNITS + UNIT_POS as usize;
    if pair < place.pairs {
        let (i, head) = (pair % place.half, pair / place.half % place.heads);
        let token = pair / place.half / place.heads;
        let first = token * place.stride + place.column + head * place.head_dim + i;
        let second = first + place.half;
        let (cos, sin) = (cos[token * place.half + i], sin[token * place.half + i]);
        let (a, b) = (x[first], x[second]);
        x[first] = a * cos - b * sin;
        x[second] = b * cos + a * sin;
    }
}

/// See [`KernelBackend::rope`](crate::KernelBackend::rope).
pub(super) fn rope<R: CubeRuntime>(
    x: CubeTensor<R>,
    column: usize,
    heads: usize,
    head_dim: usize,
    cos: &CubeTensor<R>,
    sin: &CubeTensor<R>,
) -> CubeTensor<R> {
    let x = Rows::owned(x);
    let half = cos.shape()[1];
    assert!(
        2 * half <= head_dim && column + heads * head_dim <= x.width,
        "{heads} heads of {head_dim} with {half} pairs at {column} in rows of {}",
        x.width
    );
    let pairs = x.rows * heads * half;
    if pairs > 0 {
        let place = PlaceLaunch::new(x.stride, column, heads, head_dim, half, pairs);
        stage::launched();
        // SAFETY: units below `pairs` change one pair each, inside its row as asserted above.
        #[allow(unsafe_code)]
        unsafe {
            rope_kernel::launch_unchecked::<R>(
                x.client(),
                cubes(pairs.div_ceil(UNITS)),
                CubeDim::new_1d(UNITS as u32),
                x.arg(),
                elements(cos),
                elements(sin),
                place,
            );
        }
    }
    x.into_tensor()
}
