//! Sequence parameter sets (ITU-T H.264, section 7.3.2.1.1 and annex E).

use crate::media::files::yuv::{Color, Matrix};

/// Type of a NAL unit that holds a sequence parameter set.
const SEQUENCE_PARAMETERS: u8 = 7;

/// Maximum macroblocks of an image: 4096x2304 pixels, the limit of OpenH264.
const MAX_MACROBLOCKS: usize = 36_864;

/// Maximum number of reference frames.
const MAX_REFERENCES: usize = 16;

/// Returns the matrix with this number in ITU-T H.273, table 4; `None` if it is unspecified or no
/// matrix of Y'CbCr.
pub fn matrix_of_code(code: u32) -> Option<Matrix> {
    let (red, blue) = match code {
        1 => (0.2126, 0.0722),
        4 => (0.3, 0.11),
        5 | 6 => return Some(Matrix::BT601),
        7 => (0.212, 0.087),
        9 | 10 => (0.2627, 0.0593),
        _ => return None,
    };
    Some(Matrix { red, blue })
}

/// Returns `true` if a NAL unit is a sequence parameter set.
pub(super) fn is_parameters(unit: &[u8]) -> bool {
    unit.first()
        .is_some_and(|header| header & 31 == SEQUENCE_PARAMETERS)
}

/// Properties of the images, from a sequence parameter set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Parameters {
    /// Size of the shown part of the image.
    pub width: usize,
    pub height: usize,
    /// Frames that the decoder holds.
    pub references: usize,
    /// `None` if it is not specified.
    pub color: Option<Color>,
}

/// A defect of a sequence parameter set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Problem {
    Damaged,
    /// A feature that OpenH264 does not support.
    Unsupported(&'static str),
}

impl Parameters {
    /// Parses a NAL unit.
    pub fn parse(unit: &[u8]) -> Result<Self, Problem> {
        let payload = unescape(unit.get(1..).unwrap_or_default());
        let mut bits = Bits {
            bytes: &payload,
            position: 0,
        };
        parse(&mut bits).unwrap_or(Err(Problem::Damaged))
    }
}

/// Parses a parameter set; `None` if it ends too early.
fn parse(bits: &mut Bits<'_>) -> Option<Result<Parameters, Problem>> {
    let unsupported = |feature| Some(Err(Problem::Unsupported(feature)));
    let profile = bits.take(8)?;
    bits.take(16)?;
    bits.number()?;
    // Profiles with a choice of chroma and depth.
    if matches!(
        profile,
        100 | 110 | 122 | 244 | 44 | 83 | 86 | 118 | 128 | 138
    ) {
        if bits.number()? != 1 {
            return unsupported("chroma other than 4:2:0");
        }
        if (bits.number()?, bits.number()?) != (0, 0) {
            return unsupported("more than 8 bits");
        }
        bits.take(1)?;
        if bits.take(1)? == 1 {
            skip_scaling_lists(bits)?;
        }
    }
    bits.number()?;
    skip_order_count(bits)?;
    let references = bits.number()? as usize;
    bits.take(1)?;
    let columns = bits.number()? as usize + 1;
    let rows = bits.number()? as usize + 1;
    if bits.take(1)? == 0 {
        return unsupported("interlaced frames");
    }
    bits.take(1)?;
    let mut crop = [0; 4];
    if bits.take(1)? == 1 {
        for side in &mut crop {
            // In units of a chroma sample.
            *side = (bits.number()? as usize).saturating_mul(2);
        }
    }
    if columns.saturating_mul(rows) > MAX_MACROBLOCKS {
        return unsupported("more than 4096x2304 pixels");
    }
    let size = |blocks: usize, from: usize, to: usize| {
        let size = (blocks * 16).checked_sub(from)?.checked_sub(to)?;
        (size > 0).then_some(size)
    };
    let (Some(width), Some(height)) = (
        size(columns, crop[0], crop[1]),
        size(rows, crop[2], crop[3]),
    ) else {
        return Some(Err(Problem::Damaged));
    };
    let color = match bits.take(1)? {
        1 => color(bits)?,
        _ => None,
    };
    Some(Ok(Parameters {
        width,
        height,
        references: references.min(MAX_REFERENCES),
        color,
    }))
}

/// Skips the scaling matrices for 4:2:0: six of 4x4 and two of 8x8.
fn skip_scaling_lists(bits: &mut Bits<'_>) -> Option<()> {
    for list in 0..8 {
        if bits.take(1)? == 0 {
            continue;
        }
        let (mut last, mut next) = (8, 8);
        for _ in 0..if list < 6 { 16 } else { 64 } {
            if next != 0 {
                next = (bits.signed()?.wrapping_add(last)) & 255;
            }
            last = if next == 0 { last } else { next };
        }
    }
    Some(())
}

/// Skips the parameters of the order of images.
fn skip_order_count(bits: &mut Bits<'_>) -> Option<()> {
    match bits.number()? {
        0 => {
            bits.number()?;
        }
        1 => {
            bits.take(1)?;
            bits.signed()?;
            bits.signed()?;
            for _ in 0..bits.number()? {
                bits.signed()?;
            }
        }
        _ => {}
    }
    Some(())
}

