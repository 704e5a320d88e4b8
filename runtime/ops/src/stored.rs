//! Keys and values as bytes, to be stored outside of a process.
//!
//! The bytes do not depend on the capacity of the cache, nor on the order in which a device keeps
//! keys and values in memory. All numbers are little-endian:
//!
//! | bytes | content |
//! |---|---|
//! | 8 | [`TAG`](StoredKeys::TAG): the format and its version |
//! | 5 x 4 | layers, key-value heads, elements of a head, bytes of an element, positions |
//! | for each layer | keys `[kv_heads, positions, head_dim]`, then values of the same shape |
//!
//! Elements are f32 or, with two bytes, f16. No bit of them is changed.

use crate::backend::CacheError;

/// Shape of stored keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredKeys {
    /// Layers.
    pub layers: usize,
    /// Key-value heads of a layer.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Bytes of an element.
    pub element_bytes: usize,
    /// Positions.
    pub len: usize,
}

impl StoredKeys {
    /// The first bytes.
    pub const TAG: [u8; 8] = *b"kv-rows1";
    /// Bytes before the first layer.
    pub const HEADER: usize = 8 + 5 * 4;

    /// Returns the bytes of a layer; `None` if they exceed the address space.
    pub fn layer_bytes(&self) -> Option<usize> {
        2usize
            .checked_mul(self.kv_heads)?
            .checked_mul(self.len)?
            .checked_mul(self.head_dim)?
            .checked_mul(self.element_bytes)
    }

    /// Returns the bytes of header and layers; `None` if they exceed the address space.
    pub fn bytes(&self) -> Option<usize> {
        let layers = self.layer_bytes()?.checked_mul(self.layers)?;
        layers.checked_add(Self::HEADER)
    }

    /// Returns the bytes before the first layer.
    pub fn header(&self) -> [u8; Self::HEADER] {
        let numbers = [
            self.layers,
            self.kv_heads,
            self.head_dim,
            self.element_bytes,
            self.len,
        ];
        let mut header = [0; Self::HEADER];
        header[..8].copy_from_slice(&Self::TAG);
        for (place, number) in header[8..].chunks_exact_mut(4).zip(numbers) {
            // Models and contexts are far smaller; a larger number is rejected by its reader.
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            place.copy_from_slice(&number.to_le_bytes());
        }
        header
    }

    /// Splits stored bytes into their shape and their layers.
    ///
    /// # Errors
    /// If they begin otherwise or their number differs from that of the shape.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), CacheError> {
        let (header, layers) = bytes
            .split_first_chunk::<{ Self::HEADER }>()
            .filter(|(header, _)| header.starts_with(&Self::TAG))
            .ok_or_else(|| CacheError("these are not stored keys and values".to_owned()))?;
        let mut numbers = header[8..].chunks_exact(4).map(|number| {
            let number = number.iter().rev();
            number.fold(0, |sum, &byte| sum << 8 | usize::from(byte))
        });
        let mut next = || numbers.next().unwrap_or_default();
        let stored = Self {
            layers: next(),
            kv_heads: next(),
            head_dim: next(),
            element_bytes: next(),
            len: next(),
        };
        match stored.bytes() {
            Some(expected) if expected == bytes.len() => Ok((stored, layers)),
            _ => Err(CacheError(format!(
                "{} bytes of keys and values do not match {stored:?}",
                bytes.len()
            ))),
        }
    }
}
