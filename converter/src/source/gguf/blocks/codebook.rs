//! Decoding of formats that index a codebook of whole groups of values: IQ1, IQ2 and IQ3.
//!
//! A block has 256 elements in 8 runs of 32. All scales are relative to one half-precision scale of
//! the block.

use super::grids::{IQ1, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};
use super::{half_at, u16_at, u32_at};

/// Elements of a run.
const RUN: usize = 32;
/// Magnitudes of IQ2.
const LEVELS_2: [u8; 3] = [8, 25, 43];
/// Magnitudes of IQ3_XXS.
const LEVELS_3_XXS: [u8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];

/// Returns the sign bits of eight values from the seven that are stored: the number of negative
/// values is even.
fn even_signs(stored: u32) -> u8 {
    let stored = (stored & 0x7f) as u8;
    stored | (stored.count_ones() as u8 & 1) << 7
}

/// Fills `out` with the magnitudes `level(i)` times `scale`, with the signs of the bits of `signs`.
fn signed(out: &mut [f32], scale: f32, signs: u8, level: impl Fn(usize) -> u8) {
    for (i, value) in out.iter_mut().enumerate() {
        let magnitude = scale * f32::from(level(i));
        *value = if signs >> i & 1 == 1 {
            -magnitude
        } else {
            magnitude
        };
    }
}

/// Returns the magnitude of element `i` of a group of IQ2.
fn level_2(group: u16, i: usize) -> u8 {
    LEVELS_2[usize::from(group >> (2 * i) & 3)]
}

/// Returns the scale of IQ2 for the 4 bits `step`.
fn scale_2(scale: f32, step: u8) -> f32 {
    scale * (0.5 + f32::from(step)) * 0.25
}

/// Decodes `[scale f16][8 runs of 4 bytes of indices and a word of signs and scale]`.
pub(super) fn iq2_xxs(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    for (run, values) in out.chunks_exact_mut(RUN).enumerate() {
        let indices = &block[2 + run * 8..][..4];
        let word = u32_at(block, 6 + run * 8);
        let step = scale_2(scale, (word >> 28) as u8);
        for (j, values) in values.chunks_exact_mut(8).enumerate() {
            let group = IQ2_XXS[usize::from(indices[j])];
            signed(values, step, even_signs(word >> (7 * j)), |i| {
                level_2(group, i)
            });
        }
    }
}

/// Decodes `[scale f16][32 words of 16 bits: index, 7 signs][8 bytes of 4-bit scales]`, with a scale
/// for every 16 elements.
pub(super) fn iq2_xs(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    let scales = &block[66..74];
    for (j, values) in out.chunks_exact_mut(8).enumerate() {
        let word = u16_at(block, 2 + 2 * j);
        let group = IQ2_XS[usize::from(word & 511)];
        let step = scale_2(scale, nibble(scales, j / 2));
        signed(values, step, even_signs(u32::from(word >> 9)), |i| {
            level_2(group, i)
        });
    }
}

/// Decodes `[scale f16][32 bytes of indices][32 bytes of signs][8 bytes of high index bits][8 bytes
/// of 4-bit scales]`, with a scale for every 16 elements.
pub(super) fn iq2_s(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    let (indices, signs) = (&block[2..34], &block[34..66]);
    let (highs, scales) = (&block[66..74], &block[74..82]);
    for (j, values) in out.chunks_exact_mut(8).enumerate() {
        let high = usize::from(highs[j / 4] >> (j % 4 * 2) & 3);
        let group = IQ2_S[usize::from(indices[j]) | high << 8];
        let step = scale_2(scale, nibble(scales, j / 2));
        signed(values, step, signs[j], |i| level_2(group, i));
    }
}

/// Decodes `[scale f16][64 bytes of indices][8 words of signs and scale]`.
pub(super) fn iq3_xxs(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    let indices = &block[2..66];
    for (run, values) in out.chunks_exact_mut(RUN).enumerate() {
        let word = u32_at(block, 66 + run * 4);
        let step = scale * (0.5 + (word >> 28) as f32) * 0.5;
        for (j, values) in values.chunks_exact_mut(8).enumerate() {
            let at = run * 8 + j * 2;
            let groups = [indices[at], indices[at + 1]].map(|index| IQ3_XXS[usize::from(index)]);
            signed(values, step, even_signs(word >> (7 * j)), |i| {
                LEVELS_3_XXS[usize::from(groups[i / 4] >> (i % 4 * 4) & 7)]
            });
        }
    }
}

/// Decodes `[scale f16][64 bytes of indices][8 bytes of high index bits][32 bytes of signs][4 bytes
/// of 4-bit scales]`. Magnitudes and scales are odd numbers.
pub(super) fn iq3_s(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    let (indices, highs) = (&block[2..66], &block[66..74]);
    let (signs, scales) = (&block[74..106], &block[106..110]);
    for (j, values) in out.chunks_exact_mut(8).enumerate() {
        let groups = [2 * j, 2 * j + 1].map(|at| {
            let high = usize::from(highs[at / 8] >> (at % 8) & 1);
            IQ3_S[usize::from(indices[at]) | high << 8]
        });
        let step = scale * f32::from(1 + 2 * nibble(scales, j / 4));
        signed(values, step, signs[j], |i| {
            1 + 2 * (groups[i / 4] >> (i % 4 * 4) & 7) as u8
        });
    }
}

/// Fills `out` with a group of IQ1, whose values are -1, 0 and 1, moved by an eighth.
fn ternary(out: &mut [f32], step: f32, negative: bool, index: usize) {
    let group = IQ1[index];
    let offset = if negative { -0.125 } else { 0.125 };
    for (i, value) in out.iter_mut().enumerate() {
        let level = f32::from(group >> (2 * i) & 3) - 1.0;
        *value = step * (level + offset);
    }
}

/// Decodes `[scale f16][32 bytes of indices][8 words of 16 bits: high bits of four indices, scale,
/// sign of the offset]`.
pub(super) fn iq1_s(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    let indices = &block[2..34];
    for (j, values) in out.chunks_exact_mut(8).enumerate() {
        let word = u16_at(block, 34 + j / 4 * 2);
        let step = scale * f32::from(2 * (word >> 12 & 7) + 1);
        let high = usize::from(word >> (j % 4 * 3) & 7);
        let index = usize::from(indices[j]) | high << 8;
        ternary(values, step, word & 0x8000 != 0, index);
    }
}

/// Decodes `[32 bytes of indices][16 bytes: high bits and sign of the offset for two groups each][4
/// words of 16 bits: four 3-bit scales, a quarter of the block's scale]`, with a scale for every 16
/// elements.
pub(super) fn iq1_m(block: &[u8], out: &mut [f32]) {
    let (indices, highs) = (&block[..32], &block[32..48]);
    let word = |i: usize| u16_at(block, 48 + 2 * i);
    let bits = (0..4).fold(0, |bits, i| bits | word(i) >> 12 << (4 * i));
    let scale = half::f16::from_bits(bits).to_f32();
    for (j, values) in out.chunks_exact_mut(8).enumerate() {
        let step = word(j / 8) >> (j / 2 % 4 * 3) & 7;
        let high = nibble(highs, j);
        let index = usize::from(indices[j]) | usize::from(high & 7) << 8;
        let step = scale * f32::from(2 * step + 1);
        ternary(values, step, high & 8 != 0, index);
    }
}

/// Returns 4-bit number `i`, the first in the low bits of the first byte.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 2] >> (i % 2 * 4) & 0x0f
}
