//! The 4-bit formats of bitsandbytes (QLoRA, Dettmers et al. 2023,
//! <https://arxiv.org/abs/2305.14314>): a code selects one of 16 values, which the largest magnitude of
//! its block multiplies. These magnitudes may be quantized themselves.
//!
//! Layout: `QuantState` in `bitsandbytes/functional.py`.

use std::ops::Range;

use serde::Deserialize;

use super::{Layers, Quantized};
use crate::source::error::Result;
use crate::source::view::Stored;

/// Suffixes of the tensor with the quantization state, by type.
const STATES: [&str; 2] = [
    ".weight.quant_state.bitsandbytes__nf4",
    ".weight.quant_state.bitsandbytes__fp4",
];

/// The quantization state, as JSON in a tensor of bytes.
#[derive(Debug, Deserialize)]
struct State {
    shape: [usize; 2],
    blocksize: usize,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

#[derive(Debug)]
struct Blocks {
    codes: Stored,
    columns: usize,
    values: Vec<f32>,
    block: usize,
    magnitudes: Magnitudes,
}

/// The largest magnitude of each block.
#[derive(Debug)]
enum Magnitudes {
    Plain(Stored),
    /// Codes of magnitudes, with a value for each code, a factor for each block of them, and an
    /// offset.
    Nested {
        codes: Stored,
        values: Vec<f32>,
        factors: Stored,
        block: usize,
        offset: f32,
    },
}

impl Magnitudes {
    fn of(&self, block: usize) -> f32 {
        match self {
            Self::Plain(stored) => stored.value(block),
            Self::Nested {
                codes,
                values,
                factors,
                block: size,
                offset,
            } => {
                let code = usize::from(codes.bytes()[block]);
                values[code] * factors.value(block / size) + offset
            }
        }
    }
}

impl Quantized for Blocks {
    fn read(&self, row: usize, columns: Range<usize>, out: &mut Vec<f32>) {
        let first = row * self.columns;
        let (mut block, mut magnitude) = (usize::MAX, 0.0);
        out.extend(columns.map(|column| {
            let at = first + column;
            if at / self.block != block {
                block = at / self.block;
                magnitude = self.magnitudes.of(block);
            }
            // The first of two codes is in the high bits.
            let code = self.codes.bytes()[at / 2] >> (4 * (1 - at % 2)) & 0x0f;
            self.values[usize::from(code)] * magnitude
        }));
    }
}

/// Replaces the layers in 4 bits.
pub(super) fn replace(layers: &mut Layers<'_>) -> Result<()> {
    for suffix in STATES {
        for layer in layers.with(suffix) {
            replace_layer(layers, &layer, suffix)?;
        }
    }
    Ok(())
}

fn replace_layer(layers: &mut Layers<'_>, layer: &str, suffix: &str) -> Result<()> {
    let name = |part: &str| format!("{layer}.weight{part}");
    let state_name = format!("{layer}{suffix}");
    let (state, _) = layers.need(&state_name)?;
    let state: State = serde_json::from_slice(state.bytes()).map_err(|error| {
        layers.wrong(
            &state_name,
            format!("other content ({error})"),
            "a quantization state",
        )
    })?;
    let (codes, _) = layers.need(&name(""))?;
    let (values, _) = layers.numbers(&name(".quant_map"))?;
    let values = values.values();
    let [rows, columns] = state.shape;
    let elements = rows.saturating_mul(columns);
    if codes.bytes().len() != elements.div_ceil(2) || values.len() != 16 || state.blocksize == 0 {
        let found = format!("{} bytes and {} values", codes.bytes().len(), values.len());
        let expected = format!("codes of a weight of {:?} and 16 values", state.shape);
        return Err(layers.wrong(&name(""), found, expected));
    }
    let blocks = elements.div_ceil(state.blocksize);
    let magnitudes = magnitudes(layers, layer, &state)?;
    let count = match &magnitudes {
        Magnitudes::Plain(stored) => stored.values().len(),
        Magnitudes::Nested {
            codes,
            factors,
            block,
            ..
        } => {
            let covered = factors.values().len().saturating_mul(*block);
            codes.bytes().len().min(covered)
        }
    };
    if count < blocks {
        let found = format!("{count} magnitudes");
        return Err(layers.wrong(
            &name(".absmax"),
            found,
            format!("{blocks}, one for each block"),
        ));
    }
    let matrix = Blocks {
        codes,
        columns,
        values,
        block: state.blocksize,
        magnitudes,
    };
    layers.insert(layer, "NF4".to_owned(), state.shape, matrix);
    Ok(())
}

fn magnitudes(layers: &mut Layers<'_>, layer: &str, state: &State) -> Result<Magnitudes> {
    let name = |part: &str| format!("{layer}.weight.{part}");
    let (Some(block), Some(offset)) = (state.nested_blocksize, state.nested_offset) else {
        return Ok(Magnitudes::Plain(layers.numbers(&name("absmax"))?.0));
    };
    let (codes, _) = layers.need(&name("absmax"))?;
    let (values, _) = layers.numbers(&name("nested_quant_map"))?;
    let (factors, _) = layers.numbers(&name("nested_absmax"))?;
    let values = values.values();
    if codes.dtype() != "U8" || values.len() != 256 || block == 0 {
        let found = format!("type {} and {} values", codes.dtype(), values.len());
        return Err(layers.wrong(&name("absmax"), found, "type U8 and 256 values"));
    }
    Ok(Magnitudes::Nested {
        codes,
        values,
        factors,
        block,
        offset,
    })
}
