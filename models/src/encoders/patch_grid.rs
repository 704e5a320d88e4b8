//! The grid of an image's patches in merge groups, as used by the towers of Qwen2-VL and
//! Qwen2.5-VL, and its two-dimensional rotary embedding (Wang et al. 2024, section 2.1).

use edge_lmm_ops::KernelBackend;
use serde::Deserialize;
use serde_json::Value;

use crate::encoders::merger::MergerConfig;
use crate::error::ModelError;
use crate::families::qwen_vl_input::PatchSize;
use crate::media::{InputReduction, MediaInput};
use crate::reduce::EncoderSize;
use crate::reduce::merge::Units;
use crate::sizes::Section;
use crate::text::rotary::{RotaryTable, inverse_frequencies};

/// Base of the rotary frequencies of the vision towers. Older versions of the reference hard-code
/// it, newer ones write it into `vision_config`.
const THETA: f64 = 10_000.0;

/// Patch sizes of the towers, named as in `vision_config`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct PatchConfig {
    pub in_channels: usize,
    pub patch_size: usize,
    /// Patches per side of a token.
    pub spatial_merge_size: usize,
    pub temporal_patch_size: usize,
}

impl Default for PatchConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            patch_size: 14,
            spatial_merge_size: 2,
            temporal_patch_size: 2,
        }
    }
}

impl PatchConfig {
    /// Checks the sizes.
    ///
    /// # Errors
    /// If one is out of range.
    pub fn check(&self, section: Section<'_>) -> Result<(), ModelError> {
        section.sizes(&[
            ("in_channels", self.in_channels, 1 << 6),
            ("patch_size", self.patch_size, 1 << 8),
            ("spatial_merge_size", self.spatial_merge_size, 1 << 4),
            ("temporal_patch_size", self.temporal_patch_size, 1 << 4),
        ])
    }

    /// Returns the number of values of a patch.
    pub fn width(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Returns the number of pixels per side of a token.
    pub fn token_side(&self) -> usize {
        self.patch_size * self.spatial_merge_size
    }

    /// Returns the sizes that the preprocessing must match.
    pub fn size(&self) -> PatchSize {
        PatchSize {
            side: self.patch_size,
            frames: self.temporal_patch_size,
            merge: self.spatial_merge_size,
        }
    }

    /// Returns the sizes of the merger of patches with `patch_width` features into tokens.
    pub fn merger(&self, patch_width: usize, token_width: usize) -> MergerConfig {
        MergerConfig {
            patch_width,
            merge: self.spatial_merge_size,
            token_width,
        }
    }
}

/// Checks that heads can be rotated by row and column.
///
/// # Errors
/// If the size of a head is not a multiple of four.
pub(crate) fn check_heads(width: usize, heads: usize) -> Result<(), ModelError> {
    if width.is_multiple_of(4 * heads) {
        return Ok(());
    }
    Err(ModelError::config(format!(
        "vision_config: width {width} is not {heads} heads of a multiple of 4 elements, as \
         two-dimensional rotary embeddings need"
    )))
}

/// Checks that the merger's tokens are as wide as the language model.
///
/// # Errors
/// If they are not; `name` is that of the token's width in `vision_config`.
pub(crate) fn check_token_width(name: &str, width: usize, text: usize) -> Result<(), ModelError> {
    if width == text {
        return Ok(());
    }
    Err(ModelError::config(format!(
        "the merger gives {width} elements (vision_config.{name}), the language model takes {text} \
         (hidden_size)"
    )))
}

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

/// The units of a medium and their patches.
pub(crate) struct UnitPatches<'a> {
    reduction: &'a InputReduction,
    /// Units in time, height and width.
    grid: [usize; 3],
    merge: usize,
    places: Vec<(usize, usize)>,
}

impl<'a> UnitPatches<'a> {
    /// Describes a medium whose units are squares of `merge` patches per side.
    pub fn new(medium: &'a MediaInput, merge: usize) -> Self {
        let [times, height, width] = medium.grid;
        Self {
            reduction: &medium.reduction,
            grid: [times, height / merge, width / merge],
            merge,
            places: patch_places(medium.grid, merge),
        }
    }

    /// Returns the number of units in time, height and width.
    pub fn grid(&self) -> [usize; 3] {
        self.grid
    }

    /// Returns the units that enter the encoder.
    pub fn entering(&self) -> Units {
        let ids = self.reduction.entering(self.grid.iter().product());
        Units::new(ids, self.merge * self.merge)
    }

    /// Returns the size of an encoder's work on the medium in one layer.
    pub fn size(&self) -> EncoderSize {
        let [times, height, width] = self.grid;
        EncoderSize {
            rows: self.merge * self.merge,
            ..EncoderSize::of_parts(self.reduction, times, height * width)
        }
    }

    /// Returns the number of a unit's slice in time.
    pub fn slice(&self, unit: usize) -> usize {
        unit / (self.grid[1] * self.grid[2]).max(1)
    }

    /// Returns row and column of the patches of `units`.
    pub fn places(&self, units: &Units) -> Vec<(usize, usize)> {
        let rows = units.row_indices(&units.ids).into_iter();
        rows.map(|patch| self.places[patch]).collect()
    }
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
