//! Bicubic interpolation of values.

use edge_lmm_models::preprocess::interpolate::bicubic;

use crate::fixtures::{floats, noise, rows, sizes};

/// Sixteen products of values up to 1 and weights up to 1.2 in 32 bits, summed in some order, are
/// off by less than sixteen halves of the last of 24 bits.
const TOLERANCE: f32 = 16.0 * 1.2 * 6e-8;

#[test]
fn equals_torch() {
    for (seed, row) in rows("interpolate").iter().enumerate() {
        let ([width, height], [new_width, new_height]) = (sizes(&row["from"]), sizes(&row["to"]));
        let image = noise(seed, width, height);
        let channel = |c: usize| image.pixels().iter().skip(c).step_by(3);
        let planes: Vec<f32> = (0..3)
            .flat_map(channel)
            .map(|&v| f32::from(v) / 255.0)
            .collect();
        let resized = bicubic(&planes, (height, width), (new_height, new_width)).expect("resized");
        let expected = floats(&row["values"]);
        assert_eq!(resized.len(), expected.len());
        for (found, expected) in resized.iter().zip(&expected) {
            assert!(
                (found - expected).abs() <= TOLERANCE,
                "{found} and {expected} in {row}"
            );
        }
    }
}

#[test]
fn impossible_sizes_are_refused() {
    assert!(bicubic(&[1.0; 6], (2, 3), (0, 1)).is_err());
    assert!(bicubic(&[1.0; 6], (0, 3), (1, 1)).is_err());
    assert!(bicubic(&[1.0; 7], (2, 3), (1, 1)).is_err());
    assert!(bicubic(&[1.0; 6], (2, 3), (1 << 20, 1 << 20)).is_err());
}
