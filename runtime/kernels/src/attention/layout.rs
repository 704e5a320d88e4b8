//! Memory layout of keys and values for the products of attention.

use super::shape::Rows;
use crate::element::Element;
use crate::format::PANEL;
use std::ops::Range;

/// Positions per chunk.
pub const CHUNK: usize = 128;
/// Columns of the matrices that keys and values are stored as.
pub(super) const STRIP: usize = 32;

/// Layout of the keys and values of one chunk and head: `CHUNK / STRIP` matrices `[head_dim, STRIP]` of keys,
/// then the values as matrices `[CHUNK, STRIP]`, of which the last one can be narrower.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkLayout {
    pub(super) head_dim: usize,
    /// Columns of the values, including padding with zeros.
    pub(super) padded: usize,
}

impl ChunkLayout {
    pub(super) fn new(head_dim: usize) -> Self {
        Self {
            head_dim,
            padded: head_dim.next_multiple_of(PANEL),
        }
    }

    /// Elements of a chunk.
    pub(super) fn len(self) -> usize {
        CHUNK * (self.head_dim + self.padded)
    }

    /// First column and width of each strip of the values.
    pub(super) fn strips(self) -> impl Iterator<Item = (usize, usize)> {
        let Self { padded, .. } = self;
        (0..padded)
            .step_by(STRIP)
            .map(move |column| (column, STRIP.min(padded - column)))
    }

    /// Calls `visit` for every element of the key at place `at`, with its index in the chunk and its index in
    /// the head.
    pub(super) fn key_places(self, at: usize, mut visit: impl FnMut(usize, usize)) {
        let first = at / STRIP * STRIP * self.head_dim + at % STRIP;
        for element in 0..self.head_dim {
            visit(first + element * STRIP, element);
        }
    }

    /// As [`key_places`](Self::key_places), for the value.
    pub(super) fn value_places(self, at: usize, mut visit: impl FnMut(usize, usize)) {
        for (column, width) in self.strips() {
            let first = CHUNK * (self.head_dim + column) + at * width;
            for element in column..self.head_dim.min(column + width) {
                visit(first + element - column, element);
            }
        }
    }

    /// Copies `positions` into a chunk and clears the rest of it.
    pub(super) fn fill<T: Element>(
        self,
        chunk: &mut [T],
        k: Rows,
        v: Rows,
        column: usize,
        positions: Range<usize>,
    ) {
        if positions.len() < CHUNK || self.padded > self.head_dim {
            chunk.fill(T::ZERO);
        }
        self.put(chunk, 0, k, v, column, positions);
    }

    /// Copies `positions` into a chunk, the first one to place `at`.
    pub(super) fn put<T: Element>(
        self,
        chunk: &mut [T],
        at: usize,
        k: Rows,
        v: Rows,
        column: usize,
        positions: Range<usize>,
    ) {
        let (keys, values) = chunk.split_at_mut(self.head_dim * CHUNK);
        for (i, position) in (at..).zip(positions) {
            let key = k.at(position, column, self.head_dim);
            let strip = &mut keys[i / STRIP * STRIP * self.head_dim..][..STRIP * self.head_dim];
            for (row, key) in strip.chunks_exact_mut(STRIP).zip(key) {
                row[i % STRIP] = T::from_f32(*key);
            }
            let value = v.at(position, column, self.head_dim);
            for (column, width) in self.strips() {
                let value = &value[column..self.head_dim.min(column + width)];
                let place = &mut values[CHUNK * column + i * width..];
                for (place, value) in place.iter_mut().zip(value) {
                    *place = T::from_f32(*value);
                }
            }
        }
    }
}

/// Keys and values of some heads in this layout.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a, T> {
    pub(super) data: &'a [T],
    /// Elements of one head.
    pub(super) head_len: usize,
    pub(super) layout: ChunkLayout,
    /// Head that `data` begins with.
    pub(super) first: usize,
}

impl<'a, T> Keys<'a, T> {
    /// Keys and values of a chunk.
    pub(super) fn chunk(&self, head: usize, chunk: usize) -> (&'a [T], &'a [T]) {
        let at = (head - self.first) * self.head_len + chunk * self.layout.len();
        self.data[at..][..self.layout.len()].split_at(self.layout.head_dim * CHUNK)
    }
}
