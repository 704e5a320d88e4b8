//! Key/value cache.

mod rows;

use super::layout::{CHUNK, ChunkLayout, Keys};
use super::shape::{Heads, Rows};
use crate::element::Element;
use crate::format::PANEL;
use half::f16;
use std::alloc::Layout;
use std::ops::Range;
use thiserror::Error;

/// An error in the creation of a cache.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheError {
    /// There is not enough memory.
    #[error(
        "no memory for a cache of {layers} layers, {kv_heads} heads of {head_dim} and {capacity} positions: \
         use a shorter context"
    )]
    TooLarge {
        /// Requested layers.
        layers: usize,
        /// Requested key/value heads.
        kv_heads: usize,
        /// Requested elements of a head.
        head_dim: usize,
        /// Requested positions.
        capacity: usize,
    },
}

/// Keys and values of past tokens for all layers, in single or half precision. Memory is reserved on creation;
/// the system provides its pages on first use.
///
/// A step appends its tokens to every layer, calls [`cached_attention`](super::cached_attention) for each, and
/// finally [`advance`](Self::advance).
///
/// Layers may hold different numbers of positions ([`advance_layers`](Self::advance_layers)). Every layer has the
/// same capacity; positions that a layer does not use take address space, but no pages.
pub struct KvCache {
    data: Data,
    layers: usize,
    pub(super) kv_heads: usize,
    pub(super) layout: ChunkLayout,
    capacity: usize,
    /// Positions in use, of each layer.
    lens: Vec<usize>,
}

enum Data {
    Single(Vec<f32>),
    Half(Vec<f16>),
}

/// Keys and values of a layer.
pub(super) enum CachedKeys<'a> {
    Single(Keys<'a, f32>),
    Half(Keys<'a, f16>),
}

impl KvCache {
    /// Creates an empty cache for `capacity` positions, in half precision if `half`.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new(
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        capacity: usize,
        half: bool,
    ) -> Result<Self, CacheError> {
        let error = CacheError::TooLarge {
            layers,
            kv_heads,
            head_dim,
            capacity,
        };
        let len = || {
            let padded = head_dim.checked_next_multiple_of(PANEL)?;
            let chunk = head_dim.checked_add(padded)?.checked_mul(CHUNK)?;
            layers
                .checked_mul(kv_heads)?
                .checked_mul(capacity.div_ceil(CHUNK))?
                .checked_mul(chunk)
        };
        let data = if half {
            len().and_then(zeroed).map(Data::Half)
        } else {
            len().and_then(zeroed).map(Data::Single)
        };
        let data = data.ok_or(error)?;
        Ok(Self {
            data,
            layers,
            kv_heads,
            layout: ChunkLayout::new(head_dim),
            capacity,
            lens: vec![0; layers],
        })
    }

    /// Number of positions in use in the first layer.
    pub fn len(&self) -> usize {
        self.lens.first().copied().unwrap_or(0)
    }

    /// Number of positions in use in a layer.
    ///
    /// # Panics
    /// If `layer` is out of range.
    pub fn len_of(&self, layer: usize) -> usize {
        self.lens[layer]
    }

    /// Returns `true` if no position of the first layer is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Largest number of positions.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Reserved bytes.
    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::Single(data) => size_of_val(&data[..]),
            Data::Half(data) => size_of_val(&data[..]),
        }
    }

    /// Elements of one head.
    fn head_len(&self) -> usize {
        self.capacity.div_ceil(CHUNK) * self.layout.len()
    }

    /// Range of a layer's elements.
    fn layer(&self, layer: usize) -> Range<usize> {
        let size = self.kv_heads * self.head_len();
        layer * size..(layer + 1) * size
    }

    /// Panics if heads of another shape are given or there is no such layer.
    pub(super) fn check_heads(&self, heads: Heads, layer: usize) {
        assert!(
            heads.kv_heads == self.kv_heads && heads.head_dim == self.layout.head_dim,
            "{heads:?} and {self:?}"
        );
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
    }

    pub(super) fn keys(&self, layer: usize) -> CachedKeys<'_> {
        match &self.data {
            Data::Single(data) => CachedKeys::Single(self.keys_in(data, layer)),
            Data::Half(data) => CachedKeys::Half(self.keys_in(data, layer)),
        }
    }

    fn keys_in<'a, T>(&self, data: &'a [T], layer: usize) -> Keys<'a, T> {
        Keys {
            data: &data[self.layer(layer)],
            head_len: self.head_len(),
            layout: self.layout,
            first: 0,
        }
    }

    /// Stores the keys and values of `tokens` tokens in a layer, at positions from [`len_of`](Self::len_of) on.
    ///
    /// # Shapes
    /// `k`, `v`: `tokens` rows of `kv_heads * head_dim`
    ///
    /// # Panics
    /// If `layer` is out of range, the tokens exceed the capacity, or `k` or `v` is too short.
    pub fn append(&mut self, layer: usize, k: Rows, v: Rows, tokens: usize) {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        self.check_room(layer, tokens);
        k.check("keys", tokens, self.kv_heads * self.layout.head_dim);
        v.check("values", tokens, self.kv_heads * self.layout.head_dim);
        if tokens == 0 {
            return;
        }
        let (range, head_len) = (self.layer(layer), self.head_len());
        let (layout, len) = (self.layout, self.lens[layer]);
        match &mut self.data {
            Data::Single(data) => append(&mut data[range], head_len, layout, len, k, v, tokens),
            Data::Half(data) => append(&mut data[range], head_len, layout, len, k, v, tokens),
        }
    }

    /// Increases the length of every layer by `tokens`, after these have been appended to all layers.
    ///
    /// # Panics
    /// If the tokens exceed the capacity.
    pub fn advance(&mut self, tokens: usize) {
        self.advance_layers(0..self.layers, tokens);
    }

    /// Increases the length of `layers` by `tokens`, after these have been appended to them.
    ///
    /// # Panics
    /// If the layers are out of range or the tokens exceed the capacity.
    pub fn advance_layers(&mut self, layers: Range<usize>, tokens: usize) {
        for layer in layers {
            self.check_room(layer, tokens);
            self.lens[layer] += tokens;
        }
    }

    fn check_room(&self, layer: usize, tokens: usize) {
        let len = self.lens[layer];
        assert!(
            tokens <= self.capacity - len,
            "{tokens} more positions after {len} of {}",
            self.capacity
        );
    }

    /// Shortens `layers` to `len` positions each. Does nothing to those that have fewer.
    ///
    /// # Panics
    /// If the layers are out of range.
    pub fn truncate_layers(&mut self, layers: Range<usize>, len: usize) {
        for held in &mut self.lens[layers] {
            *held = len.min(*held);
        }
    }

    /// Takes as many of the last positions from every layer as leave `len` in the first. Does nothing if it has
    /// fewer.
    pub fn truncate(&mut self, len: usize) {
        let removed = self.len().saturating_sub(len);
        for held in &mut self.lens {
            *held = held.saturating_sub(removed);
        }
    }

    /// Makes room for `capacity` positions and keeps those in use. Old and new memory are held at
    /// the same time while the positions are copied.
    ///
    /// # Errors
    /// If there is not enough memory; the cache is then unchanged.
    pub fn grow(&mut self, capacity: usize) -> Result<(), CacheError> {
        if capacity > self.capacity {
            *self = self.copy(capacity)?;
        }
        Ok(())
    }

    /// Returns an independent cache with the same positions and the same capacity.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn fork(&self) -> Result<Self, CacheError> {
        self.copy(self.capacity)
    }

    /// Copies the positions in use into a cache for `capacity` positions, which must hold them.
    fn copy(&self, capacity: usize) -> Result<Self, CacheError> {
        let (layers, heads) = (self.layers, self.kv_heads);
        let half = matches!(self.data, Data::Half(_));
        let mut copy = Self::new(layers, heads, self.layout.head_dim, capacity, half)?;
        let (from, to) = (self.head_len(), copy.head_len());
        for layer in 0..layers {
            let used = self.lens[layer].div_ceil(CHUNK) * self.layout.len();
            let (old, new) = (self.layer(layer), copy.layer(layer));
            match (&self.data, &mut copy.data) {
                (Data::Single(all), Data::Single(copy)) => {
                    copy_heads(&all[old], from, &mut copy[new], to, used);
                }
                (Data::Half(all), Data::Half(copy)) => {
                    copy_heads(&all[old], from, &mut copy[new], to, used);
                }
                _ => unreachable!("the precision is that of the old cache"),
            }
        }
        copy.lens.clone_from(&self.lens);
        Ok(copy)
    }
}

