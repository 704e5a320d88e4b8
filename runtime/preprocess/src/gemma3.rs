//! Image preprocessing of Gemma 3: the whole image scaled to a square, and with pan and scan also
//! crops of an image that is far from square. The reference is `image_processing_gemma3.py` of
//! `transformers` 4.57 on Pillow.

use serde::Deserialize;
use serde_json::Value;

use super::error::PreprocessError;
use super::fields::{Size, filter, parse_file};
use super::filter::Filter;
use super::image::RgbImage;
use super::normalize::Normalization;
use super::resize::resize;
use super::tiles::TileWriter;
use crate::settings::without_nulls;

/// Maximum side of a square.
const MAX_SIDE: usize = 4096;

/// Maximum number of crops.
const MAX_CROPS: usize = 64;

/// Settings from `preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct PreprocessConfig {
    /// Side of the square.
    pub side: usize,
    /// `true` if crops are added without being asked for.
    pub pans: bool,
    /// Sizes of crops.
    pub crops: Crops,
    /// Resampling filter.
    pub filter: Filter,
    /// Conversion of samples to values.
    pub normalization: Normalization,
}

/// Sizes of the crops of pan and scan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crops {
    /// Smallest side of a crop.
    pub smallest: usize,
    /// Largest number of crops.
    pub most: usize,
    /// Smallest ratio of the longer to the shorter side of an image that is cropped.
    pub ratio: f64,
}

#[derive(Debug, Deserialize)]
struct File {
    do_resize: Option<bool>,
    size: Option<Value>,
    resample: Option<Value>,
    do_pan_and_scan: Option<bool>,
    pan_and_scan_min_crop_size: Option<usize>,
    pan_and_scan_max_num_crops: Option<usize>,
    pan_and_scan_min_ratio_to_activate: Option<f64>,
}

impl PreprocessConfig {
    /// Reads a `preprocessor_config.json`; without a size, squares have `side` pixels.
    ///
    /// # Errors
    /// If the file contains an unsupported setting.
    pub fn parse(file: &Value, side: usize) -> Result<Self, PreprocessError> {
        let normalization =
            Normalization::parse_or(&without_nulls(file), Normalization::centered())?;
        let file: File = parse_file(file)?;
        if file.do_resize == Some(false) {
            return Err(PreprocessError::config(
                "do_resize is false, expected true: Gemma 3 is only supported with this step",
            ));
        }
        let side = match &file.size {
            None => side,
            Some(size) => match Size::parse("size", size)? {
                Size::Side(side) => side,
                Size::Exact { height, width } if height == width => height,
                _ => {
                    return Err(PreprocessError::config(format!(
                        "size is {size}, expected equal height and width"
                    )));
                }
            },
        };
        let crops = Crops {
            smallest: file.pan_and_scan_min_crop_size.unwrap_or(256),
            most: file.pan_and_scan_max_num_crops.unwrap_or(4),
            ratio: file.pan_and_scan_min_ratio_to_activate.unwrap_or(1.2),
        };
        PreprocessError::check_sizes(&[
            ("size", side, MAX_SIDE),
            ("pan_and_scan_min_crop_size", crops.smallest, 1 << 20),
            ("pan_and_scan_max_num_crops", crops.most, MAX_CROPS),
        ])?;
        Ok(Self {
            side,
            pans: file.do_pan_and_scan.unwrap_or(false),
            crops,
            filter: match file.resample {
                None => Filter::Bilinear,
                resample => filter(resample.as_ref())?,
            },
            normalization,
        })
    }

    /// Scales an image, followed by its crops if `pans`, to squares: `[1 + crops, 3, side, side]`.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn image(&self, image: &RgbImage, pans: bool) -> Result<Vec<f32>, PreprocessError> {
        let [rows, columns] = match pans {
            true => self.crops.grid(image.width(), image.height()),
            false => [0, 0],
        };
        let mut squares = TileWriter::new(&self.normalization, self.side, 1 + rows * columns)?;
        let mut add = |image: &RgbImage| {
            let square = resize(image, self.side, self.side, self.filter)?;
            squares.cut(&square, [0, 0]);
            Ok(())
        };
        add(image)?;
        let [height, width] = [
            image.height().div_ceil(rows.max(1)),
            image.width().div_ceil(columns.max(1)),
        ];
        for i in 0..rows * columns {
            let (x, y) = (i % columns * width, i / columns * height);
            add(&image.crop(x, y, width, height)?)?;
        }
        Ok(squares.finish())
    }
}

impl Crops {
    /// Returns rows and columns of crops of an image; zeros if it has none.
    pub fn grid(&self, width: usize, height: usize) -> [usize; 2] {
        let (long, short) = (width.max(height), width.min(height));
        let ratio = long as f64 / short as f64;
        if ratio < self.ratio {
            return [0, 0];
        }
        let count = ((ratio + 0.5) as usize)
            .min(long / self.smallest)
            .max(2)
            .min(self.most);
        // Rounded up, crops may cover the image before the last one.
        let crop = long.div_ceil(count);
        if crop.min(short) < self.smallest || crop * (count - 1) >= long {
            return [0, 0];
        }
        match width >= height {
            true => [1, count],
            false => [count, 1],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(file: &Value) -> Result<PreprocessConfig, PreprocessError> {
        PreprocessConfig::parse(file, 140)
    }

    /// Worked by hand from `pan_and_scan` of the reference.
    #[test]
    fn long_images_have_crops() {
        let crops = config(&json!({})).unwrap().crops;
        for (size, grid) in [
            ((600, 300), [1, 2]),
            ((512, 430), [0, 0]),
            ((512, 426), [1, 2]),
            ((1000, 290), [1, 3]),
            ((300, 2000), [4, 1]),
            ((510, 300), [0, 0]),
            ((900, 250), [0, 0]),
        ] {
            assert_eq!(crops.grid(size.0, size.1), grid, "{size:?}");
        }
    }

    /// The last crop is what is left.
    #[test]
    fn crops_cover_the_image() {
        let file = json!({"pan_and_scan_min_crop_size": 2});
        let pixels = (0..5 * 2 * 3).map(|i| i * 8).collect();
        let image = RgbImage::new(5, 2, pixels).unwrap();
        let values = PreprocessConfig::parse(&file, 1).unwrap();
        let values = values.image(&image, true).unwrap();
        assert_eq!(values.len(), 3 * 3);
        assert!(values[3] < values[0] && values[0] < values[6], "{values:?}");
    }

    #[test]
    fn lying_sizes_are_errors() {
        for (file, word) in [
            (json!({"size": {"height": 0, "width": 0}}), "size"),
            (json!({"size": {"height": 8, "width": 9}}), "equal"),
            (json!({"pan_and_scan_max_num_crops": 1000}), "max_num_crops"),
            (json!({"pan_and_scan_min_crop_size": 0}), "min_crop_size"),
            (json!({"do_resize": false}), "do_resize"),
        ] {
            let error = config(&file).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
