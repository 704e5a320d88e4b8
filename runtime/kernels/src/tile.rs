//! What the kernels of all instruction sets share: finding and checking the operands of a tile.

use crate::cpu::{Panels, Strided, TILE_TOKENS, Tile};
use crate::format::{BLOCK, GROUP, MatrixShape, PANEL, SCALES_BYTES};
use std::ops::Range;

/// Where the operands of a panel's next block and group are.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    /// Weights: the quants of the next block.
    pub(crate) quants: *const u8,
    /// 8 levels of the next block, in q4.
    pub(crate) levels: *const u8,
    /// 8 half-precision scales of the group.
    pub(crate) scales: *const u8,
    /// Activations of the first token, 32 bytes per token.
    pub(crate) x: *const u8,
    /// Scale of the first token.
    pub(crate) x_scale: *const f32,
    /// Offset of the first token.
    pub(crate) x_offset: *const i32,
    /// [`TILE_TOKENS`] at most.
    pub(crate) tokens: usize,
    /// Sums of the first token.
    pub(crate) acc: *mut f32,
    /// Floats from one token's sums to the next.
    pub(crate) stride: usize,
    /// Blocks there are left.
    pub(crate) blocks: usize,
    pub(crate) block_bytes: usize,
    pub(crate) level_bytes: usize,
    pub(crate) panel_bytes: usize,
}

impl Operands {
    /// The operands of the first panel, after checking that those of all panels lie in the slices: the pointers are
    /// readable for the blocks of the groups in `range` and `tokens` tokens (`acc`: writable for `tokens` tokens), and so
    /// are those of [`panel`](Self::panel).
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
        let (count, tokens) = (panels.count(), tile.tokens);
        let shape = MatrixShape::new(format, count * PANEL, blocks * BLOCK);
        let groups = shape.groups();
        assert!(
            range.start <= range.end && range.end <= groups,
            "{range:?} of {groups} groups"
        );
        assert!(
            panel_bytes >= shape.panel_bytes(),
            "a panel of {panel_bytes} bytes"
        );
        assert!(tokens <= TILE_TOKENS, "{tokens} tokens in a tile");
        assert!(
            tile.quants.len() >= blocks * tokens * BLOCK && tile.offsets.len() >= blocks * tokens,
            "{} quantized activations and {} offsets for {blocks} blocks of {tokens} tokens",
            tile.quants.len(),
            tile.offsets.len()
        );
        assert!(
            tile.scales.len() >= groups * tokens,
            "{} scales for {groups} groups of {tokens} tokens",
            tile.scales.len()
        );
        assert!(
            acc.len() >= tokens * count * PANEL,
            "{} sums for {tokens} tokens of {count} panels",
            acc.len()
        );
        let first = range.start * GROUP;
        let (levels, quants) = shape.level_and_quant_offsets();
        let (block_bytes, level_bytes) = (format.block_bytes(), format.level_bytes());
        let at = |offset: usize| bytes.as_ptr().wrapping_add(offset);
        Self {
            quants: at(quants + first * block_bytes),
            levels: at(levels + first * level_bytes),
            scales: at(range.start * SCALES_BYTES),
            x: tile.quants.as_ptr().wrapping_add(first * tokens * BLOCK),
            x_scale: tile.scales.as_ptr().wrapping_add(range.start * tokens),
            x_offset: tile.offsets.as_ptr().wrapping_add(first * tokens),
            tokens,
            acc: acc.as_mut_ptr(),
            stride: count * PANEL,
            blocks: blocks.min(range.end * GROUP).saturating_sub(first),
            block_bytes,
            level_bytes,
            panel_bytes,
        }
    }

    /// The same for another panel.
    #[inline(always)]
    pub(crate) fn panel(&self, index: usize) -> Self {
        let at = index * self.panel_bytes;
        Self {
            quants: self.quants.wrapping_add(at),
            levels: self.levels.wrapping_add(at),
            scales: self.scales.wrapping_add(at),
            acc: self.acc.wrapping_add(index * PANEL),
            ..*self
        }
    }

    /// Blocks of the group that is about to begin.
    #[inline(always)]
    pub(crate) fn group_blocks(&self) -> usize {
        self.blocks.min(GROUP)
    }

    /// Goes on to the next block, if there is one.
    #[inline(always)]
    pub(crate) fn advance_block(&mut self) {
        self.blocks -= 1;
        self.quants = self.quants.wrapping_add(self.block_bytes);
        self.levels = self.levels.wrapping_add(self.level_bytes);
        self.x = self.x.wrapping_add(BLOCK * self.tokens);
        self.x_offset = self.x_offset.wrapping_add(self.tokens);
    }

    /// Goes on to the next group, if there is one, after its blocks.
    #[inline(always)]
    pub(crate) fn advance_group(&mut self) {
        self.scales = self.scales.wrapping_add(SCALES_BYTES);
        self.x_scale = self.x_scale.wrapping_add(self.tokens);
    }

    /// Weights that are needed when the next `panels` panels have their turn. They need not exist.
    #[inline(always)]
    pub(crate) fn ahead(&self, panels: usize) -> *const u8 {
        self.quants.wrapping_add(panels * self.panel_bytes)
    }

    /// Their levels and scales, for which it is enough to ask once per group.
    #[inline(always)]
    pub(crate) fn header_ahead(&self, panels: usize) -> [*const u8; 2] {
        let at = panels * self.panel_bytes;
        [self.levels.wrapping_add(at), self.scales.wrapping_add(at)]
    }
}

/// Checks that a product's operands are as large as its size says.
pub(crate) fn check_matmul<T>(
    [m, n, k]: [usize; 3],
    a: Strided<'_>,
    b: Strided<'_, T>,
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
    ($tile:ident, $element:ty, $vectors:literal, [$($rows:literal)+], $max:literal, $m:expr, $k:expr, $a:expr, $b:expr, $add:expr, $c:expr, $j:expr) => {{
        let mut i = 0;
        while i < $m {
            let a = $a.data.as_ptr().wrapping_add(i * $a.stride);
            let b = $b.data.as_ptr().wrapping_add($j);
            let c = $c.0.add(i * $c.1 + $j);
            let rows = ($m - i).min($max);
            match rows {
                $($rows => $tile::<$rows, $vectors, $element>($k, a, $a.stride, b, $b.stride, $add, c, $c.1),)+
                _ => unreachable!("at most {} rows", $max),
            }
            i += rows;
        }
    }};
}
pub(crate) use row_tiles;
