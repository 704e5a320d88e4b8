//! Rotary position embedding of a head.

use super::math::fma;

#[inline(always)]
pub(crate) fn rotate<const FMA: bool>(low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32]) {
    let len = low.len();
    assert!(
        high.len() == len && cos.len() == len && sin.len() == len,
        "halves, cos and sin"
    );
    for i in 0..len {
        let (x, y) = (low[i], high[i]);
        low[i] = fma::<FMA>(x, cos[i], -(y * sin[i]));
        high[i] = fma::<FMA>(y, cos[i], x * sin[i]);
    }
}
