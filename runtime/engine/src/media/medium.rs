//! A decoded image, video or sound.

use std::sync::{Arc, OnceLock};

use edge_lmm_models::ModelError;
use edge_lmm_models::family::BuiltModel;
use edge_lmm_models::media::{FrameTimes, MediaInput, MediaKind, MediaOptions, VideoFrames};
use edge_lmm_models::preprocess::RgbImage;
use edge_lmm_models::prompt::{Content, Message, Role};
use edge_lmm_ops::KernelBackend;
use xxhash_rust::xxh3::Xxh3;

#[cfg(feature = "files")]
use super::files::Decoding;

/// A decoded medium. Clones share its data.
#[derive(Debug, Clone)]
pub struct Media {
    shared: Arc<Shared>,
    sound_track: bool,
}

#[derive(Debug)]
struct Shared {
    origin: Origin,
    /// Computed once, so that the next turn about the same medium does not read its pixels again.
    hash: OnceLock<u128>,
}

#[derive(Debug)]
enum Origin {
    Decoded(MediaData),
    /// A video that is decoded by a thread, and its frames once they are asked for.
    #[cfg(feature = "files")]
    Decoding(Decoding, OnceLock<MediaData>),
}

/// Pixels or samples of a medium.
#[derive(Debug)]
#[non_exhaustive]
pub enum MediaData {
    /// A still image.
    Image(RgbImage),
    /// A sequence of frames.
    Video {
        /// The frames.
        frames: Vec<RgbImage>,
        /// Their times.
        times: FrameTimes,
    },
    /// A sound in one channel.
    Audio {
        /// Samples from -1 to 1.
        samples: Vec<f32>,
        /// Samples per second.
        sample_rate: u32,
    },
}

impl From<MediaData> for Media {
    fn from(data: MediaData) -> Self {
        Self::of(Origin::Decoded(data))
    }
}

impl Media {
    fn of(origin: Origin) -> Self {
        Self {
            shared: Arc::new(Shared {
                origin,
                hash: OnceLock::new(),
            }),
            sound_track: false,
        }
    }

    /// Prepares the medium for the encoder of a model.
    ///
    /// # Errors
    /// If the model cannot take it, or does not support the options.
    pub fn prepare<B: KernelBackend>(
        &self,
        model: &dyn BuiltModel<B>,
        options: &MediaOptions,
    ) -> Result<MediaInput, ModelError> {
        match self.data() {
            MediaData::Image(image) => model.image(image, options),
            MediaData::Video { frames, times } => model.video(frames, times, options),
            MediaData::Audio {
                samples,
                sample_rate,
            } => model.audio(samples, *sample_rate, options),
        }
    }

    /// A still image.
    pub fn image(image: RgbImage) -> Self {
        MediaData::Image(image).into()
    }

    /// A video with frames at a rate, or at times of their own.
    pub fn video(frames: Vec<RgbImage>, times: impl Into<FrameTimes>) -> Self {
        let times = times.into();
        MediaData::Video { frames, times }.into()
    }

    /// A sound in one channel, with samples from -1 to 1.
    pub fn audio(samples: Vec<f32>, sample_rate: u32) -> Self {
        MediaData::Audio {
            samples,
            sample_rate,
        }
        .into()
    }

    /// Makes a sound that of the video before it ([`Content::SoundTrack`]) in messages that are built
    /// from media.
    #[must_use]
    pub fn as_sound_track(self) -> Self {
        Self {
            sound_track: true,
            ..self
        }
    }

    /// Returns the part of a message that shows the medium.
    pub fn content(&self) -> Content {
        match (self.kind(), self.sound_track) {
            (MediaKind::Audio, true) => Content::SoundTrack,
            (kind, _) => Content::Media(kind),
        }
    }

    /// A video that is decoded by a thread.
    #[cfg(feature = "files")]
    pub(super) fn decoding(decoding: Decoding) -> Self {
        Self::of(Origin::Decoding(decoding, OnceLock::new()))
    }

    /// Returns a video that is, or was, decoded by a thread.
    #[cfg(feature = "files")]
    pub(super) fn as_decoding(&self) -> Option<&Decoding> {
        match &self.shared.origin {
            Origin::Decoding(decoding, _) => Some(decoding),
            Origin::Decoded(_) => None,
        }
    }

