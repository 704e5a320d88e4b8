//! Packing: round trips, and the quantization error compared with plain scales.

mod support;

use edge_lmm_kernels::format::LEVELS;
use edge_lmm_kernels::pack::{Quantized, pack_quants, pack_weighted};
use edge_lmm_kernels::{Format, FormatError, Matrix, MatrixShape, PackStats, pack_rows};
use half::f16;
use proptest::prelude::*;
use support::Random;

fn unpack(shape: MatrixShape, bytes: &[u8]) -> Vec<f32> {
    let matrix = Matrix::new(shape, bytes).unwrap();
    let mut out = vec![0.0; shape.rows * shape.cols];
    for (row, out) in out.chunks_mut(shape.cols).enumerate() {
        matrix.row_into(row, out);
    }
    out
}

proptest! {
    #![proptest_config(support::cases(64))]

    #[test]
    fn integers_and_scales_round_trip(rows in 1usize..40, cols in 1usize..300, q4: bool, seed: u64) {
        let (format, values) = if q4 { (Format::Q4, LEVELS.to_vec()) } else { (Format::Q8, (-127..=127).collect()) };
        let shape = MatrixShape::new(format, rows, cols);
        let mut random = Random(seed);
        let quants: Vec<i8> =
            (0..rows * cols).map(|_| values[(random.uniform() * values.len() as f64) as usize]).collect();
        let sub_scales: Vec<i8> = if q4 {
            (0..rows * shape.blocks()).map(|_| (random.uniform() * 25.0).floor() as i8 - 12).collect()
        } else {
            Vec::new()
        };
        let scales: Vec<f16> = random.normals(rows * shape.groups()).into_iter().map(f16::from_f32).collect();
        let mut bytes = Vec::new();
        pack_quants(shape, &quants, &sub_scales, &scales, &mut bytes).unwrap();
        for (i, weight) in unpack(shape, &bytes).into_iter().enumerate() {
            let (row, col) = (i / cols, i % cols);
            let sub_scale = sub_scales.get(row * shape.blocks() + col / 32).map_or(1.0, |sub_scale| f32::from(*sub_scale));
            let scale = scales[row * shape.groups() + col / 128].to_f32() * sub_scale;
            prop_assert_eq!(weight, f32::from(quants[i]) * scale, "weight {}", i);
        }
    }

    #[test]
    fn floats_round_trip(rows in 1usize..40, cols in 1usize..70, seed: u64) {
        let weights = Random(seed).normals(rows * cols);
        let (mut single, mut half) = (Vec::new(), Vec::new());
        let stats = pack_rows(MatrixShape::new(Format::F32, rows, cols), &weights, &mut single).unwrap();
        prop_assert_eq!(stats.squared_error, 0.0);
        prop_assert_eq!(&unpack(MatrixShape::new(Format::F32, rows, cols), &single), &weights);
        pack_rows(MatrixShape::new(Format::F16, rows, cols), &weights, &mut half).unwrap();
        let rounded: Vec<f32> = weights.iter().map(|w| f16::from_f32(*w).to_f32()).collect();
        prop_assert_eq!(unpack(MatrixShape::new(Format::F16, rows, cols), &half), rounded);
    }

    #[test]
    fn chunks_make_the_same_bytes_as_the_whole(panels in 1usize..5, rest in 0usize..8, cols in 1usize..100, seed: u64) {
        let rows = panels * 8 + rest;
        let weights = Random(seed).normals(rows * cols);
        for format in Format::ALL {
            let shape = MatrixShape::new(format, rows, cols);
            let (mut whole, mut pieces) = (Vec::new(), Vec::new());
            let all = pack_rows(shape, &weights, &mut whole).unwrap();
            let mut sum = PackStats::default();
            for piece in weights.chunks(8 * cols) {
                sum += pack_rows(shape, piece, &mut pieces).unwrap();
            }
            prop_assert_eq!(Some(whole.len()), shape.byte_len());
            prop_assert_eq!(whole, pieces);
            // The same terms, added in a different order.
            prop_assert!((all.squared_error - sum.squared_error).abs() <= 1e-12 * all.squared_norm);
        }
    }

    #[test]
    fn statistics_are_those_of_the_packed_weights(rows in 1usize..20, cols in 1usize..100, seed: u64) {
        let weights = Random(seed).normals(rows * cols);
        for format in [Format::F16, Format::Q8, Format::Q4] {
            let shape = MatrixShape::new(format, rows, cols);
            let mut bytes = Vec::new();
            let stats = pack_rows(shape, &weights, &mut bytes).unwrap();
            let (mut error, mut norm) = (0.0, 0.0);
            for (packed, w) in unpack(shape, &bytes).iter().zip(&weights) {
                error += (f64::from(*packed) - f64::from(*w)).powi(2);
                norm += f64::from(*w).powi(2);
            }
            // The rounding error of the difference is 2^-24 of the weight.
            prop_assert!((stats.squared_error.sqrt() - error.sqrt()).abs() <= 1e-7 * norm.sqrt());
            prop_assert!((stats.squared_norm - norm).abs() <= 1e-12 * norm);
        }
    }

    #[test]
    fn weights_shift_the_error_to_inputs_that_count_less(rows in 1usize..20, cols in 1usize..300, seed: u64) {
        let mut random = Random(seed);
        let values = random.normals(rows * cols);
        let weights: Vec<f32> = random.normals(cols).into_iter().map(|w| (2.0 * w).exp()).collect();
        for format in [Format::Q8, Format::Q4] {
            let shape = MatrixShape::new(format, rows, cols);
            let error = |weighting: Option<&[f32]>| {
                let mut bytes = Vec::new();
                pack_weighted(shape, &values, weighting, &mut bytes).unwrap();
                let quantized = Quantized::new(shape, &values, weighting).unwrap();
                let mut again = Vec::new();
                pack_quants(shape, &quantized.quants, &quantized.sub_scales, &quantized.scales, &mut again).unwrap();
                assert_eq!(bytes, again);
                let unpacked = unpack(shape, &bytes);
                let squares = unpacked.iter().zip(&values).enumerate();
                squares.map(|(i, (p, w))| f64::from(weights[i % cols]) * f64::from(p - w).powi(2)).sum::<f64>()
            };
            // The search is no exhaustive one: a single group may be unlucky.
            let (plain, weighted) = (error(None), error(Some(&weights)));
            prop_assert!(weighted <= 1.02 * plain, "{weighted} {plain}");
            // Only the ratios of weights within a group count, and equal ones change nothing.
            let (mut equal, mut none) = (Vec::new(), Vec::new());
            pack_weighted(shape, &values, Some(&vec![3.0; cols]), &mut equal).unwrap();
            pack_rows(shape, &values, &mut none).unwrap();
            prop_assert_eq!(equal, none);
        }
    }

    #[test]
    fn the_error_of_every_group_is_bounded(cols in 1usize..300, exponent in -10i32..10, seed: u64) {
        let weights: Vec<f32> =
            Random(seed).normals(8 * cols).into_iter().map(|w| w * 2f32.powi(exponent)).collect();
        let largest = |w: &[f32]| w.iter().fold(0f32, |m, w| m.max(w.abs()));
        // Half precision changes a scale by at most 2^-11 of it, or 2^-25 if it is subnormal.
        let half = |scale: f32| scale + (scale * 2f32.powi(-11)).max(2f32.powi(-25));
        for format in [Format::Q4, Format::Q8] {
            let shape = MatrixShape::new(format, 8, cols);
            let mut bytes = Vec::new();
            pack_rows(shape, &weights, &mut bytes).unwrap();
            let unpacked = unpack(shape, &bytes);
            for (row, packed) in weights.chunks(cols).zip(unpacked.chunks(cols)) {
                for (group, packed) in row.chunks(128).zip(packed.chunks(128)) {
                    let error: f32 = packed.iter().zip(group).map(|(p, w)| (p - w).powi(2)).sum();
                    let bound: f32 = if format == Format::Q8 {
                        // The plain scale is a candidate: half a step per weight, plus 127 times the rounding error of the scale.
                        let step = largest(group) / 127.0;
                        group.len() as f32 * (step / 2.0 + 127.0 * (half(step) - step)).powi(2)
                    } else {
                        // The best scale of a block is no worse than the plain one, max / 10, whose error is at most 1
                        // of it, between the outer levels and at the missing positive end. It is at most 1.5 times the
                        // largest candidate, max / 6.9. The next larger sub-block scale clips less and is larger by at
                        // most one.
                        let sub_scale = half(1.5 * largest(group) / 6.9 / 12.0);
                        group
                            .chunks(32)
                            .map(|block| {
                                let max = largest(block);
                                let next = 1.5 * max / 6.9 + sub_scale;
                                block.len() as f32 * ((max / 10.0).powi(2) + next.powi(2))
                            })
                            .sum()
                    };
                    prop_assert!(error <= bound, "{format}: {error}, at most {bound}");
                }
            }
        }
    }
}

