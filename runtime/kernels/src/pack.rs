//! Quantizing weights and packing them into panels.
//!
//! Rounding to the nearest quant, with scales chosen for the smallest squared error: the best of a grid of scales (of
//! both signs in q4), refined by least squares. The result is the same on every CPU.

use crate::format::{
    BLOCK, Format, FormatError, GROUP, MAX_LEVEL, MatrixShape, PANEL, PANEL_ALIGN,
};
use half::f16;

/// What packing cost in accuracy. Sums over chunks of a matrix add up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PackStats {
    /// Sum of `(packed - weight)^2`.
    pub squared_error: f64,
    /// Sum of `weight^2`.
    pub squared_norm: f64,
    /// Weights in groups that are too small for the format: little or nothing of their values is left.
    pub lost: usize,
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
        self.lost += other.lost;
    }
}

impl PackStats {
    /// The sums of one group of one row, with the group counted as lost where its relative error is larger than
    /// rounding alone can make it.
    fn of_group(format: Format, squared_error: f64, squared_norm: f64, len: usize) -> Self {
        let most: f64 = match format {
            Format::F32 => f64::INFINITY,
            Format::F16 => 0.05,
            Format::Q8 => 0.1,
            Format::Q4 => 0.35,
        };
        let lost = squared_norm > 0.0 && squared_error > most * most * squared_norm;
        Self {
            squared_error,
            squared_norm,
            lost: if lost { len } else { 0 },
        }
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
/// `quants`: `[any, shape.cols]`, clamped to the format's range; `levels` (q4; empty for q8):
/// `[the same, shape.blocks()]`, clamped to -15..=15; `scales`: `[the same, shape.groups()]`
///
/// # Errors
/// If the format is a float format, `quants` is not whole rows, or there are not as many levels as blocks or scales as
/// groups.
pub fn pack_quants(
    shape: MatrixShape,
    quants: &[i8],
    levels: &[i8],
    scales: &[f16],
    out: &mut Vec<u8>,
) -> Result<(), FormatError> {
    if !shape.format.is_quantized() {
        return Err(FormatError::NotQuantized(shape.format));
    }
    let rows = whole_rows(shape, quants.len())?;
    let row_levels = if shape.format == Format::Q4 {
        shape.blocks()
    } else {
        0
    };
    for (what, expected, found) in [
        ("levels", rows * row_levels, levels.len()),
        ("scales", rows * shape.groups(), scales.len()),
    ] {
        if found != expected {
            let cols = shape.cols;
            return Err(FormatError::Scales {
                what,
                rows,
                cols,
                expected,
                found,
            });
        }
    }
    let shape = MatrixShape { rows, ..shape };
    let panel_bytes = shape.panel_bytes();
    let start = out.len();
    out.resize(start + shape.panels() * panel_bytes, 0);
    if rows == 0 || shape.cols == 0 {
        return Ok(());
    }
    for (index, panel) in out[start..].chunks_exact_mut(panel_bytes).enumerate() {
        let mut panel = Panel::new(shape, panel);
        for r in 0..PANEL.min(rows - index * PANEL) {
            let row = index * PANEL + r;
            let quants = quants[row * shape.cols..][..shape.cols].chunks(BLOCK);
            for (b, quants) in quants.enumerate() {
                let mut block = [0; BLOCK];
                for (to, from) in block.iter_mut().zip(quants) {
                    *to = (*from).clamp(lowest(shape.format), highest(shape.format));
                }
                let level = levels.get(row * row_levels + b).copied().unwrap_or(1);
                panel.store_block(r, b, &block, level.clamp(-MAX_LEVEL, MAX_LEVEL));
            }
            for (g, scale) in scales[row * shape.groups()..][..shape.groups()]
                .iter()
                .enumerate()
            {
                panel.store_scale(r, g, *scale);
            }
        }
    }
    Ok(())
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
        Format::Q4 => half_max * 8.0 * f32::from(MAX_LEVEL),
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
        for (g, weights) in row.chunks(GROUP * BLOCK).enumerate() {
            let (mut error, mut norm) = (0.0, 0.0);
            for (i, w) in weights.iter().enumerate() {
                let at = (g * GROUP * BLOCK + i) * PANEL + r;
                norm += f64::from(*w) * f64::from(*w);
                if shape.format == Format::F32 {
                    panel[4 * at..][..4].copy_from_slice(&w.to_le_bytes());
                } else {
                    let half = f16::from_f32(*w);
                    error += f64::from(half.to_f32() - w).powi(2);
                    panel[2 * at..][..2].copy_from_slice(&half.to_le_bytes());
                }
            }
            stats += PackStats::of_group(shape.format, error, norm, weights.len());
        }
    }
    stats
}

fn pack_quantized_panel(shape: MatrixShape, rows: &[f32], panel: &mut [u8]) -> PackStats {
    let mut panel = Panel::new(shape, panel);
    let mut stats = PackStats::default();
    for (r, row) in rows.chunks_exact(shape.cols).enumerate() {
        for (g, weights) in row.chunks(GROUP * BLOCK).enumerate() {
            let mut group = [[0.0; BLOCK]; GROUP];
            group.as_flattened_mut()[..weights.len()].copy_from_slice(weights);
            let fit = fit(shape.format, &group);
            panel.store_scale(r, g, fit.scale);
            let blocks = weights.len().div_ceil(BLOCK);
            let (mut squared_error, mut squared_norm) = (0.0, 0.0);
            for (b, block) in group.iter().enumerate().take(blocks) {
                panel.store_block(r, g * GROUP + b, &fit.quants[b], fit.levels[b]);
                let scale = fit.scale.to_f32() * f32::from(fit.levels[b]);
                for (w, q) in block.iter().zip(&fit.quants[b]) {
                    let error = f64::from(f32::from(*q) * scale - w);
                    squared_error += error * error;
                    squared_norm += f64::from(*w) * f64::from(*w);
                }
            }
            stats += PackStats::of_group(shape.format, squared_error, squared_norm, weights.len());
        }
    }
    stats
}

/// The bytes of a quantized panel while it is written.
struct Panel<'a> {
    format: Format,
    bytes: &'a mut [u8],
    levels: usize,
    quants: usize,
}

