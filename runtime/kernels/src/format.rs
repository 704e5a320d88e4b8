//! The byte layout of packed weights.
//!
//! A weight matrix is `[rows (outputs), cols (inputs)]`. It is cut into *panels* of 8 rows; the
//! missing rows of the last panel are zero. The bytes are the same on every CPU (little endian), so a
//! record stores them and the kernels read them straight from the mapped file.
//!
//! With `nb = ceil(cols / 32)` *blocks* of 32 inputs per row, a panel holds
//!
//! | format | panel, then zero bytes up to a multiple of 64 |
//! |---|---|
//! | `f32` | `cols` times the 8 rows' weights of one input |
//! | `f16` | the same in half precision |
//! | `q8` | `nb * 256` quants, then `nb * 8` half-precision scales |
//! | `q4` | `nb * 128` bytes of quants, then `nb * 8` half-precision scales |
//!
//! The quants of a block are cut into vectors of 32 bytes, byte `r * 4 + j` belonging to row `r`:
//! - `q8`, vectors `v = 0..8`: the signed weight (-127..=127) of input `4 v + j`;
//! - `q4`, vectors `v = 0..4`: in the low nibble the weight of input `8 v + j`, in the high nibble
//!   that of input `8 v + 4 + j`, each stored as `q + 8` with `q` in -8..=7.
//!
//! A weight is `q * scale`, the scale being that of its row and block (scale `b * 8 + r`). The inputs
//! that fill up the last block are zero (`q = 0`).
//!
//! The arrangement serves every instruction set alike: four bytes of a row stand together, as the dot
//! product instructions want them (`sdot`, `vpdpbusd`, and `vpmaddubsw` in pairs), and the four
//! activations they meet are one 32-bit broadcast. One 32-byte load of q4 gives two such vectors with a
//! mask and a shift, in the order of the inputs. Inside a block every q4 sum fits 16 bits: 8 additions
//! of at most 2 * 15 * 127 = 3810 make 30480.

use half::f16;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Rows of a panel.
pub const PANEL: usize = 8;
/// Inputs that share a scale in `q8` and `q4`.
pub const BLOCK: usize = 32;
/// Panels start at multiples of this many bytes.
pub const PANEL_ALIGN: usize = 64;

/// How the weights of a matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Single precision.
    F32,
    /// Half precision (IEEE binary16).
    F16,
    /// 8-bit integers, a half-precision scale per row and 32 inputs: 8.5 bits per weight.
    Q8,
    /// 4-bit integers, a half-precision scale per row and 32 inputs: 4.5 bits per weight.
    Q4,
}

impl Format {
    /// All formats.
    pub const ALL: [Format; 4] = [Format::F32, Format::F16, Format::Q8, Format::Q4];

    /// Whether weights are integers with a scale per block.
    pub fn is_quantized(self) -> bool {
        matches!(self, Format::Q8 | Format::Q4)
    }

    /// Bytes of one block of one panel without its scales; 0 for the float formats.
    pub(crate) fn block_bytes(self) -> usize {
        match self {
            Format::Q8 => PANEL * BLOCK,
            Format::Q4 => PANEL * BLOCK / 2,
            Format::F32 | Format::F16 => 0,
        }
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
    /// Quants and scales given for packing do not belong together.
    #[error("{rows} rows of {cols} quantized weights need {expected} scales, found {found}")]
    Scales {
        /// Rows given.
        rows: usize,
        /// Inputs.
        cols: usize,
        /// Scales needed.
        expected: usize,
        /// Scales given.
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
                .checked_mul(self.format.block_bytes() + 2 * PANEL)?,
        };
        bytes.checked_next_multiple_of(PANEL_ALIGN)
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
                    let at = (i * PANEL + r) * 4;
                    *out = f32::from_le_bytes([
                        panel[at],
                        panel[at + 1],
                        panel[at + 2],
                        panel[at + 3],
                    ]);
                }
            }
            Format::F16 => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = half_at(panel, i * PANEL + r).to_f32();
                }
            }
            Format::Q8 | Format::Q4 => {
                let scales = &panel[self.shape.blocks() * format.block_bytes()..];
                for (b, out) in out.chunks_mut(BLOCK).enumerate() {
                    let scale = half_at(scales, b * PANEL + r).to_f32();
                    let block = &panel[b * format.block_bytes()..];
                    for (i, out) in out.iter_mut().enumerate() {
                        *out = f32::from(quant_at(format, block, r, i)) * scale;
                    }
                }
            }
        }
    }
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
        // One block: 128 bytes of quants and 16 of scales make 144, padded to 192.
        assert_eq!(MatrixShape::new(Format::Q4, 9, 20).panel_bytes(), 192);
        assert_eq!(MatrixShape::new(Format::Q4, 9, 20).byte_len(), Some(384));
        assert_eq!(MatrixShape::new(Format::Q8, 8, 64).byte_len(), Some(576));
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
        bytes[2 * 32 + 5 * 4 + 3] = 0x1f; // vector 2, row 5, j = 3
        bytes[128 + 2 * 5..][..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        let matrix = Matrix::new(MatrixShape::new(Format::Q4, 8, 32), &bytes).unwrap();
        let mut row = [0.0; 32];
        matrix.row_into(5, &mut row);
        assert_eq!(row[2 * 8 + 3], 3.5); // low nibble 15 -> q = 7
        assert_eq!(row[2 * 8 + 4 + 3], -3.5); // high nibble 1 -> q = -7
        assert_eq!(row[0], -4.0); // nibble 0 -> q = -8
    }
}
