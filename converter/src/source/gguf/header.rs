//! Validating parser of a GGUF header.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. The whole header is checked
//! against the format, the file length and itself before anything is used. After that, every tensor
//! lies inside the file, is aligned, does not overlap others and has the length that its type and
//! shape require.
//!
//! `ggus` supplies constants and value type numbers but does not parse the file: on damaged input
//! it panics and accepts unknown enum values, it supports version 3 only and has wrong sizes for
//! some types.

use std::collections::BTreeMap;
use std::ops::Range;

use ggus::{DEFAULT_ALIGNMENT, GENERAL_ALIGNMENT};

use super::super::error::{Result, SourceError, malformed};
use super::element::{Element, READABLE};
use super::value::{Numbers, Scalar, Value};

/// Maximum tensor name length of the format.
const MAX_NAME: u64 = 64;
/// Maximum metadata key length of the format.
const MAX_KEY: u64 = 65_535;
/// Maximum number of dimensions of the format.
const MAX_DIMS: u32 = 4;
/// Maximum nesting depth of arrays; no known writer nests them.
const MAX_DEPTH: u32 = 4;
/// Maximum number of tensors or keys. It exceeds that of any model and bounds the memory that a
/// hostile header can allocate.
const MAX_ENTRIES: u64 = 1 << 18;
/// Maximum alignment.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// A checked header whose names and values borrow from the file.
#[derive(Debug)]
pub struct Header<'a> {
    /// Format version, 2 or 3.
    pub version: u32,
    /// Metadata by key.
    pub metadata: BTreeMap<&'a str, Value<'a>>,
    /// Tensors by name.
    pub tensors: BTreeMap<&'a str, TensorEntry>,
    /// File name for messages.
    pub(super) file: String,
}

/// A tensor described by the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Dimensions, outermost first as in PyTorch (the file stores them innermost first).
    pub shape: Vec<usize>,
    /// Element type.
    pub element: Element,
    /// Position in the file.
    pub bytes: Range<usize>,
    /// Index of the file, if the model was split into several.
    pub part: usize,
}

impl<'a> Header<'a> {
    /// Parses and checks the header of the GGUF file `bytes`; `file` is its name in messages.
    ///
    /// # Errors
    /// If the file is not GGUF version 2 or 3 in little-endian order, or its header contradicts the
    /// format, itself or the file length.
    pub fn parse(bytes: &'a [u8], file: &str) -> Result<Self> {
        let mut cursor = Cursor { bytes, at: 0, file };
        let version = cursor.magic_and_version()?;
        let tensor_count = cursor.count("tensors")?;
        let key_count = cursor.count("metadata entries")?;
        let metadata = cursor.metadata(key_count)?;
        let alignment = alignment(&metadata, file)?;
        let entries = cursor.tensor_infos(tensor_count)?;
        let data_start = (cursor.at as u64).next_multiple_of(alignment);
        let tensors = place(entries, data_start, alignment, bytes.len() as u64, file)?;
        Ok(Self {
            version,
            metadata,
            tensors,
            file: file.into(),
        })
    }
}

/// A tensor info of the header with its computed size.
struct Info<'a> {
    name: &'a str,
    /// Innermost first.
    dims: Vec<u64>,
    element: Element,
    offset: u64,
    size: u64,
}

/// Bounds-checked reader of the header.
struct Cursor<'a, 'f> {
    bytes: &'a [u8],
    at: usize,
    file: &'f str,
}

