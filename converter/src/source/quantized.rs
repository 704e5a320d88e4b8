//! Detection of checkpoints that are already quantized by AWQ, GPTQ, bitsandbytes and others.
//!
//! Such weights have no meaning without their scales. Those of supported methods are dequantized, all
//! others are rejected. They are detected by the configuration, by files that quantizers write, and by the names and types of
//! tensors.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::Tensor;
use super::dequantize;
use super::error::{Result, SourceError};
use super::json::read_json;

/// Keys of a configuration that describe a quantization.
const KEYS: [&str; 3] = ["quantization_config", "compression_config", "quantization"];
/// Files of quantizers that leave `config.json` unchanged, with the name of the method.
const FILES: [(&str, &str); 3] = [
    ("quantize_config.json", "gptq"),
    ("quant_config.json", "awq"),
    ("hf_quant_config.json", "modelopt"),
];
/// Suffixes of tensor names with the method that uses them; suffixes of a single method come first.
const TENSORS: [(&str, &str); 32] = [
    (".g_idx", "gptq"),
    (".SCB", "bitsandbytes (8 bit)"),
    (".weight_format", "bitsandbytes (8 bit)"),
    (".absmax", "bitsandbytes (4 bit)"),
    (".quant_map", "bitsandbytes (4 bit)"),
    (".bitsandbytes__nf4", "bitsandbytes (4 bit)"),
    (".bitsandbytes__fp4", "bitsandbytes (4 bit)"),
    (".weight_scale_inv", "fp8"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale", "compressed-tensors or fp8"),
    (".weight_scale_2", "modelopt"),
    (".weight_global_scale", "compressed-tensors"),
    (".weight_zero_point", "compressed-tensors"),
    (".weight_scales", "eetq"),
    (".input_scale", "fp8"),
    (".input_scale_ub", "fbgemm_fp8"),
    (".W_q", "hqq"),
    (":qdata", "torchao"),
    (".qdata", "torchao"),
    ("_weight_qdata", "torchao"),
    (".weight._data", "quanto"),
    (".weight._scale", "quanto"),
    ("_blocks", "mxfp4"),
    (".codebooks", "aqlm"),
    (".Qidxs", "quip"),
    (".q_weight", "exl2"),
    (".trellis", "exl3"),
    (".centroids", "vptq"),
    (".qzeros", "awq or gptq"),
    (".qweight", "awq or gptq"),
    (".scales", "a method with scales beside the weights"),
    (".scale_weight", "a method with scales beside the weights"),
];

/// Dequantizes a checkpoint of a supported method, whose description is removed from the
/// configuration. Rejects other quantized checkpoints and names their method.
pub(super) fn resolve(
    directory: &Path,
    config: &mut Value,
    tensors: &mut BTreeMap<String, Tensor>,
) -> Result<()> {
    let file = directory.join("config.json").display().to_string();
    if let Some((place, quantization)) = find(config, "") {
        let (quantization, method) = (quantization.clone(), method(quantization));
        if !dequantize::replace(&directory.display().to_string(), &quantization, tensors)? {
            return Err(refusal(file, &place, &method));
        }
        log::info!("{file}: dequantized {method}");
        remove(config);
        if let Some((place, quantization)) = find(config, "") {
            return Err(refusal(file, &place, &self::method(quantization)));
        }
    }
    check(directory, tensors)
}

/// Removes the first description of a quantization.
fn remove(config: &mut Value) {
    let is_description = |value: &Value| value.as_object().is_some_and(|map| !map.is_empty());
    let Some(sections) = config.as_object_mut() else {
        return;
    };
    for key in KEYS {
        if sections.get(key).is_some_and(is_description) {
            sections.remove(key);
            return;
        }
    }
    let mut sections = sections.values_mut();
    if let Some(section) = sections.find(|section| find(section, "").is_some()) {
        remove(section);
    }
}

/// Rejects a checkpoint whose tensors are those of a quantization method.
fn check(directory: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let stored = tensors
        .iter()
        .filter_map(|(name, tensor)| Some((name, quantized(name, &tensor.info.dtype)?)))
        .min_by_key(|&(_, (rank, _))| rank);
    let Some((name, (_, method))) = stored else {
        return Ok(());
    };
    // Several methods use similar tensors; the file of the quantizer identifies the method.
    for (file, method) in FILES {
        let path = directory.join(file);
        if let Some(json) = read_json(&path, &mut Vec::new())? {
            let stated = ["quant_method", "quant_algo"]
                .iter()
                .find_map(|key| {
                    let nested = || json.get("quantization")?.get(key);
                    json.get(key).or_else(nested)
                })
                .and_then(Value::as_str);
            let method = stated.unwrap_or(method);
            return Err(refusal(path.display().to_string(), "quant_method", method));
        }
    }
    let place = format!("tensor {name} stored by the quantization method");
    Err(refusal(directory.display().to_string(), &place, method))
}

fn refusal(file: String, place: &str, method: &str) -> SourceError {
    SourceError::Unsupported {
        file,
        what: place.into(),
        found: method.into(),
        supported:
            "checkpoints that are not quantized (F32, F16, BF16), awq, gptq, compressed-tensors \
             (pack-quantized and FP8), fp8 and bitsandbytes in 4 bits; use the checkpoint that \
             this was made from, or dequantize it and save it again"
                .into(),
    }
}

/// Returns the first quantization described by a configuration or one of its sections, with its
/// place.
fn find<'a>(config: &'a Value, place: &str) -> Option<(String, &'a Value)> {
    let sections = config.as_object()?;
    for key in KEYS {
        match sections.get(key) {
            Some(Value::Object(quantization)) if quantization.is_empty() => {}
            Some(quantization @ Value::Object(_)) => {
                return Some((format!("{place}{key}.quant_method"), quantization));
            }
            _ => {}
        }
    }
    sections
        .iter()
        .find_map(|(key, section)| find(section, &format!("{place}{key}.")))
}

