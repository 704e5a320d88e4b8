//! The search for scales that protect the important inputs of a layer (AWQ: Lin et al. 2023,
//! [arXiv:2306.00978](https://arxiv.org/abs/2306.00978)).
//!
//! The columns of a weight are multiplied by scales before they are rounded, and the module before
//! divides its outputs by them. Inputs with large scales then have a smaller error, at the cost of
//! the others in their block. The scales are powers of the magnitudes of the inputs, and optionally
//! of the inverse magnitudes of the weights; the exponent is the one with the smallest error of the
//! outputs.
//!
//! With independent errors of rounding, the expected squared error of an output is the sum of the
//! weights' squared errors times the mean squares of their inputs. That sum is compared. Values that
//! are clipped count in it: the search of the blocks' scales by the same measure decides how many.

use std::sync::Mutex;

use edge_lmm_kernels::format::{BLOCK, GROUP, PANEL};
use edge_lmm_kernels::{Matrix, pack_weighted, pool};
use edge_lmm_models::weights::Fold;
use edge_lmm_ops::MatrixShape;

/// Exponents of the inputs' magnitudes above 0: `1 / EXPONENTS`, `2 / EXPONENTS`, ..., 1.
const EXPONENTS: usize = 8;
/// The largest scale, and the inverse of the smallest one.
const LARGEST: f32 = 32.0;
/// Smaller magnitudes than this share of the largest one count as this share.
const SMALLEST: f32 = 1e-4;

/// Rows of a layer that takes the outputs of a module.
pub(super) struct Layer {
    /// Format and columns; the rows are those of [`Self::values`].
    pub shape: MatrixShape,
    /// `[rows, columns]`
    pub values: Vec<f32>,
    /// The place of each column in the module's outputs.
    pub fold: Fold,
}

/// Returns the scales of a module's outputs with which `layers` have the smallest error; 1 for
/// outputs whose mean square is not known.
///
/// # Shapes
/// - mean_squares: `[outputs]`, result: `[outputs]`
pub(super) fn search(layers: &[Layer], mean_squares: &[Option<f32>]) -> Vec<f32> {
    let inputs = magnitudes(mean_squares.iter().map(|square| square.map(f32::sqrt)));
    let weights = magnitudes(mean_magnitudes(layers, mean_squares.len()).into_iter());
    let mut best = vec![1.0; mean_squares.len()];
    let mut least = error(layers, mean_squares, &best);
    for step in 1..=EXPONENTS {
        let exponent = step as f32 / EXPONENTS as f32;
        let of_weights: &[f32] = match step {
            EXPONENTS => &[0.0],
            _ => &[0.0, 1.0 - exponent],
        };
        for &of_weights in of_weights {
            let power = |(x, w): (&f32, &f32)| x.powf(exponent) / w.powf(of_weights);
            let powers = inputs.iter().zip(&weights).map(power).collect();
            let Some(scales) = centered(powers, mean_squares) else {
                continue;
            };
            let error = error(layers, mean_squares, &scales);
            if error < least {
                (least, best) = (error, scales);
            }
        }
    }
    best
}

/// Returns values relative to the largest one, from [`SMALLEST`] to 1; 1 for unknown ones.
fn magnitudes(values: impl Iterator<Item = Option<f32>> + Clone) -> Vec<f32> {
    let largest = values.clone().flatten().fold(0.0, f32::max);
    let relative = |value: Option<f32>| value.map_or(1.0, |x| (x / largest).max(SMALLEST));
    values.map(relative).collect()
}

/// Returns the mean magnitude of the weights of each output, relative to the largest one in its row
/// and group.
fn mean_magnitudes(layers: &[Layer], outputs: usize) -> Vec<Option<f32>> {
    let mut means = Means::new(outputs);
    for layer in layers {
        for row in layer.values.chunks_exact(layer.shape.cols) {
            for (g, group) in row.chunks(GROUP * BLOCK).enumerate() {
                let largest = group.iter().fold(0f32, |max, w| max.max(w.abs()));
                if largest == 0.0 {
                    continue;
                }
                for (column, w) in (g * GROUP * BLOCK..).zip(group) {
                    means.add(layer.fold.row(column), w.abs() / largest);
                }
            }
        }
    }
    means.finish()
}

