//! Integer codes with a scale and a zero point for each group of inputs: AWQ, GPTQ and the
//! `pack-quantized` format of compressed-tensors. A weight is `(code - zero) * scale`.
//!
//! Layouts: `awq/utils/packing_utils.py` of AutoAWQ, `qlinear_torch.py` of AutoGPTQ and GPTQModel,
//! and `pack_quantized.py` of compressed-tensors.

use std::ops::Range;

use serde_json::Value;

use super::{Layers, Quantized};
use crate::source::error::Result;
use crate::source::view::Stored;

/// The place of AWQ's outputs in a word of eight.
const AWQ_PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// The order of codes, zero points and scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// `[inputs, outputs / n]` with eight outputs in a word, in the order of [`AWQ_PLACES`].
    Awq,
    /// `[inputs / n, outputs]`; zero points `[groups, outputs / n]`, in the first version less 1.
    Gptq {
        /// Added to the stored zero points.
        added: u32,
    },
    /// `[outputs, inputs / n]`; zero points `[outputs / n, groups]`, scales `[outputs, groups]`.
    CompressedTensors,
}

/// The group of an input.
#[derive(Debug)]
enum Groups {
    /// Inputs of a group, which follow each other.
    Size(usize),
    /// A number for each input.
    Index(Stored),
}

#[derive(Debug)]
struct Integers {
    layout: Layout,
    bits: usize,
    outputs: usize,
    inputs: usize,
    codes: Stored,
    /// Zero points; without them, the middle of the codes.
    zeros: Option<Stored>,
    scales: Stored,
    groups: Groups,
    group_count: usize,
}

impl Integers {
    /// Returns the field at `place` of a word.
    fn field(&self, words: &Stored, word: usize, place: usize) -> u32 {
        let mask = ((1u64 << self.bits) - 1) as u32;
        words.word(word) >> (self.bits * place) & mask
    }

    fn code(&self, output: usize, input: usize) -> u32 {
        let (codes, per_word) = (&self.codes, 32 / self.bits);
        match self.layout {
            Layout::Awq => {
                let word = input * (self.outputs / 8) + output / 8;
                self.field(codes, word, AWQ_PLACES[output % 8])
            }
            Layout::Gptq { .. } => {
                let word = input / per_word * self.outputs + output;
                self.field(codes, word, input % per_word)
            }
            Layout::CompressedTensors => {
                let word = output * self.inputs.div_ceil(per_word) + input / per_word;
                self.field(codes, word, input % per_word)
            }
        }
    }

    fn zero(&self, output: usize, group: usize) -> u32 {
        let per_word = 32 / self.bits;
        let Some(zeros) = &self.zeros else {
            return 1 << (self.bits - 1);
        };
        match self.layout {
            Layout::Awq => {
                let word = group * (self.outputs / 8) + output / 8;
                self.field(zeros, word, AWQ_PLACES[output % 8])
            }
            Layout::Gptq { added } => {
                let word = group * self.outputs.div_ceil(per_word) + output / per_word;
                let stored = self.field(zeros, word, output % per_word);
                // A zero point of 0 is stored as the largest code.
                (stored + added) & ((1 << self.bits) - 1)
            }
            Layout::CompressedTensors => {
                let word = output / per_word * self.group_count + group;
                self.field(zeros, word, output % per_word)
            }
        }
    }

    fn scale(&self, output: usize, group: usize) -> f32 {
        self.scales.value(match self.layout {
            Layout::CompressedTensors => output * self.group_count + group,
            Layout::Awq | Layout::Gptq { .. } => group * self.outputs + output,
        })
    }

    fn group(&self, input: usize) -> usize {
        match &self.groups {
            Groups::Size(size) => input / size,
            Groups::Index(index) => index.word(input) as usize,
        }
    }
}

impl Quantized for Integers {
    fn read(&self, row: usize, columns: Range<usize>, out: &mut Vec<f32>) {
        let parameters: Vec<(f32, f32)> = (0..self.group_count)
            .map(|group| (self.zero(row, group) as f32, self.scale(row, group)))
            .collect();
        out.extend(columns.map(|input| {
            let (zero, scale) = parameters[self.group(input)];
            (self.code(row, input) as f32 - zero) * scale
        }));
    }
}

