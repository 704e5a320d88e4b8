//! The byte layout of packed weights.
//!
//! A weight matrix is `[rows (outputs), cols (inputs)]`. It is cut into *panels* of 8 rows; the
//! missing rows of the last panel are zero. The bytes are the same on every CPU (little endian), so a
//! record stores them and the kernels read them straight from the mapped file.
//!
//! Inputs come in *blocks* of 32 and *groups* of 4 blocks (128 inputs). With `nb = ceil(cols / 32)` blocks and
//! `ng = ceil(nb / 4)` groups per row, a panel holds
//!
//! | format | panel, then zero bytes up to a multiple of 64 |
//! |---|---|
//! | `f32` | `cols` times the 8 rows' weights of one input |
//! | `f16` | the same in half precision |
//! | `q8` | a header, then `nb * 256` quants |
//! | `q4` | a header, then `nb * 128` bytes of quants |
//!
//! The header is `ng * 8` half-precision scales, in q4 `nb * 8` signed bytes of levels, and zero bytes up to a multiple of
//! 64. So a product reads the matrix from its first byte to its last.
//!
//! The quants of a block are cut into vectors of 32 bytes, byte `r * 4 + j` belonging to row `r`:
//! - `q8`, vectors `v = 0..8`: the signed weight (-127..=127) of input `4 v + j`;
//! - `q4`, vectors `v = 0..4`: in the low nibble the weight of input `8 v + j`, in the high nibble
//!   that of input `8 v + 4 + j`, each stored as `q + 8` with `q` in -8..=7.
//!
//! A weight is `q * scale` in q8 and `q * level * scale` in q4: the scale is that of its row and group (scale
//! `g * 8 + r`), the level an integer in -15..=15, that of its row and block (level `b * 8 + r`). The inputs that fill
//! up the last block are zero (`q = 0`).
//!
//! The two levels of scales (as the K-quants of llama.cpp have them, and QServe: Lin et al. 2024,
//! [arXiv:2405.04532](https://arxiv.org/abs/2405.04532)) keep the products of 128 inputs in integers: `q * level` fits a
//! signed byte, so that a block of q4 that is unpacked for many tokens becomes one of q8.
//!
//! The arrangement serves every instruction set alike: four bytes of a row stand together, as the dot
//! product instructions want them (`sdot`, `vpdpbusd`, and `vpmaddubsw` in pairs), and the four
//! activations they meet are one 32-bit broadcast. One 32-byte load of q4 gives two such vectors with a
//! mask and a shift, in the order of the inputs. Inside a block every sum of q4 quants fits 16 bits: 8 additions
//! of at most 2 * 15 * 127 = 3810 make 30480.

use half::f16;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Rows of a panel.
pub const PANEL: usize = 8;
/// Inputs that share a level in `q4`; the inputs of a row are padded to whole blocks.
pub const BLOCK: usize = 32;
/// Blocks that share a scale in `q8` and `q4`.
pub const GROUP: usize = 4;
/// Largest magnitude of a level.
pub const MAX_LEVEL: i8 = 15;
/// Bytes of the scales of one group of one panel.
pub(crate) const SCALES_BYTES: usize = 2 * PANEL;
/// Panels start at multiples of this many bytes.
pub const PANEL_ALIGN: usize = 64;

/// How the weights of a matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Single precision.
    F32,
    /// Half precision (IEEE binary16).
    F16,
    /// 8-bit integers, a half-precision scale per row and 128 inputs: 8.125 bits per weight.
    Q8,
    /// 4-bit integers, an integer level per row and 32 inputs, a half-precision scale per row and 128 inputs: 4.375 bits per weight.
    Q4,
}

impl Format {
    /// All formats.
    pub const ALL: [Format; 4] = [Format::F32, Format::F16, Format::Q8, Format::Q4];

    /// Whether weights are integers with a scale per block.
    pub fn is_quantized(self) -> bool {
        matches!(self, Format::Q8 | Format::Q4)
    }

