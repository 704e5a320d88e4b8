//! Quantizing weights and packing them into panels.
//!
//! Rounding to the nearest level, with the scale of each block chosen for the smallest squared error: the
//! best of a grid of scales of both signs, refined by least squares. The result is the same on every CPU.

use crate::format::{BLOCK, Format, FormatError, MatrixShape, PANEL, PANEL_ALIGN};
use half::f16;

/// What packing cost in accuracy. Sums over chunks of a matrix add up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PackStats {
    /// Sum of `(packed - weight)^2`.
    pub squared_error: f64,
    /// Sum of `weight^2`.
    pub squared_norm: f64,
}

impl PackStats {
    /// `sqrt(squared_error / squared_norm)`, 0 for all-zero weights.
    pub fn relative_error(&self) -> f64 {
        if self.squared_norm > 0.0 {
            (self.squared_error / self.squared_norm).sqrt()
        } else {
            0.0
        }
    }
}

impl std::ops::AddAssign for PackStats {
    fn add_assign(&mut self, other: Self) {
        self.squared_error += other.squared_error;
        self.squared_norm += other.squared_norm;
    }
}

/// Quantizes and packs rows of weights and appends whole panels to `out`.
///
/// Of `shape`, the format and `cols` are used. Give a multiple of 8 rows at a time, but for the last rows of
/// the matrix: each call ends with a whole panel. Disjoint pieces can be packed by several threads.
///
/// # Shapes
/// `rows`: `[any, shape.cols]`, row-major
///
/// # Errors
/// If `rows` is not whole rows, or a weight is NaN, infinite or beyond the format's range. `out` is then as it was.
pub fn pack_rows(
    shape: MatrixShape,
    rows: &[f32],
    out: &mut Vec<u8>,
) -> Result<PackStats, FormatError> {
    let count = check_rows(shape, rows)?;
    let panel_bytes = MatrixShape {
        rows: count,
        ..shape
    }
    .panel_bytes();
    let start = out.len();
    out.resize(start + count.div_ceil(PANEL) * panel_bytes, 0);
    let mut stats = PackStats::default();
    if count > 0 && shape.cols > 0 {
        let panels = out[start..].chunks_exact_mut(panel_bytes);
        for (panel, rows) in panels.zip(rows.chunks(PANEL * shape.cols)) {
            if shape.format.is_quantized() {
                stats += pack_quantized_panel(shape, rows, panel);
            } else {
                stats += pack_float_panel(shape, rows, panel);
            }
        }
    }
    Ok(stats)
}

/// Packs rows that are already quantized, and appends whole panels to `out`; for methods that choose the
/// quants themselves, such as GPTQ. As [`pack_rows`] otherwise.
///
/// # Shapes
/// `quants`: `[any, shape.cols]`, clamped to the format's range; `scales`: `[the same, ceil(shape.cols / 32)]`
///
/// # Errors
/// If the format is a float format, `quants` is not whole rows, or there are not as many scales as blocks.
pub fn pack_quants(
    shape: MatrixShape,
    quants: &[i8],
    scales: &[f16],
    out: &mut Vec<u8>,
) -> Result<(), FormatError> {
    if !shape.format.is_quantized() {
        return Err(FormatError::NotQuantized(shape.format));
    }
    let rows = whole_rows(shape, quants.len())?;
    let blocks = shape.blocks();
    if scales.len() != rows * blocks {
        let (cols, expected, found) = (shape.cols, rows * blocks, scales.len());
        return Err(FormatError::Scales {
            rows,
            cols,
            expected,
            found,
        });
    }
    let shape = MatrixShape { rows, ..shape };
    let panel_bytes = shape.panel_bytes();
    let start = out.len();
    out.resize(start + shape.panels() * panel_bytes, 0);
    if rows == 0 || shape.cols == 0 {
        return Ok(());
    }
    for (index, panel) in out[start..].chunks_exact_mut(panel_bytes).enumerate() {
        clear_quants(shape, panel);
        for r in 0..PANEL.min(rows - index * PANEL) {
            let row = index * PANEL + r;
            for (b, quants) in quants[row * shape.cols..][..shape.cols]
                .chunks(BLOCK)
                .enumerate()
            {
                let mut block = [0; BLOCK];
                for (to, from) in block.iter_mut().zip(quants) {
                    *to = (*from).clamp(lowest(shape.format), highest(shape.format));
                }
                store_block(shape, panel, r, b, &block, scales[row * blocks + b]);
            }
        }
    }
    Ok(())
}

