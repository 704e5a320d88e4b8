//! Fuzz targets for records and bundles.

use edge_lmm_models::families::Registry;
use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use ciborium::Value;
use edge_lmm::{Cpu, Record};
use edge_lmm_record::bundle::{self, ALIGNMENT};
use edge_lmm_record::schema::{CHECKSUMS, FORMAT_VERSION, INFO_KEY, TEMPLATE_KEY, TOKENIZER_KEY};
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use crate::memory_file::MemoryFile;
use crate::mutate::Form;
use crate::{Target, data, errors};

/// A record, also with a corrected header checksum.
pub const RECORD: Target = Target {
    name: "record",
    form: Form::Words(&[
        b"NRUB",
        b"tensors",
        b"metadata",
        b"dtype",
        b"shape",
        b"data_offsets",
        b"checksums",
        b"F32",
        b"U8",
        b"edge-lmm",
        b"tokenizer",
        b"chat-template",
        b"format_version",
        b"\x1b",
        b"\x1a",
        b"\x80",
        b"\xa0",
        b"\xbf",
        b"\x9f",
        b"\xff",
    ]),
    seeds: || {
        let file = |name, file| data::json(&format!("models/tests/data/{name}/{file}.json"));
        let files = |name| json!({"config": file(name, "config"), "generation": file(name, "generation_config")});
        ["llama-odd", "qwen2-odd"]
            .map(|name| record(&files(name)))
            .into()
    },
    run: |input| {
        check(input);
        let mut repaired = input.to_vec();
        if repair(&mut repaired).is_some() {
            check(&repaired);
        }
    },
};

const PREAMBLE: usize = 10;

fn check(bytes: &[u8]) {
    let record = match Record::from_bytes(Bytes::copy_from_slice(bytes), Path::new("fuzz.bpk")) {
        Ok(record) => record,
        Err(error) => return errors::check(&error),
    };
    let _ = record.verify();
    for (name, tensor) in record.tensors() {
        let end = tensor.offset.checked_add(tensor.len);
        assert!(
            end.is_some_and(|end| end <= record.len()),
            "{name} ends beyond the file"
        );
    }
    if let Err(error) = record.skeleton::<Cpu>(&Registry::default(), &Default::default()) {
        errors::check(&error);
    }
}

/// Builds a record that has one or two weights, not those of its model.
fn record(files: &serde_json::Value) -> Vec<u8> {
    let text = |text: &str| Value::Text(text.to_owned());
    let map = |members: Vec<(&str, Value)>| {
        Value::Map(
            members
                .into_iter()
                .map(|(key, value)| (text(key), value))
                .collect(),
        )
    };
    let tensor = |dtype: &str, shape: u64, start: u64, end: u64| {
        map(vec![
            ("dtype", text(dtype)),
            ("shape", Value::Array(vec![shape.into()])),
            ("data_offsets", Value::Array(vec![start.into(), end.into()])),
        ])
    };
    let info = json!({
        "format_version": FORMAT_VERSION, "files": files, "formats": {"embedding.weight": "q4"},
        "sources": [{"name": "a", "bytes": 1, "xxh3": "0"}], "converter": "0",
    });
    let header = map(vec![
        (
            "tensors",
            map(vec![
                ("norm.gamma", tensor("F32", 8, 0, 32)),
                ("embedding.weight", tensor("U8", 16, 256, 272)),
                (CHECKSUMS, tensor("U8", 24, 512, 536)),
            ]),
        ),
        (
            "metadata",
            map(vec![
                (INFO_KEY, text(&info.to_string())),
                (TOKENIZER_KEY, text("{}")),
                (TEMPLATE_KEY, text("{{ messages }}")),
            ]),
        ),
    ]);
    let mut metadata = Vec::new();
    ciborium::into_writer(&header, &mut metadata).expect("CBOR");
    let mut bytes = b"NRUB\x01\0".to_vec();
    bytes.extend((metadata.len() as u32).to_le_bytes());
    bytes.extend(metadata);
    bytes.resize(bytes.len().next_multiple_of(256) + 536, 0);
    repair(&mut bytes).expect("checksums");
    bytes
}