/// Parses the color of the usability information.
fn color(bits: &mut Bits<'_>) -> Option<Option<Color>> {
    const EXTENDED_ASPECT: u32 = 255;
    if bits.take(1)? == 1 && bits.take(8)? == EXTENDED_ASPECT {
        bits.take(32)?;
    }
    if bits.take(1)? == 1 {
        bits.take(1)?;
    }
    if bits.take(1)? == 0 {
        return Some(None);
    }
    bits.take(3)?;
    let full_range = bits.take(1)? == 1;
    let mut matrix = None;
    if bits.take(1)? == 1 {
        bits.take(16)?;
        matrix = matrix_of_code(bits.take(8)?);
    }
    Some(Some(Color {
        matrix: matrix.unwrap_or(Matrix::BT601),
        full_range,
    }))
}

/// Removes the bytes that prevent a start code (section 7.4.1): 3 after two zeros.
fn unescape(unit: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(unit.len());
    let mut zeros = 0;
    for &byte in unit {
        if byte == 3 && zeros >= 2 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        payload.push(byte);
    }
    payload
}

/// A reader of bits, the most significant one first.
struct Bits<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Bits<'_> {
    /// Takes up to 32 bits.
    fn take(&mut self, count: usize) -> Option<u32> {
        let mut value = 0;
        for _ in 0..count {
            let byte = self.bytes.get(self.position / 8)?;
            value = value << 1 | u32::from(byte >> (7 - self.position % 8) & 1);
            self.position += 1;
        }
        Some(value)
    }

    /// Takes an Exp-Golomb code (section 9.1).
    fn number(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while self.take(1)? == 0 {
            zeros += 1;
        }
        if zeros > 31 {
            return None;
        }
        let rest = self.take(zeros)?;
        ((1u32 << zeros) - 1).checked_add(rest)
    }

    /// Takes a signed Exp-Golomb code (section 9.1.1).
    fn signed(&mut self) -> Option<i32> {
        let number = i64::from(self.number()?);
        let value = (number + 1) / 2;
        i32::try_from(if number % 2 == 1 { value } else { -value }).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer of bits.
    #[derive(Default)]
    struct Writer(Vec<bool>);

    impl Writer {
        fn bits(mut self, count: u32, value: u32) -> Self {
            self.0
                .extend((0..count).rev().map(|bit| value >> bit & 1 == 1));
            self
        }

        fn number(self, value: u32) -> Self {
            let len = (value + 1).ilog2();
            self.bits(len, 0).bits(len + 1, value + 1)
        }

        fn unit(mut self) -> Vec<u8> {
            self.0.push(true);
            self.0.resize(self.0.len().next_multiple_of(8), false);
            let byte = |bits: &[bool]| bits.iter().fold(0, |byte, &bit| byte << 1 | u8::from(bit));
            let mut unit = vec![0x67];
            let mut zeros = 0;
            for byte in self.0.chunks(8).map(byte) {
                if byte <= 3 && zeros >= 2 {
                    unit.push(3);
                    zeros = 0;
                }
                zeros = if byte == 0 { zeros + 1 } else { 0 };
                unit.push(byte);
            }
            unit
        }
    }

    /// A parameter set of the high profile up to its size, in macroblocks.
    fn high(chroma: u32, depth: u32, columns: u32, rows: u32) -> Writer {
        let set = Writer::default().bits(8, 100).bits(16, 40).number(0);
        let set = set.number(chroma).number(depth).number(depth).bits(2, 0);
        let set = set.number(0).number(2).number(4).bits(1, 0);
        set.number(columns - 1).number(rows - 1)
    }

    #[test]
    fn sizes_are_cropped() {
        // 1920x1080, then color: full range, BT.709.
        let set = high(1, 0, 120, 68).bits(3, 0b111);
        let set = set.number(0).number(0).number(0).number(4);
        let set = set.bits(1, 1).bits(2, 0).bits(1, 1).bits(3, 5).bits(2, 3);
        let set = set.bits(16, 0x0101).bits(8, 1).unit();
        let parameters = Parameters::parse(&set).unwrap();
        assert_eq!((parameters.width, parameters.height), (1920, 1080));
        assert_eq!(parameters.references, 4);
        let color = Color {
            matrix: matrix_of_code(1).unwrap(),
            full_range: true,
        };
        assert_eq!(parameters.color, Some(color));
        assert_eq!(Parameters::parse(&set[..8]), Err(Problem::Damaged));
    }

    #[test]
    fn features_that_are_not_supported_are_named() {
        let end = |set: Writer| set.bits(3, 0b110).bits(1, 0).unit();
        for (set, feature) in [
            (end(high(2, 0, 4, 4)), "chroma other than 4:2:0"),
            (end(high(1, 2, 4, 4)), "more than 8 bits"),
            (
                end(high(1, 0, 60_000, 60_000)),
                "more than 4096x2304 pixels",
            ),
            (high(1, 0, 4, 4).bits(4, 0).unit(), "interlaced frames"),
        ] {
            assert_eq!(Parameters::parse(&set), Err(Problem::Unsupported(feature)));
        }
        // Cropped to nothing.
        let set = high(1, 0, 1, 1)
            .bits(3, 0b111)
            .number(8)
            .number(0)
            .number(0)
            .number(0);
        assert_eq!(
            Parameters::parse(&set.bits(1, 0).unit()),
            Err(Problem::Damaged)
        );
    }
}
