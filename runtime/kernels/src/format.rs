//! Byte layout of packed weights.
//!
//! A weight matrix is `[rows (outputs), cols (inputs)]`. It is divided into *panels* of 8 rows; the
//! missing rows of the last panel are zero. The bytes are the same on every CPU (little endian), so
//! the kernels read them directly from a mapped record.
//!
//! Inputs are divided into *blocks* of 32 and *groups* of 4 blocks (128 inputs). With
//! `nb = ceil(cols / 32)` blocks and `ng = ceil(nb / 4)` groups per row, a panel holds
//!
//! | format | panel, zero-padded to a multiple of 64 bytes |
//! |---|---|
//! | `f32` | for each of the `cols` inputs, the 8 weights of the rows |
//! | `f16` | the same in half precision |
//! | `q8` | header, then `nb * 256` bytes of quants |
//! | `q4` | header, then `nb * 128` bytes of quants |
//!
//! The header is `ng * 8` half-precision group scales, in q4 followed by `nb * 8` signed bytes of
//! sub-block scales, zero-padded to a multiple of 64 bytes. A product therefore reads the matrix
//! sequentially.
//!
//! The quants of a block are divided into vectors of 32 bytes, in which byte `r * 4 + j` belongs to
//! row `r`:
//! - `q8`, vectors `v = 0..8`: the signed weight (-127..=127) of input `4 v + j`;
//! - `q4`, vectors `v = 0..4`: in the low nibble the weight of input `8 v + j`, in the high nibble
//!   that of input `8 v + 4 + j`, each stored as an index of [`LEVELS`].
//!
//! A weight is `q * scale` in q8 and `q * sub_scale * scale` in q4, where `q` is the stored byte or
//! level. `scale` is the group scale of the row and group (number `g * 8 + r`); `sub_scale`, an
//! integer in -12..=12, is the sub-block scale of the row and block (number `b * 8 + r`). The inputs
//! that pad the last block are zero (`q = 0`).
//!
//! Weights of a trained block are distributed roughly like a normal distribution, so that levels at
//! equal distances are too coarse near zero and too fine at the ends. Four-bit formats with unequal
//! levels have been used with arbitrary 8-bit levels (NF4: Dettmers et al. 2023,
//! [arXiv:2305.14314](https://arxiv.org/abs/2305.14314); IQ4_NL of llama.cpp). Here the levels are
//! small integers, at a distance of 1 in the middle and of 2 at both ends, so that the product of a
//! level and a sub-block scale, at most 120, still fits a signed byte. On trained weights this has
//! 0.84 times the squared error of sixteen equal distances with sub-block scales up to 15; the
//! levels of IQ4_NL, whose products do not fit, have 0.79 times.
//!
//! Two-level scales (as in the K-quants of llama.cpp, and QServe: Lin et al. 2024,
//! [arXiv:2405.04532](https://arxiv.org/abs/2405.04532)) keep the products of 128 inputs in integers:
//! `q * sub_scale` fits a signed byte, so that a q4 block unpacked for many tokens becomes a q8
//! block.
//!
//! The layout suits every instruction set: four consecutive bytes belong to one row, as the dot
//! product instructions require (`sdot`, `vpdpbusd`, and pairs of `vpmaddubsw`), and the four
//! activations they are multiplied by are one 32-bit broadcast. One 32-byte load of q4 gives two such
//! vectors with a mask, a shift and a table lookup, in input order. Half of the sum of a q4 block's products
//! fits 16 bits: 16 products of at most 10 * 127 are 20320.

use crate::names::{alternatives, named_enum};
use half::f16;
use std::str::FromStr;
use thiserror::Error;

