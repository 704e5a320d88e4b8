//! Packing of weights into panels.
//!
//! Weights are rounded to the nearest quant, with scales that minimize the squared error (see the module
//! `fit`). The result is the same on every CPU.

use crate::fit::{EQUAL, Values, fit};
use crate::format::{
    BLOCK, FINE_LEVELS, FloatFormat, Format, FormatError, FormatKind, GROUP, LEVELS, MAX_SUB_SCALE,
    Matrix, MatrixShape, PANEL, PANEL_ALIGN, PanelOffsets, QuantFormat,
};
use half::f16;

/// Quantization error of packed weights. Values for parts of a matrix can be added.
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
    /// The error of packed rows.
    ///
    /// # Shapes
    /// `packed`: `[rows, cols]`; `rows`: the same, row-major
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn of_rows(packed: &Matrix<'_>, rows: &[f32]) -> Self {
        let shape = packed.shape();
        assert_eq!(rows.len(), shape.rows * shape.cols, "rows of {shape:?}");
        let mut unpacked = vec![0.0; shape.cols];
        let mut stats = Self::default();
        for (r, row) in rows.chunks_exact(shape.cols.max(1)).enumerate() {
            packed.row_into(r, &mut unpacked);
            let groups = unpacked
                .chunks(GROUP * BLOCK)
                .zip(row.chunks(GROUP * BLOCK));
            for (packed, weights) in groups {
                let (mut error, mut norm) = (0.0, 0.0);
                for (p, w) in packed.iter().zip(weights) {
                    error += f64::from(p - w).powi(2);
                    norm += f64::from(*w) * f64::from(*w);
                }
                stats += Self::of_group(shape.format, error, norm, weights.len());
            }
        }
        stats
    }

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
/// Uses only the format and `cols` of `shape`. Each call ends with a whole panel, so all calls but that for
/// the last rows of a matrix must have a multiple of 8 rows. Threads can pack disjoint pieces in parallel.
///
/// # Shapes
/// `rows`: `[any, shape.cols]`, row-major
///
/// # Errors
/// If the length of `rows` is not a multiple of `shape.cols`, or a weight is NaN, infinite or out of the
/// format's range. `out` is then unchanged.
pub fn pack_rows(
    shape: MatrixShape,
    rows: &[f32],
    out: &mut Vec<u8>,
) -> Result<PackStats, FormatError> {
    pack_weighted(shape, rows, None, out)
}

/// Works as [`pack_rows`], but the squared error of an input counts with its weight in the choice of scales.
/// The mean squares of the inputs make the expected error of the outputs small.
///
/// # Shapes
/// As for [`pack_rows`]; `weights`: `[shape.cols]`, or `None` if all inputs count alike. Float formats do not
/// use them.
///
/// # Errors
/// As for [`pack_rows`], or if `weights` has another length or a weight is negative or not finite.
pub fn pack_weighted(
    shape: MatrixShape,
    rows: &[f32],
    weights: Option<&[f32]>,
    out: &mut Vec<u8>,
) -> Result<PackStats, FormatError> {
    let weights = weights
        .map(|weights| GroupWeights::new(shape, weights))
        .transpose()?;
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
            stats += match shape.format.kind() {
                FormatKind::Float(format) => pack_float_panel(format, shape, rows, panel),
                FormatKind::Quant(format) => {
                    pack_quantized_panel(format, shape, rows, weights.as_ref(), panel)
                }
            };
        }
    }
    Ok(stats)
}

/// Rows of quantized weights before they are packed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantized {
    /// `[rows, cols]`
    pub quants: Vec<i8>,
    /// `[rows, blocks]`; empty in q8.
    pub sub_scales: Vec<i8>,
    /// `[rows, groups]`
    pub scales: Vec<f16>,
}

impl Quantized {
    /// Quantizes rows with the scales of [`pack_weighted`].
    ///
    /// # Errors
    /// As for [`pack_weighted`], or if the format is a float format.
    pub fn new(
        shape: MatrixShape,
        rows: &[f32],
        weights: Option<&[f32]>,
    ) -> Result<Self, FormatError> {
        let FormatKind::Quant(format) = shape.format.kind() else {
            return Err(FormatError::NotQuantized(shape.format));
        };
        let weights = weights
            .map(|weights| GroupWeights::new(shape, weights))
            .transpose()?;
        check_rows(shape, rows)?;
        let mut quantized = Self::default();
        for row in rows.chunks_exact(shape.cols.max(1)) {
            for (g, values) in row.chunks(GROUP * BLOCK).enumerate() {
                let mut group = [[0.0; BLOCK]; GROUP];
                group.as_flattened_mut()[..values.len()].copy_from_slice(values);
                let weights = weights.as_ref().map_or(&EQUAL, |weights| &weights.0[g]);
                let fit = fit(format, &group, weights);
                let quants = &fit.quants.as_flattened()[..values.len()];
                quantized.quants.extend_from_slice(quants);
                if format == QuantFormat::Q4 {
                    let blocks = values.len().div_ceil(BLOCK);
                    quantized
                        .sub_scales
                        .extend_from_slice(&fit.sub_scales[..blocks]);
                }
                quantized.scales.push(fit.scale);
            }
        }
        Ok(quantized)
    }
}

