//! Shapes and operands of the kernel benchmarks: the operations of Qwen2-VL-2B that take most time, and
//! the attention of CLIP.

use crate::attention::Heads;
use crate::format::{Format, FormatError, MatrixShape, PANEL};
use crate::pack::pack_rows;

pub use crate::linear::FEW_TOKENS;

/// Outputs and inputs of a linear layer.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    /// Name of the layer.
    pub name: &'static str,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
}

/// Linear layers of the language model.
pub const TEXT_LAYERS: [Layer; 5] = [
    TEXT_QKV,
    TEXT_ATTENTION_OUTPUT,
    TEXT_UP,
    TEXT_DOWN,
    TEXT_HEAD,
];
/// Linear layers of the vision tower.
pub const VISION_LAYERS: [Layer; 4] = [
    VISION_QKV,
    layer("attention output", 1280, 1280),
    VISION_UP,
    VISION_DOWN,
];

const TEXT_QKV: Layer = layer("qkv", 2048, 1536);
const TEXT_ATTENTION_OUTPUT: Layer = layer("attention output", 1536, 1536);
const TEXT_UP: Layer = layer("gate and up", 17920, 1536);
const TEXT_DOWN: Layer = layer("down", 1536, 8960);
/// The output projection to the vocabulary, which is computed for the last token only.
pub const TEXT_HEAD: Layer = layer("head", 151_936, 1536);
const VISION_QKV: Layer = layer("qkv", 3840, 1280);
const VISION_UP: Layer = layer("up", 5120, 1280);
const VISION_DOWN: Layer = layer("down", 1280, 5120);

const fn layer(name: &'static str, rows: usize, cols: usize) -> Layer {
    Layer { name, rows, cols }
}

/// Tokens of a prompt.
pub const PROMPT_TOKENS: usize = 512;
/// Patches of an image of 336x336 and of 672x672 pixels.
pub const IMAGE_TOKENS: [usize; 2] = [576, 2304];

/// A product with packed weights.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Stage of the model in which it occurs.
    pub stage: &'static str,
    /// The layer.
    pub layer: Layer,
    /// Format of the weights.
    pub format: Format,
    /// Number of tokens.
    pub tokens: usize,
}

/// The products that take most time: in decoding all weights are read for one token, in the
/// verification of drafts for a few, in prefill and in the vision tower for many.
pub const PRODUCTS: [Product; 15] = [
    product("decode", TEXT_QKV, Format::Q4, 1),
    product("decode", TEXT_UP, Format::Q4, 1),
    product("decode", TEXT_DOWN, Format::Q4, 1),
    product("decode", TEXT_HEAD, Format::Q4, 1),
    product("verification", TEXT_UP, Format::Q4, 2),
    product("verification", TEXT_UP, Format::Q4, 4),
    product("verification", TEXT_UP, Format::Q4, FEW_TOKENS),
    product("prefill", TEXT_QKV, Format::Q4, PROMPT_TOKENS),
    product("prefill", TEXT_UP, Format::Q4, PROMPT_TOKENS),
    product("prefill", TEXT_DOWN, Format::Q4, PROMPT_TOKENS),
    product("vision", VISION_QKV, Format::Q8, IMAGE_TOKENS[1]),
    product("vision", VISION_UP, Format::Q8, IMAGE_TOKENS[1]),
    product("vision", VISION_DOWN, Format::Q8, IMAGE_TOKENS[1]),
    product("vision", VISION_UP, Format::Q4, IMAGE_TOKENS[1]),
    product("vision", VISION_UP, Format::F16, IMAGE_TOKENS[1]),
];

const fn product(stage: &'static str, layer: Layer, format: Format, tokens: usize) -> Product {
    Product {
        stage,
        layer,
        format,
        tokens,
    }
}

/// A feed-forward network, computed as one operation.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// Stage of the model in which it occurs.
    pub stage: &'static str,
    /// Format of the weights.
    pub format: Format,
    /// `true` for a gated network.
    pub gated: bool,
    /// Inputs, and outputs.
    pub inputs: usize,
    /// Hidden activations.
    pub width: usize,
    /// Number of tokens.
    pub tokens: usize,
}

/// The feed-forward networks.
pub const NETWORKS: [Network; 6] = [
    network("decode", Format::Q4, true, TEXT_DOWN, 1),
    network("verification", Format::Q4, true, TEXT_DOWN, 2),
    network("verification", Format::Q4, true, TEXT_DOWN, 4),
    network("verification", Format::Q4, true, TEXT_DOWN, FEW_TOKENS),
    network("prefill", Format::Q4, true, TEXT_DOWN, PROMPT_TOKENS),
    network("vision", Format::Q8, false, VISION_DOWN, IMAGE_TOKENS[1]),
];

const fn network(
    stage: &'static str,
    format: Format,
    gated: bool,
    down: Layer,
    tokens: usize,
) -> Network {
    Network {
        stage,
        format,
        gated,
        inputs: down.rows,
        width: down.cols,
        tokens,
    }
}

impl Network {
    /// Shapes of the first and the second matrix.
    pub fn shapes(&self) -> [MatrixShape; 2] {
        let rows = if self.gated { 2 } else { 1 } * self.width;
        [
            MatrixShape::new(self.format, rows, self.inputs),
            MatrixShape::new(self.format, self.inputs, self.width),
        ]
    }

    /// Operations, two per multiply-add.
    pub fn operations(&self) -> usize {
        let products = if self.gated { 3 } else { 2 };
        2 * self.inputs * self.width * products * self.tokens
    }
}

/// Attention among all tokens of an image.
#[derive(Clone, Copy, Debug)]
pub struct ImageAttention {
    /// Vision tower and image.
    pub name: &'static str,
    /// Heads.
    pub heads: Heads,
    /// Number of tokens.
    pub tokens: usize,
}

/// Attention of the vision towers.
pub const IMAGE_ATTENTION: [ImageAttention; 3] = [
    image_attention("vision, 336x336", 80, IMAGE_TOKENS[0]),
    image_attention("vision, 672x672", 80, IMAGE_TOKENS[1]),
    image_attention("CLIP, 336x336", 64, 577),
];

const fn image_attention(name: &'static str, head_dim: usize, tokens: usize) -> ImageAttention {
    let heads = Heads {
        heads: 16,
        kv_heads: 16,
        head_dim,
    };
    ImageAttention {
        name,
        heads,
        tokens,
    }
}

/// Attention heads of the language model.
pub const TEXT_HEADS: Heads = Heads {
    heads: 12,
    kv_heads: 2,
    head_dim: 128,
};
/// Layers of the language model.
pub const TEXT_DEPTH: usize = 28;

/// Pseudo-random numbers in -1..1 (linear congruential generator: Press et al., Numerical Recipes,
/// section 7.1).
pub fn noise(len: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Packed weights of `copies` matrices: eight panels of noise, repeated, because packing takes longer
/// than the products.
///
/// # Errors
/// If the matrix exceeds the address space.
pub fn weights(shape: MatrixShape, copies: usize) -> Result<Vec<u8>, FormatError> {
    let MatrixShape { format, rows, cols } = shape;
    let len = shape
        .byte_len()
        .and_then(|len| len.checked_mul(copies))
        .ok_or(FormatError::TooLarge { format, rows, cols })?;
    let mut few = Vec::new();
    pack_rows(shape, &noise(8 * PANEL * cols), &mut few)?;
    Ok(few.into_iter().cycle().take(len).collect())
}
