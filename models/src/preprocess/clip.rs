//! Images for CLIP (LLaVA) and BLIP-2: padded, resized, cropped to the middle, normalised.
//!
//! The reference is `CLIPImageProcessor`, `LlavaImageProcessor` and `BlipImageProcessor` of
//! `transformers` 4.57. CLIP resizes the shortest edge and crops; LLaVA can pad to a square
//! before that; BLIP-2 resizes to a square without regard to the image's shape and does not crop.

use serde::Deserialize;
use serde_json::Value;

use super::error::{PreprocessError, allocate};
use super::fields::{Size, filter, parse_file};
use super::filter::Filter;
use super::image::RgbImage;
use super::normalize::Normalization;
use super::resize::resize;
use crate::config_file::without_nulls;

/// Largest side that a configuration may ask for.
const MAX_SIDE: usize = 1 << 14;

/// How large a picture becomes before it is cropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The shorter side gets this length, the longer one keeps the aspect ratio (rounded down).
    ShortestEdge(usize),
    /// Likewise, but the longer side gets at most the second length, and the shorter one less
    /// where that asks for it.
    Bounded(usize, usize),
    /// Exactly this size, whatever the aspect ratio.
    Exact {
        /// Rows.
        height: usize,
        /// Pixels per row.
        width: usize,
    },
}

/// What `preprocessor_config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct PreprocessConfig {
    /// Whether images are padded to a square with the mean colour first.
    pub pad: bool,
    /// Size after resizing; `None` leaves images as they are.
    pub target: Option<Target>,
    /// Height and width that are cut out of the middle; smaller pictures get a black frame.
    pub crop: Option<(usize, usize)>,
    /// How pictures are resized.
    pub filter: Filter,
    /// How samples become values.
    pub normalization: Normalization,
}

/// A picture as values.
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

/// The reference's processors.
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
        // Implementations on other libraries have names of their own.
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
    /// If the file asks for something that cannot be done.
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

    /// Pads, resizes, crops and normalises an image.
    ///
    /// # Errors
    /// If its sides are so unequal that its padded or resized form is too large.
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

/// The size that images are resized to; the defaults are those of the reference's classes.
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

/// Height and width that are cut out.
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

/// The image in the middle of a square of the mean colour, which is cut to 8 bits.
fn pad_to_square(image: &RgbImage, mean: [f64; 3]) -> Result<RgbImage, PreprocessError> {
    let side = image.width().max(image.height());
    let colour = mean.map(|mean| (mean * 255.0) as u8);
    let mut pixels = allocate(RgbImage::bytes(side, side)?)?;
    let (left, top) = ((side - image.width()) / 2, (side - image.height()) / 2);
    let fill = |pixels: &mut Vec<u8>, count: usize| {
        pixels.extend(std::iter::repeat_n(colour, count).flatten());
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
    /// Height and width that a picture gets.
    fn size(self, image: &RgbImage) -> (usize, usize) {
        match self {
            Self::Exact { height, width } => (height, width),
            Self::ShortestEdge(side) => shortest_edge(image, side, side as f64),
            Self::Bounded(side, longest) => {
                let short = image.width().min(image.height()) as f64;
                let long = image.width().max(image.height()) as f64;
                if long / short * side as f64 > longest as f64 {
                    let raw = longest as f64 * short / long;
                    // Python rounds halves to the even neighbour.
                    shortest_edge(image, raw.round_ties_even() as usize, raw)
                } else {
                    shortest_edge(image, side, side as f64)
                }
            }
        }
    }
}

/// Height and width of `image` when its shorter side gets `side` pixels and its longer one as
/// many as go with `exact` on the shorter side, rounded down.
fn shortest_edge(image: &RgbImage, side: usize, exact: f64) -> (usize, usize) {
    let (width, height) = (image.width(), image.height());
    let (short, long) = (width.min(height), width.max(height));
    // Python's division and int().
    let long = (exact * long as f64 / short as f64) as usize;
    if width <= height {
        (long, side)
    } else {
        (side, long)
    }
}

/// Where the middle `wanted` of `given` samples begins; negative if there are fewer. Halves are
/// rounded down, as in the reference.
fn middle(given: usize, wanted: usize) -> isize {
    (given as isize - wanted as isize).div_euclid(2)
}
