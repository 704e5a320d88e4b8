//! 8-bit floats with a scale for the matrix, for each row, or for each block of it: compressed-tensors
//! (`weight_scale`) and the checkpoints of DeepSeek (`weight_scale_inv`, blocks of 128 x 128).

use std::ops::Range;

use super::{Layers, Quantized};
use crate::source::error::Result;
use crate::source::view::Stored;

#[derive(Debug)]
struct Float8 {
    codes: Stored,
    columns: usize,
    scales: Stored,
    /// Rows and columns that share a scale.
    block: [usize; 2],
    /// Scales of a row of blocks.
    across: usize,
}

impl Quantized for Float8 {
    fn read(&self, row: usize, columns: Range<usize>, out: &mut Vec<f32>) {
        let first = row / self.block[0] * self.across;
        out.extend(columns.map(|column| {
            let scale = self.scales.value(first + column / self.block[1]);
            e4m3(self.codes.bytes()[row * self.columns + column]) * scale
        }));
    }
}

/// Decodes a float of 4 exponent and 3 mantissa bits without infinities (`float8_e4m3fn`; Micikevicius
/// et al. 2022, <https://arxiv.org/abs/2209.05433>).
fn e4m3(bits: u8) -> f32 {
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 3 & 0x0f), f32::from(bits & 7));
    match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => sign * mantissa * 2f32.powi(-9),
        _ => sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    }
}

/// Replaces the layers with weights of type F8_E4M3. Scales of activations are left out: activations
/// are not rounded.
pub(super) fn replace(layers: &mut Layers<'_>) -> Result<()> {
    for layer in layers.with(".weight") {
        let name = format!("{layer}.weight");
        let is_float8 = |info: &crate::source::TensorInfo| info.dtype == "F8_E4M3";
        if !layers
            .tensors
            .get(&name)
            .is_some_and(|tensor| is_float8(&tensor.info))
        {
            continue;
        }
        let (codes, shape) = layers.need(&name)?;
        let [rows, columns] = shape[..] else {
            return Err(layers.wrong(&name, format!("shape {shape:?}"), "a matrix"));
        };
        let inverse = format!("{layer}.weight_scale_inv");
        let is_blocked = layers.tensors.contains_key(&inverse);
        let scale_name = match is_blocked {
            true => inverse,
            false => format!("{layer}.weight_scale"),
        };
        let (scales, scale_shape) = layers.numbers(&scale_name)?;
        let stated = layers.quantization.get("weight_block_size");
        let stated: Option<[usize; 2]> =
            stated.and_then(|size| serde_json::from_value(size.clone()).ok());
        let (block, across) = match (&scale_shape[..], is_blocked) {
            (&[down, across], true) => (stated.unwrap_or([128, 128]), [down, across]),
            ([] | [1] | [1, 1], _) => ([rows, columns], [1, 1]),
            (&[count] | &[count, 1], false) => ([1, columns], [count, 1]),
            _ => {
                let found = format!("shape {scale_shape:?}");
                return Err(layers.wrong(&scale_name, found, "one scale, or one for each row"));
            }
        };
        let fits = |axis: usize| match block[axis] {
            0 => shape[axis] == 0,
            size => shape[axis].div_ceil(size) == across[axis],
        };
        if !fits(0) || !fits(1) {
            let found = format!("shape {scale_shape:?}");
            let expected = format!("scales for blocks of {block:?} of a weight of {shape:?}");
            return Err(layers.wrong(&scale_name, found, expected));
        }
        layers.take(&format!("{layer}.input_scale"));
        let float8 = Float8 {
            codes,
            columns,
            scales,
            block,
            across: across[1],
        };
        layers.insert(&layer, "FP8".to_owned(), [rows, columns], float8);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::e4m3;

    /// Values from table 1 of the paper.
    #[test]
    fn floats_of_eight_bits() {
        for (bits, value) in [
            (0b0111_1110, 448.0),
            (0b0000_1000, 2f32.powi(-6)),
            (0b0000_0111, 0.875 * 2f32.powi(-6)),
            (0b1000_0001, -(2f32.powi(-9))),
            (0b1011_1100, -1.5),
            (0, 0.0),
        ] {
            assert_eq!(e4m3(bits), value);
        }
        assert!(e4m3(0b0111_1111).is_nan());
    }
}
