//! Decoding of ggml's quantized blocks.
//! Layouts: `ggml-common.h` of <https://github.com/ggml-org/ggml>.
//! Every value is computed in f32 in the order of the reference (`ggml-quants.c`), without fused
//! multiply-add, so that results are identical bit for bit.

mod codebook;
mod grids;
mod levels;

use half::f16;

/// Elements of a long block.
const SUPER: usize = 256;
/// Elements of a short block.
const SMALL: usize = 32;

/// A block format with a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq1S,
    Iq1M,
    Iq2Xxs,
    Iq2Xs,
    Iq2S,
    Iq3Xxs,
    Iq3S,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
    Nvfp4,
    Tq1_0,
    Tq2_0,
    Q1_0,
    Q2_0,
}

impl BlockFormat {
    /// Elements of the longest block.
    pub(in super::super) const MAX_LEN: usize = SUPER;

    /// Returns the elements of a block.
    pub(in super::super) fn len(self) -> usize {
        match self {
            Self::Q4_0
            | Self::Q4_1
            | Self::Q5_0
            | Self::Q5_1
            | Self::Q8_0
            | Self::Iq4Nl
            | Self::Mxfp4 => SMALL,
            Self::Nvfp4 | Self::Q2_0 => 64,
            Self::Q1_0 => 128,
            _ => SUPER,
        }
    }

    /// Returns the bytes of a block.
    pub(in super::super) fn bytes(self) -> usize {
        match self {
            Self::Mxfp4 => 17,
            Self::Q4_0 | Self::Iq4Nl | Self::Q1_0 | Self::Q2_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Nvfp4 => 36,
            Self::Iq1S => 50,
            Self::Tq1_0 => 54,
            Self::Iq1M => 56,
            Self::Iq2Xxs | Self::Tq2_0 => 66,
            Self::Iq2Xs => 74,
            Self::Iq2S => 82,
            Self::Q2K => 84,
            Self::Iq3Xxs => 98,
            Self::Q3K | Self::Iq3S => 110,
            Self::Iq4Xs => 136,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Decodes one block of [`Self::bytes`] into [`Self::len`] elements.
    pub(in super::super) fn decode(self, block: &[u8], out: &mut [f32]) {
        match self {
            Self::Q4_0 => q4_0(block, out),
            Self::Q4_1 => q4_1(block, out),
            Self::Q5_0 => q5_0(block, out),
            Self::Q5_1 => q5_1(block, out),
            Self::Q8_0 => q8_0(block, out),
            Self::Q2K => q2_k(block, out),
            Self::Q3K => q3_k(block, out),
            Self::Q4K => q4_k(block, out),
            Self::Q5K => q5_k(block, out),
            Self::Q6K => q6_k(block, out),
            Self::Iq1S => codebook::iq1_s(block, out),
            Self::Iq1M => codebook::iq1_m(block, out),
            Self::Iq2Xxs => codebook::iq2_xxs(block, out),
            Self::Iq2Xs => codebook::iq2_xs(block, out),
            Self::Iq2S => codebook::iq2_s(block, out),
            Self::Iq3Xxs => codebook::iq3_xxs(block, out),
            Self::Iq3S => codebook::iq3_s(block, out),
            Self::Iq4Nl => levels::iq4_nl(block, out),
            Self::Iq4Xs => levels::iq4_xs(block, out),
            Self::Mxfp4 => levels::mxfp4(block, out),
            Self::Nvfp4 => levels::nvfp4(block, out),
            Self::Tq1_0 => levels::tq1_0(block, out),
            Self::Tq2_0 => levels::tq2_0(block, out),
            Self::Q1_0 => levels::q1_0(block, out),
            Self::Q2_0 => levels::q2_0(block, out),
        }
    }
}

/// Reads the half-precision number at byte `at`.
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Reads the 16-bit number at byte `at`.
fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// Reads the 32-bit number at byte `at`.
fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from(u16_at(block, at)) | u32::from(u16_at(block, at + 2)) << 16
}

/// Fills `out` from nibbles in ggml's order: all low nibbles, then all high nibbles.
/// `value` receives the nibble and the index of its element.
fn from_nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(u8, usize) -> f32) {
    let half = out.len() / 2;
    let (low, high) = out.split_at_mut(half);
    for (i, ((low, high), byte)) in low.iter_mut().zip(high).zip(bytes).enumerate() {
        *low = value(byte & 0x0f, i);
        *high = value(byte >> 4, i + half);
    }
}

/// Decodes `[scale f16][16 bytes of nibbles]`; nibbles are offset by 8.
fn q4_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    from_nibbles(&block[2..], out, |q, _| f32::from(i16::from(q) - 8) * scale);
}

/// Decodes `[scale f16][minimum f16][16 bytes of nibbles]`.
fn q4_1(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    from_nibbles(&block[4..], out, |q, _| f32::from(q) * scale + minimum);
}

/// Returns the fifth bit of element `i` of 32, moved to bit 4.
fn fifth_bit(bits: u32, i: usize) -> u8 {
    (bits >> i & 1) as u8 * 16
}

/// Decodes `[scale f16][4 bytes of fifth bits][16 bytes of nibbles]`; values are offset by 16.
fn q5_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    let fifths = u32_at(block, 2);
    from_nibbles(&block[6..], out, |q, i| {
        f32::from(i16::from(q | fifth_bit(fifths, i)) - 16) * scale
    });
}

