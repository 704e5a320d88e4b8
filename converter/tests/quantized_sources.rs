//! Quantized checkpoints in their published layouts. Each test packs known codes, scales and zero
//! points as the method's own tool does, and compares the weights with the formula of the method.

mod common;

use common::damage::{Copy, Tensors};
use edge_lmm_convert::source::Checkpoint;
use half::f16;
use safetensors::Dtype;
use serde_json::{Value, json};

const LAYER: &str = "model.layers.0.self_attn.q_proj";
const OUTPUTS: usize = 128;
const INPUTS: usize = 128;
const GROUP: usize = 32;
const GROUPS: usize = INPUTS / GROUP;

/// A number that looks random, below `limit`.
fn random(a: usize, b: usize, limit: usize) -> usize {
    (a * 7919 + b * 104_729 + a * b * 31 + 17) % 65_537 % limit
}

fn code(output: usize, input: usize) -> usize {
    random(output, input, 16)
}

/// A zero point; 0 occurs.
fn zero(output: usize, group: usize) -> usize {
    random(output + 5, group + 3, 16)
}

fn scale(output: usize, group: usize) -> f16 {
    f16::from_f32(0.001 + 0.0001 * random(output, group + 11, 100) as f32)
}

/// Packs values of `bits` bits into 32-bit words; `value` gets word and place.
fn words(count: usize, bits: usize, value: impl Fn(usize, usize) -> usize) -> Vec<u8> {
    let word = |word: usize| {
        (0..32 / bits).fold(0u32, |all, place| {
            all | (value(word, place) as u32) << (bits * place)
        })
    };
    (0..count).flat_map(|i| word(i).to_le_bytes()).collect()
}

fn halves(values: impl Iterator<Item = f16>) -> Vec<u8> {
    values.flat_map(f16::to_le_bytes).collect()
}

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// Replaces one layer by `tensors`, named after it, and describes the method.
fn quantized(config: Value, tensors: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)>) -> Copy {
    let copy = Copy::of("qwen2vl-tiny");
    copy.change_tensors(|all: &mut Tensors| {
        let (_, shape, _) = all.remove(&format!("{LAYER}.weight")).expect("the layer");
        assert_eq!(shape, [OUTPUTS, INPUTS]);
        for (name, dtype, shape, data) in tensors {
            all.insert(format!("{LAYER}.{name}"), (dtype, shape, data));
        }
    });
    copy.change_json("config.json", |all| all["quantization_config"] = config);
    copy
}

/// Compares every weight, and the conversion of the whole checkpoint.
fn expect(copy: &Copy, weight: impl Fn(usize, usize) -> f32) {
    let checkpoint = Checkpoint::open(copy.path(), None).expect("a checkpoint");
    assert_eq!(checkpoint.config.get("quantization_config"), None);
    let mut found = Vec::new();
    let name = format!("{LAYER}.weight");
    checkpoint
        .read_rows(&name, 0..OUTPUTS, &mut found)
        .expect("rows");
    for (at, found) in found.into_iter().enumerate() {
        let (output, input) = (at / INPUTS, at % INPUTS);
        assert_eq!(found, weight(output, input), "{output}, {input}");
    }
    let (converted, said) = copy.convert(&["--dry-run"]);
    assert!(converted, "{said}");
}

fn grouped(output: usize, input: usize) -> f32 {
    let group = input / GROUP;
    let difference = code(output, input) as f32 - zero(output, group) as f32;
    difference * scale(output, group).to_f32()
}

/// Eight outputs share a word, in the order 0, 2, 4, 6, 1, 3, 5, 7.
#[test]
fn awq() {
    const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
    let per_row = OUTPUTS / 8;
    let output = |word: usize, place: usize| word % per_row * 8 + ORDER[place];
    let codes = words(INPUTS * per_row, 4, |w, p| code(output(w, p), w / per_row));
    let zeros = words(GROUPS * per_row, 4, |w, p| zero(output(w, p), w / per_row));
    let scales = halves((0..GROUPS * OUTPUTS).map(|i| scale(i % OUTPUTS, i / OUTPUTS)));
    let copy = quantized(
        json!({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}),
        vec![
            ("qweight", Dtype::I32, vec![INPUTS, per_row], codes),
            ("qzeros", Dtype::I32, vec![GROUPS, per_row], zeros),
            ("scales", Dtype::F16, vec![GROUPS, OUTPUTS], scales),
        ],
    );
    expect(&copy, grouped);
    copy.change_json("config.json", |all| {
        all["quantization_config"]["version"] = "gemv".into();
    });
    copy.expect_error(&["version", "gemv"]);
}

