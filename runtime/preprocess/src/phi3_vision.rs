//! Image preprocessing of Phi-3-Vision and Phi-3.5-Vision: the HD transform, which scales an image
//! to a grid of square crops and adds a small global view.
//!
//! The reference is the processor published with the model (`processing_phi3_v.py`,
//! `Phi3VImageProcessor`): bilinear resizing by Pillow, white padding, and a bicubic global view of
//! the normalized image without antialiasing.

use serde::Deserialize;
use serde_json::Value;

use super::error::{PreprocessError, allocate};
use super::fields::{filter, parse_file};
use super::filter::Filter;
use super::image::RgbImage;
use super::interpolate::bicubic;
use super::normalize::Normalization;
use super::resize::resize;
use crate::settings::without_nulls;

/// Settings from `preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct PreprocessConfig {
    /// Maximum number of crops, without the global view.
    pub num_crops: usize,
    /// Side of a crop in pixels; the published processors hard-code it.
    pub crop_size: usize,
    /// Conversion of samples to values.
    pub normalization: Normalization,
}

#[derive(Debug, Deserialize)]
struct File {
    #[serde(default = "default_crops")]
    num_crops: usize,
    #[serde(default = "default_side", alias = "tiny_crop_size")]
    crop_size: usize,
    do_resize: Option<bool>,
    resample: Option<Value>,
}

fn default_crops() -> usize {
    1
}

fn default_side() -> usize {
    336
}

/// An image in crops.
#[derive(Debug, Clone, PartialEq)]
pub struct Crops {
    /// `[1 + rows * columns, 3, side, side]`: the global view first, then the crops row by row.
    pub pixel_values: Vec<f32>,
    /// Rows and columns of crops.
    pub grid: [usize; 2],
    /// Side of a crop in pixels.
    pub side: usize,
}

impl Crops {
    /// Returns the number of crops, including the global view.
    pub fn count(&self) -> usize {
        1 + self.grid[0] * self.grid[1]
    }

    /// Returns the values in the reference's form: padded with zeros to `num_crops + 1` crops.
    pub fn padded(&self, num_crops: usize) -> Vec<f32> {
        let mut values = self.pixel_values.clone();
        let crop = 3 * self.side * self.side;
        values.resize(values.len().max((num_crops + 1) * crop), 0.0);
        values
    }
}

impl PreprocessConfig {
    /// Reads a `preprocessor_config.json`.
    ///
    /// # Errors
    /// If the file contains an unsupported setting.
    pub fn parse(file: &Value) -> Result<Self, PreprocessError> {
        let normalization = Normalization::parse(&without_nulls(file))?;
        if normalization.rescale_factor != Normalization::default().rescale_factor {
            return Err(PreprocessError::config(format!(
                "rescale_factor is {}, expected 1/255: the reference supports no other",
                normalization.rescale_factor
            )));
        }
        let file: File = parse_file(file)?;
        let resample = file.resample.unwrap_or(Value::from(2));
        if file.do_resize == Some(false) || filter(Some(&resample))? != Filter::Bilinear {
            return Err(PreprocessError::config(format!(
                "do_resize is {:?} and resample {resample}, expected true and 2 (bilinear): the \
                 reference supports nothing else",
                file.do_resize.unwrap_or(true)
            )));
        }
        let config = Self {
            num_crops: file.num_crops,
            crop_size: file.crop_size,
            normalization,
        };
        PreprocessError::check_sizes(&[
            ("num_crops", config.num_crops, 1 << 10),
            ("crop size", config.crop_size, 1 << 12),
        ])?;
        Ok(config)
    }

    /// Cuts an image into crops.
    ///
    /// # Errors
    /// If the aspect ratio is so extreme that the shorter side vanishes, or if the resized image is
    /// too large.
    pub fn image(&self, image: &RgbImage) -> Result<Crops, PreprocessError> {
        let side = self.crop_size;
        let image = self.transform(image)?;
        let (height, width) = (image.height(), image.width());
        let grid = [height / side, width / side];
        let planes = self.planes(&image)?;
        let whole = bicubic(&planes, (height, width), (side, side))?;
        let mut values = allocate((1 + grid[0] * grid[1]) * whole.len())?;
        values.extend(whole);
        for y in 0..grid[0] {
            for x in 0..grid[1] {
                for row in (0..3).flat_map(|c| (0..side).map(move |i| c * height + y * side + i)) {
                    values.extend(&planes[row * width + x * side..][..side]);
                }
            }
        }
        Ok(Crops {
            pixel_values: values,
            grid,
            side,
        })
    }

    /// Scales the image to the largest grid of whole crops allowed, with white padding above and
    /// below. Portrait images are transposed first.
    fn transform(&self, image: &RgbImage) -> Result<RgbImage, PreprocessError> {
        if image.width() < image.height() {
            return transpose(&self.transform_lying(&transpose(image)?)?);
        }
        self.transform_lying(image)
    }

    /// Returns rows and columns of crops for an image of this size.
    pub fn grid(&self, width: usize, height: usize) -> [usize; 2] {
        let (long, short) = (width.max(height), width.min(height));
        let (width_lying, height_lying) = self.lying_size(long, short);
        let mut grid = [height_lying, width_lying].map(|size| size.div_ceil(self.crop_size));
        if width < height {
            grid.reverse();
        }
        grid
    }

    /// Returns width and height after resizing a landscape image.
    fn lying_size(&self, width: usize, height: usize) -> (usize, usize) {
        let ratio = width as f64 / height as f64;
        let fits = |columns: f64| columns * (columns / ratio).ceil() <= self.num_crops as f64;
        // One column always fits an image that is at least as wide as high.
        let columns = (2..=self.num_crops)
            .take_while(|&columns| fits(columns as f64))
            .last()
            .unwrap_or(1);
        let width = columns * self.crop_size;
        (width, (width as f64 / ratio) as usize)
    }

    fn transform_lying(&self, image: &RgbImage) -> Result<RgbImage, PreprocessError> {
        let side = self.crop_size;
        let (width, height) = self.lying_size(image.width(), image.height());
        if height == 0 {
            return Err(PreprocessError::ResizedAway {
                width: image.width(),
                height: image.height(),
                new_width: width,
                new_height: height,
            });
        }
        let resized = resize(image, width, height, Filter::Bilinear)?;
        let full = height.next_multiple_of(side);
        let above = (full - height) / 2;
        let mut pixels = allocate(RgbImage::bytes(width, full)?)?;
        pixels.resize(above * width * 3, 255);
        pixels.extend_from_slice(resized.pixels());
        pixels.resize(full * width * 3, 255);
        RgbImage::new(width, full, pixels)
    }

    /// Returns the values `[3, height, width]`.
    fn planes(&self, image: &RgbImage) -> Result<Vec<f32>, PreprocessError> {
        let mut planes = allocate(image.pixels().len())?;
        for (channel, table) in self.normalization.unit_table().iter().enumerate() {
            let samples = image.pixels().iter().skip(channel).step_by(3);
            planes.extend(samples.map(|&sample| table[usize::from(sample)]));
        }
        Ok(planes)
    }
}

/// Exchanges rows and columns of an image.
fn transpose(image: &RgbImage) -> Result<RgbImage, PreprocessError> {
    let mut pixels = allocate(image.pixels().len())?;
    for x in 0..image.width() {
        for y in 0..image.height() {
            pixels.extend_from_slice(&image.row(y)[x * 3..x * 3 + 3]);
        }
    }
    RgbImage::new(image.height(), image.width(), pixels)
}
