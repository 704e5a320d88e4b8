//! Errors of preparing media.

use crate::settings::out_of_range;

/// Maximum number of pixels of an image. Larger images are rejected before memory is allocated.
pub const MAX_PIXELS: usize = 200_000_000;

/// The error returned when an image, video or audio clip cannot be prepared for a model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PreprocessError {
    /// An image without pixels.
    #[error("the image is {width}x{height} pixels, expected at least 1x1")]
    Empty {
        /// Pixels per row.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// An image, decoded or to be created, that exceeds the size limit.
    #[error(
        "an image of {width}x{height} pixels is too large: at most {MAX_PIXELS} pixels are \
         supported; scale it down"
    )]
    TooLarge {
        /// Pixels per row.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// An image or video with more tokens than the model's context.
    #[error(
        "the image or video has {tokens} tokens, the model's context is {limit}; make it smaller \
         or use fewer frames"
    )]
    TooManyTokens {
        /// Tokens of the image or video.
        tokens: usize,
        /// Context length of the model.
        limit: usize,
    },
    /// The number of bytes does not match the size of the image.
    #[error("{found} bytes for an image of {width}x{height} RGB pixels, expected {expected}")]
    PixelCount {
        /// Pixels per row.
        width: usize,
        /// Rows.
        height: usize,
        /// Bytes given.
        found: usize,
        /// Bytes expected.
        expected: usize,
    },
    /// An image whose aspect ratio is too extreme.
    #[error(
        "the image is {width}x{height} pixels, an aspect ratio of {ratio:.1}; this model accepts \
         up to {limit}: crop the image"
    )]
    AspectRatio {
        /// Pixels per row.
        width: usize,
        /// Rows.
        height: usize,
        /// Long side over short side.
        ratio: f64,
        /// Largest ratio accepted.
        limit: f64,
    },
    /// The configured sizes lead to an image without pixels.
    #[error(
        "an image of {width}x{height} pixels would be resized to {new_width}x{new_height}: \
         check the sizes in the preprocessor configuration"
    )]
    ResizedAway {
        /// Pixels per row.
        width: usize,
        /// Rows.
        height: usize,
        /// Pixels per row after resizing.
        new_width: usize,
        /// Rows after resizing.
        new_height: usize,
    },
    /// A video without frames.
    #[error("the video has no frames, expected at least one")]
    NoFrames,
    /// A video whose frames differ in size.
    #[error(
        "frame {index} of the video is {}x{} pixels, the first one {}x{}; all frames \
         must have the same size",
        found.0, found.1, expected.0, expected.1
    )]
    FrameSize {
        /// Index of the frame, from 0.
        index: usize,
        /// Width and height of this frame.
        found: (usize, usize),
        /// Width and height of the first frame.
        expected: (usize, usize),
    },
    /// Audio without samples.
    #[error("the audio has no samples, expected at least one")]
    NoSamples,
    /// A sample that is not a finite number.
    #[error("audio sample {index} is {value}, expected a finite number")]
    Sample {
        /// Index of the sample, from 0.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// Audio that is too long after resampling.
    #[error(
        "the audio has {samples} samples after resampling, at most {limit} are supported; \
         shorten it"
    )]
    TooLong {
        /// Samples after resampling.
        samples: u64,
        /// Maximum number of samples.
        limit: u64,
    },
    /// An unsupported sample rate.
    #[error("{found} samples per second, expected 1 to {limit}")]
    SampleRate {
        /// The rate.
        found: u32,
        /// Maximum rate.
        limit: u32,
    },
    /// The preprocessor configuration is invalid or not supported.
    #[error("preprocessor configuration: {0}")]
    Config(String),
    /// Memory for the result cannot be allocated.
    #[error("cannot allocate memory for {0} values; use a smaller image or fewer frames")]
    Memory(usize),
}

impl PreprocessError {
    /// Builds a configuration error.
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

/// Returns an empty vector with capacity for exactly `len` values, or an error if memory is short.
pub(super) fn allocate<T>(len: usize) -> Result<Vec<T>, PreprocessError> {
    let mut values = Vec::new();
    values
        .try_reserve_exact(len)
        .map_err(|_| PreprocessError::Memory(len))?;
    Ok(values)
}