/// The scale with which a block of at most 32 weights, rounded to the nearest quant, has the smallest squared
/// error found. Deterministic.
///
/// # Panics
/// If there are more than 32 weights or the format is a float format.
pub fn fit_scale(format: Format, weights: &[f32]) -> f16 {
    assert!(
        weights.len() <= BLOCK,
        "{} weights are more than a block",
        weights.len()
    );
    assert!(format.is_quantized(), "{format} has no scales");
    let mut block = [0.0; BLOCK];
    block[..weights.len()].copy_from_slice(weights);
    fit(format, &block).0
}

/// The quant nearest to `weight / scale`, within the format's range; 0 where the scale is 0.
///
/// # Panics
/// If the format is a float format.
pub fn nearest_quant(format: Format, weight: f32, scale: f16) -> i8 {
    assert!(format.is_quantized(), "{format} has no quants");
    let scale = scale.to_f32();
    round_scaled(format, weight, if scale == 0.0 { 0.0 } else { 1.0 / scale }) as i8
}

/// Smallest quant.
fn lowest(format: Format) -> i8 {
    if format == Format::Q4 { -8 } else { -127 }
}

/// Largest quant.
fn highest(format: Format) -> i8 {
    if format == Format::Q4 { 7 } else { 127 }
}

fn whole_rows(shape: MatrixShape, len: usize) -> Result<usize, FormatError> {
    if len == 0 {
        return Ok(0);
    }
    if shape.cols == 0 || !len.is_multiple_of(shape.cols) {
        return Err(FormatError::Ragged {
            cols: shape.cols,
            found: len,
        });
    }
    Ok(len / shape.cols)
}

/// Number of rows, if every weight can be packed.
fn check_rows(shape: MatrixShape, rows: &[f32]) -> Result<usize, FormatError> {
    let count = whole_rows(shape, rows.len())?;
    let format = shape.format;
    let half_max = f16::MAX.to_f32();
    let limit = match format {
        Format::F32 => f32::MAX,
        Format::F16 => half_max,
        Format::Q8 => half_max * 127.0,
        Format::Q4 => half_max * 8.0,
    };
    if let Some(index) = rows.iter().position(|w| w.is_nan() || w.abs() > limit) {
        let (row, col, value) = (index / shape.cols, index % shape.cols, rows[index]);
        return Err(if value.is_finite() {
            FormatError::OutOfRange {
                format,
                row,
                col,
                value,
                limit,
            }
        } else {
            FormatError::NotFinite { row, col, value }
        });
    }
    Ok(count)
}

fn pack_float_panel(shape: MatrixShape, rows: &[f32], panel: &mut [u8]) -> PackStats {
    let mut stats = PackStats::default();
    for (r, row) in rows.chunks_exact(shape.cols).enumerate() {
        for (i, w) in row.iter().enumerate() {
            let at = i * PANEL + r;
            let norm = f64::from(*w) * f64::from(*w);
            stats.squared_norm += norm;
            if shape.format == Format::F32 {
                panel[4 * at..][..4].copy_from_slice(&w.to_le_bytes());
            } else {
                let half = f16::from_f32(*w);
                stats.squared_error += f64::from(half.to_f32() - w).powi(2);
                panel[2 * at..][..2].copy_from_slice(&half.to_le_bytes());
            }
        }
    }
    stats
}

fn pack_quantized_panel(shape: MatrixShape, rows: &[f32], panel: &mut [u8]) -> PackStats {
    clear_quants(shape, panel);
    let mut stats = PackStats::default();
    for (r, row) in rows.chunks_exact(shape.cols).enumerate() {
        for (b, weights) in row.chunks(BLOCK).enumerate() {
            let mut block = [0.0; BLOCK];
            block[..weights.len()].copy_from_slice(weights);
            let (scale, quants) = fit(shape.format, &block);
            store_block(shape, panel, r, b, &quants, scale);
            let scale = scale.to_f32();
            for (w, q) in block.iter().zip(&quants) {
                let error = f64::from(f32::from(*q) * scale - w);
                stats.squared_error += error * error;
                stats.squared_norm += f64::from(*w) * f64::from(*w);
            }
        }
    }
    stats
}

/// Sets every quant to zero: what rows and inputs that do not exist hold.
fn clear_quants(shape: MatrixShape, panel: &mut [u8]) {
    let zero = if shape.format == Format::Q4 { 0x88 } else { 0 };
    panel[..shape.blocks() * shape.format.block_bytes()].fill(zero);
    debug_assert_eq!(panel.len() % PANEL_ALIGN, 0);
}

fn store_block(
    shape: MatrixShape,
    panel: &mut [u8],
    r: usize,
    b: usize,
    quants: &[i8; BLOCK],
    scale: f16,
) {
    let size = shape.format.block_bytes();
    let block = &mut panel[b * size..][..size];
    for (i, q) in quants.iter().enumerate() {
        if shape.format == Format::Q8 {
            block[i / 4 * 32 + r * 4 + i % 4] = *q as u8;
        } else {
            let (byte, shift) = (i / 8 * 32 + r * 4 + i % 4, i % 8 / 4 * 4);
            let nibble = (*q + 8) as u8;
            block[byte] = block[byte] & !(15 << shift) | nibble << shift;
        }
    }
    let at = shape.blocks() * size + 2 * (b * PANEL + r);
    panel[at..][..2].copy_from_slice(&scale.to_le_bytes());
}