impl<'a> Cursor<'a, '_> {
    /// Builds an error at the current position.
    fn wrong(&self, found: impl Into<String>, expected: impl Into<String>) -> SourceError {
        malformed(
            format!("{} at byte {}", self.file, self.at),
            found,
            expected,
        )
    }

    fn take(&mut self, length: u64, what: &str) -> Result<&'a [u8]> {
        let left = &self.bytes[self.at..];
        let Some(taken) = usize::try_from(length).ok().and_then(|n| left.get(..n)) else {
            return Err(self.wrong(
                format!("{} bytes left", left.len()),
                format!(
                    "{length} bytes of {what}; the file is damaged or was not downloaded completely"
                ),
            ));
        };
        self.at += taken.len();
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64, what)?);
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.fixed(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.fixed(what).map(u64::from_le_bytes)
    }

    /// Reads a length-prefixed string of at most `limit` bytes.
    fn text(&mut self, limit: u64, what: &str) -> Result<&'a str> {
        let length = self.u64(what)?;
        if length > limit {
            return Err(self.wrong(
                format!("{what} of {length} bytes"),
                format!("at most {limit}"),
            ));
        }
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes)
            .map_err(|e| self.wrong(format!("{what} that is not UTF-8 ({e})"), "UTF-8 text"))
    }

    fn magic_and_version(&mut self) -> Result<u32> {
        let magic: [u8; 4] = self.fixed("magic number")?;
        if &magic != b"GGUF" {
            return Err(self.wrong(
                format!("the magic number {:?}", String::from_utf8_lossy(&magic)),
                "GGUF",
            ));
        }
        match self.u32("version")? {
            version @ (2 | 3) => Ok(version),
            version if matches!(version.swap_bytes(), 1..=3) => Err(self.wrong(
                "a big-endian file",
                "a little-endian one; convert it with gguf_convert_endian.py of llama.cpp",
            )),
            version => Err(self.wrong(
                format!("version {version}"),
                "version 2 or 3; convert the model again with a current llama.cpp",
            )),
        }
    }

    fn count(&mut self, what: &str) -> Result<u64> {
        let count = self.u64(what)?;
        if count > MAX_ENTRIES {
            return Err(self.wrong(format!("{count} {what}"), format!("at most {MAX_ENTRIES}")));
        }
        Ok(count)
    }

    fn metadata(&mut self, count: u64) -> Result<BTreeMap<&'a str, Value<'a>>> {
        let mut metadata = BTreeMap::new();
        for _ in 0..count {
            let key = self.text(MAX_KEY, "metadata key")?;
            let value_type = self.u32("value type")?;
            let value = self.value(value_type, key)?;
            if metadata.insert(key, value).is_some() {
                return Err(self.wrong(format!("the key {key} twice"), "each key once"));
            }
        }
        Ok(metadata)
    }

    fn value(&mut self, value_type: u32, key: &str) -> Result<Value<'a>> {
        match value_type {
            TEXT => self.text(u64::MAX, key).map(Value::Text),
            ARRAY => self.array(key, MAX_DEPTH),
            _ => {
                let scalar = self.scalar(value_type, key)?;
                let bytes = self.take(scalar.bytes() as u64, key)?;
                self.check_bools(scalar, bytes, key)?;
                Ok(scalar.decode(bytes))
            }
        }
    }

    fn array(&mut self, key: &str, depth: u32) -> Result<Value<'a>> {
        if depth == 0 {
            return Err(self.wrong(
                format!("{key} nested more than {MAX_DEPTH} arrays deep"),
                "a flat array",
            ));
        }
        let value_type = self.u32(key)?;
        let length = self.u64(key)?;
        match value_type {
            TEXT => {
                // Does not reserve by the claimed length: every entry takes at least 8 bytes.
                let mut texts = Vec::new();
                for _ in 0..length {
                    texts.push(self.text(u64::MAX, key)?);
                }
                Ok(Value::Texts(texts))
            }
            ARRAY => {
                for _ in 0..length {
                    self.array(key, depth - 1)?;
                }
                Ok(Value::Nested)
            }
            _ => {
                let scalar = self.scalar(value_type, key)?;
                let size = length.saturating_mul(scalar.bytes() as u64);
                let bytes = self.take(size, key)?;
                self.check_bools(scalar, bytes, key)?;
                Ok(Value::Numbers(Numbers { scalar, bytes }))
            }
        }
    }

    fn scalar(&self, value_type: u32, key: &str) -> Result<Scalar> {
        scalar(value_type).ok_or_else(|| {
            self.wrong(
                format!("value type {value_type} of {key}"),
                "a type from 0 to 12",
            )
        })
    }

    fn check_bools(&self, scalar: Scalar, bytes: &[u8], key: &str) -> Result<()> {
        match bytes.iter().find(|&&byte| byte > 1) {
            Some(byte) if scalar == Scalar::Bool => {
                Err(self.wrong(format!("the boolean {byte} in {key}"), "0 or 1"))
            }
            _ => Ok(()),
        }
    }

    fn tensor_infos(&mut self, count: u64) -> Result<Vec<Info<'a>>> {
        let mut infos = Vec::new();
        for _ in 0..count {
            infos.push(self.tensor_info()?);
        }
        Ok(infos)
    }

    fn tensor_info(&mut self) -> Result<Info<'a>> {
        let name = self.text(MAX_NAME, "tensor name")?;
        let rank = self.u32("number of dimensions")?;
        if rank > MAX_DIMS {
            return Err(self.wrong(
                format!("{rank} dimensions of tensor {name}"),
                format!("at most {MAX_DIMS}"),
            ));
        }
        let dims = (0..rank)
            .map(|_| self.u64("dimension"))
            .collect::<Result<Vec<_>>>()?;
        if dims.contains(&0) {
            return Err(self.wrong(
                format!("dimensions {dims:?} of tensor {name}"),
                "dimensions of at least 1",
            ));
        }
        let id = self.u32("tensor type")?;
        let element = Element::from_id(id).map_err(|found| SourceError::UnsupportedType {
            file: self.file.into(),
            tensor: name.into(),
            found,
            supported: READABLE.into(),
        })?;
        let size = element.bytes_of(&dims).map_err(|problem| {
            self.wrong(format!("tensor {name} with {problem}"), "whole blocks")
        })?;
        let offset = self.u64("tensor offset")?;
        Ok(Info {
            name,
            dims,
            element,
            offset,
            size,
        })
    }
}

