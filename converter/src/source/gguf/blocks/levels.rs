//! Decoding of formats whose codes stand for fixed levels: IQ4, MXFP4, NVFP4, TQ1_0, TQ2_0, Q1_0, Q2_0.

use super::{from_nibbles, half_at, u16_at};

/// Levels of IQ4_NL and IQ4_XS, unevenly spaced.
const IQ4: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];
/// Twice the levels of a 4-bit floating-point number (E2M1).
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Decodes `[scale f16][16 bytes of nibbles]`.
pub(super) fn iq4_nl(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    from_nibbles(&block[2..], out, |q, _| {
        scale * f32::from(IQ4[usize::from(q)])
    });
}

/// Decodes `[scale f16][high 2 bits of eight scales][their low 4 bits][128 bytes of nibbles]`, with
/// a scale for every 32 elements, offset by 32.
pub(super) fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    let (highs, lows) = (u16_at(block, 2), &block[4..8]);
    for (run, values) in out.chunks_exact_mut(32).enumerate() {
        let low = u16::from(lows[run / 2] >> (run % 2 * 4) & 0x0f);
        let step = (low | (highs >> (2 * run) & 3) << 4) as i16 - 32;
        let step = scale * f32::from(step);
        from_nibbles(&block[8 + run * 16..][..16], values, |q, _| {
            step * f32::from(IQ4[usize::from(q)])
        });
    }
}

/// Decodes `[exponent][16 bytes of nibbles]`; the scale is a power of two.
pub(super) fn mxfp4(block: &[u8], out: &mut [f32]) {
    // Half of the scale, since the levels are doubled; the smallest two are subnormal.
    let bits = match block[0] {
        exponent @ (0 | 1) => 0x0020_0000 << exponent,
        exponent => (u32::from(exponent) - 1) << 23,
    };
    let scale = f32::from_bits(bits);
    from_nibbles(&block[1..], out, |q, _| {
        scale * f32::from(E2M1[usize::from(q)])
    });
}

/// Returns half of an 8-bit scale (E4M3 without sign; the code for NaN counts as 0).
fn half_of_e4m3(bits: u8) -> f32 {
    if bits == 0x7f {
        return 0.0;
    }
    let mantissa = f32::from(bits & 7);
    match i32::from(bits >> 3 & 0x0f) {
        0 => mantissa * 0.5f32.powi(10),
        exponent => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 8),
    }
}

/// Decodes `[4 scales of 8 bits][32 bytes of nibbles]`, with a scale for every 16 elements.
pub(super) fn nvfp4(block: &[u8], out: &mut [f32]) {
    for (group, values) in out.chunks_exact_mut(16).enumerate() {
        let scale = half_of_e4m3(block[group]);
        from_nibbles(&block[4 + group * 8..][..8], values, |q, _| {
            scale * f32::from(E2M1[usize::from(q)])
        });
    }
}

/// Returns digit `place` of a byte with five digits of base 3, minus 1. A byte is a fraction of 256.
fn digit(byte: u8, place: usize) -> f32 {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let rest = byte.wrapping_mul(POWERS[place]);
    f32::from(u16::from(rest) * 3 >> 8) - 1.0
}

/// Decodes `[48 bytes of five ternary digits][4 bytes of four ternary digits][scale f16]`. The first
/// 32 bytes hold the first digits of 32 elements, then the second ones of the next 32, and so on;
/// likewise the next 16 bytes and the last 4.
pub(super) fn tq1_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 52);
    let mut out = out.iter_mut();
    for (bytes, digits) in [(0..32, 5), (32..48, 5), (48..52, 4)] {
        for place in 0..digits {
            for (&byte, value) in block[bytes.clone()].iter().zip(&mut out) {
                *value = scale * digit(byte, place);
            }
        }
    }
}

/// Decodes `[64 bytes of 2-bit values][scale f16]`; values are offset by 1.
pub(super) fn tq2_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 64);
    for (i, value) in out.iter_mut().enumerate() {
        let (byte, shift) = super::bit_pair(i);
        *value = scale * (f32::from(block[byte] >> shift & 3) - 1.0);
    }
}

/// Decodes `[scale f16][16 bytes of signs]`; a set bit is positive.
pub(super) fn q1_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    for (i, value) in out.iter_mut().enumerate() {
        let positive = block[2 + i / 8] >> (i % 8) & 1 == 1;
        *value = if positive { scale } else { -scale };
    }
}

/// Decodes `[scale f16][16 bytes of 2-bit values]`; values are offset by 1.
pub(super) fn q2_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    for (i, value) in out.iter_mut().enumerate() {
        let level = block[2 + i / 4] >> (i % 4 * 2) & 3;
        *value = scale * (f32::from(level) - 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scale is 1.5.
    const SCALE: [u8; 2] = 0x3e00u16.to_le_bytes();

    #[test]
    fn bits_of_q1_0_are_signs() {
        let mut block = [0; 18];
        block[..2].copy_from_slice(&SCALE);
        block[3] = 0b0000_0101;
        let mut out = [0.0; 128];
        q1_0(&block, &mut out);
        let positive: Vec<usize> = (0..128).filter(|&i| out[i] == 1.5).collect();
        assert_eq!(positive, [8, 10]);
        assert!(out.iter().all(|value| value.abs() == 1.5));
    }

    #[test]
    fn pairs_of_q2_0_are_in_order() {
        let mut block = [0b01_01_01_01; 18];
        block[..2].copy_from_slice(&SCALE);
        block[3] = 0b11_10_01_00;
        let mut out = [1.0; 64];
        q2_0(&block, &mut out);
        assert_eq!(out[4..8], [-1.5, 0.0, 1.5, 3.0]);
        assert!(out[8..].iter().chain(&out[..4]).all(|&value| value == 0.0));
    }
}
