//! Pictures for CLIP (LLaVA) and BLIP-2: resized, cropped to the middle, normalised.
//!
//! The reference is `CLIPImageProcessor` and `BlipImageProcessor` of `transformers` 4.57. CLIP
//! resizes the shortest edge and crops; BLIP-2 resizes to a square without regard to the
//! picture's shape and does not crop.

use serde::Deserialize;
use serde_json::Value;

use super::error::{PreprocessError, allocate};
use super::filter::Filter;
use super::image::RgbImage;
use super::normalize::Normalization;
use super::resize::resize;

/// Largest side that a configuration may ask for.
const MAX_SIDE: usize = 1 << 14;

/// How large a picture becomes before it is cropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The shorter side gets this length, the longer one keeps the aspect ratio (rounded down).
    ShortestEdge(usize),
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
    /// Size after resizing; `None` leaves pictures as they are.
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
    do_resize: Option<bool>,
    size: Option<Size>,
    resample: Option<u32>,
    do_center_crop: Option<bool>,
    crop_size: Option<Size>,
    do_rescale: Option<bool>,
    do_normalize: Option<bool>,
    #[serde(flatten)]
    normalization: Normalization,
}

/// A size in one of its spellings; older files have a plain number.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Size {
    Side(usize),
    Sides { height: usize, width: usize },
    Shortest { shortest_edge: usize },
}

impl PreprocessConfig {
    /// Reads a `preprocessor_config.json`.
    ///
    /// # Errors
    /// If the file asks for something that cannot be done.
    pub fn parse(file: &Value) -> Result<Self, PreprocessError> {
        let file: File = serde_json::from_value(file.clone())
            .map_err(|error| PreprocessError::config(error.to_string()))?;
        for (name, step) in [
            ("do_rescale", file.do_rescale),
            ("do_normalize", file.do_normalize),
        ] {
            if step == Some(false) {
                return Err(PreprocessError::config(format!(
                    "{name} is false, expected true: pictures are only supported with this step"
                )));
            }
        }
        let blip = file
            .image_processor_type
            .as_deref()
            .is_some_and(|name| name.starts_with("Blip"));
        let config = Self {
            target: (file.do_resize != Some(false)).then(|| target(file.size, blip)),
            // BLIP's processor never crops.
            crop: (!blip && file.do_center_crop != Some(false)).then(|| crop(file.crop_size)),
            filter: file
                .resample
                .map_or(Ok(Filter::Bicubic), Filter::from_pillow)?,
            normalization: file.normalization,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), PreprocessError> {
        let target = match self.target {
            None => (1, 1),
            Some(Target::ShortestEdge(side)) => (side, side),
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
        self.normalization.check()
    }

    /// Resizes, crops and normalises a picture.
    ///
    /// # Errors
    /// If its sides are so unequal that its resized form is too large.
    pub fn image(&self, image: &RgbImage) -> Result<PixelValues, PreprocessError> {
        let resized = match self.target {
            None => None,
            Some(target) => {
                let (height, width) = target.size(image);
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

fn target(size: Option<Size>, blip: bool) -> Target {
    match size {
        Some(Size::Sides { height, width }) => Target::Exact { height, width },
        Some(Size::Shortest { shortest_edge }) => Target::ShortestEdge(shortest_edge),
        Some(Size::Side(side)) if !blip => Target::ShortestEdge(side),
        None if !blip => Target::ShortestEdge(224),
        size => {
            let side = if let Some(Size::Side(side)) = size {
                side
            } else {
                384
            };
            Target::Exact {
                height: side,
                width: side,
            }
        }
    }
}

fn crop(size: Option<Size>) -> (usize, usize) {
    match size {
        None => (224, 224),
        Some(
            Size::Side(side)
            | Size::Shortest {
                shortest_edge: side,
            },
        ) => (side, side),
        Some(Size::Sides { height, width }) => (height, width),
    }
}

impl Target {
    /// Height and width that a picture gets.
    fn size(self, image: &RgbImage) -> (usize, usize) {
        match self {
            Self::Exact { height, width } => (height, width),
            Self::ShortestEdge(side) => {
                let (short, long) = if image.width() <= image.height() {
                    (image.width(), image.height())
                } else {
                    (image.height(), image.width())
                };
                // Python's division and int().
                let long = ((side * long) as f64 / short as f64) as usize;
                if image.width() <= image.height() {
                    (long, side)
                } else {
                    (side, long)
                }
            }
        }
    }
}

/// Where the middle `wanted` of `given` samples begins; negative if there are fewer. Halves are
/// rounded down, as in the reference.
fn middle(given: usize, wanted: usize) -> isize {
    (given as isize - wanted as isize).div_euclid(2)
}
