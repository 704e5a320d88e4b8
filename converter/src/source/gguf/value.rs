//! Metadata values of a GGUF file.

/// A metadata value. Strings and arrays borrow from the file.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// Any integer type.
    Integer(i128),
    /// `f32`, not widened so that its shortest decimal form is preserved.
    F32(f32),
    /// `f64`.
    F64(f64),
    /// Boolean.
    Bool(bool),
    /// String.
    Text(&'a str),
    /// Array of strings.
    Texts(Vec<&'a str>),
    /// Array of numbers or booleans, still encoded.
    Numbers(Numbers<'a>),
    /// Array of arrays; checked but not read.
    Nested,
}

impl Value<'_> {
    /// Names the kind of value, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Integer(_) => "an integer",
            Self::F32(_) | Self::F64(_) => "a floating-point number",
            Self::Bool(_) => "a truth value",
            Self::Text(_) => "text",
            Self::Texts(_) => "an array of text",
            Self::Numbers(_) => "an array of numbers",
            Self::Nested => "an array of arrays",
        }
    }
}

/// A scalar type of the file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    /// 8-bit unsigned.
    U8,
    /// 8-bit signed.
    I8,
    /// 16-bit unsigned.
    U16,
    /// 16-bit signed.
    I16,
    /// 32-bit unsigned.
    U32,
    /// 32-bit signed.
    I32,
    /// 64-bit unsigned.
    U64,
    /// 64-bit signed.
    I64,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// One byte, 0 or 1.
    Bool,
}

impl Scalar {
    /// Returns the bytes of one value.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Decodes little-endian bytes; `bytes` must be [`Self::bytes`] long.
    pub(super) fn decode<'a>(self, bytes: &[u8]) -> Value<'a> {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let unsigned = u64::from_le_bytes(wide);
        match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => Value::Integer(unsigned.into()),
            Self::I8 => Value::Integer((unsigned as i8).into()),
            Self::I16 => Value::Integer((unsigned as i16).into()),
            Self::I32 => Value::Integer((unsigned as i32).into()),
            Self::I64 => Value::Integer((unsigned as i64).into()),
            Self::F32 => Value::F32(f32::from_bits(unsigned as u32)),
            Self::F64 => Value::F64(f64::from_bits(unsigned)),
            Self::Bool => Value::Bool(unsigned != 0),
        }
    }
}

/// An array of scalars in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers<'a> {
    pub(super) scalar: Scalar,
    pub(super) bytes: &'a [u8],
}

impl<'a> Numbers<'a> {
    /// Iterates over the decoded values.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Value<'a>> + use<'a> {
        let scalar = self.scalar;
        self.bytes
            .chunks_exact(scalar.bytes())
            .map(move |bytes| scalar.decode(bytes))
    }
}

/// Converts `x` to the double with the same shortest decimal form: 1e-6 stored in single precision
/// becomes 1e-6, as in the original JSON file, not 9.99999997e-7.
pub(super) fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
