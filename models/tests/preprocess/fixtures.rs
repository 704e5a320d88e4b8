//! Inputs and expected values.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use edge_lmm_models::preprocess::RgbImage;
use serde_json::Value;

/// A file of `tests/data`.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// A JSON file of `tests/data`.
pub fn json(name: &str) -> Value {
    let text = std::fs::read_to_string(path(name)).expect(name);
    serde_json::from_str(&text).expect(name)
}

/// Rows of a JSON file that `make_fixtures.py` wrote.
pub fn rows(name: &str) -> Vec<Value> {
    match json(&format!("preprocess/{name}.json")) {
        Value::Array(rows) if !rows.is_empty() => rows,
        other => panic!("{name}.json holds no rows: {other}"),
    }
}

/// An array of numbers.
pub fn sizes<const N: usize>(value: &Value) -> [usize; N] {
    serde_json::from_value(value.clone())
        .ok()
        .and_then(|sizes: Vec<usize>| sizes.try_into().ok())
        .unwrap_or_else(|| panic!("{value} is no list of {N} sizes"))
}

/// A list of 32-bit values.
pub fn floats(value: &Value) -> Vec<f32> {
    let values: Vec<f64> = serde_json::from_value(value.clone()).expect("numbers");
    values.into_iter().map(|v| v as f32).collect()
}

/// The image that `make_fixtures.py` makes of a seed.
pub fn noise(seed: usize, width: usize, height: usize) -> RgbImage {
    let byte = |i: usize| {
        let mut x = ((seed as u64) << 32)
            .wrapping_add(i as u64 + 1)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) >> 56) as u8
    };
    let pixels = (0..width * height * 3).map(byte).collect();
    RgbImage::new(width, height, pixels).expect("an image")
}

/// FNV-1a with 64 bits.
pub fn checksum(bytes: impl IntoIterator<Item = u8>) -> String {
    let hash = bytes
        .into_iter()
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
        });
    format!("{hash:016x}")
}

/// The checksum of values as stored, little endian.
pub fn checksum_of_floats(values: &[f32]) -> String {
    checksum(values.iter().flat_map(|v| v.to_le_bytes()))
}

/// An image of `tests/data`; goldens are plain 8-bit PNG files.
pub fn image(name: &str) -> RgbImage {
    let image = image::open(path(name)).expect(name).into_rgb8();
    let (width, height) = (image.width() as usize, image.height() as usize);
    RgbImage::new(width, height, image.into_raw()).expect(name)
}

/// Samples of a golden checkpoint: its `index.json` entry and its tensors.
pub fn goldens(checkpoint: &str) -> Vec<(Value, HashMap<String, Vec<f32>>)> {
    let folder = format!("goldens/{checkpoint}");
    let index = json(&format!("{folder}/index.json"));
    let samples = index["samples"].as_array().expect("samples");
    assert_eq!(samples.len(), 8, "{folder}/index.json");
    samples
        .iter()
        .map(|sample| {
            let tensors = tensors(&path(&format!(
                "{folder}/sample_{}.safetensors",
                sample["id"]
            )));
            (sample.clone(), tensors)
        })
        .collect()
}

/// The f32 and i32 tensors of a safetensors file: a length, a JSON header, the data.
fn tensors(file: &Path) -> HashMap<String, Vec<f32>> {
    let bytes = std::fs::read(file).expect("tensors");
    let header_len = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let (header, data) = bytes[8..].split_at(header_len);
    let header: HashMap<String, Value> = serde_json::from_slice(header).expect("header");
    header
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .map(|(name, entry)| {
            let [start, end] = sizes(&entry["data_offsets"]);
            let word = |word: &[u8]| -> [u8; 4] { word.try_into().expect("4 bytes") };
            let values = data[start..end].chunks_exact(4).map(word);
            let values = match entry["dtype"].as_str() {
                Some("F32") => values.map(f32::from_le_bytes).collect(),
                Some("I32") => values.map(|v| i32::from_le_bytes(v) as f32).collect(),
                other => panic!("{name} is of type {other:?}"),
            };
            (name.clone(), values)
        })
        .collect()
}

/// The `media` of a sample, decoded.
pub fn images(checkpoint: &str, sample: &Value) -> Vec<RgbImage> {
    let names = sample["media"].as_array().expect("media");
    names
        .iter()
        .map(|name| {
            image(&format!(
                "goldens/{checkpoint}/{}",
                name.as_str().expect("name")
            ))
        })
        .collect()
}

/// Checks values against the first ones of the reference and the sums of the whole.
pub fn compare(values: &[f32], head: &[f32], sums: &Value, tolerance: f32, context: &str) {
    let worst = values
        .iter()
        .zip(head)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(
        head.len() >= 1024 || head.len() == values.len(),
        "{context}: short reference"
    );
    assert!(
        worst <= tolerance,
        "{context}: the worst difference is {worst:e}"
    );
    let shape: Vec<usize> = serde_json::from_value(sums["shape"].clone()).expect("shape");
    assert_eq!(values.len(), shape.iter().product::<usize>(), "{context}");
    let sum = |f: fn(f64) -> f64| values.iter().map(|&v| f(f64::from(v))).sum::<f64>();
    for (name, found) in [("sum", sum(|v| v)), ("abs_sum", sum(f64::abs))] {
        let expected = sums[name].as_f64().expect(name);
        // As many differences of the tolerated size, all to one side.
        let tolerated = f64::from(tolerance) * values.len() as f64;
        assert!(
            (found - expected).abs() <= tolerated,
            "{context}: {name} is {found}, expected {expected}"
        );
    }
    for (name, found) in [
        ("min", values.iter().copied().fold(f32::INFINITY, f32::min)),
        (
            "max",
            values.iter().copied().fold(f32::NEG_INFINITY, f32::max),
        ),
    ] {
        let expected = sums[name].as_f64().expect(name) as f32;
        assert!(
            (found - expected).abs() <= tolerance,
            "{context}: {name} is {found}, expected {expected}"
        );
    }
}
