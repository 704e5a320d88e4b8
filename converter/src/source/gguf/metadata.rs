//! Typed access to the metadata of a GGUF file.

use super::super::error::{Result, SourceError, malformed};
use super::header::Header;
use super::value::{Value, shortest};

/// Maximum size or count in metadata, so that the product of two cannot overflow.
const MAX_SIZE: i128 = i32::MAX as i128;

impl<'a> Header<'a> {
    /// Builds the error for a value of the wrong kind or size.
    fn unexpected(&self, key: &str, value: &Value<'_>, expected: &str) -> SourceError {
        let found = match value {
            Value::Integer(n) => format!("{key} = {n}"),
            Value::F32(x) => format!("{key} = {x}"),
            Value::F64(x) => format!("{key} = {x}"),
            other => format!("{key}, {}", other.kind()),
        };
        malformed(&self.file, found, expected)
    }

    /// Builds the error for a missing key.
    fn no_key(&self, key: &str, expected: &str) -> SourceError {
        malformed(
            &self.file,
            format!("no metadata {key}"),
            format!("{expected}; convert the model again with a current llama.cpp"),
        )
    }

    /// Returns a string, or `None` without the key.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.unexpected(key, other, "text")),
        }
    }

    /// Returns a required string.
    pub(super) fn need_text(&self, key: &str) -> Result<&'a str> {
        self.text(key)?.ok_or_else(|| self.no_key(key, "text"))
    }

    /// Returns a boolean, or `None` without the key.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.unexpected(key, other, "true or false")),
        }
    }

    /// Returns a non-negative size or count, or `None` without the key.
    pub(super) fn size(&self, key: &str) -> Result<Option<usize>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(&Value::Integer(n)) if (0..=MAX_SIZE).contains(&n) => Ok(Some(n as usize)),
            Some(other) => {
                Err(self.unexpected(key, other, &format!("an integer from 0 to {MAX_SIZE}")))
            }
        }
    }

    /// Returns a required size or count of at least 1.
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

    /// Returns a token id, or `None` without the key.
    pub(super) fn token_id(&self, key: &str) -> Result<Option<u32>> {
        Ok(self.size(key)?.map(|id| id as u32))
    }

    /// Returns a finite number, or `None` without the key.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        finite(value)
            .map(Some)
            .ok_or_else(|| self.unexpected(key, value, "a finite number"))
    }

    /// Returns a required finite number.
    pub(super) fn need_number(&self, key: &str) -> Result<f64> {
        self.number(key)?
            .ok_or_else(|| self.no_key(key, "a number"))
    }

    /// Returns an array of finite numbers, or `None` without the key.
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

    /// Returns an array of integers, or `None` without the key.
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

    /// Returns the indices of the true values in an array, or `None` without the key.
    pub(super) fn true_indices(&self, key: &str) -> Result<Option<Vec<usize>>> {
        let flag = |value| match value {
            Value::Bool(flag) => Some(flag),
            _ => None,
        };
        let indices = |flags: Vec<bool>| (0..flags.len()).filter(|&i| flags[i]).collect();
        match self.metadata.get(key) {
            None => Ok(None),
            Some(value @ Value::Numbers(numbers)) => numbers
                .iter()
                .map(flag)
                .collect::<Option<Vec<bool>>>()
                .map(|flags| Some(indices(flags)))
                .ok_or_else(|| self.unexpected(key, value, "an array of truth values")),
            Some(other) => Err(self.unexpected(key, other, "an array of truth values")),
        }
    }

    /// Returns an array of strings, or `None` without the key.
    pub(super) fn texts(&self, key: &str) -> Result<Option<&[&'a str]>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Texts(texts)) => Ok(Some(texts)),
            Some(other) => Err(self.unexpected(key, other, "an array of text")),
        }
    }
}

/// Converts a scalar to a double, or returns `None` if it is not a finite number.
fn finite(value: &Value<'_>) -> Option<f64> {
    let number = match value {
        Value::Integer(n) => *n as f64,
        Value::F32(x) => shortest(*x),
        Value::F64(x) => *x,
        _ => return None,
    };
    number.is_finite().then_some(number)
}