    /// Bytes of the quants of one block of one panel; 0 for the float formats.
    pub(crate) fn block_bytes(self) -> usize {
        match self {
            Format::Q8 => PANEL * BLOCK,
            Format::Q4 => PANEL * BLOCK / 2,
            Format::F32 | Format::F16 => 0,
        }
    }

    /// Bytes of the levels of one block of one panel.
    pub(crate) fn level_bytes(self) -> usize {
        if self == Format::Q4 { PANEL } else { 0 }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Format::F32 => "f32",
            Format::F16 => "f16",
            Format::Q8 => "q8",
            Format::Q4 => "q4",
        })
    }
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(s: &str) -> Result<Self, FormatError> {
        Format::ALL
            .into_iter()
            .find(|f| f.to_string() == s)
            .ok_or_else(|| FormatError::UnknownFormat(s.to_owned()))
    }
}

/// What can be wrong with packed weights or with weights to be packed.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum FormatError {
    /// Not the name of a [`Format`].
    #[error("unknown weight format {0:?}: expected f32, f16, q8 or q4")]
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
    /// The packed bytes do not have the length that the shape asks for.
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
        /// Bytes the shape asks for.
        expected: usize,
        /// Bytes there are.
        found: usize,
    },
    /// The weights are not whole rows.
    #[error("{found} weights are not whole rows of {cols}")]
    Ragged {
        /// Inputs, the length of a row.
        cols: usize,
        /// Number of weights given.
        found: usize,
    },
    /// Quants, levels and scales given for packing do not belong together.
    #[error("{rows} rows of {cols} quantized weights need {expected} {what}, found {found}")]
    Scales {
        /// Levels or scales.
        what: &'static str,
        /// Rows given.
        rows: usize,
        /// Inputs.
        cols: usize,
        /// Number needed.
        expected: usize,
        /// Number given.
        found: usize,
    },
    /// A weight is NaN or infinite.
    #[error("the weight at row {row}, column {col} is {value}: only finite weights can be packed")]
    NotFinite {
        /// Row in the slice given.
        row: usize,
        /// Column.
        col: usize,
        /// What was found.
        value: f32,
    },
    /// A weight is too large for the format.
    #[error(
        "the weight {value} at row {row}, column {col} is beyond the range of {format} (largest: {limit})"
    )]
    OutOfRange {
        /// Format of the matrix.
        format: Format,
        /// Row in the slice given.
        row: usize,
        /// Column.
        col: usize,
        /// What was found.
        value: f32,
        /// Largest magnitude the format can hold.
        limit: f32,
    },
    /// The operation is only defined for integer formats.
    #[error("{0} is not a quantized format: expected q8 or q4")]
    NotQuantized(Format),
}

/// Format and size of a packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixShape {
    /// How the weights are stored.
    pub format: Format,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
}

impl MatrixShape {
    /// A shape; any size is allowed, [`byte_len`](Self::byte_len) tells whether it can exist.
    pub fn new(format: Format, rows: usize, cols: usize) -> Self {
        Self { format, rows, cols }
    }

    /// Panels of 8 rows, the last one possibly partial.
    pub fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Blocks of 32 inputs in a row, the last one possibly partial.
    pub fn blocks(&self) -> usize {
        self.cols.div_ceil(BLOCK)
    }

    /// Groups of 4 blocks in a row, the last one possibly partial.
    pub fn groups(&self) -> usize {
        self.blocks().div_ceil(GROUP)
    }

    /// Bytes of one panel; `usize::MAX` if that number is larger than the address space.
    pub fn panel_bytes(&self) -> usize {
        self.checked_panel_bytes().unwrap_or(usize::MAX)
    }

    fn checked_panel_bytes(&self) -> Option<usize> {
        let bytes = match self.format {
            Format::F32 => self.cols.checked_mul(4 * PANEL)?,
            Format::F16 => self.cols.checked_mul(2 * PANEL)?,
            Format::Q8 | Format::Q4 => self
                .blocks()
                .checked_mul(self.format.block_bytes())?
                // A header is smaller than the quants, so this cannot be far beyond them.
                .checked_add(self.level_and_quant_offsets().1)?,
        };
        bytes.checked_next_multiple_of(PANEL_ALIGN)
    }