/// Rows of a panel.
pub const PANEL: usize = 8;
/// Inputs of a block; the inputs of a row are padded to whole blocks. In q4 the weights of a row and
/// block share a sub-block scale.
pub const BLOCK: usize = 32;
/// Blocks of a group. In q8 and q4 the weights of a row and group share a scale.
pub const GROUP: usize = 4;
/// Largest magnitude of a sub-block scale.
pub const MAX_SUB_SCALE: i8 = 12;
/// The values of the 16 codes of a q4 weight. The code of 0 is 8.
pub const LEVELS: [i8; 16] = [-10, -8, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 7, 9];
/// Range of the levels with a distance of 1.
pub(crate) const FINE_LEVELS: (i8, i8) = (-6, 5);
/// Bytes of the scales of one group of one panel.
pub(crate) const SCALES_BYTES: usize = 2 * PANEL;
/// Alignment of panels in bytes, from the beginning of the matrix.
pub const PANEL_ALIGN: usize = 64;

named_enum! {
    /// Storage format of a weight matrix.
    pub enum Format {
        /// Single precision.
        F32 = "f32",
        /// Half precision (IEEE binary16).
        F16 = "f16",
        /// 8-bit integers with a half-precision scale per row and 128 inputs: 8.125 bits per weight.
        Q8 = "q8",
        /// 16 unequal levels with an integer sub-block scale per row and 32 inputs and a half-precision
        /// scale per row and 128 inputs: 4.375 bits per weight.
        Q4 = "q4",
    }
}

/// A [`Format`] by kind of number. Code that supports only one kind takes [`FloatFormat`] or
/// [`QuantFormat`], so that it can match exhaustively.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FormatKind {
    /// Floats.
    Float(FloatFormat),
    /// Integers with scales.
    Quant(QuantFormat),
}

/// A format of float weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatFormat {
    /// [`Format::F32`]
    F32,
    /// [`Format::F16`]
    F16,
}

/// A format of quantized weights: integers with scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantFormat {
    /// [`Format::Q8`]
    Q8,
    /// [`Format::Q4`]
    Q4,
}

impl Format {
    /// The kind of number that weights are stored as.
    pub const fn kind(self) -> FormatKind {
        match self {
            Format::F32 => FormatKind::Float(FloatFormat::F32),
            Format::F16 => FormatKind::Float(FloatFormat::F16),
            Format::Q8 => FormatKind::Quant(QuantFormat::Q8),
            Format::Q4 => FormatKind::Quant(QuantFormat::Q4),
        }
    }

    /// Returns `true` if weights are integers with scales.
    pub const fn is_quantized(self) -> bool {
        match self.kind() {
            FormatKind::Float(_) => false,
            FormatKind::Quant(_) => true,
        }
    }
}

impl FloatFormat {
    /// Bytes of a weight.
    pub(crate) const fn weight_bytes(self) -> usize {
        match self {
            FloatFormat::F32 => 4,
            FloatFormat::F16 => 2,
        }
    }
}

impl QuantFormat {
    /// Bytes of the quants of one block of one panel.
    pub(crate) const fn block_bytes(self) -> usize {
        match self {
            QuantFormat::Q8 => PANEL * BLOCK,
            QuantFormat::Q4 => PANEL * BLOCK / 2,
        }
    }

    /// Bytes of the sub-block scales of one block of one panel.
    pub(crate) const fn sub_scale_bytes(self) -> usize {
        match self {
            QuantFormat::Q8 => 0,
            QuantFormat::Q4 => PANEL,
        }
    }

    /// Smallest and largest quant.
    pub(crate) const fn range(self) -> (i8, i8) {
        match self {
            QuantFormat::Q8 => (-127, 127),
            QuantFormat::Q4 => (LEVELS[0], LEVELS[15]),
        }
    }

    /// Offsets in a panel whose rows have `blocks` blocks.
    pub const fn offsets(self, blocks: usize) -> PanelOffsets {
        let sub_scales = blocks.div_ceil(GROUP) * SCALES_BYTES;
        let header = sub_scales + blocks * self.sub_scale_bytes();
        PanelOffsets {
            sub_scales,
            quants: header.next_multiple_of(PANEL_ALIGN),
        }
    }
}

impl From<QuantFormat> for Format {
    fn from(format: QuantFormat) -> Self {
        match format {
            QuantFormat::Q8 => Format::Q8,
            QuantFormat::Q4 => Format::Q4,
        }
    }
}

