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

#[cfg(test)]
mod tests {
    use burn_ndarray::NdArray;

    use super::*;
    use crate::backend::{CacheShape, KernelBackend, KvStore};

    type B = NdArray<f32, i64, i8>;

    fn cache(layers: usize, head_dim: usize, quantized: bool) -> <B as KernelBackend>::KvCache {
        let shape = CacheShape {
            layers,
            kv_heads: 2,
            head_dim,
            capacity: 5,
            quantized,
        };
        B::kv_cache(shape, &Default::default()).expect("memory")
    }

    fn exported(len: usize) -> Vec<u8> {
        let mut cache = cache(2, 4, true);
        for layer in 0..2 {
            let bytes: Vec<u8> = (0..2 * 2 * 3 * 4 * 2).map(|i| i + layer).collect();
            cache.set_layer_bytes(layer.into(), 3, &bytes);
        }
        cache.advance(3);
        let mut bytes = Vec::new();
        cache.export(len, &mut bytes).expect("bytes");
        bytes
    }

    #[test]
    fn a_cache_is_restored() {
        let bytes = exported(3);
        let mut other = cache(2, 4, true);
        other.advance(1);
        assert_eq!(other.import(&bytes), Ok(3));
        assert_eq!(other.len(), 3);
        let mut again = Vec::new();
        other.export(3, &mut again).expect("bytes");
        assert_eq!(again, bytes);
        // Fewer positions are a cache of their own, more are an error.
        assert_eq!(other.import(&exported(1)), Ok(1));
        assert!(other.export(2, &mut Vec::new()).is_err());
    }

    #[test]
    fn caches_of_another_shape_are_rejected() {
        let bytes = exported(3);
        for (layers, head_dim, quantized) in [(1, 4, true), (2, 8, true), (2, 4, false)] {
            let mut other = cache(layers, head_dim, quantized);
            other.advance(1);
            let error = other.import(&bytes).expect_err("another shape");
            assert!(error.to_string().contains("layers: 2"), "{error}");
            assert_eq!(other.len(), 1);
        }
        for damaged in [&bytes[..bytes.len() - 1], &bytes[1..], &[]] {
            assert!(StoredKeys::parse(damaged).is_err());
        }
        let mut huge = bytes.clone();
        huge[8..StoredKeys::HEADER].fill(0xff);
        assert!(StoredKeys::parse(&huge).is_err());
    }
}