    /// Returns the frames of a video that is not decoded yet, and their times.
    pub(crate) fn undecoded(&self) -> Option<(&dyn VideoFrames, &FrameTimes)> {
        #[cfg(feature = "files")]
        if let Some(decoding) = self.as_decoding()
            && decoding.hash().is_none()
        {
            return Some((decoding, decoding.times()));
        }
        None
    }

    /// Pixels or samples. A video that is decoded on a thread is waited for; it has no frames if it
    /// turns out to be damaged.
    pub fn data(&self) -> &MediaData {
        match &self.shared.origin {
            Origin::Decoded(data) => data,
            #[cfg(feature = "files")]
            Origin::Decoding(decoding, data) => data.get_or_init(|| decoding.data()),
        }
    }

    /// Bytes of pixels or samples.
    pub fn bytes(&self) -> usize {
        #[cfg(feature = "files")]
        if let Some(decoding) = self.as_decoding() {
            return decoding.bytes();
        }
        match self.data() {
            MediaData::Image(image) => image.pixels().len(),
            MediaData::Video { frames, .. } => {
                frames.iter().map(|frame| frame.pixels().len()).sum()
            }
            MediaData::Audio { samples, .. } => size_of_val(&samples[..]),
        }
    }

    /// The kind of medium.
    pub fn kind(&self) -> MediaKind {
        #[cfg(feature = "files")]
        if self.as_decoding().is_some() {
            return MediaKind::Video;
        }
        match self.data() {
            MediaData::Image(_) => MediaKind::Image,
            MediaData::Video { .. } => MediaKind::Video,
            MediaData::Audio { .. } => MediaKind::Audio,
        }
    }

    /// Hash of the data, computed on the first call.
    pub fn content_hash(&self) -> u128 {
        *self.shared.hash.get_or_init(|| {
            #[cfg(feature = "files")]
            if let Some(hash) = self.as_decoding().and_then(Decoding::hash) {
                return hash;
            }
            self.data().hash()
        })
    }

    /// Returns a number that no other medium has at the same time.
    pub(crate) fn address(&self) -> usize {
        Arc::as_ptr(&self.shared).addr()
    }
}

/// A user's turn that shows `media` and then says `text`.
pub fn user_message(media: &[Media], text: impl Into<String>) -> Message {
    let media = media.iter().map(Media::content);
    Message {
        role: Role::User,
        content: media.chain([Content::Text(text.into())]).collect(),
    }
}

impl MediaData {
    fn hash(&self) -> u128 {
        let mut hasher = Xxh3::new();
        match self {
            Self::Image(image) => {
                hasher.update(b"image");
                hash_image(&mut hasher, image);
            }
            Self::Video { frames, times } => {
                let mut video = VideoHasher::new(times);
                frames.iter().for_each(|frame| video.add(frame));
                return video.finish();
            }
            Self::Audio {
                samples,
                sample_rate,
            } => {
                hasher.update(b"audio");
                hasher.update(&sample_rate.to_le_bytes());
                for chunk in samples.chunks(1024) {
                    let bytes: Vec<u8> = chunk.iter().flat_map(|v| v.to_le_bytes()).collect();
                    hasher.update(&bytes);
                }
            }
        }
        hasher.digest128()
    }
}

/// Hash of a video whose frames come one by one.
pub(super) struct VideoHasher(Xxh3);

impl VideoHasher {
    /// Begins with the times of a video's frames.
    pub fn new(times: &FrameTimes) -> Self {
        let mut hasher = Xxh3::new();
        hasher.update(b"video");
        hasher.update(&times.frames_per_second.to_le_bytes());
        for seconds in times.seconds.iter().flat_map(|seconds| seconds.iter()) {
            hasher.update(&seconds.to_le_bytes());
        }
        Self(hasher)
    }

    /// Adds a frame.
    pub fn add(&mut self, frame: &RgbImage) {
        hash_image(&mut self.0, frame);
    }

    /// Returns the hash of [`Media::content_hash`].
    pub fn finish(&self) -> u128 {
        self.0.digest128()
    }
}

fn hash_image(hasher: &mut Xxh3, image: &RgbImage) {
    for size in [image.width(), image.height()] {
        hasher.update(&size.to_le_bytes());
    }
    hasher.update(image.pixels());
}