/// Returns the name of the method with the number of bits.
fn method(quantization: &Value) -> String {
    let text = |key: &str| quantization.get(key).and_then(Value::as_str);
    let number = |key: &str| quantization.get(key).and_then(Value::as_u64);
    let flag = |key: &str| quantization.get(key).and_then(Value::as_bool) == Some(true);
    let loaded_in = |bits: &str| {
        let key = format!("load_in_{bits}");
        flag(&key) || flag(&format!("_{key}"))
    };
    let (four, eight) = (loaded_in("4bit"), loaded_in("8bit"));
    let stated = ["quant_method", "quant_type", "quant_algo", "format"]
        .iter()
        .find_map(|key| text(key));
    let name = match stated {
        Some(name) => name,
        None if four || eight => "bitsandbytes",
        None if number("group_size").is_some() && number("bits").is_some() => "mlx or gptq",
        None => "(not named)",
    };
    let bits = number("bits").or(number("w_bit")).or(match (four, eight) {
        (true, _) => Some(4),
        (_, true) => Some(8),
        _ => None,
    });
    match bits {
        Some(bits) => format!("{name} ({bits} bit)"),
        None => name.to_owned(),
    }
}

/// Returns the method that stores a tensor under this name and type, with the rank of the evidence
/// (lower is more specific), or `None` for an unquantized tensor.
fn quantized(name: &str, dtype: &str) -> Option<(usize, &'static str)> {
    let ends = TENSORS.iter().map(|(end, _)| end);
    if let Some(rank) = ends.clone().position(|end| name.ends_with(end)) {
        return Some((rank, TENSORS[rank].1));
    }
    let by_type = match dtype {
        "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => "fp8",
        "F4" | "F6_E2M3" | "F6_E3M2" => "fp4 or fp6",
        "I8" | "U8" | "I16" | "U16" | "I32" | "U32" if name.ends_with(".weight") => "integers",
        _ => return None,
    };
    Some((ends.len(), by_type))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn methods_are_found_in_every_section() {
        for (config, place, name) in [
            (
                json!({"quantization_config": {"quant_method": "awq", "bits": 4}}),
                "quantization_config.quant_method",
                "awq (4 bit)",
            ),
            (
                json!({"text_config": {"quantization_config": {"load_in_8bit": true}}}),
                "text_config.quantization_config.quant_method",
                "bitsandbytes (8 bit)",
            ),
            (
                json!({"quantization": {"group_size": 64, "bits": 4}}),
                "quantization.quant_method",
                "mlx or gptq (4 bit)",
            ),
        ] {
            let (found, quantization) = find(&config, "").expect("a quantization");
            assert_eq!(found, place);
            assert_eq!(method(quantization), name);
        }
        for config in [
            json!({}),
            json!({"quantization_config": null}),
            json!({"quantization_config": {}}),
        ] {
            assert_eq!(find(&config, ""), None);
        }
    }

    #[test]
    fn quantized_tensors_are_told_from_others() {
        let method = |name, dtype| quantized(name, dtype).map(|(_, method)| method);
        assert_eq!(method("q_proj.weight", "F8_E4M3"), Some("fp8"));
        assert_eq!(method("q_proj.weight", "U32"), Some("integers"));
        assert_eq!(method("q_proj.W_q", "U8"), Some("hqq"));
        assert_eq!(method("q_proj.weight", "BF16"), None);
        assert_eq!(method("q_proj.weight", "F64"), None);
        assert_eq!(method("embeddings.position_ids", "I64"), None);
        assert_eq!(method("num_batches_tracked", "I64"), None);
        assert!(quantized("q_proj.g_idx", "I32") < quantized("q_proj.qweight", "I32"));
    }
}
