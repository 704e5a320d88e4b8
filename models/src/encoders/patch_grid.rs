//! The grid of an image's patches in merge groups, as used by the towers of Qwen2-VL and
//! Qwen2.5-VL, and its two-dimensional rotary embedding (Wang et al. 2024, section 2.1).

use edge_lmm_ops::KernelBackend;
use serde_json::Value;

use crate::error::ModelError;
use crate::text::rotary::{RotaryTable, inverse_frequencies};

/// Base of the rotary frequencies of the vision towers. Older versions of the reference hard-code
/// it, newer ones write it into `vision_config`.
const THETA: f64 = 10_000.0;

/// Checks `vision_config.rope_parameters`, if present.
///
/// # Errors
/// If they describe other embeddings than those of [`rotary_table`].
pub(crate) fn check_rotary(parameters: &Value) -> Result<(), ModelError> {
    let kind = parameters.get("rope_type").and_then(Value::as_str);
    let theta = parameters.get("rope_theta").and_then(Value::as_f64);
    if matches!(kind, None | Some("axial" | "default")) && matches!(theta, None | Some(THETA)) {
        return Ok(());
    }
    Err(ModelError::config(format!(
        "vision_config.rope_parameters is {parameters}, expected rope_type \"axial\" and \
         rope_theta {THETA}"
    )))
}

/// Returns row and column of every patch in storage order: merge groups in raster order, patches of
/// a group in raster order, repeated for every temporal slice.
pub(crate) fn patch_places(grid: [usize; 3], merge: usize) -> Vec<(usize, usize)> {
    let [t, h, w] = grid;
    let mut places = Vec::with_capacity(t * h * w);
    for _ in 0..t {
        for (row, column) in (0..h / merge).flat_map(|r| (0..w / merge).map(move |c| (r, c))) {
            places.extend(
                (0..merge)
                    .flat_map(|i| (0..merge).map(move |j| (row * merge + i, column * merge + j))),
            );
        }
    }
    places
}

/// Builds the angles of patches at `places` (row, column): half of them encode the row, half the
/// column.
pub(crate) fn rotary_table<B: KernelBackend>(
    places: &[(usize, usize)],
    head_dim: usize,
    device: &B::Device,
) -> RotaryTable<B> {
    let half = head_dim / 2;
    let frequencies = inverse_frequencies(THETA, half);
    let angle = |token: usize, i: usize| {
        let (row, column) = places[token];
        match i.checked_sub(frequencies.len()) {
            None => row as f32 * frequencies[i],
            Some(i) => column as f32 * frequencies[i],
        }
    };
    RotaryTable::new(places.len(), half, 1.0, angle, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_come_in_merge_groups() {
        let places = patch_places([1, 2, 4], 2);
        assert_eq!(
            places,
            [
                (0, 0),
                (0, 1),
                (1, 0),
                (1, 1),
                (0, 2),
                (0, 3),
                (1, 2),
                (1, 3)
            ]
        );
    }
}
