//! Image preprocessing of LFM2-VL: images at about their own size, large ones cut into tiles that a
//! thumbnail follows. The reference is `image_processing_lfm2_vl.py` of `transformers`, with Pillow's
//! bilinear resampling in place of torchvision's.

use serde::Deserialize;
use serde_json::Value;

use super::error::{PreprocessError, allocate};
use super::fields::{filter, parse_file};
use super::filter::Filter;
use super::image::RgbImage;
use super::normalize::Normalization;
use super::resize::resize;
use crate::settings::without_nulls;

/// Settings from `preprocessor_config.json`, with the defaults of the reference.
#[derive(Debug, Clone, PartialEq)]
pub struct PreprocessConfig {
    file: File,
    filter: Filter,
    /// Conversion of samples to values.
    pub normalization: Normalization,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
struct File {
    encoder_patch_size: usize,
    downsample_factor: usize,
    min_image_tokens: usize,
    max_image_tokens: usize,
    tile_size: usize,
    min_tiles: usize,
    max_tiles: usize,
    max_pixels_tolerance: f64,
    use_thumbnail: bool,
    do_image_splitting: bool,
    do_resize: bool,
    resample: Value,
}

impl Default for File {
    fn default() -> Self {
        Self {
            encoder_patch_size: 16,
            downsample_factor: 2,
            min_image_tokens: 64,
            max_image_tokens: 256,
            tile_size: 512,
            min_tiles: 2,
            max_tiles: 10,
            max_pixels_tolerance: 2.0,
            use_thumbnail: true,
            do_image_splitting: true,
            do_resize: true,
            resample: Value::from(2),
        }
    }
}

/// How an image is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Rows and columns of tiles; zeros if there are none.
    pub tiles: [usize; 2],
    /// Height and width of the whole image in pixels, which follows the tiles; zeros for none.
    pub whole: [usize; 2],
}

impl PreprocessConfig {
    /// Reads a `preprocessor_config.json` for patches of `patch` pixels.
    ///
    /// # Errors
    /// If the file contains an unsupported setting.
    pub fn parse(file: &Value, patch: usize) -> Result<Self, PreprocessError> {
        let normalization =
            Normalization::parse_or(&without_nulls(file), Normalization::centered())?;
        let file: File = parse_file(file)?;
        if !file.do_resize {
            return Err(PreprocessError::config(
                "do_resize is false, expected true: LFM2-VL is only supported with this step",
            ));
        }
        PreprocessError::check_sizes(&[
            ("encoder_patch_size", file.encoder_patch_size, 1 << 10),
            ("downsample_factor", file.downsample_factor, 64),
            ("min_image_tokens", file.min_image_tokens, 1 << 20),
            ("max_image_tokens", file.max_image_tokens, 1 << 20),
            ("tile_size", file.tile_size, 1 << 13),
            ("min_tiles", file.min_tiles, 64),
            ("max_tiles", file.max_tiles, 64),
        ])?;
        let unit = file.encoder_patch_size * file.downsample_factor;
        if file.encoder_patch_size != patch || !file.tile_size.is_multiple_of(unit) {
            return Err(PreprocessError::config(format!(
                "encoder_patch_size is {} and tile_size {}, expected patches of {patch} pixels and \
                 a multiple of {unit}",
                file.encoder_patch_size, file.tile_size
            )));
        }
        let [min, max] = [file.min_image_tokens, file.max_image_tokens];
        let tolerance = file.max_pixels_tolerance;
        if min > max || file.min_tiles > file.max_tiles || tolerance <= 0.0 {
            return Err(PreprocessError::config(format!(
                "{min} to {max} tokens, {} to {} tiles and max_pixels_tolerance {tolerance}, \
                 expected ascending limits and a positive tolerance",
                file.min_tiles, file.max_tiles
            )));
        }
        Ok(Self {
            filter: filter(Some(&file.resample))?,
            file,
            normalization,
        })
    }

    /// Returns the configuration with other limits for the tokens of an image without tiles, or of a
    /// thumbnail.
    #[must_use]
    pub fn with_tokens(&self, limits: Option<(usize, usize)>) -> Self {
        let mut config = self.clone();
        if let Some((min, max)) = limits {
            (config.file.min_image_tokens, config.file.max_image_tokens) = (min.max(1), max.max(1));
        }
        config
    }

    /// Returns the configuration without tiles.
    #[must_use]
    pub fn without_tiles(mut self) -> Self {
        self.file.do_image_splitting = false;
        self
    }

    /// Returns the patches per side of a token.
    pub fn merge(&self) -> usize {
        self.file.downsample_factor
    }

    /// Returns the patches per side of a tile.
    pub fn tile_side(&self) -> usize {
        self.file.tile_size / self.file.encoder_patch_size
    }

    /// Returns the side of a token in pixels.
    fn unit(&self) -> usize {
        self.file.encoder_patch_size * self.file.downsample_factor
    }

    /// Returns how an image of this size is cut.
    pub fn cut(&self, width: usize, height: usize) -> Cut {
        let unit = self.unit();
        let rounded = |side: usize| half_to_even(side as f64 / unit as f64).max(1) as usize * unit;
        let area = (rounded(width) * rounded(height)) as f64;
        let most = (self.file.max_image_tokens * unit * unit) as f64;
        let splits = self.file.do_image_splitting && self.file.max_tiles > 1;
        let whole = self.target(width, height);
        if !splits || area <= most * self.file.max_pixels_tolerance {
            return Cut {
                tiles: [0, 0],
                whole,
            };
        }
        let tiles = self.grid(width, height);
        Cut {
            tiles,
            whole: match self.file.use_thumbnail && tiles != [1, 1] {
                true => whole,
                false => [0, 0],
            },
        }
    }

