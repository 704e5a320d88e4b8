//! Fuzz target for checkpoints with quantized weights.

use edge_lmm_convert::source::Checkpoint;
use serde_json::{Value, json};

use crate::checkpoint::{read_rows, with_config, with_header};
use crate::mutate::{Form, SEPARATOR};
use crate::{Target, errors};

/// `config.json` with `quantization_config`, a null byte, and the weights.
pub const QUANTIZED: Target = Target {
    name: "quantized",
    form: Form::Json(&[
        b"\"dtype\":\"I32\"",
        b"\"F8_E4M3\"",
        b"\"U8\"",
        b"\"F16\"",
        b"\"shape\":[",
        b"a.qweight",
        b"a.qzeros",
        b"a.scales",
        b"a.g_idx",
        b"a.weight_packed",
        b"a.weight_shape",
        b"a.weight.quant_state.bitsandbytes__nf4",
        b"\"blocksize\": 64",
        b"18446744073709551615",
    ]),
    seeds: || vec![awq(), gptq(), compressed(), fp8(), nf4()],
    run: |input| {
        let at = input.iter().position(|&byte| byte == SEPARATOR);
        let (config, weights) = input.split_at(at.unwrap_or(input.len()));
        let folder = with_config(config, weights.get(1..).unwrap_or_default());
        match Checkpoint::open(folder.path(), None) {
            Ok(checkpoint) => read_rows(&checkpoint),
            Err(error) => errors::check(&error),
        }
    },
};

/// A tensor: name, type, shape and data.
type Tensor<'a> = (&'a str, &'a str, &'a [usize], Vec<u8>);

/// Returns a checkpoint with quantized weights.
fn seed(quantization: Value, tensors: &[Tensor<'_>]) -> Vec<u8> {
    let config = json!({ "vocab_size": 3, "quantization_config": quantization });
    let (mut header, mut data) = (json!({}), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header[*name] = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        data.extend(bytes);
    }
    let config = config.to_string().into_bytes();
    [config, vec![SEPARATOR], with_header(&header, &data)].concat()
}

/// Returns data that are valid numbers of any type.
fn some(bytes: usize) -> Vec<u8> {
    vec![60; bytes]
}

fn awq() -> Vec<u8> {
    let method = json!({ "quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm" });
    let tensors: [Tensor<'_>; 3] = [
        ("a.qweight", "I32", &[16, 1], some(64)),
        ("a.qzeros", "I32", &[2, 1], some(8)),
        ("a.scales", "F16", &[2, 8], some(32)),
    ];
    seed(method, &tensors)
}

fn gptq() -> Vec<u8> {
    let method =
        json!({ "quant_method": "gptq", "bits": 4, "group_size": 8, "checkpoint_format": "gptq" });
    let groups = (0..16u32).flat_map(|input| (input % 2).to_le_bytes());
    let tensors: [Tensor<'_>; 4] = [
        ("a.qweight", "I32", &[2, 8], some(64)),
        ("a.qzeros", "I32", &[2, 1], some(8)),
        ("a.scales", "F16", &[2, 8], some(32)),
        ("a.g_idx", "I32", &[16], groups.collect()),
    ];
    seed(method, &tensors)
}

fn compressed() -> Vec<u8> {
    let method = json!({ "quant_method": "compressed-tensors", "format": "pack-quantized" });
    let shape = [8u64, 16].map(u64::to_le_bytes).concat();
    let tensors: [Tensor<'_>; 4] = [
        ("a.weight_packed", "I32", &[8, 2], some(64)),
        ("a.weight_scale", "F16", &[8, 2], some(32)),
        ("a.weight_shape", "I64", &[2], shape),
        ("a.weight_zero_point", "I32", &[1, 2], some(8)),
    ];
    seed(method, &tensors)
}

fn fp8() -> Vec<u8> {
    let method = json!({ "quant_method": "fp8", "weight_block_size": [4, 8] });
    let tensors: [Tensor<'_>; 4] = [
        ("a.weight", "F8_E4M3", &[8, 16], some(128)),
        ("a.weight_scale_inv", "F32", &[2, 2], some(16)),
        ("b.weight", "F8_E4M3", &[2, 4], some(8)),
        ("b.weight_scale", "F32", &[2, 1], some(8)),
    ];
    seed(method, &tensors)
}

fn nf4() -> Vec<u8> {
    let method = json!({ "quant_method": "bitsandbytes", "load_in_4bit": true });
    let state =
        json!({ "blocksize": 8, "shape": [4, 8], "nested_blocksize": 2, "nested_offset": 0.25 });
    let state = state.to_string().into_bytes();
    let length = [state.len()];
    let tensors: [Tensor<'_>; 6] = [
        ("a.weight", "U8", &[16, 1], some(16)),
        ("a.weight.quant_map", "F32", &[16], some(64)),
        ("a.weight.absmax", "U8", &[4], some(4)),
        ("a.weight.nested_quant_map", "F32", &[256], some(1024)),
        ("a.weight.nested_absmax", "F32", &[2], some(8)),
        (
            "a.weight.quant_state.bitsandbytes__nf4",
            "U8",
            &length,
            state,
        ),
    ];
    seed(method, &tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_valid() {
        for seed in (QUANTIZED.seeds)() {
            let at = seed.iter().position(|&byte| byte == SEPARATOR);
            let (config, weights) = seed.split_at(at.expect("a separator"));
            let folder = with_config(config, &weights[1..]);
            let opened = Checkpoint::open(folder.path(), None);
            opened.unwrap_or_else(|error| panic!("{}: {error}", String::from_utf8_lossy(config)));
        }
    }
}
