//! H.264 video, decoded by OpenH264: 8 bits, 4:2:0, progressive.
//!
//! OpenH264 is C++ code. The parameters of the video are checked before it sees them, so that it
//! allocates no more than the memory limit.

mod parameters;

use edge_lmm_models::preprocess::RgbImage;
use openh264::OpenH264API;
use openh264::decoder::{DecodedYUV, Decoder, DecoderConfig, Flush};
use openh264::formats::YUVSource;
use parameters::{Parameters, Problem};

use super::budget;
use super::error::MediaError;
use super::yuv::{ChromaPlanes, Color, Planes};

pub(super) use parameters::matrix_of_code;

/// Precedes every NAL unit.
const START_CODE: [u8; 4] = [0, 0, 0, 1];

/// Images that OpenH264 holds in addition to the reference frames.
const SPARE_IMAGES: usize = 4;

/// A decoder of one video.
pub(super) struct H264Decoder {
    decoder: Decoder,
    /// Size of the images.
    size: (usize, usize),
    color: Color,
    /// NAL units of the current sample, with start codes.
    units: Vec<u8>,
}

/// A decoded image.
pub(super) struct Picture {
    width: usize,
    height: usize,
    luma: Vec<u8>,
    blue: Vec<u8>,
    red: Vec<u8>,
    color: Color,
}

fn damaged(message: impl ToString) -> MediaError {
    MediaError::damaged("H.264", message)
}

impl H264Decoder {
    /// Creates a decoder from the parameter sets of a video. `color` applies if these do not specify
    /// one.
    pub fn new<'a>(
        sets: impl Iterator<Item = &'a [u8]> + Clone,
        color: Color,
    ) -> Result<Self, MediaError> {
        let first = sets.clone().find(|set| parameters::is_parameters(set));
        let first = first.ok_or_else(|| damaged("it has no parameter set"))?;
        let parameters = check(first)?;
        let config = DecoderConfig::new().flush_after_decode(Flush::NoFlush);
        let decoder = Decoder::with_api_config(OpenH264API::from_source(), config);
        let mut this = Self {
            decoder: decoder.map_err(damaged)?,
            size: (parameters.width, parameters.height),
            color: parameters.color.unwrap_or(color),
            units: Vec::new(),
        };
        this.decode(sets)?;
        Ok(this)
    }

    /// Returns width and height of the images.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// Decodes the NAL units of a sample. Returns the next image in the order of time, which may be
    /// that of another sample.
    pub fn decode<'a>(
        &mut self,
        units: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Option<Picture>, MediaError> {
        self.units.clear();
        for unit in units {
            if parameters::is_parameters(unit) {
                let parameters = check(unit)?;
                if (parameters.width, parameters.height) != self.size {
                    return Err(damaged("the size of its images changes"));
                }
            }
            self.units.extend(START_CODE);
            self.units.extend(unit);
        }
        let picture = self.decoder.decode(&self.units);
        let picture = picture.map_err(|error| {
            damaged(format!(
                "OpenH264 reports the state {:#x}",
                error.native_code()
            ))
        })?;
        picture
            .map(|picture| Picture::new(&picture, self.size, self.color))
            .transpose()
    }

    /// Returns the images that are left at the end.
    pub fn finish(&mut self) -> Result<Vec<Picture>, MediaError> {
        let pictures = self.decoder.flush_remaining().map_err(damaged)?;
        let pictures = pictures.iter();
        pictures
            .map(|picture| Picture::new(picture, self.size, self.color))
            .collect()
    }
}

/// Checks a sequence parameter set and the memory that its images need.
fn check(set: &[u8]) -> Result<Parameters, MediaError> {
    let parameters = Parameters::parse(set).map_err(|problem| match problem {
        Problem::Damaged => damaged("its parameter set is damaged"),
        Problem::Unsupported(feature) => MediaError::Unsupported {
            format: format!("H.264 with {feature}"),
            advice: "convert it with ffmpeg -c:v libx264 -pix_fmt yuv420p".to_owned(),
        },
    })?;
    let rgb = RgbImage::bytes(parameters.width, parameters.height)?;
    let images = parameters.references + SPARE_IMAGES;
    budget::check((rgb + rgb / 2 * images) as u64)?;
    Ok(parameters)
}

impl Picture {
    fn new(
        decoded: &DecodedYUV<'_>,
        (width, height): (usize, usize),
        color: Color,
    ) -> Result<Self, MediaError> {
        if decoded.dimensions() != (width, height) {
            return Err(damaged("the size of its images changes"));
        }
        let (luma, blue, red) = decoded.strides();
        Ok(Self {
            width,
            height,
            luma: pack(decoded.y(), luma, width, height),
            blue: pack(decoded.u(), blue, width.div_ceil(2), height.div_ceil(2)),
            red: pack(decoded.v(), red, width.div_ceil(2), height.div_ceil(2)),
            color,
        })
    }

    /// Converts to RGB.
    pub fn rgb(&self) -> Result<RgbImage, MediaError> {
        let chroma = ChromaPlanes {
            blue: &self.blue,
            red: &self.red,
            stride: self.width.div_ceil(2),
            columns: 2,
            rows: 2,
        };
        Planes {
            width: self.width,
            height: self.height,
            luma: &self.luma,
            luma_stride: self.width,
            chroma: Some(chroma),
        }
        .rgb(self.color)
    }
}

/// Removes the padding of rows.
fn pack(plane: &[u8], stride: usize, width: usize, height: usize) -> Vec<u8> {
    let rows = plane.chunks(stride).take(height);
    rows.flat_map(|row| &row[..width]).copied().collect()
}
