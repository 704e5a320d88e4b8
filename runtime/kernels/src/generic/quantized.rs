//! Products with quantized weights.

use crate::cpu::{Panels, Tile};
use crate::format::{BLOCK, GROUP, PANEL, half_at, quant_at, sub_scale_at};
use std::ops::Range;

/// See [`Kernels::quantized`](crate::cpu::Kernels::quantized).
pub(super) fn quantized(panels: Panels<'_>, range: Range<usize>, tile: Tile<'_>, acc: &mut [f32]) {
    let Panels { format, blocks, .. } = panels;
    let (count, tokens) = (panels.count(), tile.tokens);
    let offsets = format.offsets(blocks);
    for (p, panel) in panels.bytes.chunks_exact(panels.panel_bytes).enumerate() {
        for (g, r) in range.clone().flat_map(|g| (0..PANEL).map(move |r| (g, r))) {
            let scale = half_at(panel, g * PANEL + r).to_f32();
            let group = g * GROUP..blocks.min((g + 1) * GROUP);
            let mut w = [[0i32; BLOCK]; GROUP];
            for (b, w) in group.clone().zip(&mut w) {
                let size = format.block_bytes();
                let block = &panel[offsets.quants + b * size..][..size];
                let sub_scale = sub_scale_at(format, &panel[offsets.sub_scales..], b, r);
                for (i, w) in w.iter_mut().enumerate() {
                    *w = i32::from(quant_at(format, block, r, i)) * i32::from(sub_scale);
                }
            }
            for t in 0..tokens {
                let mut sum = 0;
                for (b, w) in group.clone().zip(&w) {
                    let x = &tile.quants[(b * tokens + t) * BLOCK..][..BLOCK];
                    for (w, x) in w.iter().zip(x) {
                        sum += w * i32::from(*x as i8);
                    }
                }
                let scale = scale * tile.scales[g * tokens + t];
                acc[(t * count + p) * PANEL + r] += sum as f32 * scale;
            }
        }
    }
}
