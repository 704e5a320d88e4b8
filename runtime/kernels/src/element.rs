//! Number types of keys and values in attention.

use crate::cpu::{Kernels, Strided};
use half::f16;

/// Single or half precision.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// `true` for half precision.
    const HALF: bool;
    const ZERO: Self;

    /// Rounds to nearest. Finite numbers stay finite: those out of range become the largest number.
    fn from_f32(x: f32) -> Self;

    fn to_f32(self) -> f32;

    /// [`Kernels::matmul`] or [`Kernels::matmul_half`].
    fn matmul(
        kernels: &dyn Kernels,
        size: [usize; 3],
        a: Strided<'_>,
        b: Strided<'_, Self>,
        c: &mut [f32],
        c_stride: usize,
    );
}

impl Element for f32 {
    const HALF: bool = false;
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    fn matmul(
        kernels: &dyn Kernels,
        size: [usize; 3],
        a: Strided<'_>,
        b: Strided<'_, Self>,
        c: &mut [f32],
        c_stride: usize,
    ) {
        kernels.matmul(size, a, b, false, c, c_stride);
    }
}

impl Element for f16 {
    const HALF: bool = true;
    const ZERO: Self = f16::ZERO;

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        let limit = f16::MAX.to_f32_const();
        // Infinity and NaN are kept, so that they are visible in the result.
        f16::from_f32(if x.is_finite() {
            x.clamp(-limit, limit)
        } else {
            x
        })
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    fn matmul(
        kernels: &dyn Kernels,
        size: [usize; 3],
        a: Strided<'_>,
        b: Strided<'_, Self>,
        c: &mut [f32],
        c_stride: usize,
    ) {
        kernels.matmul_half(size, a, b, c, c_stride);
    }
}
