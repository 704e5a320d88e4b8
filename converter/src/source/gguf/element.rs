//! Element types of GGUF tensors.
//!
//! Numbers, names and sizes: `ggml.h` and `ggml-common.h` of <https://github.com/ggml-org/ggml>.
//! The table of ggus 0.5 is not used: it has wrong sizes for Q8_K, IQ3_XXS, IQ4_NL and IQ4_XS and
//! ends at number 33.

use super::super::decode::Decoder;
use super::blocks::BlockFormat;

/// Types that can be read as f32, for messages.
pub(super) const READABLE: &str = "F32, F16, BF16, Q1_0, Q2_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, \
                                   Q3_K, Q4_K, Q5_K, Q6_K, IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, \
                                   IQ3_XXS, IQ3_S, IQ4_NL, IQ4_XS, MXFP4, NVFP4, TQ1_0, TQ2_0";

/// An element type of known size; not every one can be read as f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element {
    /// ggml's name, for example `Q4_K`.
    pub name: &'static str,
    /// Elements of a block, the smallest unit that is stored; 1 for plain types. A row holds whole blocks.
    pub block_len: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
    pub(super) decoder: Option<Decoder>,
}

impl Element {
    /// Returns the type with ggml's number `id`, or a description of a number without a known size.
    pub(super) fn from_id(id: u32) -> Result<Self, String> {
        use BlockFormat as Format;
        let element = match id {
            0 => Self::plain("F32", 4, Some(Decoder::F32)),
            1 => Self::plain("F16", 2, Some(Decoder::F16)),
            2 => Self::blocks("Q4_0", Format::Q4_0),
            3 => Self::blocks("Q4_1", Format::Q4_1),
            6 => Self::blocks("Q5_0", Format::Q5_0),
            7 => Self::blocks("Q5_1", Format::Q5_1),
            8 => Self::blocks("Q8_0", Format::Q8_0),
            9 => Self::opaque("Q8_1", 32, 36),
            10 => Self::blocks("Q2_K", Format::Q2K),
            11 => Self::blocks("Q3_K", Format::Q3K),
            12 => Self::blocks("Q4_K", Format::Q4K),
            13 => Self::blocks("Q5_K", Format::Q5K),
            14 => Self::blocks("Q6_K", Format::Q6K),
            15 => Self::opaque("Q8_K", 256, 292),
            16 => Self::blocks("IQ2_XXS", Format::Iq2Xxs),
            17 => Self::blocks("IQ2_XS", Format::Iq2Xs),
            18 => Self::blocks("IQ3_XXS", Format::Iq3Xxs),
            19 => Self::blocks("IQ1_S", Format::Iq1S),
            20 => Self::blocks("IQ4_NL", Format::Iq4Nl),
            21 => Self::blocks("IQ3_S", Format::Iq3S),
            22 => Self::blocks("IQ2_S", Format::Iq2S),
            23 => Self::blocks("IQ4_XS", Format::Iq4Xs),
            24 => Self::plain("I8", 1, None),
            25 => Self::plain("I16", 2, None),
            26 => Self::plain("I32", 4, None),
            27 => Self::plain("I64", 8, None),
            28 => Self::plain("F64", 8, None),
            29 => Self::blocks("IQ1_M", Format::Iq1M),
            30 => Self::plain("BF16", 2, Some(Decoder::Bf16)),
            34 => Self::blocks("TQ1_0", Format::Tq1_0),
            35 => Self::blocks("TQ2_0", Format::Tq2_0),
            39 => Self::blocks("MXFP4", Format::Mxfp4),
            40 => Self::blocks("NVFP4", Format::Nvfp4),
            41 => Self::blocks("Q1_0", Format::Q1_0),
            42 => Self::blocks("Q2_0", Format::Q2_0),
            4 | 5 | 31..=33 | 36..=38 => {
                return Err(format!("type number {id}, which ggml has removed"));
            }
            _ => return Err(format!("type number {id}, which is unknown")),
        };
        Ok(element)
    }

    const fn plain(name: &'static str, bytes: u64, decoder: Option<Decoder>) -> Self {
        Self {
            name,
            block_len: 1,
            block_bytes: bytes,
            decoder,
        }
    }

    fn blocks(name: &'static str, format: BlockFormat) -> Self {
        Self {
            name,
            block_len: format.len() as u64,
            block_bytes: format.bytes() as u64,
            decoder: Some(Decoder::Blocks(format)),
        }
    }

    const fn opaque(name: &'static str, block_len: u64, block_bytes: u64) -> Self {
        Self {
            name,
            block_len,
            block_bytes,
            decoder: None,
        }
    }

    /// Returns the bytes of a tensor with `dims`, innermost first, or the reason the dimensions are
    /// invalid.
    pub(super) fn bytes_of(&self, dims: &[u64]) -> Result<u64, String> {
        let row = dims.first().copied().unwrap_or(1);
        if !row.is_multiple_of(self.block_len) {
            return Err(format!(
                "rows of {row} elements, which is not a multiple of the {} elements of a {} block",
                self.block_len, self.name
            ));
        }
        dims.iter()
            .try_fold(1u64, |product, &dim| product.checked_mul(dim))
            .and_then(|elements| (elements / self.block_len).checked_mul(self.block_bytes))
            .ok_or_else(|| format!("dimensions {dims:?}, whose product overflows"))
    }
}