/// Weights of the inputs of each group. Those of a group have a mean of 1, so that sums of squares neither
/// overflow nor vanish, and none is 0, so that every value is rounded to the nearest quant of some scale.
struct GroupWeights(Vec<Values>);

impl GroupWeights {
    const SMALLEST: f32 = 1e-6;

    fn new(shape: MatrixShape, weights: &[f32]) -> Result<Self, FormatError> {
        if weights.len() != shape.cols {
            return Err(FormatError::Weights {
                expected: shape.cols,
                found: weights.len(),
            });
        }
        if let Some(col) = weights.iter().position(|w| !w.is_finite() || *w < 0.0) {
            let value = weights[col];
            return Err(FormatError::Weight { col, value });
        }
        let group = |weights: &[f32]| {
            let sum: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            let mean = sum / weights.len() as f64;
            let mut group = EQUAL;
            if mean > 0.0 {
                for (to, from) in group.as_flattened_mut().iter_mut().zip(weights) {
                    *to = ((f64::from(*from) / mean) as f32).max(Self::SMALLEST);
                }
            }
            group
        };
        Ok(Self(weights.chunks(GROUP * BLOCK).map(group).collect()))
    }
}

/// Packs rows that are already quantized and appends whole panels to `out`, for methods that choose the
/// quants themselves, such as GPTQ. Otherwise as [`pack_rows`].
///
/// # Shapes
/// `quants`: `[rows, shape.cols]`, clamped to the format's range, in q4 one of [`LEVELS`] or else the next
/// one toward zero; `sub_scales`: `[rows, shape.blocks()]`, clamped to -12..=12, in q4, empty in q8;
/// `scales`: `[rows, shape.groups()]`
///
/// # Errors
/// If the format is a float format, or the lengths of `quants`, `sub_scales` and `scales` do not match.
pub fn pack_quants(
    shape: MatrixShape,
    quants: &[i8],
    sub_scales: &[i8],
    scales: &[f16],
    out: &mut Vec<u8>,
) -> Result<(), FormatError> {
    let format = match shape.format.kind() {
        FormatKind::Float(_) => return Err(FormatError::NotQuantized(shape.format)),
        FormatKind::Quant(format) => format,
    };
    let rows = whole_rows(shape, quants.len())?;
    let row_sub_scales = match format {
        QuantFormat::Q8 => 0,
        QuantFormat::Q4 => shape.blocks(),
    };
    for (what, expected, found) in [
        ("sub-block scales", rows * row_sub_scales, sub_scales.len()),
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
    let (min, max) = format.range();
    let start = out.len();
    out.resize(start + shape.panels() * panel_bytes, 0);
    if rows == 0 || shape.cols == 0 {
        return Ok(());
    }
    for (index, panel) in out[start..].chunks_exact_mut(panel_bytes).enumerate() {
        let mut panel = Panel::new(format, shape, panel);
        for r in 0..PANEL.min(rows - index * PANEL) {
            let row = index * PANEL + r;
            let quants = quants[row * shape.cols..][..shape.cols].chunks(BLOCK);
            for (b, quants) in quants.enumerate() {
                let mut block = [0; BLOCK];
                for (to, from) in block.iter_mut().zip(quants) {
                    *to = (*from).clamp(min, max);
                }
                let sub_scale = match format {
                    QuantFormat::Q8 => 1,
                    QuantFormat::Q4 => sub_scales[row * row_sub_scales + b],
                };
                panel.store_block(r, b, &block, sub_scale.clamp(-MAX_SUB_SCALE, MAX_SUB_SCALE));
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

/// Number of rows of `len` weights.
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

/// Number of rows, after a check that every weight can be packed.
fn check_rows(shape: MatrixShape, rows: &[f32]) -> Result<usize, FormatError> {
    let count = whole_rows(shape, rows.len())?;
    let format = shape.format;
    let half_max = f16::MAX.to_f32();
    let limit = match format {
        Format::F32 => f32::MAX,
        Format::F16 => half_max,
        Format::Q8 => half_max * 127.0,
        Format::Q4 => -half_max * f32::from(LEVELS[0]) * f32::from(MAX_SUB_SCALE),
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

fn pack_float_panel(
    format: FloatFormat,
    shape: MatrixShape,
    rows: &[f32],
    panel: &mut [u8],
) -> PackStats {
    let mut stats = PackStats::default();
    for (r, row) in rows.chunks_exact(shape.cols).enumerate() {
        for (g, weights) in row.chunks(GROUP * BLOCK).enumerate() {
            let (mut error, mut norm) = (0.0, 0.0);
            for (i, w) in weights.iter().enumerate() {
                let at = (g * GROUP * BLOCK + i) * PANEL + r;
                norm += f64::from(*w) * f64::from(*w);
                match format {
                    FloatFormat::F32 => panel[4 * at..][..4].copy_from_slice(&w.to_le_bytes()),
                    FloatFormat::F16 => {
                        let half = f16::from_f32(*w);
                        error += f64::from(half.to_f32() - w).powi(2);
                        panel[2 * at..][..2].copy_from_slice(&half.to_le_bytes());
                    }
                }
            }
            stats += PackStats::of_group(shape.format, error, norm, weights.len());
        }
    }
    stats
}

fn pack_quantized_panel(
    format: QuantFormat,
    shape: MatrixShape,
    rows: &[f32],
    weights: Option<&GroupWeights>,
    panel: &mut [u8],
) -> PackStats {
    let mut panel = Panel::new(format, shape, panel);
    let mut stats = PackStats::default();
    for (r, row) in rows.chunks_exact(shape.cols).enumerate() {
        for (g, values) in row.chunks(GROUP * BLOCK).enumerate() {
            let mut group = [[0.0; BLOCK]; GROUP];
            group.as_flattened_mut()[..values.len()].copy_from_slice(values);
            let fit = fit(
                format,
                &group,
                weights.map_or(&EQUAL, |weights| &weights.0[g]),
            );
            panel.store_scale(r, g, fit.scale);
            let blocks = values.len().div_ceil(BLOCK);
            let (mut squared_error, mut squared_norm) = (0.0, 0.0);
            for (b, block) in group.iter().enumerate().take(blocks) {
                panel.store_block(r, g * GROUP + b, &fit.quants[b], fit.sub_scales[b]);
                let scale = fit.scale.to_f32() * f32::from(fit.sub_scales[b]);
                for (w, q) in block.iter().zip(&fit.quants[b]) {
                    let error = f64::from(f32::from(*q) * scale - w);
                    squared_error += error * error;
                    squared_norm += f64::from(*w) * f64::from(*w);
                }
            }
            stats += PackStats::of_group(shape.format, squared_error, squared_norm, values.len());
        }
    }
    stats
}

/// The code of a level; of other numbers within the range, that of the next level toward zero.
fn code(q: i8) -> u8 {
    let (low, high) = FINE_LEVELS;
    let fine = q.clamp(low, high);
    (fine + 8 + (q - fine) / 2) as u8
}

/// A quantized panel that is being written.
struct Panel<'a> {
    format: QuantFormat,
    bytes: &'a mut [u8],
    offsets: PanelOffsets,
}

impl<'a> Panel<'a> {
    /// Starts a panel with all quants zero, as padding rows and inputs have them.
    fn new(format: QuantFormat, shape: MatrixShape, bytes: &'a mut [u8]) -> Self {
        debug_assert_eq!(bytes.len() % PANEL_ALIGN, 0);
        let offsets = format.offsets(shape.blocks());
        bytes[offsets.quants..].fill(match format {
            QuantFormat::Q8 => 0,
            QuantFormat::Q4 => 0x88,
        });
        Self {
            format,
            bytes,
            offsets,
        }
    }

    /// Stores the quants of row `r` in block `b`, and their sub-block scale in formats that have one.
    fn store_block(&mut self, r: usize, b: usize, quants: &[i8; BLOCK], sub_scale: i8) {
        let size = self.format.block_bytes();
        let block = &mut self.bytes[self.offsets.quants + b * size..][..size];
        match self.format {
            QuantFormat::Q8 => {
                for (i, q) in quants.iter().enumerate() {
                    block[i / 4 * 32 + r * 4 + i % 4] = *q as u8;
                }
            }
            QuantFormat::Q4 => {
                for (i, q) in quants.iter().enumerate() {
                    let (byte, shift) = (i / 8 * 32 + r * 4 + i % 4, i % 8 / 4 * 4);
                    let code = code(*q);
                    block[byte] = block[byte] & !(15 << shift) | code << shift;
                }
                self.bytes[self.offsets.sub_scales + b * PANEL + r] = sub_scale as u8;
            }
        }
    }

    /// Stores the scale of row `r` in group `g`.
    fn store_scale(&mut self, r: usize, g: usize, scale: f16) {
        let at = 2 * (g * PANEL + r);
        self.bytes[at..][..2].copy_from_slice(&scale.to_le_bytes());
    }
}