/// Decodes `[scale f16][minimum f16][4 bytes of fifth bits][16 bytes of nibbles]`.
fn q5_1(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let fifths = u32_at(block, 4);
    from_nibbles(&block[8..], out, |q, i| {
        f32::from(q | fifth_bit(fifths, i)) * scale + minimum
    });
}

/// Decodes `[scale f16][32 signed bytes]`.
fn q8_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    for (value, &q) in out.iter_mut().zip(&block[2..]) {
        *value = f32::from(q as i8) * scale;
    }
}

/// Returns byte and shift of the two bits of element `i` in the 64 bytes of Q2_K, Q3_K and TQ2_0.
/// Each half of the block (128 elements) has 32 bytes, whose bit pairs belong to four runs of 32
/// elements.
fn bit_pair(i: usize) -> (usize, usize) {
    (i / 128 * 32 + i % 32, i % 128 / 32 * 2)
}

/// Decodes `[16 bytes of scale and minimum, 4 bits each][64 bytes of 2-bit values][scale
/// f16][minimum f16]`, with a scale and a minimum for every 16 elements.
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    let (scale, minimum) = (half_at(block, 80), half_at(block, 82));
    for (group, values) in out.chunks_exact_mut(16).enumerate() {
        let step = scale * f32::from(scales[group] & 0x0f);
        let offset = minimum * f32::from(scales[group] >> 4);
        for (j, value) in values.iter_mut().enumerate() {
            let (byte, shift) = bit_pair(group * 16 + j);
            *value = step * f32::from(quants[byte] >> shift & 3) - offset;
        }
    }
}

/// Decodes `[32 bytes of third bits][64 bytes of 2-bit values][12 bytes of sixteen 6-bit
/// scales][scale f16]`. A clear third bit subtracts 4 from the value; scales are offset by 32.
fn q3_k(block: &[u8], out: &mut [f32]) {
    let (thirds, quants, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half_at(block, 108);
    for (group, values) in out.chunks_exact_mut(16).enumerate() {
        let low = packed[group % 8] >> (group / 8 * 4) & 0x0f;
        let high = packed[8 + group % 4] >> (group / 4 * 2) & 3;
        let step = scale * f32::from(i16::from(low | high << 4) - 32);
        for (j, value) in values.iter_mut().enumerate() {
            let i = group * 16 + j;
            let (byte, shift) = bit_pair(i);
            let below = if thirds[i % 32] >> (i / 32) & 1 == 1 {
                0
            } else {
                4
            };
            *value = step * f32::from(i16::from(quants[byte] >> shift & 3) - below);
        }
    }
}

/// Unpacks scale and minimum `i` (of 8, 6 bits each) from the 12 bytes of Q4_K and Q5_K. The first
/// four are in the low bits of bytes 0..4 and 4..8. The others have their low four bits in bytes
/// 8..12 and their high two bits in the top bits of the first eight bytes.
fn scale_and_minimum(packed: &[u8], i: usize) -> (f32, f32) {
    let (scale, minimum) = if i < 4 {
        (packed[i] & 0x3f, packed[i + 4] & 0x3f)
    } else {
        (
            packed[i + 4] & 0x0f | packed[i - 4] >> 6 << 4,
            packed[i + 4] >> 4 | packed[i] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(minimum))
}

/// Returns the four bits of element `i` in the 128 bytes of Q4_K and Q5_K: every 32 bytes hold 64
/// elements, low nibbles first.
fn nibble_of(quants: &[u8], i: usize) -> u8 {
    quants[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 0x0f
}

/// Decodes `[scale f16][minimum f16][12 bytes of scales and minima][128 bytes of nibbles]`.
fn q4_k(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let (packed, quants) = (&block[4..16], &block[16..144]);
    for (group, values) in out.chunks_exact_mut(32).enumerate() {
        let (s, m) = scale_and_minimum(packed, group);
        let (step, offset) = (scale * s, minimum * m);
        for (j, value) in values.iter_mut().enumerate() {
            *value = step * f32::from(nibble_of(quants, group * 32 + j)) - offset;
        }
    }
}

/// Decodes `[scale f16][minimum f16][12 bytes of scales and minima][32 bytes of fifth bits][128
/// bytes of nibbles]`.
fn q5_k(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let (packed, fifths, quants) = (&block[4..16], &block[16..48], &block[48..176]);
    for (group, values) in out.chunks_exact_mut(32).enumerate() {
        let (s, m) = scale_and_minimum(packed, group);
        let (step, offset) = (scale * s, minimum * m);
        for (j, value) in values.iter_mut().enumerate() {
            let q = nibble_of(quants, group * 32 + j) | (fifths[j] >> group & 1) << 4;
            *value = step * f32::from(q) - offset;
        }
    }
}

/// Decodes `[128 bytes of low nibbles][64 bytes of high bit pairs][16 signed scales][scale f16]`;
/// values are offset by 32. Each half of the block has 64 bytes of nibbles (64 low ones, then 64
/// high ones) and 32 bytes of bit pairs.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (lows, highs, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half_at(block, 208);
    for (group, values) in out.chunks_exact_mut(16).enumerate() {
        let step = scale * f32::from(scales[group] as i8);
        for (j, value) in values.iter_mut().enumerate() {
            let i = group * 16 + j;
            let low = lows[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 0x0f;
            let (byte, shift) = bit_pair(i);
            let high = highs[byte] >> shift & 3;
            *value = step * f32::from(i16::from(low | high << 4) - 32);
        }
    }
}
