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

impl Mask<'_> {
    /// Returns the keys visible to query `query` of `q_len`.
    pub fn visible(self, query: usize, q_len: usize, kv_len: usize) -> Range<usize> {
        match self {
            Mask::Full => 0..kv_len,
            Mask::Causal => 0..kv_len - q_len + query + 1,
            Mask::Segments(ends) => {
                let end = ends.partition_point(|end| *end <= query);
                ends[end - 1]..ends[end]
            }
            Mask::Ranges(ranges) => ranges[query].clone(),
        }
    }

    /// Returns the number of queries that each key is visible to.
    pub fn queries_per_key(self, q_len: usize, kv_len: usize) -> Vec<usize> {
        // Queries that see a key, but not the one before it, and the reverse.
        let (mut first, mut past) = (vec![0; kv_len + 1], vec![0; kv_len + 1]);
        for query in 0..q_len {
            let visible = self.visible(query, q_len, kv_len);
            first[visible.start] += 1;
            past[visible.end] += 1;
        }
        let differences = first.into_iter().zip(past).take(kv_len);
        differences
            .scan(0, |count, (first, past)| {
                *count = *count + first - past;
                Some(*count)
            })
            .collect()
    }
}

/// A mask, and the weights of the keys.
#[derive(Clone, Copy, Debug)]
pub struct WeightedMask<'a> {
    /// The keys that each query attends to.
    pub mask: Mask<'a>,
    /// `[keys]`, finite and positive: key `j` counts as `key_weights[j]` equal keys, as a token that
    /// represents several merged tokens does (proportional attention: Bolya et al. 2022, section 3,
    /// [arXiv:2210.09461](https://arxiv.org/abs/2210.09461)). `None` if all weights are 1.
    pub key_weights: Option<&'a [f32]>,
}

impl<'a> From<Mask<'a>> for WeightedMask<'a> {
    fn from(mask: Mask<'a>) -> Self {
        Self {
            mask,
            key_weights: None,
        }
    }
}

impl WeightedMask<'_> {
    /// Returns the logarithms of the weights, which are added to the scores of the keys: the exponential
    /// of the sum is that of the score times the weight.
    ///
    /// # Panics
    /// If there is not one weight for each of `kv_len` keys, or a weight is not finite and positive.
    pub fn log_weights(&self, kv_len: usize) -> Option<Vec<f32>> {
        self.key_weights.map(|weights| log_weights(weights, kv_len))
    }
}

/// See [`WeightedMask::log_weights`].
pub(super) fn log_weights(weights: &[f32], kv_len: usize) -> Vec<f32> {
    assert_eq!(weights.len(), kv_len, "one weight for each key");
    let log = |(key, weight): (usize, &f32)| {
        assert!(
            weight.is_finite() && *weight > 0.0,
            "the weight of key {key} is {weight}, expected a finite positive number"
        );
        weight.ln()
    };
    weights.iter().enumerate().map(log).collect()
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