/// Means of the values that belong to each output of a module.
pub(super) struct Means(Vec<(f32, usize)>);

impl Means {
    /// Creates means of no values.
    pub fn new(outputs: usize) -> Self {
        Self(vec![(0.0, 0); outputs])
    }

    /// Adds a value of an output.
    pub fn add(&mut self, output: usize, value: f32) {
        let (sum, count) = &mut self.0[output];
        *sum += value;
        *count += 1;
    }

    /// Returns the mean of each output; `None` without values.
    pub fn finish(self) -> Vec<Option<f32>> {
        let mean = |(sum, count): (f32, usize)| (count > 0).then(|| sum / count as f32);
        self.0.into_iter().map(mean).collect()
    }
}

/// Divides the scales by the geometric mean of the largest and the smallest one, and limits them.
/// Returns `None` if they are not finite.
fn centered(mut scales: Vec<f32>, mean_squares: &[Option<f32>]) -> Option<Vec<f32>> {
    let known = scales.iter().zip(mean_squares);
    let known = known.filter_map(|(scale, square)| square.map(|_| *scale));
    let (least, most) = known.fold((f32::INFINITY, 0f32), |(least, most), scale| {
        (least.min(scale), most.max(scale))
    });
    let middle = (least * most).sqrt();
    for (scale, square) in scales.iter_mut().zip(mean_squares) {
        *scale = match square {
            Some(_) => (*scale / middle).clamp(1.0 / LARGEST, LARGEST),
            None => 1.0,
        };
    }
    scales
        .iter()
        .all(|scale| scale.is_finite())
        .then_some(scales)
}

/// Returns the expected squared error of the layers' outputs with these scales; infinite if they
/// cannot be packed.
fn error(layers: &[Layer], mean_squares: &[Option<f32>], scales: &[f32]) -> f64 {
    let sum = |layer: &Layer| -> f64 {
        let rows: Vec<usize> = (0..layer.shape.cols)
            .map(|column| layer.fold.row(column))
            .collect();
        let scales: Vec<f32> = rows.iter().map(|&row| scales[row]).collect();
        let importance: Vec<f32> = (rows.iter().zip(&scales))
            .map(|(&row, scale)| mean_squares[row].unwrap_or(0.0) / (scale * scale))
            .collect();
        let chunks: Vec<&[f32]> = layer.values.chunks(PANEL * layer.shape.cols).collect();
        let sums: Vec<Mutex<f64>> = chunks.iter().map(|_| Mutex::default()).collect();
        pool::global().run(chunks.len(), |task| {
            let error = rounding_error(layer.shape, chunks[task], &scales, &importance);
            *sums[task].lock().expect("no task panics with the lock") = error;
        });
        let sums = sums.into_iter();
        sums.map(|sum| sum.into_inner().expect("no task panics with the lock"))
            .sum()
    };
    layers.iter().map(sum).sum()
}

