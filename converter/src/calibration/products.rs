//! Products and factors of large float matrices, on the kernels of the runtime: the result does not
//! depend on the number of threads.

use std::ops::Range;
use std::sync::Mutex;

use edge_lmm_kernels::{Activation, Format, Matrix, MatrixShape, pack_rows, pool, product};

/// Columns that are factored at a time.
const PANEL: usize = 64;
/// Rows of a sum of products that are computed at a time.
const ROWS: usize = 256;

/// Returns `a bᵀ`: `[m, n]` for `a`: `[m, inner]` and `b`: `[n, inner]`, row-major.
pub(super) fn product_transposed(a: &[f32], b: &[f32], inner: usize) -> Vec<f32> {
    let (m, n) = (a.len() / inner, b.len() / inner);
    let bytes = packed(b, inner);
    let shape = MatrixShape::new(Format::F32, n, inner);
    let b = Matrix::new(shape, &bytes).expect("the packed rows are those of the shape");
    product(&pool::global(), &b, a, m, None, Activation::None)
}

/// Packs rows of `inner` values in single precision on all threads.
pub(super) fn packed(rows: &[f32], inner: usize) -> Vec<u8> {
    let count = rows.len() / inner;
    let shape = MatrixShape::new(Format::F32, count, inner);
    let step = count.div_ceil(32).next_multiple_of(8);
    let pieces: Vec<Mutex<Vec<u8>>> = rows
        .chunks(step * inner)
        .map(|_| Mutex::default())
        .collect();
    pool::global().run(pieces.len(), |task| {
        let rows = &rows[task * step * inner..rows.len().min((task + 1) * step * inner)];
        let mut bytes = pieces[task].lock().expect("no task panics with the lock");
        pack_rows(shape, rows, &mut bytes).expect("factors are finite");
    });
    let pieces = pieces.into_iter();
    let pieces: Vec<Vec<u8>> = pieces
        .map(|bytes| bytes.into_inner().expect("no task panics with the lock"))
        .collect();
    pieces.concat()
}

/// Adds `a bᵀ` to `sums`: `[m, n]`. If `symmetric`, `a` and `b` are the same, and only the elements on
/// and below the diagonal are defined.
pub(super) fn add_product(sums: &mut [f32], a: &[f32], b: &[f32], inner: usize, symmetric: bool) {
    let n = b.len() / inner;
    let bytes = packed(b, inner);
    let pool = pool::global();
    for (block, a) in a.chunks(ROWS * inner).enumerate() {
        let (first, rows) = (block * ROWS, a.len() / inner);
        let used = if symmetric { n.min(first + rows) } else { n };
        let shape = MatrixShape::new(Format::F32, used, inner);
        let panels = &bytes[..shape.byte_len().unwrap_or(bytes.len())];
        let b = Matrix::new(shape, panels).expect("the packed rows are those of the shape");
        let part = product(&pool, &b, a, rows, None, Activation::None);
        for (row, part) in (first..).zip(part.chunks_exact(used)) {
            let own = sums[row * n..][..used].iter_mut();
            own.zip(part).for_each(|(sum, x)| *sum += x);
        }
    }
}

/// Calls `f` for parts of `len` elements of `values` on all threads, with the number of the part.
pub(super) fn for_parts<T: Send>(values: &mut [T], len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let parts: Vec<Mutex<&mut [T]>> = values.chunks_mut(len.max(1)).map(Mutex::new).collect();
    pool::global().run(parts.len(), |part| {
        f(
            part,
            &mut parts[part].lock().expect("no task panics with the lock"),
        );
    });
}

/// Copies columns of a matrix with `n` columns.
pub(super) fn columns<T: Copy>(a: &[T], n: usize, range: Range<usize>) -> Vec<T> {
    let rows = a.chunks_exact(n);
    rows.flat_map(|row| row[range.clone()].iter().copied())
        .collect()
}

/// Returns the transpose of a matrix with `cols` columns.
pub(super) fn transposed(a: &[f32], cols: usize) -> Vec<f32> {
    let rows = a.len() / cols;
    let mut out = vec![0.0; a.len()];
    for_parts(&mut out, 32 * rows, |part, out| {
        let columns = (part * 32..).zip(out.chunks_exact_mut(rows.max(1)));
        for (col, out) in columns {
            for (row, to) in out.iter_mut().enumerate() {
                *to = a[row * cols + col];
            }
        }
    });
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
    let below = columns(&a[known * n..], n, 0..known);
    let own = columns(&a[known * n..panel.end * n], n, 0..known);
    let sums = product_transposed(&below, &own, known);
    for (row, sums) in (known..n).zip(sums.chunks_exact(panel.len())) {
        for (value, sum) in a[row * n + known..].iter_mut().zip(sums) {
            *value -= sum;
        }
    }
}

/// Factors the columns `panel`, whose products with the columns before are subtracted already.
fn factor_panel(a: &mut [f32], n: usize, panel: Range<usize>) -> bool {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let width = panel.len();
    let mut square: Vec<f32> = (panel.clone())
        .flat_map(|row| a[row * n + panel.start..][..width].iter().copied())
        .collect();
    for row in 0..width {
        let (above, own) = square.split_at_mut(row * width);
        for col in 0..row {
            let other = &above[col * width..][..col + 1];
            own[col] = (own[col] - dot(&own[..col], &other[..col])) / other[col];
        }
        let rest = own[row] - dot(&own[..row], &own[..row]);
        if !(rest.is_finite() && rest > 0.0) {
            return false;
        }
        own[row] = rest.sqrt();
    }
    for (row, square) in panel.clone().zip(square.chunks_exact(width)) {
        a[row * n + panel.start..][..width].copy_from_slice(square);
    }
    for_parts(&mut a[panel.end * n..], PANEL * n, |_, rows| {
        for row in rows.chunks_exact_mut(n) {
            let own = &mut row[panel.clone()];
            for col in 0..width {
                let other = &square[col * width..][..col + 1];
                own[col] = (own[col] - dot(&own[..col], &other[..col])) / other[col];
            }
        }
    });
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