/// Byte offsets in a quantized panel, which begins with the group scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanelOffsets {
    /// Offset of the sub-block scales.
    pub sub_scales: usize,
    /// Offset of the quants.
    pub quants: usize,
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(s: &str) -> Result<Self, FormatError> {
        Format::from_name(s).ok_or_else(|| FormatError::UnknownFormat(s.to_owned()))
    }
}

fn all_formats() -> String {
    alternatives(Format::ALL.map(Format::name))
}

fn quantized_formats() -> String {
    let quantized = Format::ALL.into_iter().filter(|f| f.is_quantized());
    alternatives(quantized.map(Format::name))
}

/// An error in packed weights or in weights to be packed.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum FormatError {
    /// Not the name of a [`Format`].
    #[error("unknown weight format {0:?}: expected {names}", names = all_formats())]
    UnknownFormat(String),
    /// The matrix would not fit the address space.
    #[error("a {format} matrix of {rows} x {cols} weights is larger than the address space")]
    TooLarge {
        /// Format of the matrix.
        format: Format,
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
    },
    /// The packed bytes do not have the length that the shape requires.
    #[error(
        "a {format} matrix of {rows} x {cols} weights takes {expected} bytes, found {found}: \
         the data is truncated or has another shape"
    )]
    Length {
        /// Format of the matrix.
        format: Format,
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
        /// Bytes that the shape requires.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// The number of weights is not a multiple of the row length.
    #[error("{found} weights are not whole rows of {cols}")]
    Ragged {
        /// Inputs: the length of a row.
        cols: usize,
        /// Number of weights given.
        found: usize,
    },
    /// The numbers of quants, sub-block scales and scales given for packing do not match.
    #[error("{rows} rows of {cols} quantized weights need {expected} {what}, found {found}")]
    Scales {
        /// Name of the operand.
        what: &'static str,
        /// Rows given.
        rows: usize,
        /// Inputs.
        cols: usize,
        /// Elements required.
        expected: usize,
        /// Elements given.
        found: usize,
    },
    /// There is not one weight for each input.
    #[error("{found} weights of inputs for a matrix with {expected} inputs")]
    Weights {
        /// Inputs of the matrix.
        expected: usize,
        /// Weights given.
        found: usize,
    },
    /// The weight of an input is negative, NaN or infinite.
    #[error("the weight of input {col} is {value}: expected a finite number from 0")]
    Weight {
        /// The input.
        col: usize,
        /// Its weight.
        value: f32,
    },
    /// A weight is NaN or infinite.
    #[error("the weight at row {row}, column {col} is {value}: only finite weights can be packed")]
    NotFinite {
        /// Row in the given slice.
        row: usize,
        /// Column.
        col: usize,
        /// The weight.
        value: f32,
    },
    /// A weight is too large for the format.
    #[error(
        "the weight {value} at row {row}, column {col} is beyond the range of {format} (largest: {limit})"
    )]
    OutOfRange {
        /// Format of the matrix.
        format: Format,
        /// Row in the given slice.
        row: usize,
        /// Column.
        col: usize,
        /// The weight.
        value: f32,
        /// Largest magnitude the format can hold.
        limit: f32,
    },
    /// The operation is defined for quantized formats only.
    #[error("{0} is not a quantized format: expected {names}", names = quantized_formats())]
    NotQuantized(Format),
}

/// Format and size of a packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixShape {
    /// Storage format.
    pub format: Format,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
}

impl MatrixShape {
    /// A shape of any size; [`byte_len`](Self::byte_len) is `None` for those that cannot exist.
    pub fn new(format: Format, rows: usize, cols: usize) -> Self {
        Self { format, rows, cols }
    }

    /// Panels of 8 rows, counting a partial last one.
    pub fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Blocks of 32 inputs in a row, counting a partial last one.
    pub fn blocks(&self) -> usize {
        self.cols.div_ceil(BLOCK)
    }

    /// Groups of 4 blocks in a row, counting a partial last one.
    pub fn groups(&self) -> usize {
        self.blocks().div_ceil(GROUP)
    }

    /// Bytes of one panel, `usize::MAX` if that exceeds the address space.
    pub fn panel_bytes(&self) -> usize {
        self.checked_panel_bytes().unwrap_or(usize::MAX)
    }

