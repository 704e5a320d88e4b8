//! Quantization of activations.

use super::math::ROUND;
use crate::cpu::ActivationScheme;
use crate::format::{BLOCK, GROUP};

#[inline(always)]
pub(crate) fn quantize(
    scheme: ActivationScheme,
    x: &[f32],
    quants: &mut [u8],
    scales: &mut [f32],
    offsets: &mut [i32],
    step: usize,
) -> i32 {
    let mut total = 0;
    for (g, x) in x.chunks(GROUP * BLOCK).enumerate() {
        let mut padded = [0f32; GROUP * BLOCK];
        let blocks = x.len().div_ceil(BLOCK);
        let x = if let Ok(whole) = x.try_into() {
            whole
        } else {
            padded[..x.len()].copy_from_slice(x);
            &padded
        };
        let (inverse, scale) = group_scale(scheme.max_quant, x);
        scales[g * step] = scale;
        let (x, _) = x.as_chunks::<BLOCK>();
        for (b, x) in (g * GROUP..).zip(&x[..blocks]) {
            let quants: &mut [u8; BLOCK] = (&mut quants[b * step * BLOCK..][..BLOCK])
                .try_into()
                .expect("32 bytes");
            let sum = quantize_block(scheme.bias, inverse, x, quants);
            total += sum;
            offsets[b * step] = if scheme.offset_pairs {
                let first = sum_of_first_pairs(quants);
                let [low, high] = [first, sum - first].map(|sum| sum * scheme.offset_factor);
                low & 0xffff | high << 16
            } else {
                sum * scheme.offset_factor
            };
        }
    }
    total
}

/// The sum of the first two of every four signed quants.
#[inline(always)]
fn sum_of_first_pairs(quants: &[u8; BLOCK]) -> i32 {
    let (fours, _) = quants.as_chunks::<4>();
    let pair = |[a, b, _, _]: &[u8; 4]| i32::from(*a as i8) + i32::from(*b as i8);
    fours.iter().map(pair).sum()
}

/// The factor that quantizes a group's activations, and its reciprocal, the scale.
#[inline(always)]
fn group_scale(max_quant: f32, x: &[f32; GROUP * BLOCK]) -> (f32, f32) {
    // Bits of non-negative floats are ordered as the floats are, with NaN above all.
    let mut max = 0u32;
    for x in x {
        max = max.max(x.to_bits() & 0x7fff_ffff);
    }
    let max = f32::from_bits(max);
    // For smaller values the reciprocal would overflow. The group is treated as zero.
    if max < 1e-36 {
        (0.0, 0.0)
    } else {
        (max_quant / max, max / max_quant)
    }
}

/// Quantizes one block; returns the sum of its quants.
#[inline(always)]
fn quantize_block(bias: u8, inverse: f32, x: &[f32; BLOCK], quants: &mut [u8; BLOCK]) -> i32 {
    let mut sum = 0;
    for (quant, x) in quants.iter_mut().zip(x) {
        // NaN and infinity give an arbitrary byte; the scale of their group is not finite either.
        let q = (x * inverse + ROUND)
            .to_bits()
            .wrapping_sub(ROUND.to_bits()) as i8;
        sum += i32::from(q);
        *quant = (q as u8).wrapping_add(bias);
    }
    sum
}
