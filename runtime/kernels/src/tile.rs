//! What the kernels of all instruction sets share: finding and checking the operands of a tile.

use crate::cpu::{Panels, Strided, Tile};
use crate::format::{BLOCK, PANEL};
use std::ops::Range;

/// Blocks of weights to fetch ahead of their use.
const AHEAD: usize = 8;

/// Where the operands of a panel's next block are.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    /// Weights: `block_bytes` of quants.
    pub(crate) quants: *const u8,
    /// 8 half-precision scales.
    pub(crate) scales: *const u8,
    /// Activations of the first token, 32 bytes per token.
    pub(crate) x: *const u8,
    /// Scale of the first token.
    pub(crate) x_scale: *const f32,
    /// Offset of the first token.
    pub(crate) x_offset: *const i32,
    pub(crate) tokens: usize,
    /// Sums of the first token.
    pub(crate) acc: *mut f32,
    /// Floats from one token's sums to the next.
    pub(crate) stride: usize,
    /// Blocks there are left.
    pub(crate) blocks: usize,
    block_bytes: usize,
    panel_bytes: usize,
    /// Bytes from the end of this panel's blocks to the first block of the next panel.
    gap: usize,
}

impl Operands {
    /// The operands of the first panel, after checking that those of all panels lie in the slices: the pointers are
    /// readable for `blocks` blocks of `tokens` tokens (`acc`: writable for `tokens` tokens), and so are those of
    /// [`panel`](Self::panel).
    pub(crate) fn new(
        panels: Panels<'_>,
        range: Range<usize>,
        tile: Tile<'_>,
        acc: &mut [f32],
    ) -> Self {
        let Panels {
            format,
            bytes,
            panel_bytes,
            blocks,
        } = panels;
        let (block_bytes, count, tokens) = (format.block_bytes(), panels.count(), tile.tokens);
        assert!(
            range.start <= range.end && range.end <= blocks,
            "{range:?} of {blocks} blocks"
        );
        assert!(
            panel_bytes >= blocks * (block_bytes + 2 * PANEL),
            "a panel of {panel_bytes} bytes"
        );
        let entries = blocks * tokens;
        assert!(
            tile.quants.len() >= entries * BLOCK,
            "{} quantized activations",
            tile.quants.len()
        );
        assert!(
            tile.scales.len() >= entries && tile.offsets.len() >= entries,
            "{entries} scales and offsets"
        );
        assert!(
            acc.len() >= tokens * count * PANEL,
            "{} sums for {tokens} tokens of {count} panels",
            acc.len()
        );
        let first = range.start * tokens;
        Self {
            quants: bytes.as_ptr().wrapping_add(range.start * block_bytes),
            scales: bytes
                .as_ptr()
                .wrapping_add(blocks * block_bytes + range.start * 2 * PANEL),
            x: tile.quants.as_ptr().wrapping_add(first * BLOCK),
            x_scale: tile.scales.as_ptr().wrapping_add(first),
            x_offset: tile.offsets.as_ptr().wrapping_add(first),
            tokens,
            acc: acc.as_mut_ptr(),
            stride: count * PANEL,
            blocks: range.len(),
            block_bytes,
            panel_bytes,
            gap: panel_bytes - range.len() * block_bytes,
        }
    }

    /// The same for another panel.
    #[inline(always)]
    pub(crate) fn panel(&self, index: usize) -> Self {
        let at = index * self.panel_bytes;
        let (quants, scales) = (self.quants.wrapping_add(at), self.scales.wrapping_add(at));
        Self {
            quants,
            scales,
            acc: self.acc.wrapping_add(index * PANEL),
            ..*self
        }
    }

    /// Goes on to the next block, if there is one.
    #[inline(always)]
    pub(crate) fn advance(&mut self) {
        self.blocks -= 1;
        self.quants = self.quants.wrapping_add(self.block_bytes);
        self.scales = self.scales.wrapping_add(2 * PANEL);
        self.x = self.x.wrapping_add(BLOCK * self.tokens);
        self.x_scale = self.x_scale.wrapping_add(self.tokens);
        self.x_offset = self.x_offset.wrapping_add(self.tokens);
    }

    /// Where the block is that is needed some blocks later, in this panel or the next one. It need not exist.
    #[inline(always)]
    pub(crate) fn ahead(&self) -> *const u8 {
        let gap = if self.blocks > AHEAD { 0 } else { self.gap };
        self.quants.wrapping_add(AHEAD * self.block_bytes + gap)
    }
}

/// Checks that a product's operands are as large as its size says.
pub(crate) fn check_matmul(
    [m, n, k]: [usize; 3],
    a: Strided<'_>,
    b: Strided<'_>,
    c: &[f32],
    c_stride: usize,
) {
    let fits = |rows: usize, cols: usize, stride: usize, len: usize| {
        rows == 0
            || cols == 0
            || (rows - 1)
                .checked_mul(stride)
                .and_then(|n| n.checked_add(cols))
                .is_some_and(|n| n <= len)
    };
    assert!(n.is_multiple_of(PANEL), "{n} columns");
    assert!(
        fits(m, k, a.stride, a.data.len()),
        "left operand of {m} x {k}"
    );
    assert!(
        fits(k, n, b.stride, b.data.len()),
        "right operand of {k} x {n}"
    );
    assert!(fits(m, n, c_stride, c.len()), "result of {m} x {n}");
}

/// Calls `$tile` with as many rows as there are left, `$max` (the length of the list) at most.
macro_rules! row_tiles {
    ($tile:ident, $vectors:literal, [$($rows:literal)+], $max:literal, $m:expr, $k:expr, $a:expr, $b:expr, $add:expr, $c:expr, $j:expr) => {{
        let mut i = 0;
        while i < $m {
            let a = $a.data.as_ptr().wrapping_add(i * $a.stride);
            let b = $b.data.as_ptr().wrapping_add($j);
            let c = $c.0.add(i * $c.1 + $j);
            let rows = ($m - i).min($max);
            match rows {
                $($rows => $tile::<$rows, $vectors>($k, a, $a.stride, b, $b.stride, $add, c, $c.1),)+
                _ => unreachable!("at most {} rows", $max),
            }
            i += rows;
        }
    }};
}
pub(crate) use row_tiles;
