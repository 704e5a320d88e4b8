//! Decoded videos and the selection of their frames.

use std::sync::Arc;

use edge_lmm_models::media::FrameTimes;
use edge_lmm_models::preprocess::RgbImage;

/// Decoded frames in order of time.
#[derive(Debug, Clone, PartialEq)]
pub struct Video {
    /// The frames, at least one.
    pub frames: Vec<RgbImage>,
    /// Frames per second of these frames: their number by the duration of the video.
    pub frames_per_second: f32,
    /// Seconds from the start of the video to each frame, as in [`FrameTimes`].
    pub seconds: Option<Arc<[f64]>>,
    /// Number of frames that the motion gate skipped.
    pub skipped: usize,
}

impl Video {
    /// Returns the times of the frames.
    pub fn times(&self) -> FrameTimes {
        FrameTimes {
            frames_per_second: self.frames_per_second,
            seconds: self.seconds.clone(),
        }
    }
}

/// Selection of the frames to keep; others are not held in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum FrameSelection {
    /// All frames.
    All,
    /// This many, evenly spaced from the first one: frame `i * frames / n` rounded down, as in the
    /// sampling of the reference's video processor. All frames if there are not more.
    ///
    /// The number of frames of a stream is unknown until its end. Up to 2n evenly spaced frames are
    /// held then, and the frames nearest to the exact ones are chosen from these; of up to 2n
    /// frames, exactly the same ones as from a file.
    Uniform(usize),
    /// This many per second: the first frame at or after each multiple of the period. All frames if
    /// there are not more.
    Rate(f32),
    /// This many key frames: the first one and those that differ most from the frame before, by the
    /// mean absolute difference of their pixels. Frames of more than 224 pixels per side are
    /// averaged over blocks first. If fewer frames differ at all, the rest are the frames farthest
    /// in time from the chosen ones.
    ///
    /// From a stream, these rest are chosen from up to 2n evenly spaced frames; the others are the
    /// same as from a file.
    ///
    /// Noise is a difference as well: in a noisy video without motion, the frames with the
    /// strongest noise are chosen. A motion gate above the level of the noise removes them.
    Key(usize),
    /// This many key frames as by [`Key`](Self::Key), but of H.264 in MP4 only among the frames that
    /// depend on no other (IDR pictures), so that the others are not decoded. If the file has fewer
    /// than this many of them, and in other formats, all frames are candidates.
    ///
    /// An encoder places such frames at regular distances and at cuts: short events between them
    /// are missed.
    SyncKey(usize),
}

/// Selection of the frames of a video.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VideoOptions {
    /// Selection of frames.
    pub frames: FrameSelection,
    /// Frames that differ less than this from the last one before them that was not skipped are
    /// skipped before the selection. The difference is that of [`FrameSelection::Key`], from 0 to
    /// 255.
    pub motion_gate: Option<f32>,
}

impl From<FrameSelection> for VideoOptions {
    fn from(frames: FrameSelection) -> Self {
        Self {
            frames,
            motion_gate: None,
        }
    }
}