    /// Returns height and width of a whole image: multiples of a token's side, within the limits.
    fn target(&self, width: usize, height: usize) -> [usize; 2] {
        let unit = self.unit() as f64;
        let [least, most] = [self.file.min_image_tokens, self.file.max_image_tokens]
            .map(|n| n as f64 * unit * unit);
        let (w, h) = (width as f64, height as f64);
        let round = |side: f64| half_to_even(side / unit).max(1) as f64 * unit;
        let sides = if round(h) * round(w) > most {
            let beta = (h * w / most).sqrt();
            [h, w].map(|side| ((side / beta / unit).floor() * unit).max(unit))
        } else if round(h) * round(w) < least {
            let beta = (least / (h * w)).sqrt();
            [h, w].map(|side| (side * beta / unit).ceil() * unit)
        } else {
            [h, w].map(round)
        };
        sides.map(|side| side as usize)
    }

    /// Returns rows and columns of tiles: those with the most similar ratio of sides.
    fn grid(&self, width: usize, height: usize) -> [usize; 2] {
        let ratio = width as f64 / height as f64;
        let (min, max) = (self.file.min_tiles, self.file.max_tiles);
        let mut grids: Vec<[usize; 2]> = (1..=max)
            .flat_map(|columns| (1..=max).map(move |rows| [rows, columns]))
            .filter(|[rows, columns]| (min..=max).contains(&(rows * columns)))
            .collect();
        grids.sort_by_key(|[rows, columns]| rows * columns);
        let (mut best, mut least) = ([1, 1], f64::INFINITY);
        for [rows, columns] in grids {
            let difference = (ratio - columns as f64 / rows as f64).abs();
            let area = (self.file.tile_size.pow(2) * rows * columns) as f64;
            let larger = difference == least && (width * height) as f64 > 0.5 * area;
            if difference < least || larger {
                (best, least) = ([rows, columns], difference);
            }
        }
        best
    }

    /// Returns the patches of an image's tiles and of the whole: unit by unit, a patch's values ordered
    /// row, column, channel.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn image(&self, image: &RgbImage, cut: Cut) -> Result<Vec<f32>, PreprocessError> {
        let Cut {
            tiles: [rows, columns],
            whole: [height, width],
        } = cut;
        let (tile, scale) = (self.file.tile_size, |width, height| {
            resize(image, width, height, self.filter)
        });
        let pixels = rows * columns * tile * tile + height * width;
        let mut values = allocate(pixels.saturating_mul(3))?;
        if rows > 0 {
            let tiled = scale(columns * tile, rows * tile)?;
            for i in 0..rows * columns {
                let (x, y) = (i % columns * tile, i / columns * tile);
                self.patches(&tiled.crop(x, y, tile, tile)?, &mut values);
            }
        }
        if height > 0 {
            self.patches(&scale(width, height)?, &mut values);
        }
        Ok(values)
    }

    fn patches(&self, image: &RgbImage, values: &mut Vec<f32>) {
        let table = self.normalization.table();
        let (patch, merge) = (self.file.encoder_patch_size, self.file.downsample_factor);
        let unit = patch * merge;
        let corners = |side: usize, step: usize| (0..side).step_by(step);
        for (top, left) in corners(image.height(), unit)
            .flat_map(|y| corners(image.width(), unit).map(move |x| (y, x)))
        {
            for (y, x) in
                corners(unit, patch).flat_map(|y| corners(unit, patch).map(move |x| (y, x)))
            {
                for row in top + y..top + y + patch {
                    let pixels = &image.row(row)[(left + x) * 3..(left + x + patch) * 3];
                    let samples = pixels.iter().enumerate();
                    values.extend(samples.map(|(i, &sample)| table[i % 3][usize::from(sample)]));
                }
            }
        }
    }
}

/// Rounds to the nearest integer, halves to the even one.
fn half_to_even(x: f64) -> i64 {
    x.round_ties_even() as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config() -> PreprocessConfig {
        let file = json!({
            "min_image_tokens": 4, "max_image_tokens": 9, "tile_size": 96, "max_tiles": 6,
        });
        PreprocessConfig::parse(&file, 16).unwrap()
    }

    /// Worked by hand with sides of a token of 32 pixels: 112 is 3.5 of them, which rounds to 4, and 16
    /// tokens are too many.
    #[test]
    fn images_are_cut_by_their_size() {
        let whole = |whole| Cut {
            tiles: [0, 0],
            whole,
        };
        assert_eq!(config().cut(112, 112), whole([96, 96]));
        assert_eq!(config().cut(131, 89), whole([64, 96]));
        assert_eq!(config().cut(10, 10), whole([64, 64]));
        let tiled = config().cut(300, 200);
        assert_eq!((tiled.tiles, tiled.whole), ([2, 3], [64, 96]));
    }

    #[test]
    fn lying_sizes_are_errors() {
        for (file, word) in [
            (json!({"tile_size": 100}), "tile_size"),
            (json!({"max_image_tokens": 3}), "tokens"),
            (json!({"downsample_factor": 0}), "downsample_factor"),
            (json!({"encoder_patch_size": 14}), "patches of 16"),
            (json!({"max_pixels_tolerance": -1.0}), "tolerance"),
            (json!({"do_resize": false}), "do_resize"),
        ] {
            let error = PreprocessConfig::parse(&file, 16).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
