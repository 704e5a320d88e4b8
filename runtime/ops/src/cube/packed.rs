//! Packed weights on a GPU. The bytes are those of the record, as described in
//! [`edge_lmm_kernels::format`](mod@edge_lmm_kernels::format), so that a record serves every device.
//! Only this file depends on their layout.
//!
//! A panel of 8 rows is read 16 bytes at a time. Such a *load* holds the weights of one or a few
//! consecutive inputs for one or two *quads* of 4 rows:
//!
//! | format | inputs per load | quads per load | loads for the same inputs |
//! |---|---|---|---|
//! | `q4` | 8 | 1 | 2 |
//! | `q8` | 4 | 1 | 2 |
//! | `f16` | 1 | 2 | 1 |
//! | `f32` | 1 | 1 | 2 |
//!
//! Consecutive loads are adjacent in memory, so that consecutive units read whole cache lines. The eight
//! scales of a group are one load, the eight sub-block scales of a block half a load.

use burn::tensor::{DType, f16};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use edge_lmm_kernels::format::{BLOCK, FloatFormat, Format, FormatKind, GROUP, MatrixShape, PANEL};

use super::tensor::array;

/// Rows of a quad.
pub(super) const QUAD: usize = 4;
/// Bytes of a load.
const LOAD: usize = 16;
/// Bits of `2^23` as f32. Bitwise or with an integer below `2^23` gives the float `2^23 + integer`. This is
/// cheaper than a conversion, which GPUs execute at a quarter of the rate of an addition or less.
const TWO_TO_23: u32 = 0x4B00_0000;

/// Sixteen bytes of a packed matrix.
pub(super) type Load = Vector<u32, Const<4>>;
/// The weights of four rows for one input.
pub(super) type Quad = Vector<f32, Const<4>>;

/// Returns the inputs per load.
pub(super) const fn inputs_of_load(format: Format) -> usize {
    match format {
        Format::Q4 => 8,
        Format::Q8 => 4,
        Format::F16 | Format::F32 => 1,
    }
}

/// Returns the quads per load.
pub(super) const fn quads_of_load(format: Format) -> usize {
    match format {
        Format::F16 => 2,
        Format::F32 | Format::Q8 | Format::Q4 => 1,
    }
}

/// Returns the loads for the same inputs of a panel.
pub(super) const fn loads_of_inputs(format: Format) -> usize {
    PANEL / QUAD / quads_of_load(format)
}

/// A packed matrix as a kernel argument. Offsets and sizes are in loads.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Packed {
    data: Array<Load>,
    /// Distance between panels.
    panel: usize,
    /// Offset of the sub-block scales in a panel, which begins with the scales.
    sub_scales: usize,
    /// Offset of the weights in a panel.
    quants: usize,
    /// Loads of weights in a panel.
    pub(super) loads: usize,
    /// Panels.
    pub(super) panels: usize,
    /// Outputs.
    pub(super) rows: usize,
    /// Inputs.
    pub(super) cols: usize,
}

/// Returns the matrix in the bytes of `weight` as a kernel argument.
///
/// # Panics
/// If there are too few bytes.
pub(super) fn packed<R: CubeRuntime>(
    weight: &CubeTensor<R>,
    shape: MatrixShape,
) -> PackedLaunch<R> {
    assert_eq!(weight.dtype, DType::U8, "packed weights are u8");
    let bytes = shape
        .byte_len()
        .expect("the size of a packed weight is checked when it is loaded");
    let (sub_scales, quants, weights) = match shape.format.kind() {
        FormatKind::Quant(format) => {
            let offsets = format.offsets(shape.blocks());
            let weights = shape.panel_bytes() - offsets.quants;
            (offsets.sub_scales, offsets.quants, weights)
        }
        FormatKind::Float(FloatFormat::F16) => (0, 0, shape.cols * PANEL * 2),
        FormatKind::Float(FloatFormat::F32) => (0, 0, shape.cols * PANEL * 4),
    };
    PackedLaunch::new(
        array(&weight.handle, bytes / size_of::<u32>()),
        shape.panel_bytes() / LOAD,
        sub_scales / LOAD,
        quants / LOAD,
        weights / LOAD,
        shape.panels(),
        shape.rows,
        shape.cols,
    )
}

