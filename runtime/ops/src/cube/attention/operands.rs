//! Operands of the attention kernels.

use cubecl::prelude::*;

/// Score of a masked key, and lower bound of all scores.
pub(super) const MASKED: f32 = -1e30;

/// Kind of [`Mask`](edge_lmm_kernels::attention::Mask).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum MaskKind {
    Full,
    Segments,
    Causal,
    Ranges,
}

/// Compile-time options of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Options {
    pub(super) mask: MaskKind,
    /// `true` if a bias is added to the scores.
    pub(super) biased: bool,
    /// `true` if the keys have weights.
    pub(super) weighted: bool,
    /// `true` if each cube computes the partial result of some of the keys.
    pub(super) split: bool,
}

/// Heads in memory. Element `d` of head `h` at position `p` is
/// `data[column + h * head + p * position + d]`.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Operand<E: Float> {
    pub(super) data: Array<E>,
    pub(super) column: usize,
    pub(super) head: usize,
    pub(super) position: usize,
}

#[cube]
impl<E: Float> Operand<E> {
    /// Returns the index of the first element of a head at a position.
    pub(super) fn at(&self, head: usize, position: usize) -> usize {
        self.column + head * self.head + position * self.position
    }
}

/// Sizes of an attention step.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Sizes {
    pub(super) queries: usize,
    pub(super) keys: usize,
    /// Query heads.
    pub(super) heads: usize,
    /// Query heads per key head.
    pub(super) group: usize,
    /// Keys per part.
    pub(super) part: usize,
    /// Number of bounds of segments or ranges.
    pub(super) ends: usize,
    pub(super) scale: f32,
}

/// Returns the range of the keys visible to a query: first, and one past the last.
#[cube]
pub(super) fn visible_keys(
    query: usize,
    ends: &Array<u32>,
    sizes: &Sizes,
    #[comptime] mask: MaskKind,
) -> (usize, usize) {
    let mut first = 0usize;
    let mut end = sizes.keys;
    match mask {
        MaskKind::Full => {}
        MaskKind::Causal => {
            end = sizes.keys - sizes.queries + query + 1;
        }
        MaskKind::Ranges => {
            first = ends[2 * query] as usize;
            end = ends[2 * query + 1] as usize;
        }
        MaskKind::Segments => {
            for i in 0..sizes.ends - 1 {
                if ends[i] as usize <= query {
                    first = ends[i] as usize;
                    end = ends[i + 1] as usize;
                }
            }
        }
    }
    (first, end)
}