const TEXT: u32 = ggus::GGufMetaDataValueType::String as u32;
const ARRAY: u32 = ggus::GGufMetaDataValueType::Array as u32;

/// Returns the scalar type with the format's number `value_type`.
fn scalar(value_type: u32) -> Option<Scalar> {
    use ggus::GGufMetaDataValueType as Type;
    const SCALARS: [(Type, Scalar); 11] = [
        (Type::U8, Scalar::U8),
        (Type::I8, Scalar::I8),
        (Type::U16, Scalar::U16),
        (Type::I16, Scalar::I16),
        (Type::U32, Scalar::U32),
        (Type::I32, Scalar::I32),
        (Type::U64, Scalar::U64),
        (Type::I64, Scalar::I64),
        (Type::F32, Scalar::F32),
        (Type::F64, Scalar::F64),
        (Type::Bool, Scalar::Bool),
    ];
    SCALARS
        .iter()
        .find(|(kind, _)| *kind as u32 == value_type)
        .map(|&(_, scalar)| scalar)
}

/// Returns `general.alignment`, or the format's default.
fn alignment(metadata: &BTreeMap<&str, Value<'_>>, file: &str) -> Result<u64> {
    match metadata.get(GENERAL_ALIGNMENT) {
        None => Ok(DEFAULT_ALIGNMENT as u64),
        Some(&Value::Integer(n))
            if (1..=MAX_ALIGNMENT.into()).contains(&n) && n.count_ones() == 1 =>
        {
            Ok(n as u64)
        }
        Some(other) => Err(malformed(
            file,
            format!("{GENERAL_ALIGNMENT} {other:?}"),
            format!("a power of two up to {MAX_ALIGNMENT}"),
        )),
    }
}

/// Checks the tensor positions and turns offsets into file positions.
fn place<'a>(
    mut infos: Vec<Info<'a>>,
    data_start: u64,
    alignment: u64,
    file_len: u64,
    file: &str,
) -> Result<BTreeMap<&'a str, TensorEntry>> {
    infos.sort_by_key(|info| (info.offset, info.size));
    let mut tensors = BTreeMap::new();
    let mut previous: (u64, &str) = (0, "");
    for info in infos {
        let Info {
            name, offset, size, ..
        } = info;
        if offset % alignment != 0 {
            return Err(malformed(
                file,
                format!("tensor {name} at offset {offset}"),
                format!("a multiple of the alignment {alignment}"),
            ));
        }
        if offset < previous.0 {
            return Err(malformed(
                file,
                format!("tensor {name} at offset {offset}"),
                format!(
                    "one after tensor {}, which ends at {}",
                    previous.1, previous.0
                ),
            ));
        }
        let end = offset.checked_add(size).filter(|end| {
            data_start
                .checked_add(*end)
                .is_some_and(|end| end <= file_len)
        });
        let Some(end) = end else {
            return Err(malformed(
                file,
                format!("{file_len} bytes"),
                format!(
                    "tensor {name}: {size} bytes from byte {}; the file is damaged or was not downloaded completely",
                    data_start.saturating_add(offset)
                ),
            ));
        };
        previous = (end, name);
        // The cast is lossless: the range lies inside a mapped file.
        let bytes = (data_start + offset) as usize..(data_start + end) as usize;
        let shape = info.dims.iter().rev().map(|&dim| dim as usize).collect();
        let entry = TensorEntry {
            shape,
            element: info.element,
            bytes,
            part: 0,
        };
        if tensors.insert(name, entry).is_some() {
            return Err(malformed(
                file,
                format!("the tensor {name} twice"),
                "each name once",
            ));
        }
    }
    Ok(tensors)
}