/// Relative error of plain Q4_0, in which the weight of largest magnitude becomes -8.
fn plain_q4_error(weights: &[f32]) -> f64 {
    let (mut error, mut norm) = (0.0, 0.0);
    for block in weights.chunks(32) {
        let max = block
            .iter()
            .fold(0f32, |m, w| if w.abs() > m.abs() { *w } else { m });
        let scale = f16::from_f32(max / -8.0).to_f32();
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        for w in block {
            let q = (w * inverse).round().clamp(-8.0, 7.0);
            error += f64::from(q * scale - w).powi(2);
            norm += f64::from(*w).powi(2);
        }
    }
    (error / norm).sqrt()
}

/// Relative error of 8 bits with plain scales, in which the largest magnitude becomes 127.
fn plain_q8_error(weights: &[f32]) -> f64 {
    let (mut error, mut norm) = (0.0, 0.0);
    for block in weights.chunks(128) {
        let scale = f16::from_f32(block.iter().fold(0f32, |m, w| m.max(w.abs())) / 127.0).to_f32();
        for w in block {
            error += f64::from((w / scale).round() * scale - w).powi(2);
            norm += f64::from(*w).powi(2);
        }
    }
    (error / norm).sqrt()
}

#[test]
fn the_search_beats_plain_scales() {
    let weights = Random(11).normals(64 * 1024);
    let error = |format| {
        let stats = pack_rows(
            MatrixShape::new(format, 64, 1024),
            &weights,
            &mut Vec::new(),
        )
        .unwrap();
        stats.relative_error()
    };
    let (plain4, plain8) = (plain_q4_error(&weights), plain_q8_error(&weights));
    let (q4, q8) = (error(Format::Q4), error(Format::Q8));
    println!("relative error: q4 {q4:.5} (plain {plain4:.5}), q8 {q8:.6} (plain {plain8:.6})");
    assert!(q4 < 0.89 * plain4, "q4: {q4} against {plain4}");
    assert!(q8 < plain8, "q8: {q8} against {plain8}");
}

