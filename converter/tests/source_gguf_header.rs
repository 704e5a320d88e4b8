//! Truncated, damaged and misleading GGUF headers give an error, never a panic or a large
//! allocation.

mod source_support;

use edge_lmm_convert::source::gguf::{Header, Value};
use proptest::prelude::*;
use source_support::{GgufBuilder, data, model};

fn problem(bytes: &[u8]) -> String {
    match Header::parse(bytes, "x.gguf") {
        Ok(_) => panic!("this header must be refused"),
        Err(e) => e.to_string(),
    }
}

fn assert_refused(builder: &GgufBuilder, parts: &[&str]) {
    let message = problem(&builder.bytes());
    for part in parts.iter().chain(&["x.gguf"]) {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

fn builder() -> GgufBuilder {
    GgufBuilder::new()
}

#[test]
fn every_truncation_is_an_error() {
    let whole = std::fs::read(data("blocks/blocks.gguf")).unwrap();
    let header = Header::parse(&whole, "x").unwrap();
    let data_start = header
        .tensors
        .values()
        .map(|t| t.bytes.start)
        .min()
        .unwrap();
    let end = header.tensors.values().map(|t| t.bytes.end).max().unwrap();
    // Every length of the header, then a few in the data, the last one a byte short of the last
    // tensor.
    let lengths = (0..data_start + 64)
        .chain((data_start..end).step_by(997))
        .chain([end - 1]);
    for length in lengths {
        let message = problem(&whole[..length]);
        assert!(message.starts_with("x.gguf"), "{message}");
    }
    assert!(Header::parse(&whole[..end], "x").is_ok());
}

/// A header with a flipped bit is rejected, or all its tensors lie inside the file.
#[test]
fn every_flipped_bit_is_survived() {
    let mut bytes = std::fs::read(data("blocks/blocks.gguf")).unwrap();
    let header = Header::parse(&bytes, "x").unwrap();
    let data_start = header
        .tensors
        .values()
        .map(|t| t.bytes.start)
        .min()
        .unwrap();
    for bit in 0..data_start * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(header) = Header::parse(&bytes, "x") {
            assert_inside(&header, bytes.len());
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

/// Checks that every tensor lies inside the file, has the length of its shape and does not overlap
/// others.
fn assert_inside(header: &Header<'_>, length: usize) {
    let mut tensors: Vec<_> = header.tensors.values().collect();
    tensors.sort_by_key(|tensor| tensor.bytes.start);
    for tensor in &tensors {
        let elements: usize = tensor.shape.iter().product();
        let blocks = elements as u64 / tensor.element.block_len;
        assert_eq!(
            tensor.bytes.len() as u64,
            blocks * tensor.element.block_bytes
        );
        assert!(tensor.bytes.end <= length);
    }
    for pair in tensors.windows(2) {
        assert!(pair[0].bytes.end <= pair[1].bytes.start);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Changes several bytes of the whole file at once.
    #[test]
    fn changed_bytes_are_survived(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let mut bytes = std::fs::read(data("blocks/blocks.gguf")).unwrap();
        for (place, byte) in changes {
            // The header is the first 4 KB of 53; most changes go there.
            let place = place.index(bytes.len() * 4);
            let place = if place < bytes.len() { place } else { place % 4096 };
            bytes[place] = byte;
        }
        if let Ok(header) = Header::parse(&bytes, "x") {
            assert_inside(&header, bytes.len());
        }
    }

    #[test]
    fn noise_behind_the_magic_number_is_survived(noise in prop::collection::vec(any::<u8>(), 0..200), version in 2u32..4) {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend(&noise);
        if let Ok(header) = Header::parse(&bytes, "x") {
            assert_inside(&header, bytes.len());
        }
    }
}

/// A valid file gives what ggus reads from it; it has no type whose size ggus gets wrong.
#[test]
fn sound_files_agree_with_ggus() {
    for name in [
        "qwen2vl-tiny-gguf/qwen2vl-tiny-f16.gguf",
        "qwen2vl-tiny-gguf/mmproj-qwen2vl-tiny-f16.gguf",
    ] {
        let bytes = std::fs::read(model(name)).unwrap();
        let ours = Header::parse(&bytes, "x").unwrap();
        let theirs = ggus::GGuf::new(&bytes).unwrap();
        let start = bytes.len() - theirs.data.len();
        assert_eq!(ours.tensors.len(), theirs.tensors.len());
        for (name, meta) in &theirs.tensors {
            let info = meta.to_info();
            let mut shape: Vec<u64> = ours.tensors[name]
                .shape
                .iter()
                .map(|&dim| dim as u64)
                .collect();
            shape.reverse();
            assert_eq!(shape, info.shape());
            let begin = start + info.offset();
            assert_eq!(ours.tensors[name].bytes, begin..begin + info.nbytes());
        }
        assert_eq!(ours.metadata.len(), theirs.meta_kvs.len());
        for (key, kv) in &theirs.meta_kvs {
            if let Value::Text(text) = ours.metadata[key] {
                assert_eq!(text, kv.value_reader().read_str().unwrap());
            }
        }
    }
}

#[test]
fn counts_that_the_file_cannot_hold_are_refused() {
    // Counts are not preallocated: these would take terabytes.
    let huge = |count| {
        let mut builder = builder();
        builder.tensor_count = Some(count);
        builder
    };
    assert_refused(&huge(1 << 18), &["bytes left"]);
    assert_refused(&huge(u64::MAX), &["tensors", "at most"]);
    let mut keys = builder();
    keys.key_count = Some(u64::MAX);
    assert_refused(&keys, &["metadata entries", "at most"]);
    for (element, length) in [
        (8u32, u64::MAX),
        (8, 1 << 40),
        (6, u64::MAX),
        (6, 1 << 62),
        (9, 1 << 40),
        (7, 1 << 50),
    ] {
        let mut array = element.to_le_bytes().to_vec();
        array.extend(length.to_le_bytes());
        assert_refused(&builder().raw("k", 9, &array), &["bytes"]);
    }
    assert_refused(
        &builder().raw("k", 8, &u64::MAX.to_le_bytes()),
        &["bytes of k"],
    );
}

#[test]
fn versions_other_than_two_and_three_are_refused() {
    let version = |version: u32| {
        let mut builder = builder();
        builder.version = Some(version);
        builder
    };
    assert_refused(&version(1), &["version 1", "2 or 3"]);
    assert_refused(&version(4), &["version 4"]);
    assert_refused(&version(3u32.swap_bytes()), &["big-endian"]);
    assert!(problem(b"PK\x03\x04").contains("PK"));
    assert!(problem(b"").contains("magic"));
}

/// Builds `depth` nested arrays around one byte.
fn nested(depth: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 1..depth {
        bytes.extend(9u32.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
    }
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.push(5);
    bytes
}

#[test]
fn arrays_may_nest_but_not_deeply() {
    let bytes = builder().raw("k", 9, &nested(3)).u32("after", 7).bytes();
    let header = Header::parse(&bytes, "x").unwrap();
    assert_eq!(header.metadata["k"], Value::Nested);
    assert_eq!(header.metadata["after"], Value::Integer(7));
    assert_refused(&builder().raw("k", 9, &nested(5)), &["nested"]);
    // Deep enough to overflow the stack of a recursive parser.
    assert_refused(&builder().raw("k", 9, &nested(1_000_000)), &["nested"]);
}

#[test]
fn metadata_faults_are_refused() {
    assert_refused(&builder().u32("k", 1).u32("k", 2), &["k twice"]);
    assert_refused(&builder().raw("k", 13, &[0; 8]), &["value type 13"]);
    assert_refused(&builder().raw("k", 7, &[2]), &["boolean 2"]);
    assert_refused(
        &builder().raw("k", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]),
        &["UTF-8"],
    );
    for alignment in [0, 3, 48, 1 << 30] {
        let file = builder().u32("general.alignment", alignment);
        assert_refused(&file, &["general.alignment", "power of two"]);
    }
    assert_refused(
        &builder().text("general.alignment", "32"),
        &["general.alignment"],
    );
}

#[test]
fn all_scalar_types_are_decoded() {
    let bytes = builder()
        .raw("u8", 0, &[200])
        .raw("i8", 1, &[200])
        .raw("u16", 2, &40_000u16.to_le_bytes())
        .raw("i16", 3, &(-3i16).to_le_bytes())
        .raw("u32", 4, &u32::MAX.to_le_bytes())
        .raw("i32", 5, &i32::MIN.to_le_bytes())
        .raw("f32", 6, &1e-6f32.to_le_bytes())
        .raw("bool", 7, &[1])
        .raw("u64", 10, &u64::MAX.to_le_bytes())
        .raw("i64", 11, &i64::MIN.to_le_bytes())
        .raw("f64", 12, &0.1f64.to_le_bytes())
        .bytes();
    let header = Header::parse(&bytes, "x").unwrap();
    let integers = [
        ("u8", 200),
        ("i8", -56),
        ("u16", 40_000),
        ("i16", -3),
        ("u32", i128::from(u32::MAX)),
        ("i32", i128::from(i32::MIN)),
        ("u64", i128::from(u64::MAX)),
        ("i64", i128::from(i64::MIN)),
    ];
    for (key, value) in integers {
        assert_eq!(header.metadata[key], Value::Integer(value), "{key}");
    }
    assert_eq!(header.metadata["f32"], Value::F32(1e-6));
    assert_eq!(header.metadata["f64"], Value::F64(0.1));
    assert_eq!(header.metadata["bool"], Value::Bool(true));
}

#[test]
fn tensor_faults_are_refused() {
    let with_data = |builder: GgufBuilder| builder.data(256);
    let info = |name: &str, dims: &[u64], kind, offset| {
        with_data(builder().info(name, dims, kind, offset))
    };
    assert_refused(&info("t", &[1; 5], 0, 0), &["5 dimensions", "at most 4"]);
    assert_refused(&info("t", &[4, 0], 0, 0), &["at least 1"]);
    assert_refused(&info("t", &[u64::MAX, 2], 0, 0), &["overflows"]);
    assert_refused(&info("t", &[1 << 62], 0, 0), &["overflows"]);
    assert_refused(
        &info("t", &[1 << 61], 0, 0),
        &["tensor t", "9223372036854775808 bytes"],
    );
    assert_refused(&info("t", &[31], 2, 0), &["rows of 31", "Q4_0"]);
    assert_refused(&info("t", &[32], 12, 0), &["rows of 32", "Q4_K"]);
    assert_refused(&info("t", &[1], 99, 0), &["type number 99", "t"]);
    assert_refused(&info("t", &[1], 0, 16), &["offset 16", "alignment 32"]);
    assert_refused(&info("t", &[65], 0, 0), &["tensor t", "260 bytes"]);
    assert_refused(&info("t", &[1], 0, 256), &["4 bytes from"]);
    assert_refused(&info("t", &[1], 0, u64::MAX - 31), &["tensor t"]);
    let long = "n".repeat(65);
    assert_refused(&info(&long, &[1], 0, 0), &["65 bytes", "at most 64"]);
    let twice = with_data(builder().info("t", &[1], 0, 0).info("t", &[1], 0, 32));
    assert_refused(&twice, &["t twice"]);
    let over = with_data(builder().info("a", &[32], 0, 0).info("b", &[1], 0, 96));
    assert_refused(&over, &["tensor b", "after tensor a"]);
    let same = with_data(builder().info("a", &[8], 0, 32).info("b", &[8], 0, 32));
    assert_refused(&same, &["after"]);
    // A gap and a scalar are valid.
    let fine = with_data(builder().info("a", &[], 0, 0).info("b", &[8], 0, 128)).bytes();
    let header = Header::parse(&fine, "x").unwrap();
    assert_eq!(header.tensors["a"].shape, [] as [usize; 0]);
    assert_eq!(header.tensors["b"].bytes.len(), 32);
}