/// The best scale found for a block, and its quants.
fn fit(format: Format, x: &[f32; BLOCK]) -> (f16, [i8; BLOCK]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        return crate::generic::compiled!("avx2"; (format: Format, x: &[f32; BLOCK]) -> (f16, [i8; BLOCK]) =>
            fit_portable(format, x));
    }
    fit_portable(format, x)
}

/// Scales tried, as the number of steps that the largest magnitude is wide. Fewer steps than the range has cut
/// nothing off, more cut the largest weights and make the others finer.
const Q4_STEPS: [f32; 13] = [
    8.0, 7.75, 7.5, 7.25, 7.0, 6.75, 6.5, 6.0, 5.5, 8.25, 8.5, 9.0, 9.5,
];
const Q8_STEPS: [f32; 4] = [127.0, 126.5, 126.0, 125.0];

#[inline(always)]
fn fit_portable(format: Format, x: &[f32; BLOCK]) -> (f16, [i8; BLOCK]) {
    let max = x.iter().fold(0f32, |max, x| max.max(x.abs()));
    if max == 0.0 {
        return (f16::ZERO, [0; BLOCK]);
    }
    let (steps, signs): (&[f32], &[f32]) = match format {
        // The range of q4 is lopsided: either end may take the largest weight.
        Format::Q4 => (&Q4_STEPS, &[-1.0, 1.0]),
        _ => (&Q8_STEPS, &[1.0]),
    };
    // With the best scale for given quants, sum(x q) / sum(q^2), the error is sum(x^2) - sum(x q)^2 / sum(q^2).
    let (mut best, mut scale) = (-1.0, 0.0);
    for sign in signs {
        for steps in steps {
            let (xq, qq) = project(format, x, sign * steps / max);
            let gain = xq * xq / qq;
            if gain > best {
                (best, scale) = (gain, xq / qq);
            }
        }
    }
    refine(format, x, scale)
}

/// Alternates between the best quants for a scale and the best scale for the quants, on the grid of half precision.
#[inline(always)]
fn refine(format: Format, x: &[f32; BLOCK], mut scale: f32) -> (f16, [i8; BLOCK]) {
    let mut best = (f32::INFINITY, f16::ZERO, [0; BLOCK]);
    for _ in 0..4 {
        let half = f16::from_f32(scale.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()));
        let quants = round_block(format, x, half.to_f32());
        let error = squared_error(x, &quants, half.to_f32());
        if error >= best.0 {
            break;
        }
        best = (error, half, quants);
        let (xq, qq) = project(format, x, 1.0 / half.to_f32());
        scale = xq / qq;
        if !scale.is_finite() {
            break;
        }
    }
    (best.1, best.2)
}

/// `x * inverse` rounded to the nearest quant.
#[inline(always)]
fn round_scaled(format: Format, x: f32, inverse: f32) -> f32 {
    // Adding 1.5 * 2^23 and taking it away rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let scaled = (x * inverse)
        .max(f32::from(lowest(format)))
        .min(f32::from(highest(format)));
    scaled + ROUND - ROUND
}

/// `sum(x q)` and `sum(q^2)` of the quants for a scale.
#[inline(always)]
fn project(format: Format, x: &[f32; BLOCK], inverse: f32) -> (f32, f32) {
    let (mut xq, mut qq) = ([0f32; 8], [0f32; 8]);
    for x in x.chunks_exact(8) {
        for lane in 0..8 {
            let q = round_scaled(format, x[lane], inverse);
            xq[lane] += x[lane] * q;
            qq[lane] += q * q;
        }
    }
    (xq.iter().sum(), qq.iter().sum())
}

#[inline(always)]
fn round_block(format: Format, x: &[f32; BLOCK], scale: f32) -> [i8; BLOCK] {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut quants = [0; BLOCK];
    for (q, x) in quants.iter_mut().zip(x) {
        *q = round_scaled(format, *x, inverse) as i8;
    }
    quants
}

#[inline(always)]
fn squared_error(x: &[f32; BLOCK], quants: &[i8; BLOCK], scale: f32) -> f32 {
    let mut lanes = [0f32; 8];
    for (x, q) in x.chunks_exact(8).zip(quants.chunks_exact(8)) {
        for lane in 0..8 {
            let error = f32::from(q[lane]) * scale - x[lane];
            lanes[lane] += error * error;
        }
    }
    lanes.iter().sum()
}