#[test]
fn the_search_is_near_the_best_scales() {
    // Exhaustive search: every group scale of a fine grid with every sub-block scale of each block.
    let mut random = Random(12);
    let (mut found, mut best) = (0.0, 0.0);
    for _ in 0..10 {
        let group = random.normals(128);
        let error = |block: &[f32], scale: f32| -> f64 {
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            let nearest = |w: &f32| {
                let errors = LEVELS.map(|level| (w * inverse - f32::from(level)).abs());
                let best = (0..16).min_by(|a, b| errors[*a].total_cmp(&errors[*b]));
                f32::from(LEVELS[best.unwrap()]) * scale
            };
            let errors = block.iter().map(|w| f64::from(nearest(w) - w).powi(2));
            errors.sum()
        };
        let top = group.iter().fold(0f32, |m, w| m.max(w.abs())) / 12.0;
        best += (1..200)
            .map(|i| f16::from_f32(top / 4.0 * i as f32 / 200.0).to_f32())
            .map(|scale| -> f64 {
                let best = |block: &[f32]| {
                    let errors =
                        (-12i8..=12).map(|sub_scale| error(block, f32::from(sub_scale) * scale));
                    errors.fold(f64::INFINITY, f64::min)
                };
                group.chunks(32).map(best).sum()
            })
            .fold(f64::INFINITY, f64::min);
        let shape = MatrixShape::new(Format::Q4, 1, 128);
        found += pack_rows(shape, &group, &mut Vec::new())
            .unwrap()
            .squared_error;
    }
    println!("squared error {found:.4}, the best scales have {best:.4}");
    assert!(
        found < 1.03 * best,
        "squared error {found}, the best scales have {best}"
    );
}

#[test]
fn zeros_and_constants_are_exact() {
    for format in Format::ALL {
        let shape = MatrixShape::new(format, 3, 40);
        for value in [0.0, 0.5, -0.5] {
            let mut bytes = Vec::new();
            let stats = pack_rows(shape, &[value; 120], &mut bytes).unwrap();
            // A scale such as 0.5 / 127 is rounded to half precision, by at most 2^-11 of it.
            let bound = if format.is_quantized() {
                0.5 / 2048.0
            } else {
                0.0
            };
            assert!(
                unpack(shape, &bytes)
                    .iter()
                    .all(|w| (w - value).abs() <= bound),
                "{format} {value}"
            );
            assert!(
                stats.relative_error() <= f64::from(2.0 * bound),
                "{format} {value}"
            );
        }
    }
}

#[test]
fn tiny_weights_do_not_blow_up() {
    for format in [Format::F16, Format::Q8, Format::Q4] {
        let shape = MatrixShape::new(format, 1, 32);
        for value in [f32::MIN_POSITIVE, 1e-45, 1e-8, -1e-7] {
            let mut bytes = Vec::new();
            pack_rows(shape, &[value; 32], &mut bytes).unwrap();
            // Scales are multiples of 2^-24, so the error of a weight is at most the weight or 127 times half of that.
            let bound = value.abs().max(127.0 * 2f32.powi(-25));
            assert!(
                unpack(shape, &bytes)
                    .iter()
                    .all(|w| (w - value).abs() <= bound),
                "{format} {value}"
            );
        }
    }
}

