//! Shapes and masks of attention.

use std::ops::Range;

/// Number and size of attention heads. Query head `h` uses key/value head `h / (heads / kv_heads)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl Heads {
    /// Panics if the numbers are impossible.
    pub(super) fn check(&self) {
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = *self;
        assert!(
            head_dim > 0 && kv_heads > 0 && heads > 0 && heads.is_multiple_of(kv_heads),
            "impossible heads: {self:?}"
        );
    }

    /// Query heads per key/value head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Rows of a larger matrix: row `t` begins at `data[t * stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Elements, beginning with the first one of row 0.
    pub data: &'a [f32],
    /// Elements from one row to the next.
    pub stride: usize,
}

impl<'a> Rows<'a> {
    /// Panics unless there are `rows` rows of `width` elements.
    pub(super) fn check(&self, what: &str, rows: usize, width: usize) {
        assert!(
            rows <= 1 || self.stride >= width,
            "{what}: rows of {width} in a stride of {}",
            self.stride
        );
        let needed = if rows == 0 {
            0
        } else {
            (rows - 1) * self.stride + width
        };
        assert!(
            needed <= self.data.len(),
            "{what}: {rows} rows need {needed} elements, found {}",
            self.data.len()
        );
    }

    /// The `width` elements of row `row` from column `column` on.
    pub(super) fn at(&self, row: usize, column: usize, width: usize) -> &'a [f32] {
        &self.data[row * self.stride + column..][..width]
    }
}

/// The keys that a query attends to.
#[derive(Clone, Copy, Debug)]
pub enum Mask<'a> {
    /// All keys.
    Full,
    /// The keys of the query's own segment. The slice holds the bounds of the segments, from 0 to the number
    /// of keys, which is that of the queries.
    Segments(&'a [usize]),
    /// Query `i` attends to the keys `0..=(keys - queries + i)`.
    Causal,
    /// Query `i` attends to the keys `ranges[i]`. Neither bound descends from one query to the next. This
    /// describes causal attention with a sliding window, or with runs of tokens that see each other in both
    /// directions.
    Ranges(&'a [Range<usize>]),
}

/// Panics if the mask does not fit the numbers of queries and keys.
pub(super) fn check_mask(mask: Mask, q_len: usize, kv_len: usize) {
    match mask {
        Mask::Full => {}
        Mask::Causal => assert!(q_len <= kv_len, "{q_len} causal queries of {kv_len} keys"),
        Mask::Segments(ends) => {
            assert_eq!(q_len, kv_len, "segments need as many queries as keys");
            assert!(ends.is_sorted(), "segments must ascend");
            assert!(
                ends.first() == Some(&0) && ends.last() == Some(&kv_len),
                "segments must cover 0..{kv_len}"
            );
        }
        Mask::Ranges(ranges) => {
            assert_eq!(ranges.len(), q_len, "one range of keys for each query");
            assert!(
                ranges.is_sorted_by(|a, b| a.start <= b.start && a.end <= b.end),
                "ranges of keys must not descend"
            );
            assert!(
                ranges.iter().all(|range| range.end <= kv_len),
                "ranges of keys must end at {kv_len}"
            );
        }
    }
}