/// Replaces the layers of AutoAWQ.
pub(super) fn awq(layers: &mut Layers<'_>) -> Result<()> {
    let version = layers.quantization.get("version").and_then(Value::as_str);
    let version = version.unwrap_or("gemm").to_lowercase();
    if !["gemm", "exllama"].contains(&&*version) {
        return Err(layers.unsupported("version", version, "gemm"));
    }
    let bits = layers
        .number("bits")
        .or(layers.number("w_bit"))
        .unwrap_or(4);
    if bits != 4 {
        return Err(layers.unsupported("bits", bits.to_string(), "4"));
    }
    for layer in layers.with(".qweight") {
        let (codes, shape) = layers.integers(&format!("{layer}.qweight"))?;
        let (zeros, zero_shape) = layers.integers(&format!("{layer}.qzeros"))?;
        let (scales, scale_shape) = layers.numbers(&format!("{layer}.scales"))?;
        let [inputs, words] = shape[..] else {
            return Err(layers.wrong(&layer, format!("codes of shape {shape:?}"), "a matrix"));
        };
        let outputs = multiple(layers, &layer, words, 8)?;
        let group_count = scale_shape.first().copied().unwrap_or(0);
        let size = size(layers, &layer, inputs, group_count)?;
        let found = (zero_shape, scale_shape);
        let expected = (vec![group_count, words], vec![group_count, outputs]);
        check_shapes(layers, &layer, found, expected)?;
        let integers = Integers {
            layout: Layout::Awq,
            bits: 4,
            outputs,
            inputs,
            codes,
            zeros: Some(zeros),
            scales,
            groups: Groups::Size(size),
            group_count,
        };
        layers.insert(&layer, "AWQ".to_owned(), [outputs, inputs], integers);
    }
    Ok(())
}

/// Replaces the layers of GPTQ.
pub(super) fn gptq(layers: &mut Layers<'_>) -> Result<()> {
    let bits = layers.number("bits").unwrap_or(4) as usize;
    if ![2, 4, 8].contains(&bits) {
        return Err(layers.unsupported("bits", bits.to_string(), "2, 4, 8"));
    }
    let format = layers.quantization.get("checkpoint_format");
    let added = match format.and_then(Value::as_str) {
        None | Some("gptq") => 1,
        Some("gptq_v2") => 0,
        Some(other) => {
            let supported = "gptq, gptq_v2";
            return Err(layers.unsupported("checkpoint_format", other.to_owned(), supported));
        }
    };
    for layer in layers.with(".qweight") {
        let (codes, shape) = layers.integers(&format!("{layer}.qweight"))?;
        let (zeros, zero_shape) = layers.integers(&format!("{layer}.qzeros"))?;
        let (scales, scale_shape) = layers.numbers(&format!("{layer}.scales"))?;
        let [words, outputs] = shape[..] else {
            return Err(layers.wrong(&layer, format!("codes of shape {shape:?}"), "a matrix"));
        };
        let per_word = 32 / bits;
        let inputs = multiple(layers, &layer, words, per_word)?;
        let group_count = scale_shape.first().copied().unwrap_or(0);
        let found = (zero_shape, scale_shape);
        let zero_words = outputs.div_ceil(per_word);
        let expected = (vec![group_count, zero_words], vec![group_count, outputs]);
        check_shapes(layers, &layer, found, expected)?;
        let name = format!("{layer}.g_idx");
        let groups = match layers.tensors.contains_key(&name) {
            true => index(layers, &name, inputs, group_count)?,
            false => Groups::Size(size(layers, &layer, inputs, group_count)?),
        };
        let integers = Integers {
            layout: Layout::Gptq { added },
            bits,
            outputs,
            inputs,
            codes,
            zeros: Some(zeros),
            scales,
            groups,
            group_count,
        };
        layers.insert(&layer, format!("GPTQ{bits}"), [outputs, inputs], integers);
    }
    Ok(())
}