    /// Where in a quantized panel, after the scales, the levels begin, and where the quants: bytes from its beginning.
    pub fn level_and_quant_offsets(&self) -> (usize, usize) {
        let levels = self.groups() * SCALES_BYTES;
        let header = levels + self.blocks() * self.format.level_bytes();
        (levels, header.next_multiple_of(PANEL_ALIGN))
    }

    /// Bytes of the whole matrix, `None` if that is larger than the address space allows.
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
    /// If the shape is absurd or `bytes` has not exactly the length it asks for.
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

    /// The bytes of `count` panels from `first` on.
    pub(crate) fn panels(&self, first: usize, count: usize) -> &'a [u8] {
        let size = self.shape.panel_bytes();
        &self.bytes[first * size..(first + count) * size]
    }

    /// Dequantizes one row into `out`, for example an embedding.
    ///
    /// # Panics
    /// If there is no such row or `out` has not `cols` elements.
    pub fn row_into(&self, row: usize, out: &mut [f32]) {
        let MatrixShape { format, rows, cols } = self.shape;
        assert!(row < rows, "row {row} of a matrix with {rows} rows");
        assert_eq!(out.len(), cols, "a row has {cols} weights");
        let panel = self.panels(row / PANEL, 1);
        let r = row % PANEL;
        match format {
            Format::F32 => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = single_at(panel, i * PANEL + r);
                }
            }
            Format::F16 => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = half_at(panel, i * PANEL + r).to_f32();
                }
            }
            Format::Q8 | Format::Q4 => {
                let (levels, quants) = self.shape.level_and_quant_offsets();
                for (b, out) in out.chunks_mut(BLOCK).enumerate() {
                    let mut scale = half_at(panel, b / GROUP * PANEL + r).to_f32();
                    if format == Format::Q4 {
                        scale *= f32::from(panel[levels + b * PANEL + r] as i8);
                    }
                    let block = &panel[quants + b * format.block_bytes()..];
                    for (i, out) in out.iter_mut().enumerate() {
                        *out = f32::from(quant_at(format, block, r, i)) * scale;
                    }
                }
            }
        }
    }
}

/// Number `index` of a byte slice.
#[inline(always)]
pub(crate) fn single_at(bytes: &[u8], index: usize) -> f32 {
    let at = 4 * index;
    f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Half-precision number `index` of a byte slice.
#[inline(always)]
pub(crate) fn half_at(bytes: &[u8], index: usize) -> f16 {
    f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]])
}

/// Quant of row `r`, input `i` of a block.
#[inline(always)]
pub(crate) fn quant_at(format: Format, block: &[u8], r: usize, i: usize) -> i8 {
    match format {
        Format::Q8 => block[i / 4 * 32 + r * 4 + i % 4] as i8,
        _ => {
            let byte = block[i / 8 * 32 + r * 4 + i % 4];
            let nibble = if i % 8 < 4 { byte & 15 } else { byte >> 4 };
            nibble as i8 - 8
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
    }

    #[test]
    fn sizes() {
        // One block: 16 bytes of scales and 8 of levels, padded to 64, and 128 of quants.
        assert_eq!(MatrixShape::new(Format::Q4, 9, 20).panel_bytes(), 192);
        assert_eq!(MatrixShape::new(Format::Q4, 9, 20).byte_len(), Some(384));
        // Five blocks, two groups: 32 bytes of scales and, in q4, 40 of levels.
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
    fn absurd_sizes_are_errors() {
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
        assert_eq!(row[2 * 8 + 3], 3.5); // low nibble 15 -> q = 7
        assert_eq!(row[2 * 8 + 4 + 3], -3.5); // high nibble 1 -> q = -7
        assert_eq!(row[0], -4.0); // nibble 0 -> q = -8
    }
}
