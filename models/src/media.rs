//! Media: kinds, options of preprocessing, and the input of the encoders.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::error::ModelError;
use crate::layout::Layout;
use crate::preprocess::{PreprocessError, RgbImage, frame_size};
use crate::reduce::{ReductionStep, Reductions};

/// Kinds of media.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MediaKind {
    /// A still image.
    Image,
    /// A sequence of frames.
    Video,
    /// A sound.
    Audio,
}

impl MediaKind {
    /// Returns the name in messages and chat templates.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Video => "video",
            Self::Audio => "audio",
        }
    }
}

/// Options for the preparation of media.
#[derive(Debug, Clone, PartialEq)]
pub struct MediaOptions {
    /// Smallest and largest number of tokens of an image, for families that resize images.
    pub image_tokens: Option<(usize, usize)>,
    /// Adds crops to images that are far from square, for families that pan and scan.
    pub pan_and_scan: bool,
    /// Padding of sounds.
    pub audio_padding: AudioPadding,
    /// Largest number of tokens of a medium. The engine sets it to the model's context length, so
    /// that a medium that cannot fit is refused before memory is allocated for its values.
    pub most_tokens: usize,
    /// Methods that reduce the tokens of images and videos.
    pub reductions: Reductions,
    /// Time to the first token, which the engine chooses the methods for (one of
    /// [`CANDIDATES`](crate::reduce::choice::CANDIDATES) instead of `reductions`). It needs a cost
    /// model.
    pub first_token_budget: Option<Duration>,
    /// Prepares a video while it is encoded, if the family supports it; otherwise before.
    pub overlap: bool,
    /// Start of the random sequence of [`Reduction::Random`](crate::reduce::Reduction::Random).
    pub seed: u64,
}

impl Default for MediaOptions {
    fn default() -> Self {
        Self {
            image_tokens: None,
            pan_and_scan: false,
            audio_padding: AudioPadding::default(),
            most_tokens: usize::MAX,
            reductions: Reductions::default(),
            first_token_budget: None,
            overlap: true,
            seed: 0,
        }
    }
}

/// Padding of a sound in its spectrogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AudioPadding {
    /// Only as much as the encoder's convolutions see: the features are those of the padded form,
    /// for a fraction of the work.
    #[default]
    None,
    /// Silence up to the full window that the encoder was trained on (30 s), as in the reference.
    Window,
}

/// An image, video or sound, ready for its encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct MediaInput {
    /// Kind of medium.
    pub kind: MediaKind,
    /// Pixel values or features, row-major.
    pub values: Vec<f32>,
    /// Dimensions of `values`.
    pub shape: Vec<usize>,
    /// Patches in time, height and width, before merging; zeros for families without such a grid.
    /// For a sound, `[n, 1, 1]`: the first `n` frames are not padding.
    pub grid: [usize; 3],
    /// Place in the prompt if the encoder drops no token: an upper bound of the medium's tokens.
    pub layout: Layout,
    /// Reduction of the tokens.
    pub reduction: InputReduction,
    /// For a video that is prepared in pieces while it is encoded ([`VideoPieces`]). `values` is
    /// empty then, `shape` is that of the whole.
    pub piece: Option<PieceSize>,
}

/// Memory of a video that is prepared in pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceSize {
    /// Rows of values of a piece.
    pub rows: usize,
    /// Bytes of the frames that are not decoded yet.
    pub undecoded_bytes: usize,
}

/// The times of a video's frames.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameTimes {
    /// Number of frames by the duration of the video in seconds.
    pub frames_per_second: f32,
    /// Seconds from the start of the video to each frame; `None` for frames at this rate.
    pub seconds: Option<Arc<[f64]>>,
}

impl From<f32> for FrameTimes {
    /// Frames at a constant rate.
    fn from(frames_per_second: f32) -> Self {
        Self {
            frames_per_second,
            seconds: None,
        }
    }
}

impl FrameTimes {
    /// Returns the seconds from the start of the video to a frame.
    pub fn of(&self, frame: usize) -> f64 {
        let known = self.seconds.as_ref().and_then(|seconds| seconds.get(frame));
        match known {
            Some(&seconds) => seconds,
            None => frame as f64 / f64::from(self.frames_per_second),
        }
    }