impl<'a> Panel<'a> {
    /// With every quant zero: what rows and inputs that do not exist hold.
    fn new(shape: MatrixShape, bytes: &'a mut [u8]) -> Self {
        debug_assert_eq!(bytes.len() % PANEL_ALIGN, 0);
        let (levels, quants) = shape.level_and_quant_offsets();
        bytes[quants..].fill(if shape.format == Format::Q4 { 0x88 } else { 0 });
        Self {
            format: shape.format,
            bytes,
            levels,
            quants,
        }
    }

    /// Stores the quants of row `r` in block `b`, and in q4 their level.
    fn store_block(&mut self, r: usize, b: usize, quants: &[i8; BLOCK], level: i8) {
        let size = self.format.block_bytes();
        let block = &mut self.bytes[self.quants + b * size..][..size];
        for (i, q) in quants.iter().enumerate() {
            if self.format == Format::Q8 {
                block[i / 4 * 32 + r * 4 + i % 4] = *q as u8;
            } else {
                let (byte, shift) = (i / 8 * 32 + r * 4 + i % 4, i % 8 / 4 * 4);
                let nibble = (*q + 8) as u8;
                block[byte] = block[byte] & !(15 << shift) | nibble << shift;
            }
        }
        if self.format == Format::Q4 {
            self.bytes[self.levels + b * PANEL + r] = level as u8;
        }
    }

    /// Stores the scale of row `r` in group `g`.
    fn store_scale(&mut self, r: usize, g: usize, scale: f16) {
        let at = 2 * (g * PANEL + r);
        self.bytes[at..][..2].copy_from_slice(&scale.to_le_bytes());
    }
}

/// A quantized group of one row.
struct Fit {
    scale: f16,
    levels: [i8; GROUP],
    quants: [[i8; BLOCK]; GROUP],
}

/// The best scales found for a group, and its quants.
fn fit(format: Format, x: &[[f32; BLOCK]; GROUP]) -> Fit {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        return crate::generic::compiled!("avx2"; (format: Format, x: &[[f32; BLOCK]; GROUP]) -> Fit =>
            fit_portable(format, x));
    }
    fit_portable(format, x)
}

/// Scales tried for a block, as the number of steps that the largest magnitude is wide. Fewer steps than the range has
/// cut nothing off, more cut the largest weights and make the others finer.
const Q4_STEPS: [f32; 13] = [
    8.0, 7.75, 7.5, 7.25, 7.0, 6.75, 6.5, 6.0, 5.5, 8.25, 8.5, 9.0, 9.5,
];
const Q8_STEPS: [f32; 4] = [127.0, 126.5, 126.0, 125.0];

#[inline(always)]
fn fit_portable(format: Format, x: &[[f32; BLOCK]; GROUP]) -> Fit {
    if format == Format::Q8 {
        fit_q8(x)
    } else {
        fit_q4(x)
    }
}

#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |max, x| max.max(x.abs()))
}

/// Scales below this keep fewer than four bits in half precision.
const COARSE_SCALE: f32 = 16.0 * SMALLEST_SCALE;
/// The smallest positive number in half precision, 2^-24.
const SMALLEST_SCALE: f32 = 5.960_464_5e-8;