/// Replaces the layers of compressed-tensors in the format `pack-quantized`.
pub(super) fn compressed(layers: &mut Layers<'_>) -> Result<()> {
    for layer in layers.with(".weight_packed") {
        let (codes, shape) = layers.integers(&format!("{layer}.weight_packed"))?;
        let (scales, scale_shape) = layers.numbers(&format!("{layer}.weight_scale"))?;
        let (stated, _) = layers.need(&format!("{layer}.weight_shape"))?;
        let stated = stated.integers();
        let ([outputs, inputs], [_, words]) = (&stated[..], &shape[..]) else {
            let found = format!("a weight of shape {stated:?} in codes of shape {shape:?}");
            return Err(layers.wrong(&layer, found, "matrices"));
        };
        let (outputs, inputs) = (*outputs as usize, *inputs as usize);
        let fits = |bits: &usize| inputs.div_ceil(32 / bits) == *words && shape[0] == outputs;
        let Some(bits) = [4, 8].into_iter().find(fits) else {
            let found = format!("a weight of shape {stated:?} in codes of shape {shape:?}");
            return Err(layers.wrong(&layer, found, "codes of 4 or 8 bits"));
        };
        let group_count = scale_shape.get(1).copied().unwrap_or(1);
        let zeros = format!("{layer}.weight_zero_point");
        let zeros = match layers.tensors.contains_key(&zeros) {
            true => Some(layers.integers(&zeros)?),
            false => None,
        };
        let zero_words = vec![outputs.div_ceil(32 / bits), group_count];
        let found = zeros
            .as_ref()
            .map_or(zero_words.clone(), |(_, shape)| shape.clone());
        let scales_expected = vec![outputs, group_count];
        check_shapes(
            layers,
            &layer,
            (found, scale_shape),
            (zero_words, scales_expected),
        )?;
        let name = format!("{layer}.weight_g_idx");
        let groups = match layers.tensors.contains_key(&name) {
            true => index(layers, &name, inputs, group_count)?,
            false => Groups::Size(size(layers, &layer, inputs, group_count)?),
        };
        let integers = Integers {
            layout: Layout::CompressedTensors,
            bits,
            outputs,
            inputs,
            codes,
            zeros: zeros.map(|(zeros, _)| zeros),
            scales,
            groups,
            group_count,
        };
        layers.insert(&layer, format!("INT{bits}"), [outputs, inputs], integers);
    }
    Ok(())
}

/// Returns the number of codes in `words` with `per_word` codes each. A tensor without values can have
/// any shape.
fn multiple(layers: &Layers<'_>, layer: &str, words: usize, per_word: usize) -> Result<usize> {
    words.checked_mul(per_word).ok_or_else(|| {
        let found = format!("{words} words of {per_word} codes");
        layers.wrong(layer, found, "a matrix")
    })
}

/// Returns the inputs of each of `count` groups of equal size.
fn size(layers: &Layers<'_>, layer: &str, inputs: usize, count: usize) -> Result<usize> {
    let stated = layers.number("group_size").map(|size| size as usize);
    let even = inputs
        .checked_div(count)
        .filter(|_| inputs.is_multiple_of(count));
    // The last group may be shorter, if the configuration says how long the others are.
    let size = stated.filter(|&size| size > 0 && inputs.div_ceil(size) == count);
    size.or(even).ok_or_else(|| {
        let found = format!("{count} groups of {inputs} inputs");
        layers.wrong(&format!("{layer}.scales"), found, "groups of one size")
    })
}

/// Takes the numbers of the groups of the inputs.
fn index(layers: &mut Layers<'_>, name: &str, inputs: usize, groups: usize) -> Result<Groups> {
    let (index, shape) = layers.integers(name)?;
    let fits = shape == [inputs] && (0..inputs).all(|i| (index.word(i) as usize) < groups);
    match fits {
        true => Ok(Groups::Index(index)),
        false => {
            let expected =
                format!("the number of a group, below {groups}, for each of {inputs} inputs");
            Err(layers.wrong(name, format!("shape {shape:?} or other numbers"), expected))
        }
    }
}

/// Compares the shapes of zero points and scales.
fn check_shapes(
    layers: &Layers<'_>,
    layer: &str,
    found: (Vec<usize>, Vec<usize>),
    expected: (Vec<usize>, Vec<usize>),
) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let (zeros, scales) = found;
    Err(layers.wrong(
        layer,
        format!("zero points of shape {zeros:?} and scales of shape {scales:?}"),
        format!(
            "zero points of {:?} and scales of {:?}",
            expected.0, expected.1
        ),
    ))
}
