//! Typed access to the metadata of a GGUF file.

use super::super::error::{Result, SourceError, malformed};
use super::header::Header;
use super::value::{Value, shortest};

/// Largest size or count taken from metadata: products of two stay far from overflow.
const MAX_SIZE: i128 = i32::MAX as i128;

impl<'a> Header<'a> {
    /// The error for a value of the wrong kind or size.
    fn unexpected(&self, key: &str, value: &Value<'_>, expected: &str) -> SourceError {
        let found = match value {
            Value::Integer(n) => format!("{key} = {n}"),
            Value::F32(x) => format!("{key} = {x}"),
            Value::F64(x) => format!("{key} = {x}"),
            other => format!("{key}, {}", other.kind()),
        };
        malformed(&self.file, found, expected)
    }

    /// The error for a key that is not there.
    fn no_key(&self, key: &str, expected: &str) -> SourceError {
        malformed(
            &self.file,
            format!("no metadata {key}"),
            format!("{expected}; convert the model again with a current llama.cpp"),
        )
    }

    /// Text, where the key is there.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.unexpected(key, other, "text")),
        }
    }

    /// Text that must be there.
    pub(super) fn need_text(&self, key: &str) -> Result<&'a str> {
        self.text(key)?.ok_or_else(|| self.no_key(key, "text"))
    }

    /// A truth value, where the key is there.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.unexpected(key, other, "true or false")),
        }
    }

    /// A size or count from 0 up, where the key is there.
    pub(super) fn size(&self, key: &str) -> Result<Option<usize>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(&Value::Integer(n)) if (0..=MAX_SIZE).contains(&n) => Ok(Some(n as usize)),
            Some(other) => {
                Err(self.unexpected(key, other, &format!("an integer from 0 to {MAX_SIZE}")))
            }
        }
    }

    /// A size or count of at least 1 that must be there.
    pub(super) fn need_size(&self, key: &str) -> Result<usize> {
        match self.size(key)? {
            Some(0) => Err(malformed(
                &self.file,
                format!("{key} = 0"),
                "an integer of at least 1",
            )),
            Some(n) => Ok(n),
            None => Err(self.no_key(key, "an integer")),
        }
    }

    /// A token id, where the key is there.
    pub(super) fn token_id(&self, key: &str) -> Result<Option<u32>> {
        Ok(self.size(key)?.map(|id| id as u32))
    }

    /// A finite number, where the key is there.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        finite(value)
            .map(Some)
            .ok_or_else(|| self.unexpected(key, value, "a finite number"))
    }

    /// A finite number that must be there.
    pub(super) fn need_number(&self, key: &str) -> Result<f64> {
        self.number(key)?
            .ok_or_else(|| self.no_key(key, "a number"))
    }

    /// An array of finite numbers, where the key is there.
    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(value @ Value::Numbers(numbers)) => numbers
                .iter()
                .map(|number| finite(&number))
                .collect::<Option<Vec<f64>>>()
                .map(Some)
                .ok_or_else(|| self.unexpected(key, value, "finite numbers")),
            Some(other) => Err(self.unexpected(key, other, "an array of numbers")),
        }
    }

    /// An array of integers, where the key is there.
    pub(super) fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        let integer = |value| match value {
            Value::Integer(n) => i64::try_from(n).ok(),
            _ => None,
        };
        match self.metadata.get(key) {
            None => Ok(None),
            Some(value @ Value::Numbers(numbers)) => numbers
                .iter()
                .map(integer)
                .collect::<Option<Vec<i64>>>()
                .map(Some)
                .ok_or_else(|| self.unexpected(key, value, "64-bit integers")),
            Some(other) => Err(self.unexpected(key, other, "an array of integers")),
        }
    }

    /// An array of text, where the key is there.
    pub(super) fn texts(&self, key: &str) -> Result<Option<&[&'a str]>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Texts(texts)) => Ok(Some(texts)),
            Some(other) => Err(self.unexpected(key, other, "an array of text")),
        }
    }
}

/// A scalar as a double, unless it is no finite number.
fn finite(value: &Value<'_>) -> Option<f64> {
    let number = match value {
        Value::Integer(n) => *n as f64,
        Value::F32(x) => shortest(*x),
        Value::F64(x) => *x,
        _ => return None,
    };
    number.is_finite().then_some(number)
}