fn gptq_layer(format: &str, subtracted: usize, index: Option<&[usize]>) -> Copy {
    let per_row = OUTPUTS / 8;
    let codes = words(INPUTS / 8 * OUTPUTS, 4, |w, p| {
        code(w % OUTPUTS, w / OUTPUTS * 8 + p)
    });
    let zeros = words(GROUPS * per_row, 4, |w, p| {
        (zero(w % per_row * 8 + p, w / per_row) + 16 - subtracted) % 16
    });
    let scales = halves((0..GROUPS * OUTPUTS).map(|i| scale(i % OUTPUTS, i / OUTPUTS)));
    let mut tensors = vec![
        ("qweight", Dtype::I32, vec![INPUTS / 8, OUTPUTS], codes),
        ("qzeros", Dtype::I32, vec![GROUPS, per_row], zeros),
        ("scales", Dtype::F16, vec![GROUPS, OUTPUTS], scales),
    ];
    if let Some(index) = index {
        let bytes = index.iter().flat_map(|&group| (group as u32).to_le_bytes());
        tensors.push(("g_idx", Dtype::I32, vec![INPUTS], bytes.collect()));
    }
    quantized(
        json!({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": format}),
        tensors,
    )
}

#[test]
fn gptq_with_both_kinds_of_zero_points() {
    expect(&gptq_layer("gptq", 1, None), grouped);
    expect(&gptq_layer("gptq_v2", 0, None), grouped);
}

#[test]
fn gptq_in_order_of_activations() {
    let index: Vec<usize> = (0..INPUTS)
        .map(|input| input * 37 % INPUTS / GROUP)
        .collect();
    expect(&gptq_layer("gptq", 1, Some(&index)), |output, input| {
        let group = index[input];
        let difference = code(output, input) as f32 - zero(output, group) as f32;
        difference * scale(output, group).to_f32()
    });
    let beyond = vec![GROUPS; INPUTS];
    gptq_layer("gptq", 1, Some(&beyond)).expect_error(&["g_idx", "group"]);
}

#[test]
fn what_a_layer_lacks_is_named() {
    let copy = gptq_layer("gptq", 1, None);
    copy.change_tensors(|all| {
        all.remove(&format!("{LAYER}.scales"));
    });
    copy.expect_error(&[&format!("{LAYER}.scales")]);
    let copy = gptq_layer("gptq", 1, None);
    copy.change_tensors(|all| {
        let zeros = all
            .get_mut(&format!("{LAYER}.qzeros"))
            .expect("zero points");
        zeros.1 = vec![GROUPS / 2, OUTPUTS / 8];
        zeros.2.truncate(zeros.2.len() / 2);
    });
    copy.expect_error(&["zero points", "[2, 16]"]);
}

/// Sizes that no weight has are errors: blocks of no rows, and codes without values whose number is
/// beyond that of an address.
#[test]
fn impossible_sizes_are_refused() {
    let codes = (
        "weight",
        Dtype::F8_E4M3,
        vec![OUTPUTS, INPUTS],
        vec![60; OUTPUTS * INPUTS],
    );
    let scales = (
        "weight_scale_inv",
        Dtype::F32,
        vec![OUTPUTS, 2],
        vec![60; OUTPUTS * 8],
    );
    let config = json!({"quant_method": "fp8", "weight_block_size": [0, 64]});
    quantized(config, vec![codes, scales]).expect_error(&["blocks of [0, 64]"]);
    for (method, shape) in [("awq", vec![0, 1 << 61]), ("gptq", vec![1 << 61, 0])] {
        let config = json!({"quant_method": method, "bits": 4, "group_size": GROUP});
        let tensors = vec![
            ("qweight", Dtype::I32, shape, Vec::new()),
            ("qzeros", Dtype::I32, vec![0, 0], Vec::new()),
            ("scales", Dtype::F16, vec![0, 0], Vec::new()),
        ];
        quantized(config, tensors).expect_error(&[LAYER, "2305843009213693952 words"]);
    }
}

/// Codes and zero points are stored plus 8.
#[test]
fn compressed_tensors() {
    let codes = words(OUTPUTS * INPUTS / 8, 4, |w, p| {
        code(w / (INPUTS / 8), w % (INPUTS / 8) * 8 + p)
    });
    let zeros = words(OUTPUTS / 8 * GROUPS, 4, |w, p| {
        zero(w / GROUPS * 8 + p, w % GROUPS)
    });
    let scales = halves((0..OUTPUTS * GROUPS).map(|i| scale(i / GROUPS, i % GROUPS)));
    let shape = [OUTPUTS as u64, INPUTS as u64]
        .map(u64::to_le_bytes)
        .concat();
    let tensors = vec![
        (
            "weight_packed",
            Dtype::I32,
            vec![OUTPUTS, INPUTS / 8],
            codes,
        ),
        ("weight_scale", Dtype::F16, vec![OUTPUTS, GROUPS], scales),
        ("weight_shape", Dtype::I64, vec![2], shape),
    ];
    let config = json!({"quant_method": "compressed-tensors", "format": "pack-quantized"});
    expect(
        &quantized(config.clone(), tensors.clone()),
        |output, input| (code(output, input) as f32 - 8.0) * scale(output, input / GROUP).to_f32(),
    );
    let mut asymmetric = tensors;
    let shape = vec![OUTPUTS / 8, GROUPS];
    asymmetric.push(("weight_zero_point", Dtype::I32, shape, zeros));
    expect(&quantized(config, asymmetric), grouped);
}

#[test]
fn floats_of_8_bits() {
    // All finite positive values of the upper exponents and their negatives.
    let byte = |output: usize, input: usize| {
        let magnitude = 8 + random(output, input, 112) as u8;
        magnitude | ((random(input, output, 2) as u8) << 7)
    };
    let value = |bits: u8| {
        let magnitude =
            2f32.powi(i32::from(bits >> 3 & 15) - 7) * (1.0 + f32::from(bits & 7) / 8.0);
        if bits & 0x80 == 0 {
            magnitude
        } else {
            -magnitude
        }
    };
    let codes: Vec<u8> = (0..OUTPUTS * INPUTS)
        .map(|i| byte(i / INPUTS, i % INPUTS))
        .collect();
    let by_row = |output: usize| 0.01 + output as f32 / 1024.0;
    let codes = ("weight", Dtype::F8_E4M3, vec![OUTPUTS, INPUTS], codes);
    let rows = floats((0..OUTPUTS).map(by_row));
    let copy = quantized(
        json!({"quant_method": "compressed-tensors", "format": "float-quantized"}),
        vec![
            codes.clone(),
            ("weight_scale", Dtype::F32, vec![OUTPUTS, 1], rows),
        ],
    );
    expect(&copy, |output, input| {
        value(byte(output, input)) * by_row(output)
    });
    let by_block = |output: usize, input: usize| by_row(output / 64 * 2 + input / 64);
    let blocks = floats([(0, 0), (0, 64), (64, 0), (64, 64)].map(|(o, i)| by_block(o, i)));
    let copy = quantized(
        json!({"quant_method": "fp8", "weight_block_size": [64, 64]}),
        vec![codes, ("weight_scale_inv", Dtype::F32, vec![2, 2], blocks)],
    );
    expect(&copy, |output, input| {
        value(byte(output, input)) * by_block(output, input)
    });
}

/// Blocks of 64 weights; their magnitudes are quantized in blocks of 256.
#[test]
fn bitsandbytes() {
    let levels: Vec<f32> = (0..16).map(|i| -1.0 + i as f32 * 0.13).collect();
    let nested: Vec<f32> = (0..256).map(|i| -1.0 + i as f32 / 127.5).collect();
    let blocks = OUTPUTS * INPUTS / 64;
    let magnitude = |block: usize| random(block, 1, 256);
    let factor = |block: usize| 0.03 + block as f32 / 512.0;
    let at = |i: usize| code(i / INPUTS, i % INPUTS) as u8;
    // The first of two weights is in the high bits.
    let codes: Vec<u8> = (0..OUTPUTS * INPUTS / 2)
        .map(|i| at(2 * i) << 4 | at(2 * i + 1))
        .collect();
    let state = json!({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16",
        "shape": [OUTPUTS, INPUTS], "nested_blocksize": 128, "nested_dtype": "float32",
        "nested_offset": 0.25});
    let state = state.to_string().into_bytes();
    let factors = floats((0..blocks.div_ceil(128)).map(factor));
    let common = vec![
        ("weight", Dtype::U8, vec![codes.len(), 1], codes),
        (
            "weight.quant_map",
            Dtype::F32,
            vec![16],
            floats(levels.clone()),
        ),
    ];
    let mut double = common.clone();
    double.extend([
        (
            "weight.absmax",
            Dtype::U8,
            vec![blocks],
            (0..blocks).map(|block| magnitude(block) as u8).collect(),
        ),
        (
            "weight.nested_quant_map",
            Dtype::F32,
            vec![256],
            floats(nested.clone()),
        ),
        (
            "weight.nested_absmax",
            Dtype::F32,
            vec![factors.len() / 4],
            factors,
        ),
        (
            "weight.quant_state.bitsandbytes__nf4",
            Dtype::U8,
            vec![state.len()],
            state,
        ),
    ]);
    let config = json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
    expect(&quantized(config.clone(), double), |output, input| {
        let block = (output * INPUTS + input) / 64;
        let largest = nested[magnitude(block)] * factor(block / 128) + 0.25;
        levels[code(output, input)] * largest
    });
    let state = json!({"quant_type": "nf4", "blocksize": 64, "shape": [OUTPUTS, INPUTS]});
    let state = state.to_string().into_bytes();
    let mut single = common;
    let magnitudes = floats((0..blocks).map(factor));
    single.extend([
        ("weight.absmax", Dtype::F32, vec![blocks], magnitudes),
        (
            "weight.quant_state.bitsandbytes__nf4",
            Dtype::U8,
            vec![state.len()],
            state,
        ),
    ]);
    expect(&quantized(config, single), |output, input| {
        levels[code(output, input)] * factor((output * INPUTS + input) / 64)
    });
}
