//! The keys and values of past tokens.

use super::layout::{ChunkLayout, Keys};
use super::{CHUNK, Rows};
use crate::format::PANEL;
use std::alloc::Layout;
use std::ops::Range;
use thiserror::Error;

/// What can be wrong with a cache.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheError {
    /// There is not that much memory.
    #[error(
        "no memory for a cache of {layers} layers, {kv_heads} heads of {head_dim} and {capacity} positions: \
         use a shorter context"
    )]
    TooLarge {
        /// Layers asked for.
        layers: usize,
        /// Key/value heads asked for.
        kv_heads: usize,
        /// Size of a head asked for.
        head_dim: usize,
        /// Positions asked for.
        capacity: usize,
    },
}

/// The keys and values of past tokens, for all layers. Memory is reserved at once and touched when it is used.
///
/// A step appends its tokens to every layer, computes [`cached_attention`](super::cached_attention) with them, and at the end calls
/// [`advance`](Self::advance).
pub struct KvCache {
    data: Vec<f32>,
    pub(super) layers: usize,
    pub(super) kv_heads: usize,
    pub(super) layout: ChunkLayout,
    capacity: usize,
    len: usize,
}

impl KvCache {
    /// An empty cache for `capacity` positions.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new(
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        capacity: usize,
    ) -> Result<Self, CacheError> {
        let error = CacheError::TooLarge {
            layers,
            kv_heads,
            head_dim,
            capacity,
        };
        let floats = || {
            let padded = head_dim.checked_next_multiple_of(PANEL)?;
            let chunk = head_dim.checked_add(padded)?.checked_mul(CHUNK)?;
            layers
                .checked_mul(kv_heads)?
                .checked_mul(capacity.div_ceil(CHUNK))?
                .checked_mul(chunk)
        };
        let data = floats().and_then(zeroed).ok_or(error)?;
        Ok(Self {
            data,
            layers,
            kv_heads,
            layout: ChunkLayout::new(head_dim),
            capacity,
            len: 0,
        })
    }

    /// Positions in use.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no positions yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes reserved.
    pub fn bytes(&self) -> usize {
        self.data.len() * 4
    }

    /// Floats of one head.
    fn head_floats(&self) -> usize {
        self.capacity.div_ceil(CHUNK) * self.layout.floats()
    }

    /// Where a layer's floats are.
    fn layer(&self, layer: usize) -> Range<usize> {
        let size = self.kv_heads * self.head_floats();
        layer * size..(layer + 1) * size
    }

    /// The keys and values of a layer.
    pub(super) fn keys(&self, layer: usize) -> Keys<'_> {
        Keys {
            data: &self.data[self.layer(layer)],
            head_floats: self.head_floats(),
            layout: self.layout,
            first: 0,
        }
    }

    /// Stores the keys and values of `tokens` tokens in a layer, from position [`len`](Self::len) on.
    ///
    /// # Shapes
    /// `k`, `v`: `tokens` rows of `kv_heads * head_dim`
    ///
    /// # Panics
    /// If there is no such layer, no room for the tokens, or `k` or `v` is too short.
    pub fn append(&mut self, layer: usize, k: Rows, v: Rows, tokens: usize) {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        assert!(
            tokens <= self.capacity - self.len,
            "{tokens} more positions after {} of {}",
            self.len,
            self.capacity
        );
        let (head_dim, layout, len) = (self.layout.head_dim, self.layout, self.len);
        k.check("keys", tokens, self.kv_heads * head_dim);
        v.check("values", tokens, self.kv_heads * head_dim);
        if tokens == 0 {
            return;
        }
        let (range, head_floats) = (self.layer(layer), self.head_floats());
        for (head, data) in self.data[range].chunks_exact_mut(head_floats).enumerate() {
            let mut done = 0;
            while done < tokens {
                let at = (len + done) % CHUNK;
                let count = (CHUNK - at).min(tokens - done);
                let chunk = &mut data[(len + done) / CHUNK * layout.floats()..][..layout.floats()];
                layout.put(chunk, at, k, v, head * head_dim, done..done + count);
                done += count;
            }
        }
    }

    /// Counts `tokens` appended tokens in, after all layers have them.
    ///
    /// # Panics
    /// If there is no room for them.
    pub fn advance(&mut self, tokens: usize) {
        assert!(
            tokens <= self.capacity - self.len,
            "{tokens} more positions after {} of {}",
            self.len,
            self.capacity
        );
        self.len += tokens;
    }

    /// Forgets all positions from `len` on; does nothing if there are not that many.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl std::fmt::Debug for KvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            layers,
            kv_heads,
            capacity,
            len,
            ..
        } = self;
        write!(
            f,
            "KvCache {{ layers: {layers}, kv_heads: {kv_heads}, len: {len} of {capacity} }}"
        )
    }
}

/// Zeroed floats that the system provides when they are touched; `None` if there is no memory for them.
fn zeroed(floats: usize) -> Option<Vec<f32>> {
    let layout = Layout::array::<f32>(floats).ok()?;
    if floats == 0 {
        return Some(Vec::new());
    }
    // SAFETY: the layout is not empty; the vector takes over memory from the same allocator with exactly this
    // layout, filled with zeros, which are floats.
    #[allow(unsafe_code)]
    unsafe {
        let pointer = std::alloc::alloc_zeroed(layout);
        (!pointer.is_null()).then(|| Vec::from_raw_parts(pointer.cast(), floats, floats))
    }
}
