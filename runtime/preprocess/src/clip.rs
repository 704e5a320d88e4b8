//! Image preprocessing of CLIP (LLaVA) and BLIP-2: padding, resizing, center crop, normalization.
//!
//! The reference is `CLIPImageProcessor`, `LlavaImageProcessor` and `BlipImageProcessor` of
//! `transformers` 4.57. CLIP resizes the shortest edge and crops; LLaVA can pad to a square before
//! that; BLIP-2 resizes to a square regardless of the aspect ratio and does not crop.

use serde::Deserialize;
use serde_json::Value;

use super::error::{PreprocessError, allocate};
use super::fields::{Size, filter, parse_file};
use super::filter::Filter;
use super::image::RgbImage;
use super::normalize::Normalization;
use super::resize::resize;
use crate::settings::without_nulls;

/// Maximum side in a configuration.
const MAX_SIDE: usize = 1 << 14;

/// The size of an image after resizing, before cropping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The shorter side gets this length; the longer one keeps the aspect ratio (rounded down).
    ShortestEdge(usize),
    /// As `ShortestEdge`, but if the longer side would exceed the second length, both sides are
    /// reduced.
    Bounded(usize, usize),
    /// Exactly this size, regardless of the aspect ratio.
    Exact {
        /// Rows.
        height: usize,
        /// Pixels per row.
        width: usize,
    },
}

/// Settings from `preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct PreprocessConfig {
    /// `true` if images are first padded to a square with the mean color.
    pub pad: bool,
    /// Size after resizing; `None` keeps the size.
    pub target: Option<Target>,
    /// Height and width of the center crop; smaller images get a black border.
    pub crop: Option<(usize, usize)>,
    /// Resampling filter.
    pub filter: Filter,
    /// Conversion of samples to values.
    pub normalization: Normalization,
}

/// The pixel values of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct PixelValues {
    /// `[3, height, width]`.
    pub values: Vec<f32>,
    /// Rows.
    pub height: usize,
    /// Pixels per row.
    pub width: usize,
}

#[derive(Debug, Deserialize)]
struct File {
    image_processor_type: Option<String>,
    do_pad: Option<bool>,
    do_resize: Option<bool>,
    size: Option<Value>,
    resample: Option<Value>,
    do_center_crop: Option<bool>,
    crop_size: Option<Value>,
}

/// Image processor classes of the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Processor {
    Clip,
    Llava,
    Blip,
}

