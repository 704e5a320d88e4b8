//! Products and factors of large float matrices, on the kernels of the runtime: the result does not
//! depend on the number of threads.

use std::ops::Range;
use std::sync::Mutex;

use edge_lmm_kernels::{Activation, Format, Matrix, MatrixShape, pack_rows, pool, product};

/// Columns that are factored at a time.
const PANEL: usize = 64;

/// Returns `a bᵀ`: `[m, n]` for `a`: `[m, inner]` and `b`: `[n, inner]`, row-major.
pub(super) fn product_transposed(a: &[f32], b: &[f32], inner: usize) -> Vec<f32> {
    let (m, n) = (a.len() / inner, b.len() / inner);
    let shape = MatrixShape::new(Format::F32, n, inner);
    let step = n.div_ceil(32).next_multiple_of(8);
    let packed: Vec<Mutex<Vec<u8>>> = b.chunks(step * inner).map(|_| Mutex::default()).collect();
    let pool = pool::global();
    pool.run(packed.len(), |task| {
        let rows = &b[task * step * inner..b.len().min((task + 1) * step * inner)];
        let mut bytes = packed[task].lock().expect("no task panics with the lock");
        pack_rows(shape, rows, &mut bytes).expect("factors are finite");
    });
    let bytes: Vec<u8> = packed
        .into_iter()
        .flat_map(|bytes| bytes.into_inner().expect("no task panics with the lock"))
        .collect();
    let b = Matrix::new(shape, &bytes).expect("the packed rows are those of the shape");
    product(&pool, &b, a, m, None, Activation::None)
}

/// Returns the transpose of a matrix with `cols` columns.
pub(super) fn transposed(a: &[f32], cols: usize) -> Vec<f32> {
    let rows = a.len() / cols;
    let mut out = vec![0.0; a.len()];
    for first in (0..rows).step_by(32) {
        let block = first..(first + 32).min(rows);
        for col in 0..cols {
            for row in block.clone() {
                out[col * rows + row] = a[row * cols + col];
            }
        }
    }
    out
}

/// Replaces the lower triangle of a symmetric matrix by its Cholesky factor, left-looking in panels
/// of columns. Returns `false` if the matrix is not positive definite; its values are then undefined.
/// The upper triangle is not read and becomes undefined.
pub(super) fn cholesky(a: &mut [f32], n: usize) -> bool {
    for start in (0..n).step_by(PANEL) {
        let panel = start..(start + PANEL).min(n);
        if start > 0 {
            subtract_known(a, n, panel.clone());
        }
        if !factor_panel(a, n, panel) {
            return false;
        }
    }
    true
}

/// Subtracts the products of the columns before the panel from its rows on and below the diagonal.
fn subtract_known(a: &mut [f32], n: usize, panel: Range<usize>) {
    let known = panel.start;
    let columns = |rows: Range<usize>| -> Vec<f32> {
        rows.flat_map(|row| a[row * n..][..known].iter().copied())
            .collect()
    };
    let (below, own) = (columns(known..n), columns(panel.clone()));
    let sums = product_transposed(&below, &own, known);
    for (row, sums) in (known..n).zip(sums.chunks_exact(panel.len())) {
        for (value, sum) in a[row * n + known..].iter_mut().zip(sums) {
            *value -= sum;
        }
    }
}

fn factor_panel(a: &mut [f32], n: usize, panel: Range<usize>) -> bool {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let start = panel.start;
    for row in panel.start..n {
        let (above, own) = a.split_at_mut(row * n);
        let own = &mut own[..n];
        for col in start..panel.end.min(row) {
            let other = &above[col * n..][..col + 1];
            let sum = dot(&own[start..col], &other[start..col]);
            own[col] = (own[col] - sum) / other[col];
        }
        if row < panel.end {
            let rest = own[row] - dot(&own[start..row], &own[start..row]);
            if !(rest.is_finite() && rest > 0.0) {
                return false;
            }
            own[row] = rest.sqrt();
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that look random.
    fn values(count: usize) -> Vec<f32> {
        let value = |i: usize| ((i as f32 + 1.0) * 12.9898).sin() * 43_758.547;
        (0..count).map(|i| value(i).rem_euclid(1.0) - 0.5).collect()
    }

    #[test]
    fn the_factor_times_its_transpose_is_the_matrix() {
        for n in [1, 5, 64, 150] {
            let x = values(n * (n + 3));
            let mut a = product_transposed(&x, &x, n + 3);
            let before = a.clone();
            assert!(cholesky(&mut a, n));
            for row in 0..n {
                a[row * n + row + 1..(row + 1) * n].fill(0.0);
            }
            let again = product_transposed(&a, &a, n);
            let difference = |(a, b): (&f32, &f32)| (a - b).abs();
            let largest = again
                .iter()
                .zip(&before)
                .map(difference)
                .fold(0.0, f32::max);
            assert!(largest < 1e-4, "{n}: {largest}");
        }
        assert!(!cholesky(&mut [1.0, 0.0, 2.0, 1.0], 2));
    }

    #[test]
    fn transposing_twice_changes_nothing() {
        let a = values(70 * 33);
        let once = transposed(&a, 33);
        assert_eq!(once[2 * 70 + 69], a[69 * 33 + 2]);
        assert_eq!(transposed(&once, 70), a);
    }
}
