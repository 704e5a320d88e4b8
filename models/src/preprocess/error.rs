//! Why media cannot be prepared.

use super::image::MAX_PIXELS;
use crate::sizes::out_of_range;

/// Why a picture, video or sound cannot be prepared for a model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PreprocessError {
    /// A picture without pixels.
    #[error("the picture is {width}x{height} pixels, expected at least 1x1")]
    Empty {
        /// Pixels per row.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// A picture, decoded or to be made, that is larger than anything a model takes.
    #[error(
        "a picture of {width}x{height} pixels is too large: at most {MAX_PIXELS} pixels can be \
         handled; scale it down"
    )]
    TooLarge {
        /// Pixels per row.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// A medium with more tokens than the model's context.
    #[error(
        "the image or video makes {tokens} tokens, the model holds {limit}; make it smaller \
         (--image-tokens) or take fewer frames (--frames)"
    )]
    TooManyTokens {
        /// Tokens of the medium.
        tokens: usize,
        /// Positions of the model.
        limit: usize,
    },
    /// The pixels do not fill the picture.
    #[error("{found} bytes for a picture of {width}x{height} RGB pixels, expected {expected}")]
    PixelCount {
        /// Pixels per row.
        width: usize,
        /// Rows.
        height: usize,
        /// Bytes given.
        found: usize,
        /// Bytes needed.
        expected: usize,
    },
    /// A picture so long that no grid of patches fits it.
    #[error(
        "the picture is {width}x{height} pixels, an aspect ratio of {ratio:.1}; this model takes \
         up to {limit}: crop the picture"
    )]
    AspectRatio {
        /// Pixels per row.
        width: usize,
        /// Rows.
        height: usize,
        /// Long side over short side.
        ratio: f64,
        /// Largest ratio taken.
        limit: f64,
    },
    /// The model's rules lead to a picture without pixels.
    #[error(
        "a picture of {width}x{height} pixels would be resized to {new_width}x{new_height}: \
         check the sizes in the preprocessor configuration"
    )]
    ResizedAway {
        /// Pixels per row.
        width: usize,
        /// Rows.
        height: usize,
        /// Pixels per row that the rules ask for.
        new_width: usize,
        /// Rows that the rules ask for.
        new_height: usize,
    },
    /// A video without frames.
    #[error("the video has no frames, expected at least one")]
    NoFrames,
    /// A video whose frames differ in size.
    #[error(
        "frame {index} of the video is {}x{} pixels, the first one {}x{}; all must be alike",
        found.0, found.1, expected.0, expected.1
    )]
    FrameSize {
        /// Number of the frame, from 0.
        index: usize,
        /// Its width and height.
        found: (usize, usize),
        /// Width and height of the first frame.
        expected: (usize, usize),
    },
    /// A sound without samples.
    #[error("the sound has no samples, expected at least one")]
    NoSamples,
    /// A sample that is no number.
    #[error("sample {index} of the sound is {value}, expected a finite number")]
    Sample {
        /// Number of the sample, from 0.
        index: usize,
        /// What it is.
        value: f32,
    },
    /// A sound that is too long at its new rate.
    #[error("the sound has {samples} samples at its new rate, at most {limit} can be held; cut it")]
    TooLong {
        /// Samples after conversion.
        samples: u64,
        /// Most samples.
        limit: u64,
    },
    /// A sample rate that cannot be converted.
    #[error("{found} samples per second, expected 1 to {limit}")]
    SampleRate {
        /// The rate.
        found: u32,
        /// Highest rate.
        limit: u32,
    },
    /// The preprocessor configuration cannot be used.
    #[error("preprocessor configuration: {0}")]
    Config(String),
    /// No memory for the result.
    #[error("no memory for {0} values; use a smaller picture or fewer frames")]
    Memory(usize),
}

impl PreprocessError {
    /// A configuration error.
    pub(super) fn config(message: impl Into<String>) -> Self {
        Self::Config(message.into())
    }

    /// Checks sizes of a configuration, see [`out_of_range`].
    ///
    /// # Errors
    /// Names the first that is out of range.
    pub(super) fn check_sizes(sizes: &[(&str, usize, usize)]) -> Result<(), Self> {
        out_of_range(sizes).map_or(Ok(()), |message| Err(Self::Config(message)))
    }
}

/// An empty vector with room for exactly `len` values, or an error where memory is short.
pub(super) fn allocate<T>(len: usize) -> Result<Vec<T>, PreprocessError> {
    let mut values = Vec::new();
    values
        .try_reserve_exact(len)
        .map_err(|_| PreprocessError::Memory(len))?;
    Ok(values)
}