    fn checked_panel_bytes(&self) -> Option<usize> {
        let bytes = match self.format.kind() {
            FormatKind::Float(format) => self.cols.checked_mul(format.weight_bytes() * PANEL)?,
            FormatKind::Quant(format) => self
                .blocks()
                .checked_mul(format.block_bytes())?
                // The header is smaller than the quants, so computing it cannot overflow here.
                .checked_add(format.offsets(self.blocks()).quants)?,
        };
        bytes.checked_next_multiple_of(PANEL_ALIGN)
    }

    /// Bytes of the whole matrix, `None` if that exceeds the address space.
    pub fn byte_len(&self) -> Option<usize> {
        let bytes = self.checked_panel_bytes()?.checked_mul(self.panels())?;
        (bytes <= isize::MAX as usize).then_some(bytes)
    }
}

/// A view of a packed matrix. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    shape: MatrixShape,
    bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// Views `bytes` as a packed matrix.
    ///
    /// # Errors
    /// If the shape exceeds the address space or requires another number of bytes.
    pub fn new(shape: MatrixShape, bytes: &'a [u8]) -> Result<Self, FormatError> {
        let MatrixShape { format, rows, cols } = shape;
        let expected = shape
            .byte_len()
            .ok_or(FormatError::TooLarge { format, rows, cols })?;
        if bytes.len() != expected {
            let found = bytes.len();
            return Err(FormatError::Length {
                format,
                rows,
                cols,
                expected,
                found,
            });
        }
        Ok(Self { shape, bytes })
    }

    /// Format and size.
    pub fn shape(&self) -> MatrixShape {
        self.shape
    }

    /// The packed bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The bytes of `count` panels, starting with panel `first`.
    pub(crate) fn panels(&self, first: usize, count: usize) -> &'a [u8] {
        let size = self.shape.panel_bytes();
        &self.bytes[first * size..(first + count) * size]
    }

    /// Dequantizes one row into `out`, such as an embedding.
    ///
    /// # Panics
    /// If `row` is out of range or the length of `out` is not `cols`.
    pub fn row_into(&self, row: usize, out: &mut [f32]) {
        let MatrixShape { format, rows, cols } = self.shape;
        assert!(row < rows, "row {row} of a matrix with {rows} rows");
        assert_eq!(out.len(), cols, "a row has {cols} weights");
        let panel = self.panels(row / PANEL, 1);
        let r = row % PANEL;
        match format.kind() {
            FormatKind::Float(format) => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = float_at(format, panel, i * PANEL + r);
                }
            }
            FormatKind::Quant(format) => {
                let offsets = format.offsets(self.shape.blocks());
                for (b, out) in out.chunks_mut(BLOCK).enumerate() {
                    let sub_scale = sub_scale_at(format, &panel[offsets.sub_scales..], b, r);
                    let scale =
                        half_at(panel, b / GROUP * PANEL + r).to_f32() * f32::from(sub_scale);
                    let block = &panel[offsets.quants + b * format.block_bytes()..];
                    for (i, out) in out.iter_mut().enumerate() {
                        *out = f32::from(quant_at(format, block, r, i)) * scale;
                    }
                }
            }
        }
    }
}

/// Number `index` of a slice of little-endian half-precision numbers.
#[inline(always)]
pub(crate) fn half_at(bytes: &[u8], index: usize) -> f16 {
    f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]])
}

/// Weight `index` of a float panel.
#[inline(always)]
pub(crate) fn float_at(format: FloatFormat, panel: &[u8], index: usize) -> f32 {
    match format {
        FloatFormat::F32 => {
            let at = 4 * index;
            f32::from_le_bytes([panel[at], panel[at + 1], panel[at + 2], panel[at + 3]])
        }
        FloatFormat::F16 => half_at(panel, index).to_f32(),
    }
}

/// Sub-block scale of row `r` in block `b`; 1 in formats without sub-block scales.
#[inline(always)]
pub(crate) fn sub_scale_at(format: QuantFormat, sub_scales: &[u8], b: usize, r: usize) -> i8 {
    match format {
        QuantFormat::Q8 => 1,
        QuantFormat::Q4 => sub_scales[b * PANEL + r] as i8,
    }
}