impl std::fmt::Debug for KvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            layers,
            kv_heads,
            capacity,
            lens,
            ..
        } = self;
        write!(
            f,
            "KvCache {{ layers: {layers}, kv_heads: {kv_heads}, lens: {lens:?} of {capacity} }}"
        )
    }
}

/// Stores tokens in a layer, whose heads have `head_len` elements each, at positions from `len` on.
fn append<T: Element>(
    layer: &mut [T],
    head_len: usize,
    layout: ChunkLayout,
    len: usize,
    k: Rows,
    v: Rows,
    tokens: usize,
) {
    for (head, data) in layer.chunks_exact_mut(head_len).enumerate() {
        let mut done = 0;
        while done < tokens {
            let at = (len + done) % CHUNK;
            let count = (CHUNK - at).min(tokens - done);
            let chunk = &mut data[(len + done) / CHUNK * layout.len()..][..layout.len()];
            let column = head * layout.head_dim;
            layout.put(chunk, at, k, v, column, done..done + count);
            done += count;
        }
    }
}

/// Copies the first `used` numbers of every head of a layer, whose heads have `from` and `to` numbers each.
fn copy_heads<T: Copy>(old: &[T], from: usize, new: &mut [T], to: usize, used: usize) {
    if used == 0 {
        return;
    }
    for (old, new) in old.chunks_exact(from).zip(new.chunks_exact_mut(to)) {
        new[..used].copy_from_slice(&old[..used]);
    }
}

/// A vector of zeros whose pages the system provides on first use; `None` if there is not enough memory.
fn zeroed<T: Element>(len: usize) -> Option<Vec<T>> {
    let layout = Layout::array::<T>(len).ok()?;
    if len == 0 {
        return Some(Vec::new());
    }
    // SAFETY: the layout is not empty; the vector takes ownership of memory from the same allocator with
    // exactly this layout; zero bytes are valid elements of both types.
    #[allow(unsafe_code)]
    unsafe {
        let pointer = std::alloc::alloc_zeroed(layout);
        (!pointer.is_null()).then(|| Vec::from_raw_parts(pointer.cast(), len, len))
    }
}
