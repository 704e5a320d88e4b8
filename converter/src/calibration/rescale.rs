//! Multiplication of the rows of packed matrices by factors.

use edge_lmm_kernels::format::{FloatFormat, FormatKind, PANEL};
use edge_lmm_ops::MatrixShape;
use half::f16;

/// Multiplies each row of a packed matrix by a factor. In the quantized formats only the group scales
/// change. Each number that is stored in half precision is rounded once more, which changes it by at
/// most 2^-11 of its magnitude.
///
/// Returns `false` if a product is too large or too small for the precision of its format. `bytes` are
/// then undefined.
///
/// # Shapes
/// - bytes: those of a packed matrix
/// - factors: `[shape.rows]`
///
/// # Panics
/// If there is not one factor for each row.
pub(super) fn scale_rows(shape: MatrixShape, bytes: &mut [u8], factors: &[f32]) -> bool {
    assert_eq!(factors.len(), shape.rows, "one factor for each row");
    if bytes.is_empty() {
        return true;
    }
    // The weights of a float format and the group scales of a quantized one are runs of one number for
    // each row of the panel.
    let (runs, width) = match shape.format.kind() {
        FormatKind::Float(FloatFormat::F32) => (shape.cols, 4),
        FormatKind::Float(FloatFormat::F16) => (shape.cols, 2),
        FormatKind::Quant(_) => (shape.groups(), 2),
    };
    let panels = bytes.chunks_exact_mut(shape.panel_bytes());
    panels.zip(factors.chunks(PANEL)).all(|(panel, factors)| {
        let runs = panel[..runs * PANEL * width].chunks_exact_mut(PANEL * width);
        runs.flat_map(|run| run.chunks_exact_mut(width).zip(factors))
            .all(|(number, factor)| scale_number(number, *factor))
    })
}

/// Multiplies a number of 4 or 2 bytes. Returns `false` if the product overflows or has fewer bits than
/// other numbers of the format.
fn scale_number(number: &mut [u8], factor: f32) -> bool {
    if let Ok(single) = <&mut [u8; 4]>::try_from(&mut *number) {
        let before = f32::from_le_bytes(*single);
        let product = before * factor;
        *single = product.to_le_bytes();
        return product.is_normal() || before == 0.0;
    }
    let exact = f16::from_le_bytes([number[0], number[1]]).to_f32() * factor;
    let product = f16::from_f32(exact);
    number.copy_from_slice(&product.to_le_bytes());
    product.is_normal() || (product.is_finite() && product.to_f32() == exact)
}

#[cfg(test)]
mod tests {
    use edge_lmm_kernels::{Matrix, pack_rows};
    use edge_lmm_ops::Format;

    use super::*;

    fn packed(shape: MatrixShape, value: impl Fn(usize) -> f32) -> Vec<u8> {
        let values: Vec<f32> = (0..shape.rows * shape.cols).map(value).collect();
        let mut bytes = Vec::new();
        pack_rows(shape, &values, &mut bytes).expect("finite values");
        bytes
    }

    fn row(shape: MatrixShape, bytes: &[u8], row: usize) -> Vec<f32> {
        let mut values = vec![0.0; shape.cols];
        let matrix = Matrix::new(shape, bytes).expect("a packed matrix");
        matrix.row_into(row, &mut values);
        values
    }

    #[test]
    fn rows_are_multiplied() {
        for format in Format::ALL {
            let shape = MatrixShape::new(format, 19, 150);
            let before = packed(shape, |i| (i as f32 * 0.7).sin() + 1.5);
            let factors: Vec<f32> = (0..19).map(|row| 0.11 * 1.3f32.powi(row)).collect();
            let mut after = before.clone();
            assert!(scale_rows(shape, &mut after, &factors));
            // In half precision the product is rounded, to 11 bits.
            let rounding = match format {
                Format::F32 => 0.0,
                Format::F16 | Format::Q8 | Format::Q4 => 2f32.powi(-11),
            };
            for (index, factor) in factors.iter().enumerate() {
                let (before, after) = (row(shape, &before, index), row(shape, &after, index));
                for (x, y) in before.iter().zip(&after) {
                    // Two more roundings to 24 bits are those of the compared products.
                    let limit = (rounding + 2f32.powi(-23)) * (x * factor).abs();
                    assert!(
                        (y - x * factor).abs() <= limit,
                        "{format}: {x} {factor} {y}"
                    );
                }
            }
        }
    }

    #[test]
    fn numbers_beyond_the_format_are_noticed() {
        for format in Format::ALL {
            let shape = MatrixShape::new(format, 9, 33);
            let bytes = packed(shape, |_| 1.0);
            let mut factors = [1.0; 9];
            assert!(scale_rows(shape, &mut bytes.clone(), &factors));
            for factor in [f32::MIN_POSITIVE / 4.0, f32::INFINITY, f32::NAN] {
                factors[8] = factor;
                assert!(!scale_rows(shape, &mut bytes.clone(), &factors), "{factor}");
            }
            let zeros = packed(shape, |_| 0.0);
            assert!(scale_rows(shape, &mut zeros.clone(), &[1e-3; 9]));
        }
    }
}