    /// Checks that times can be computed.
    ///
    /// # Errors
    /// If the rate is not a positive number.
    pub(crate) fn check(&self) -> Result<(), ModelError> {
        let rate = self.frames_per_second;
        if rate > 0.0 && rate.is_finite() {
            return Ok(());
        }
        Err(ModelError::Prompt(format!(
            "the video has {rate} frames per second, expected more than 0"
        )))
    }
}

/// The frames of a video, some of which may not be decoded yet.
pub trait VideoFrames: Sync {
    /// Returns the number of frames.
    fn count(&self) -> usize;

    /// Returns width and height of all frames.
    ///
    /// # Errors
    /// If there are no frames or they differ in size.
    fn size(&self) -> Result<(usize, usize), PreprocessError>;

    /// Returns the bytes of the frames that are not decoded yet.
    fn undecoded_bytes(&self) -> usize {
        0
    }

    /// Returns these frames, once they are decoded.
    ///
    /// # Errors
    /// [`ModelError::Undecoded`] if one of them cannot be decoded.
    fn frames(&self, range: Range<usize>) -> Result<Vec<RgbImage>, ModelError>;
}

impl VideoFrames for Vec<RgbImage> {
    fn count(&self) -> usize {
        self.len()
    }

    fn size(&self) -> Result<(usize, usize), PreprocessError> {
        frame_size(self)
    }

    fn frames(&self, range: Range<usize>) -> Result<Vec<RgbImage>, ModelError> {
        Ok(self[range].to_vec())
    }
}

/// A video that is prepared piece by piece. The pieces are whole slices in time, so that an encoder
/// in which slices do not depend on each other gives the same features as for the whole.
pub struct VideoPieces<'a> {
    frames: &'a dyn VideoFrames,
    /// Frames of a piece; the last one may have fewer.
    piece: usize,
    prepare: Box<PreparePiece<'a>>,
}

type PreparePiece<'a> =
    dyn Fn(usize, &[RgbImage]) -> Result<MediaInput, ModelError> + Send + Sync + 'a;

impl<'a> VideoPieces<'a> {
    /// Divides a video into pieces of `piece` frames, which `prepare` prepares from their index and
    /// frames.
    ///
    /// # Panics
    /// If `piece` is 0.
    pub fn new(
        frames: &'a dyn VideoFrames,
        piece: usize,
        prepare: impl Fn(usize, &[RgbImage]) -> Result<MediaInput, ModelError> + Send + Sync + 'a,
    ) -> Self {
        assert_ne!(piece, 0, "a piece has frames");
        Self {
            frames,
            piece,
            prepare: Box::new(prepare),
        }
    }

    /// Returns the number of pieces.
    pub fn count(&self) -> usize {
        self.frames.count().div_ceil(self.piece)
    }

    /// Returns the frames of a piece, once they are decoded.
    ///
    /// # Errors
    /// If one of them cannot be decoded.
    pub fn frames(&self, index: usize) -> Result<Vec<RgbImage>, ModelError> {
        let end = ((index + 1) * self.piece).min(self.frames.count());
        self.frames.frames(index * self.piece..end)
    }

    /// Prepares a piece from its frames.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn prepare(&self, index: usize, frames: &[RgbImage]) -> Result<MediaInput, ModelError> {
        (self.prepare)(index, frames)
    }
}

impl InputReduction {
    /// Returns the unit numbers of a medium of `units` units that enter the encoder.
    pub fn entering(&self, units: usize) -> Vec<usize> {
        self.units.clone().unwrap_or_else(|| (0..units).collect())
    }

    /// Returns the place of each unit among those that enter the encoder.
    pub fn places(&self, units: &[usize]) -> Vec<usize> {
        match &self.units {
            None => units.to_vec(),
            Some(entering) => {
                let place = |unit: &usize| entering.partition_point(|other| other < unit);
                units.iter().map(place).collect()
            }
        }
    }
}

/// The reduction of a medium before the encoder, and the methods that follow.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct InputReduction {
    /// The units that enter the encoder, sorted; `None` for all. See [`reduce`](crate::reduce).
    pub units: Option<Vec<usize>>,
    /// Units left after each method so far.
    pub steps: Vec<ReductionStep>,
    /// All methods.
    pub methods: Reductions,
}

impl MediaInput {
    /// Returns the largest number of prompt tokens that the medium takes.
    pub fn tokens(&self) -> usize {
        self.layout.tokens()
    }
}
