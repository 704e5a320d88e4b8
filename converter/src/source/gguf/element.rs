//! Element types of GGUF tensors.

use ggus::GGmlType;

use super::super::decode::Decoder;
use super::blocks::BlockFormat;

/// The types that can be read as f32, for messages.
pub(super) const READABLE: &str =
    "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL";

/// An element type whose size is known; not every one can be read as f32.
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
    /// The type with ggml's number `id`, or for a type that cannot be measured its name.
    pub(super) fn from_id(id: u32) -> Result<Self, String> {
        let blocks = |format| Some(Decoder::Blocks(format));
        let (kind, name, decoder) = match id {
            0 => (GGmlType::F32, "F32", Some(Decoder::F32)),
            1 => (GGmlType::F16, "F16", Some(Decoder::F16)),
            2 => (GGmlType::Q4_0, "Q4_0", blocks(BlockFormat::Q4_0)),
            3 => (GGmlType::Q4_1, "Q4_1", blocks(BlockFormat::Q4_1)),
            6 => (GGmlType::Q5_0, "Q5_0", blocks(BlockFormat::Q5_0)),
            7 => (GGmlType::Q5_1, "Q5_1", blocks(BlockFormat::Q5_1)),
            8 => (GGmlType::Q8_0, "Q8_0", blocks(BlockFormat::Q8_0)),
            9 => (GGmlType::Q8_1, "Q8_1", None),
            10 => (GGmlType::Q2K, "Q2_K", blocks(BlockFormat::Q2K)),
            11 => (GGmlType::Q3K, "Q3_K", blocks(BlockFormat::Q3K)),
            12 => (GGmlType::Q4K, "Q4_K", blocks(BlockFormat::Q4K)),
            13 => (GGmlType::Q5K, "Q5_K", blocks(BlockFormat::Q5K)),
            14 => (GGmlType::Q6K, "Q6_K", blocks(BlockFormat::Q6K)),
            15 => (GGmlType::Q8K, "Q8_K", None),
            16 => (GGmlType::IQ2XXS, "IQ2_XXS", None),
            17 => (GGmlType::IQ2XS, "IQ2_XS", None),
            18 => (GGmlType::IQ3XXS, "IQ3_XXS", None),
            19 => (GGmlType::IQ1S, "IQ1_S", None),
            20 => (GGmlType::IQ4NL, "IQ4_NL", blocks(BlockFormat::Iq4Nl)),
            21 => (GGmlType::IQ3S, "IQ3_S", None),
            22 => (GGmlType::IQ2S, "IQ2_S", None),
            23 => (GGmlType::IQ4XS, "IQ4_XS", None),
            24 => (GGmlType::I8, "I8", None),
            25 => (GGmlType::I16, "I16", None),
            26 => (GGmlType::I32, "I32", None),
            27 => (GGmlType::I64, "I64", None),
            28 => (GGmlType::F64, "F64", None),
            29 => (GGmlType::IQ1M, "IQ1_M", None),
            30 => (GGmlType::BF16, "BF16", Some(Decoder::Bf16)),
            other => return Err(unmeasured(other)),
        };
        let size = kind.size();
        Ok(Self {
            name,
            block_len: size.block_size.into(),
            block_bytes: size.type_size.into(),
            decoder,
        })
    }

    /// Bytes of a tensor with `dims`, innermost first, or why there cannot be one.
    pub(super) fn bytes_of(&self, dims: &[u64]) -> Result<u64, String> {
        let row = dims.first().copied().unwrap_or(1);
        if row % self.block_len != 0 {
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

/// Name of a type that ggus does not know, or that ggml has given up.
fn unmeasured(id: u32) -> String {
    let name = match id {
        4 => "Q4_2 (given up by ggml)",
        5 => "Q4_3 (given up by ggml)",
        31..=33 => "Q4_0 repacked for one processor (given up by ggml)",
        34 => "TQ1_0",
        35 => "TQ2_0",
        36..=38 => "IQ4_NL repacked for one processor (given up by ggml)",
        39 => "MXFP4",
        40 => "NVFP4",
        _ => return format!("type number {id}, which is unknown"),
    };
    name.into()
}