/// Around the smallest numbers of half precision, scales round up instead of to zero.
#[test]
fn small_weights_are_kept_or_counted() {
    let (rows, cols) = (8, 300);
    let normals = Random(7).normals(rows * cols);
    let pack = |format: Format, size: f32| {
        let weights: Vec<f32> = normals.iter().map(|w| w * size).collect();
        let shape = MatrixShape::new(format, rows, cols);
        pack_rows(shape, &weights, &mut Vec::new()).unwrap()
    };
    for (format, size, most) in [
        (Format::Q4, 1e-7, 0.25),
        (Format::Q8, 1e-6, 0.02),
        (Format::F16, 1e-6, 0.03),
    ] {
        let stats = pack(format, size);
        assert_eq!(stats.lost, 0, "{format}");
        assert!(stats.relative_error() < most, "{format}: {stats:?}");
    }
    for format in [Format::F16, Format::Q8, Format::Q4] {
        assert_eq!(pack(format, 1.0).lost, 0);
        assert_eq!(pack(format, 1e-9).lost, rows * cols);
    }
    assert_eq!(pack(Format::F32, 1e-9).lost, 0);
}

#[test]
fn what_cannot_be_packed_is_refused_with_its_place() {
    for format in Format::ALL {
        let shape = MatrixShape::new(format, 3, 40);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut weights = vec![1.0; 120];
            weights[2 * 40 + 7] = bad;
            let mut out = vec![9; 5];
            let error = pack_rows(shape, &weights, &mut out).unwrap_err();
            assert!(
                matches!(error, FormatError::NotFinite { row: 2, col: 7, .. }),
                "{error}"
            );
            assert_eq!(out, [9; 5], "nothing is appended");
        }
        let large = [
            (Format::F16, 65_505.0),
            (Format::Q8, 8.4e6),
            (Format::Q4, 7.9e6),
        ];
        if let Some((_, value)) = large.into_iter().find(|(f, _)| *f == format) {
            let mut weights = vec![1.0; 120];
            weights[41] = -value;
            let error = pack_rows(shape, &weights, &mut Vec::new()).unwrap_err();
            assert!(
                matches!(error, FormatError::OutOfRange { row: 1, col: 1, .. }),
                "{error}"
            );
        }
        let error = pack_rows(shape, &[0.0; 41], &mut Vec::new()).unwrap_err();
        assert_eq!(
            error,
            FormatError::Ragged {
                cols: 40,
                found: 41
            }
        );
        let error = pack_rows(MatrixShape::new(format, 3, 0), &[0.0], &mut Vec::new()).unwrap_err();
        assert_eq!(error, FormatError::Ragged { cols: 0, found: 1 });
    }
    let shape = MatrixShape::new(Format::Q4, 2, 140);
    let scales = |what, expected, found| FormatError::Scales {
        what,
        rows: 2,
        cols: 140,
        expected,
        found,
    };
    let pack = |shape, sub_scales: usize, scales: usize| {
        let (sub_scales, scales) = (vec![1; sub_scales], vec![f16::ONE; scales]);
        pack_quants(shape, &[0; 280], &sub_scales, &scales, &mut Vec::new())
    };
    assert_eq!(pack(shape, 10, 4), Ok(()));
    assert_eq!(pack(shape, 9, 4), Err(scales("sub-block scales", 10, 9)));
    assert_eq!(pack(shape, 10, 3), Err(scales("scales", 4, 3)));
    let q8 = MatrixShape::new(Format::Q8, 2, 140);
    assert_eq!(pack(q8, 0, 4), Ok(()));
    assert_eq!(pack(q8, 1, 4), Err(scales("sub-block scales", 0, 1)));
    let float = MatrixShape::new(Format::F16, 2, 140);
    assert_eq!(
        pack(float, 10, 4),
        Err(FormatError::NotQuantized(Format::F16))
    );
}

#[test]
fn wrong_weights_of_inputs_are_errors() {
    let shape = MatrixShape::new(Format::Q4, 8, 32);
    let pack = |weights: &[f32]| pack_weighted(shape, &[1.0; 256], Some(weights), &mut Vec::new());
    let found = 31;
    assert_eq!(
        pack(&[1.0; 31]),
        Err(FormatError::Weights {
            expected: 32,
            found
        })
    );
    let mut weights = [1.0; 32];
    weights[7] = -1.0;
    assert_eq!(
        pack(&weights),
        Err(FormatError::Weight {
            col: 7,
            value: -1.0
        })
    );
    assert!(pack(&[0.0; 32]).is_ok());
}
