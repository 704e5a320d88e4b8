//! Checked pointers to the operands of a product with quantized weights.

use crate::cpu::{Panels, TILE_TOKENS, Tile};
use crate::format::{BLOCK, Format, GROUP, MatrixShape, PANEL, SCALES_BYTES};
use std::ops::Range;

/// Pointers to the operands of a panel's next block and group.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    /// Quants of the next block of weights.
    pub(crate) quants: *const u8,
    /// 8 sub-block scales of the next block, in q4.
    pub(crate) sub_scales: *const u8,
    /// 8 half-precision scales of the next group.
    pub(crate) scales: *const u8,
    /// Activations of the first token, 32 bytes per token.
    pub(crate) x: *const u8,
    /// Scale of the first token.
    pub(crate) x_scale: *const f32,
    /// Offset of the first token.
    pub(crate) x_offset: *const i32,
    /// Number of tokens, at most [`TILE_TOKENS`].
    pub(crate) tokens: usize,
    /// Accumulators of the first token.
    pub(crate) acc: *mut f32,
    /// Floats from one token's accumulators to the next.
    pub(crate) stride: usize,
    /// Remaining blocks.
    pub(crate) blocks: usize,
    pub(crate) block_bytes: usize,
    pub(crate) sub_scale_bytes: usize,
    pub(crate) panel_bytes: usize,
}

impl Operands {
    /// The operands of the first panel, after a check that those of all panels lie in the slices. The
    /// pointers are readable for the blocks of the groups in `range` and `tokens` tokens, `acc` is
    /// writable for `tokens` tokens, and the same holds for [`panel`](Self::panel).
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
        let shape = MatrixShape::new(Format::from(format), count * PANEL, blocks * BLOCK);
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
        let offsets = format.offsets(blocks);
        let (block_bytes, sub_scale_bytes) = (format.block_bytes(), format.sub_scale_bytes());
        let at = |offset: usize| bytes.as_ptr().wrapping_add(offset);
        Self {
            quants: at(offsets.quants + first * block_bytes),
            sub_scales: at(offsets.sub_scales + first * sub_scale_bytes),
            scales: at(range.start * SCALES_BYTES),
            x: tile.quants.as_ptr().wrapping_add(first * tokens * BLOCK),
            x_scale: tile.scales.as_ptr().wrapping_add(range.start * tokens),
            x_offset: tile.offsets.as_ptr().wrapping_add(first * tokens),
            tokens,
            acc: acc.as_mut_ptr(),
            stride: count * PANEL,
            blocks: blocks.min(range.end * GROUP).saturating_sub(first),
            block_bytes,
            sub_scale_bytes,
            panel_bytes,
        }
    }

    /// The operands of panel `index`, counted from this one.
    #[inline(always)]
    pub(crate) fn panel(&self, index: usize) -> Self {
        let at = index * self.panel_bytes;
        Self {
            quants: self.quants.wrapping_add(at),
            sub_scales: self.sub_scales.wrapping_add(at),
            scales: self.scales.wrapping_add(at),
            acc: self.acc.wrapping_add(index * PANEL),
            ..*self
        }
    }

    /// Blocks of the next group.
    #[inline(always)]
    pub(crate) fn group_blocks(&self) -> usize {
        self.blocks.min(GROUP)
    }

    /// Advances to the next block.
    #[inline(always)]
    pub(crate) fn advance_block(&mut self) {
        self.blocks -= 1;
        self.quants = self.quants.wrapping_add(self.block_bytes);
        self.sub_scales = self.sub_scales.wrapping_add(self.sub_scale_bytes);
        self.x = self.x.wrapping_add(BLOCK * self.tokens);
        self.x_offset = self.x_offset.wrapping_add(self.tokens);
    }

    /// Advances to the next group, after its blocks.
    #[inline(always)]
    pub(crate) fn advance_group(&mut self) {
        self.scales = self.scales.wrapping_add(SCALES_BYTES);
        self.x_scale = self.x_scale.wrapping_add(self.tokens);
    }

    /// Quants of the block `panels` panels ahead, to be prefetched. They need not exist.
    #[inline(always)]
    pub(crate) fn ahead(&self, panels: usize) -> *const u8 {
        self.quants.wrapping_add(panels * self.panel_bytes)
    }

    /// Sub-block scales and scales `panels` panels ahead. One prefetch per group covers them.
    #[inline(always)]
    pub(crate) fn header_ahead(&self, panels: usize) -> [*const u8; 2] {
        let at = panels * self.panel_bytes;
        [
            self.sub_scales.wrapping_add(at),
            self.scales.wrapping_add(at),
        ]
    }
}