/// `x` as a finite half-precision number. The smallest ones are rounded away from zero: too large a scale makes the
/// quants coarser, too small a one cuts the largest weights off, and none at all loses them.
fn half(x: f32) -> f16 {
    let x = match x.abs() < COARSE_SCALE {
        true => (x.abs() / SMALLEST_SCALE).ceil().copysign(x) * SMALLEST_SCALE,
        false => x,
    };
    f16::from_f32(x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}

/// The scale of the group's plain one and some that cut it short, each refined by least squares.
#[inline(always)]
fn fit_q8(x: &[[f32; BLOCK]; GROUP]) -> Fit {
    let x = x.as_flattened();
    let max = largest(x);
    let mut best = (f32::INFINITY, f16::ZERO);
    for steps in Q8_STEPS {
        let (xq, qq) = project(Format::Q8, x, if max > 0.0 { steps / max } else { 0.0 });
        for scale in [
            half(max / steps),
            half(if qq > 0.0 { xq / qq } else { 0.0 }),
        ] {
            let error = squared_error(Format::Q8, x, scale.to_f32());
            if error < best.0 {
                best = (error, scale);
            }
        }
    }
    let mut fit = Fit {
        scale: best.1,
        levels: [1; GROUP],
        quants: [[0; BLOCK]; GROUP],
    };
    round_all(
        Format::Q8,
        x,
        best.1.to_f32(),
        fit.quants.as_flattened_mut(),
    );
    fit
}

/// First each block's best scale on its own. The group's scale makes the largest of these one of the top levels, the
/// one that serves all blocks best; every block takes the better of the two levels around its own scale.
#[inline(always)]
fn fit_q4(x: &[[f32; BLOCK]; GROUP]) -> Fit {
    let own = x.map(|x| block_scale(&x));
    let top = largest(&own);
    let mut best = (f32::INFINITY, f16::ZERO, [0; GROUP]);
    for step in 0..TOP_LEVELS {
        let scale = half(top / (f32::from(MAX_LEVEL) - 0.5 * step as f32));
        let (mut error, mut levels) = (0.0, [0; GROUP]);
        for b in 0..GROUP {
            let (block_error, level) = level(&x[b], own[b], scale.to_f32());
            error += block_error;
            levels[b] = level;
        }
        if error < best.0 {
            best = (error, scale, levels);
        }
    }
    let (_, scale, levels) = best;
    let mut fit = Fit {
        scale,
        levels,
        quants: [[0; BLOCK]; GROUP],
    };
    for b in 0..GROUP {
        let scale = scale.to_f32() * f32::from(levels[b]);
        round_all(Format::Q4, &x[b], scale, &mut fit.quants[b]);
    }
    fit
}

/// Places of the largest level that are tried: 15 down to 11 in halves, the halves for its neighbour's sake.
const TOP_LEVELS: usize = 9;

/// The level with which a block has the smaller error, of the two around its own scale: error and level.
#[inline(always)]
fn level(x: &[f32; BLOCK], own: f32, scale: f32) -> (f32, i8) {
    let limit = f32::from(MAX_LEVEL);
    let exact = if scale == 0.0 {
        0.0
    } else {
        (own / scale).clamp(-limit, limit)
    };
    let mut best = (f32::INFINITY, 0);
    for level in [exact.floor(), exact.ceil()] {
        let error = squared_error(Format::Q4, x, level * scale);
        if error < best.0 {
            best = (error, level as i8);
        }
    }
    best
}

/// The scale with which a q4 block, rounded to the nearest quant, has the smallest squared error found.
#[inline(always)]
fn block_scale(x: &[f32; BLOCK]) -> f32 {
    let max = largest(x);
    if max == 0.0 {
        return 0.0;
    }
    // With the best scale for given quants, sum(x q) / sum(q^2), the error is sum(x^2) - sum(x q)^2 / sum(q^2). The range
    // is lopsided: either end may take the largest weight.
    let (mut best, mut scale) = (-1.0, 0.0);
    for sign in [-1.0, 1.0] {
        for steps in Q4_STEPS {
            let (xq, qq) = project(Format::Q4, x, sign * steps / max);
            let gain = xq * xq / qq;
            if gain > best {
                (best, scale) = (gain, xq / qq);
            }
        }
    }
    scale
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
fn project(format: Format, x: &[f32], inverse: f32) -> (f32, f32) {
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

/// The reciprocal of a scale; 0 for 0, and for one so small that its reciprocal overflows.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The quants nearest to `x / scale`.
#[inline(always)]
fn round_all(format: Format, x: &[f32], scale: f32, quants: &mut [i8]) {
    let inverse = inverse(scale);
    for (q, x) in quants.iter_mut().zip(x) {
        *q = round_scaled(format, *x, inverse) as i8;
    }
}

/// The squared error of rounding to the nearest quants.
#[inline(always)]
fn squared_error(format: Format, x: &[f32], scale: f32) -> f32 {
    let inverse = inverse(scale);
    let mut lanes = [0f32; 8];
    for x in x.chunks_exact(8) {
        for lane in 0..8 {
            let error = round_scaled(format, x[lane], inverse) * scale - x[lane];
            lanes[lane] += error * error;
        }
    }
    lanes.iter().sum()
}