/// Corrects the checksum of the header; `None` if it has none.
fn repair(bytes: &mut [u8]) -> Option<()> {
    let len = u32::from_le_bytes(*bytes.get(6..)?.first_chunk()?);
    let header = bytes.get(..PREAMBLE + len as usize)?;
    let hash = xxh3_64(header);
    let data = header.len().next_multiple_of(256);
    let metadata: Value =
        ciborium::de::from_reader_with_recursion_limit(&header[PREAMBLE..], 64).ok()?;
    let member = |value: &Value, name: &str| {
        let members = value.as_map()?;
        let found = members.iter().find(|(key, _)| key.as_text() == Some(name));
        found.map(|(_, value)| value.clone())
    };
    let sums = member(&member(&metadata, "tensors")?, CHECKSUMS)?;
    let offsets = member(&sums, "data_offsets")?;
    let start = u64::try_from(offsets.as_array()?.first()?.as_integer()?).ok()?;
    let at = data.checked_add(usize::try_from(start).ok()?)?;
    let place = bytes.get_mut(at..at.checked_add(8)?)?;
    place.copy_from_slice(&hash.to_le_bytes());
    Some(())
}

/// The trailer of a bundle, preceded by a program and a record.
pub const BUNDLE: Target = Target {
    name: "bundle",
    form: Form::Words(&[b"EDGELMMB", b"\x7fELF\x02\x01", b"NRUB", b"\0\0\x01\0"]),
    seeds: || {
        let seed = |flags: u8| -> Vec<u8> {
            let numbers: [u64; 4] = [100, ALIGNMENT, 21, 0];
            let numbers = numbers.iter().flat_map(|number| number.to_le_bytes());
            [flags, 1]
                .into_iter()
                .chain(numbers)
                .chain(*b"\x7fELF\x02\x01")
                .chain([9; 80])
                .collect()
        };
        (0..8).map(seed).collect()
    },
    run: |input| {
        let Ok(bundle) = Bundle::arbitrary(&mut Unstructured::new(input)) else {
            return;
        };
        let mut file = MemoryFile::new(&bundle.file());
        let len = file.file().metadata().expect("a length").len();
        match bundle::locate(file.file()) {
            Ok(Some(place)) => {
                assert!(place.program <= place.offset && place.offset.is_multiple_of(ALIGNMENT));
                assert_eq!(place.offset + place.length + 64, len);
            }
            Ok(None) => {}
            Err(error) => errors::check(&error),
        }
        if let Err(error) = Record::open(file.path()) {
            errors::check(&error);
        }
    },
};

#[derive(Arbitrary, Debug)]
struct Bundle {
    /// Bits: the trailer exists, its checksum is correct, its numbers match the file.
    flags: u8,
    /// Length of the program with its padding, in units of the alignment.
    pages: u8,
    numbers: [u64; 4],
    program: Vec<u8>,
    record: Vec<u8>,
}

impl Bundle {
    fn file(&self) -> Vec<u8> {
        let [trailer, checked, honest] = [1, 2, 4].map(|bit| self.flags & bit != 0);
        let mut file = self.program.clone();
        file.resize(usize::from(self.pages % 4) * ALIGNMENT as usize, 0);
        let numbers = match honest {
            true => [
                self.program.len().min(file.len()) as u64,
                file.len() as u64,
                self.record.len() as u64,
                xxh3_64(&self.record),
            ],
            false => self.numbers,
        };
        file.extend(&self.record);
        if trailer {
            let mut end = b"EDGELMMB\x01\0\0\0\0\0\0\0".to_vec();
            end.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            end.extend([0; 8]);
            let hash = if checked { xxh3_64(&end) } else { 0 };
            end.extend(hash.to_le_bytes());
            file.extend(end);
        }
        file
    }
}