/// Quant of row `r` and input `i` of a block.
#[inline(always)]
pub(crate) fn quant_at(format: QuantFormat, block: &[u8], r: usize, i: usize) -> i8 {
    match format {
        QuantFormat::Q8 => block[i / 4 * 32 + r * 4 + i % 4] as i8,
        QuantFormat::Q4 => {
            let byte = block[i / 8 * 32 + r * 4 + i % 4];
            let nibble = if i % 8 < 4 { byte & 15 } else { byte >> 4 };
            LEVELS[usize::from(nibble)]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert_eq!(
            "q5".parse::<Format>(),
            Err(FormatError::UnknownFormat("q5".to_owned()))
        );
        assert_eq!(
            FormatError::UnknownFormat("q5".to_owned()).to_string(),
            "unknown weight format \"q5\": expected f32, f16, q8 or q4"
        );
        assert_eq!(
            FormatError::NotQuantized(Format::F16).to_string(),
            "f16 is not a quantized format: expected q8 or q4"
        );
    }

    #[test]
    fn sizes() {
        // One block: 16 bytes of scales and 8 of sub-block scales, padded to 64, and 128 of quants.
        assert_eq!(MatrixShape::new(Format::Q4, 9, 20).panel_bytes(), 192);
        assert_eq!(MatrixShape::new(Format::Q4, 9, 20).byte_len(), Some(384));
        // Five blocks, two groups: 32 bytes of scales and, in q4, 40 of sub-block scales.
        assert_eq!(
            MatrixShape::new(Format::Q8, 8, 130).byte_len(),
            Some(64 + 1280)
        );
        assert_eq!(
            MatrixShape::new(Format::Q4, 8, 130).byte_len(),
            Some(128 + 640)
        );
        assert_eq!(MatrixShape::new(Format::F16, 1, 5).byte_len(), Some(128));
        assert_eq!(MatrixShape::new(Format::F32, 16, 3).byte_len(), Some(256));
        assert_eq!(MatrixShape::new(Format::F32, 0, 3).byte_len(), Some(0));
    }

    #[test]
    fn sizes_beyond_the_address_space_are_errors() {
        for format in Format::ALL {
            for (rows, cols) in [
                (usize::MAX, 32),
                (8, usize::MAX),
                (usize::MAX, usize::MAX),
                (usize::MAX / 8, 1),
            ] {
                let shape = MatrixShape::new(format, rows, cols);
                assert_eq!(shape.byte_len(), None, "{shape:?}");
                assert_eq!(
                    Matrix::new(shape, &[]).unwrap_err(),
                    FormatError::TooLarge { format, rows, cols }
                );
            }
        }
    }

    #[test]
    fn wrong_length_is_an_error() {
        let shape = MatrixShape::new(Format::Q8, 8, 32);
        let error = Matrix::new(shape, &[0; 319]).unwrap_err();
        assert!(
            matches!(
                error,
                FormatError::Length {
                    expected: 320,
                    found: 319,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn layout_is_as_documented() {
        // One q4 panel, one block; every byte distinct in its pair of nibbles.
        let mut bytes = vec![0u8; 192];
        bytes[64 + 2 * 32 + 5 * 4 + 3] = 0x1f; // vector 2, row 5, j = 3
        bytes[16 + 5] = -2i8 as u8;
        bytes[2 * 5..][..2].copy_from_slice(&f16::from_f32(-0.25).to_le_bytes());
        let matrix = Matrix::new(MatrixShape::new(Format::Q4, 8, 32), &bytes).unwrap();
        let mut row = [0.0; 32];
        matrix.row_into(5, &mut row);
        assert_eq!(row[2 * 8 + 3], 4.5); // low nibble 15 -> q = 9
        assert_eq!(row[2 * 8 + 4 + 3], -4.0); // high nibble 1 -> q = -8
        assert_eq!(row[0], -5.0); // nibble 0 -> q = -10
    }
}