#[cube]
impl Packed {
    /// Returns load `index` of a panel.
    pub(super) fn load(&self, panel: usize, index: usize) -> Load {
        self.data[panel * self.panel + self.quants + index]
    }

    /// Returns the scales of a block for the quad of load `index`, multiplied by the sub-block
    /// scales in formats that have them.
    pub(super) fn scale(
        &self,
        panel: usize,
        block: usize,
        index: usize,
        #[comptime] format: Format,
    ) -> Quad {
        let start = panel * self.panel;
        let scales = self.data[start + block / GROUP];
        let second = index % 2 == 1;
        let mut scale = halves(
            select(second, scales[2], scales[0]),
            select(second, scales[3], scales[1]),
        );
        match format {
            Format::Q4 => {
                let sub_scales = self.data[start + self.sub_scales + block / 2];
                let first = select(second, sub_scales[1], sub_scales[0]);
                let next = select(second, sub_scales[3], sub_scales[2]);
                scale *= signed_bytes(select(block % 2 == 1, next, first));
            }
            Format::Q8 | Format::F16 | Format::F32 => {}
        }
        scale
    }
}

/// Converts the four signed bytes of a word.
#[cube]
fn signed_bytes(word: u32) -> Quad {
    // Flipping the sign bits adds 128.
    let bytes = word ^ 0x8080_8080u32;
    let mut words = Load::new(bytes);
    words[1] = bytes >> 8u32;
    words[2] = bytes >> 16u32;
    words[3] = bytes >> 24u32;
    integers(words, 0usize, 0xFFu32, 128u32)
}

/// Returns the block of load `index` of a panel.
#[cube]
pub(super) fn block_of_load(index: usize, #[comptime] format: Format) -> usize {
    let inputs = comptime!(inputs_of_load(format));
    let together = comptime!(loads_of_inputs(format));
    index / together * inputs / BLOCK
}

/// Returns the first input of load `index` of a panel.
#[cube]
pub(super) fn first_input(index: usize, #[comptime] format: Format) -> usize {
    let inputs = comptime!(inputs_of_load(format));
    let together = comptime!(loads_of_inputs(format));
    index / together * inputs
}

/// Returns the unscaled weights of a load for its input `input` and quad `quad`.
#[cube]
pub(super) fn weights(
    load: Load,
    #[comptime] input: usize,
    #[comptime] quad: usize,
    #[comptime] format: Format,
) -> Quad {
    match format {
        // Byte j of the word of a row has input j in its low nibble and input 4 + j in the high one.
        Format::Q4 => {
            let code = integers(load, comptime!(input % 4 * 8 + input / 4 * 4), 0xFu32, 8u32);
            // The levels have a distance of 1 from -6 to 5 and of 2 beyond.
            let zero = Quad::new(0.0f32);
            code + max(code - Quad::new(5.0f32), zero) + min(code + Quad::new(6.0f32), zero)
        }
        // Flipping the sign bits adds 128 to each weight.
        Format::Q8 => integers(
            load ^ Load::new(0x8080_8080u32),
            comptime!(input * 8),
            0xFFu32,
            128u32,
        ),
        Format::F16 => halves(load[comptime!(2 * quad)], load[comptime!(2 * quad + 1)]),
        Format::F32 => Quad::reinterpret(load),
    }
}

/// Converts the integers in some bits of four words, minus `bias`.
#[cube]
fn integers(
    words: Load,
    #[comptime] shift: usize,
    #[comptime] mask: u32,
    #[comptime] bias: u32,
) -> Quad {
    let shift = comptime!(shift as u32);
    let bits = ((words >> Load::new(shift)) & Load::new(mask)) | Load::new(TWO_TO_23);
    let offset = comptime!(8_388_608.0f32 + bias as f32);
    Quad::reinterpret(bits) - Quad::new(offset)
}

/// Converts the four half-precision numbers in two words.
#[cube]
fn halves(low: u32, high: u32) -> Quad {
    let low = Vector::<f16, Const<2>>::reinterpret(low);
    let high = Vector::<f16, Const<2>>::reinterpret(high);
    let mut quad = Quad::empty();
    quad[0] = f32::cast_from(low[0]);
    quad[1] = f32::cast_from(low[1]);
    quad[2] = f32::cast_from(high[0]);
    quad[3] = f32::cast_from(high[1]);
    quad
}
