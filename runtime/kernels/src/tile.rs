//! What the kernels of all instruction sets share: finding and checking the operands of a tile.

use crate::cpu::{Panels, Strided, Tile};
use crate::format::{BLOCK, PANEL};
use std::ops::Range;

/// Where a block's operands are.
#[derive(Clone, Copy)]
pub(crate) struct Block {
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
}

/// Calls `step` for each panel and block, after checking that all of it lies in the slices.
#[inline(always)]
pub(crate) fn each_block(
    panels: Panels<'_>,
    range: Range<usize>,
    tile: Tile<'_>,
    acc: &mut [f32],
    panel: usize,
    step: impl Fn(Block),
) {
    let block_bytes = panels.format.block_bytes();
    let (count, tokens) = (panels.count(), tile.tokens);
    assert!(
        range.start <= range.end && range.end <= panels.blocks && panel < count,
        "blocks {range:?}"
    );
    assert!(
        panels.panel_bytes >= panels.blocks * (block_bytes + 2 * PANEL),
        "panel of {} bytes",
        panels.panel_bytes
    );
    let entries = range.end * tokens;
    assert!(
        tile.quants.len() >= entries * BLOCK
            && tile.scales.len() >= entries
            && tile.offsets.len() >= entries
    );
    assert!(
        acc.len() >= tokens * count * PANEL,
        "{} sums for {tokens} tokens of {count} panels",
        acc.len()
    );
    let bytes = &panels.bytes[panel * panels.panel_bytes..];
    let acc = acc[panel * PANEL..].as_mut_ptr();
    for b in range {
        let at = b * tokens;
        step(Block {
            quants: bytes[b * block_bytes..].as_ptr(),
            scales: bytes[panels.blocks * block_bytes + b * 2 * PANEL..].as_ptr(),
            x: tile.quants[at * BLOCK..].as_ptr(),
            x_scale: tile.scales[at..].as_ptr(),
            x_offset: tile.offsets[at..].as_ptr(),
            tokens,
            acc,
            stride: count * PANEL,
        });
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
    ($tile:ident, $vectors:literal, [$($rows:literal)+], $max:literal, $m:expr, $k:expr, $a:expr, $b:expr, $c:expr, $j:expr) => {{
        let mut i = 0;
        while i < $m {
            let (a, c) = ($a.data.as_ptr().add(i * $a.stride), $c.0.add(i * $c.1 + $j));
            let b = $b.data.as_ptr().add($j);
            let rows = ($m - i).min($max);
            match rows {
                $($rows => $tile::<$rows, $vectors>($k, a, $a.stride, b, $b.stride, c, $c.1),)+
                _ => unreachable!("at most {} rows", $max),
            }
            i += rows;
        }
    }};
}
pub(crate) use row_tiles;