/// Returns the squared error of a few rows whose columns are multiplied by `scales`, each weighted by
/// its importance.
fn rounding_error(shape: MatrixShape, rows: &[f32], scales: &[f32], importance: &[f32]) -> f64 {
    let scaled: Vec<f32> = (rows.chunks_exact(shape.cols))
        .flat_map(|row| row.iter().zip(scales).map(|(w, scale)| w * scale))
        .collect();
    let shape = MatrixShape {
        rows: rows.len() / shape.cols,
        ..shape
    };
    let mut bytes = Vec::new();
    if pack_weighted(shape, &scaled, Some(importance), &mut bytes).is_err() {
        return f64::INFINITY;
    }
    let packed = Matrix::new(shape, &bytes).expect("the packed rows are those of the shape");
    let mut rounded = vec![0.0; shape.cols];
    let mut sum = 0.0;
    for (index, row) in scaled.chunks_exact(shape.cols).enumerate() {
        packed.row_into(index, &mut rounded);
        for ((x, w), importance) in rounded.iter().zip(row).zip(importance) {
            sum += f64::from(x - w).powi(2) * f64::from(*importance);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_lmm_ops::Format;

    /// Values in -1..1 that look random.
    fn values(count: usize, seed: f32) -> Vec<f32> {
        let value = |i: usize| ((i as f32 + seed) * 12.9898).sin() * 43_758.547;
        (0..count)
            .map(|i| 2.0 * value(i).rem_euclid(1.0) - 1.0)
            .collect()
    }

    /// Mean squared error of the outputs for inputs `x`: `[tokens, columns]`.
    fn output_error(layer: &Layer, x: &[f32], mean_squares: &[f32], scales: &[f32]) -> f64 {
        let cols = layer.shape.cols;
        let columns = 0..cols;
        let of_column: Vec<f32> = columns
            .map(|column| scales[layer.fold.row(column)])
            .collect();
        let importance: Vec<f32> = (mean_squares.iter().zip(&of_column))
            .map(|(square, scale)| square / (scale * scale))
            .collect();
        let scaled: Vec<f32> = (layer.values.chunks_exact(cols))
            .flat_map(|row| row.iter().zip(&of_column).map(|(w, scale)| w * scale))
            .collect();
        let mut bytes = Vec::new();
        pack_weighted(layer.shape, &scaled, Some(&importance), &mut bytes).expect("weights");
        let packed = Matrix::new(layer.shape, &bytes).expect("a matrix");
        let mut rounded = vec![0.0; cols];
        let mut sum = 0.0;
        for (index, row) in layer.values.chunks_exact(cols).enumerate() {
            packed.row_into(index, &mut rounded);
            for x in x.chunks_exact(cols) {
                let changes = (0..cols).map(|c| (rounded[c] / of_column[c] - row[c]) * x[c]);
                sum += f64::from(changes.sum::<f32>()).powi(2);
            }
        }
        sum
    }

    fn layer(rows: usize, cols: usize, fold: Fold) -> Layer {
        Layer {
            shape: MatrixShape::new(Format::Q4, rows, cols),
            values: values(rows * cols, 0.5),
            fold,
        }
    }

    fn fold(first: usize, unit: usize, repeats: usize) -> Fold {
        Fold {
            module: "norm".to_owned(),
            first,
            unit,
            repeats,
        }
    }

    /// Few inputs are much larger than the others, as they are behind the norms of trained models.
    /// Inputs of the same module output share its scale, and outputs that no layer takes keep theirs.
    #[test]
    fn outliers_among_the_inputs_are_protected() {
        for (fold, outputs) in [(fold(0, 256, 1), 256), (fold(64, 32, 2), 192)] {
            let layer = layer(16, 256, fold);
            let row = |column| layer.fold.row(column);
            let size = |column: usize| if row(column) % 23 == 5 { 20.0 } else { 1.0 };
            let mut x = values(100 * 256, 3.5);
            (x.iter_mut().enumerate()).for_each(|(at, x)| *x *= size(at % 256));
            let mean_squares: Vec<f32> = (0..256)
                .map(|c| x.iter().skip(c).step_by(256).map(|x| x * x / 100.0).sum())
                .collect();
            let mut of_outputs = vec![None; outputs];
            (0..256).for_each(|c| of_outputs[row(c)] = Some(mean_squares[c]));
            let scales = search(std::slice::from_ref(&layer), &of_outputs);
            assert!(scales[..layer.fold.first].iter().all(|&scale| scale == 1.0));
            let outlier = (layer.fold.first..outputs).find(|row| row % 23 == 5);
            let of_outlier = scales[outlier.expect("an outlier")];
            assert!(of_outlier > scales[outputs - 1], "{scales:?}");
            let before = output_error(&layer, &x, &mean_squares, &vec![1.0; outputs]);
            let after = output_error(&layer, &x, &mean_squares, &scales);
            assert!(after < before, "{after} and {before}");
        }
    }

    #[test]
    fn inputs_without_differences_need_no_scales() {
        let layers = [layer(8, 64, fold(0, 64, 1))];
        assert_eq!(search(&layers, &[None; 64]), [1.0; 64]);
        // Zeros and values that are not finite have no scale.
        assert_eq!(search(&layers, &[Some(0.0); 64]), [1.0; 64]);
        assert_eq!(search(&layers, &[Some(f32::INFINITY); 64]), [1.0; 64]);
    }
}