impl Processor {
    fn parse(name: Option<&str>) -> Result<Self, PreprocessError> {
        let Some(name) = name else {
            return Ok(Self::Clip);
        };
        // Implementations based on other libraries have a suffix.
        let class = ["Fast", "Pil"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        match class.unwrap_or(name) {
            "CLIPImageProcessor" => Ok(Self::Clip),
            "LlavaImageProcessor" => Ok(Self::Llava),
            "BlipImageProcessor" => Ok(Self::Blip),
            _ => Err(PreprocessError::config(format!(
                "image_processor_type is {name:?}, expected CLIPImageProcessor, \
                 LlavaImageProcessor or BlipImageProcessor"
            ))),
        }
    }
}

impl PreprocessConfig {
    /// Reads a `preprocessor_config.json`.
    ///
    /// # Errors
    /// If the file contains an unsupported setting.
    pub fn parse(file: &Value) -> Result<Self, PreprocessError> {
        let normalization = Normalization::parse(&without_nulls(file))?;
        let file: File = parse_file(file)?;
        let processor = Processor::parse(file.image_processor_type.as_deref())?;
        let size = |name, value: Option<Value>| {
            let size = value.map(|value| Size::parse(name, &value));
            size.transpose()
        };
        let (target, crop) = (size("size", file.size)?, size("crop_size", file.crop_size)?);
        // BLIP's processor never crops.
        let crops = processor != Processor::Blip && file.do_center_crop != Some(false);
        let config = Self {
            pad: processor == Processor::Llava && file.do_pad == Some(true),
            target: (file.do_resize != Some(false)).then(|| resized(target, processor)),
            crop: crops.then(|| cropped(crop)).transpose()?,
            filter: filter(file.resample.as_ref())?,
            normalization,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), PreprocessError> {
        let target = match self.target {
            None => (1, 1),
            Some(Target::ShortestEdge(side)) => (side, side),
            Some(Target::Bounded(shortest, longest)) => (shortest, longest),
            Some(Target::Exact { height, width }) => (height, width),
        };
        let (height, width) = self.crop.unwrap_or((1, 1));
        for side in [target.0, target.1, height, width] {
            if side == 0 || side > MAX_SIDE {
                return Err(PreprocessError::config(format!(
                    "a side of {side} pixels, expected 1 to {MAX_SIDE}"
                )));
            }
        }
        Ok(())
    }

    /// Pads, resizes, crops and normalizes an image.
    ///
    /// # Errors
    /// If the aspect ratio is so extreme that the padded or resized image is too large.
    pub fn image(&self, image: &RgbImage) -> Result<PixelValues, PreprocessError> {
        let padded = match self.pad {
            true => Some(pad_to_square(image, self.normalization.image_mean)?),
            false => None,
        };
        let image = padded.as_ref().unwrap_or(image);
        let resized = match self.target {
            None => None,
            Some(target) => {
                let (height, width) = target.size(image);
                if height == 0 || width == 0 {
                    return Err(PreprocessError::ResizedAway {
                        width: image.width(),
                        height: image.height(),
                        new_width: width,
                        new_height: height,
                    });
                }
                Some(resize(image, width, height, self.filter)?)
            }
        };
        let image = resized.as_ref().unwrap_or(image);
        let (height, width) = self.crop.unwrap_or((image.height(), image.width()));
        let mut values = allocate(RgbImage::bytes(width, height)?)?;
        let rows = middle(image.height(), height);
        let columns = middle(image.width(), width);
        for (channel, table) in self.normalization.table().iter().enumerate() {
            for y in 0..height as isize {
                let row = usize::try_from(y + rows)
                    .ok()
                    .filter(|&y| y < image.height());
                for x in 0..width as isize {
                    let column = usize::try_from(x + columns).ok();
                    let sample = match (row, column.filter(|&x| x < image.width())) {
                        (Some(y), Some(x)) => image.row(y)[x * 3 + channel],
                        _ => 0,
                    };
                    values.push(table[usize::from(sample)]);
                }
            }
        }
        Ok(PixelValues {
            values,
            height,
            width,
        })
    }
}

/// Returns the size after resizing; the defaults are those of the reference's classes.
fn resized(size: Option<Size>, processor: Processor) -> Target {
    let square = |side| Target::Exact {
        height: side,
        width: side,
    };
    match (size, processor) {
        (Some(Size::Exact { height, width }), _) => Target::Exact { height, width },
        (Some(Size::Shortest(side)), _) => Target::ShortestEdge(side),
        (Some(Size::Bounded { shortest, longest }), _) => Target::Bounded(shortest, longest),
        (Some(Size::Side(side)), Processor::Blip) => square(side),
        (Some(Size::Side(side)), _) => Target::ShortestEdge(side),
        (None, Processor::Blip) => square(384),
        (None, _) => Target::ShortestEdge(224),
    }
}

/// Returns height and width of the crop.
fn cropped(size: Option<Size>) -> Result<(usize, usize), PreprocessError> {
    match size {
        None => Ok((224, 224)),
        Some(Size::Side(side) | Size::Shortest(side)) => Ok((side, side)),
        Some(Size::Exact { height, width }) => Ok((height, width)),
        Some(Size::Bounded { .. }) => Err(PreprocessError::config(
            "crop_size has shortest_edge and longest_edge, expected a number or height and width",
        )),
    }
}

/// Centers the image in a square of the mean color, truncated to 8 bits.
fn pad_to_square(image: &RgbImage, mean: [f64; 3]) -> Result<RgbImage, PreprocessError> {
    let side = image.width().max(image.height());
    let color = mean.map(|mean| (mean * 255.0) as u8);
    let mut pixels = allocate(RgbImage::bytes(side, side)?)?;
    let (left, top) = ((side - image.width()) / 2, (side - image.height()) / 2);
    let fill = |pixels: &mut Vec<u8>, count: usize| {
        pixels.extend(std::iter::repeat_n(color, count).flatten());
    };
    fill(&mut pixels, top * side);
    for y in 0..image.height() {
        fill(&mut pixels, left);
        pixels.extend_from_slice(image.row(y));
        fill(&mut pixels, side - left - image.width());
    }
    fill(&mut pixels, (side - top - image.height()) * side);
    RgbImage::new(side, side, pixels)
}

impl Target {
    /// Returns height and width of the resized image.
    fn size(self, image: &RgbImage) -> (usize, usize) {
        match self {
            Self::Exact { height, width } => (height, width),
            Self::ShortestEdge(side) => shortest_edge(image, side, side as f64),
            Self::Bounded(side, longest) => {
                let short = image.width().min(image.height()) as f64;
                let long = image.width().max(image.height()) as f64;
                if long / short * side as f64 > longest as f64 {
                    let raw = longest as f64 * short / long;
                    // Python rounds halves to even.
                    shortest_edge(image, raw.round_ties_even() as usize, raw)
                } else {
                    shortest_edge(image, side, side as f64)
                }
            }
        }
    }
}

/// Returns height and width of `image` when its shorter side is resized to `side` pixels. The
/// longer side follows from the unrounded length `exact`, rounded down.
fn shortest_edge(image: &RgbImage, side: usize, exact: f64) -> (usize, usize) {
    let (width, height) = (image.width(), image.height());
    let (short, long) = (width.min(height), width.max(height));
    // Matches Python's division and int().
    let long = (exact * long as f64 / short as f64) as usize;
    if width <= height {
        (long, side)
    } else {
        (side, long)
    }
}

/// Returns the start of the middle `wanted` of `given` samples; negative if there are fewer. Halves
/// are rounded down, as in the reference.
fn middle(given: usize, wanted: usize) -> isize {
    (given as isize - wanted as isize).div_euclid(2)
}
