//! Keys and values as rows of little-endian bytes, independent of the capacity and of the layout in memory.

use super::{Data, KvCache};
use crate::attention::layout::CHUNK;
use half::f16;

/// An element as little-endian bytes. The conversion keeps every bit.
trait Bytes: Copy {
    const SIZE: usize;
    fn put(self, bytes: &mut [u8]);
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! bytes {
    ($type:ty) => {
        impl Bytes for $type {
            const SIZE: usize = size_of::<Self>();

            fn put(self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }

            fn get(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<Self>()];
                own.copy_from_slice(bytes);
                Self::from_le_bytes(own)
            }
        }
    };
}

bytes!(f32);
bytes!(f16);

impl KvCache {
    /// Key/value heads of a layer.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Elements of a head.
    pub fn head_dim(&self) -> usize {
        self.layout.head_dim
    }

    /// Bytes of an element: 2 in half precision, else 4.
    pub fn element_bytes(&self) -> usize {
        match self.data {
            Data::Single(_) => f32::SIZE,
            Data::Half(_) => f16::SIZE,
        }
    }

    /// Bytes of `len` positions of a layer, as [`layer_bytes`](Self::layer_bytes) returns them.
    fn rows_len(&self, len: usize) -> usize {
        2 * self.kv_heads * len * self.layout.head_dim * self.element_bytes()
    }

    /// Returns the first `len` positions of a layer: keys `[kv_heads, len, head_dim]`, then values of the same
    /// shape.
    ///
    /// # Panics
    /// If `layer` is out of range or there are fewer positions.
    pub fn layer_bytes(&self, layer: usize, len: usize) -> Vec<u8> {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        let held = self.len_of(layer);
        assert!(len <= held, "{len} positions of {held}");
        let mut bytes = vec![0; self.rows_len(len)];
        match &self.data {
            Data::Single(data) => self.read(&data[self.layer(layer)], len, &mut bytes),
            Data::Half(data) => self.read(&data[self.layer(layer)], len, &mut bytes),
        }
        bytes
    }

    /// Stores the bytes that [`layer_bytes`](Self::layer_bytes) returns for `len` positions. The length of the
    /// cache is unchanged: [`advance`](Self::advance) follows the last layer.
    ///
    /// # Panics
    /// If `layer` is out of range, the positions exceed the capacity, or the number of bytes differs.
    pub fn set_layer_bytes(&mut self, layer: usize, len: usize, bytes: &[u8]) {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        assert!(len <= self.capacity, "{len} positions of {}", self.capacity);
        assert_eq!(bytes.len(), self.rows_len(len), "bytes of {len} positions");
        let (range, head_len, layout) = (self.layer(layer), self.head_len(), self.layout);
        match &mut self.data {
            Data::Single(data) => write(&mut data[range], head_len, layout, len, bytes),
            Data::Half(data) => write(&mut data[range], head_len, layout, len, bytes),
        }
    }

    fn read<T: Bytes>(&self, layer: &[T], len: usize, bytes: &mut [u8]) {
        if len == 0 {
            return;
        }
        let (layout, row) = (self.layout, self.layout.head_dim * T::SIZE);
        let (keys, values) = bytes.split_at_mut(self.kv_heads * len * row);
        let rows = keys
            .chunks_exact_mut(len * row)
            .zip(values.chunks_exact_mut(len * row));
        for (head, (keys, values)) in layer.chunks_exact(self.head_len()).zip(rows) {
            let rows = keys.chunks_exact_mut(row).zip(values.chunks_exact_mut(row));
            for (position, (key, value)) in rows.enumerate() {
                let chunk = &head[position / CHUNK * layout.len()..][..layout.len()];
                let place = |element: usize| element * T::SIZE..(element + 1) * T::SIZE;
                let at = position % CHUNK;
                layout.key_places(at, |index, element| {
                    chunk[index].put(&mut key[place(element)])
                });
                layout.value_places(at, |index, element| {
                    chunk[index].put(&mut value[place(element)]);
                });
            }
        }
    }
}

/// Stores `len` positions in a layer, whose heads have `head_len` elements each.
fn write<T: Bytes>(
    layer: &mut [T],
    head_len: usize,
    layout: super::ChunkLayout,
    len: usize,
    bytes: &[u8],
) {
    if len == 0 {
        return;
    }
    let row = layout.head_dim * T::SIZE;
    let (keys, values) = bytes.split_at(bytes.len() / 2);
    let rows = keys
        .chunks_exact(len * row)
        .zip(values.chunks_exact(len * row));
    for (head, (keys, values)) in layer.chunks_exact_mut(head_len).zip(rows) {
        let rows = keys.chunks_exact(row).zip(values.chunks_exact(row));
        for (position, (key, value)) in rows.enumerate() {
            let chunk = &mut head[position / CHUNK * layout.len()..][..layout.len()];
            let place = |element: usize| element * T::SIZE..(element + 1) * T::SIZE;
            let at = position % CHUNK;
            layout.key_places(at, |index, element| {
                chunk[index] = T::get(&key[place(element)]);
            });
            layout.value_places(at, |index, element| {
                chunk[index] = T::get(&value[place(element)]);
            });
        }
    }
}
