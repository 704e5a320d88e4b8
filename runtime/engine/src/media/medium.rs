//! A decoded image, video or sound.

use std::sync::{Arc, OnceLock};

use edge_lmm_models::media::MediaKind;
use edge_lmm_models::preprocess::RgbImage;
use edge_lmm_models::prompt::{Content, Message, Role};
use xxhash_rust::xxh3::Xxh3;

/// A decoded medium. Clones share its data.
#[derive(Debug, Clone)]
pub struct Media(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    data: MediaData,
    /// Computed once, so that the next turn about the same medium does not read its pixels again.
    hash: OnceLock<u128>,
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
        /// Their rate.
        frames_per_second: f32,
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
        let hash = OnceLock::new();
        Self(Arc::new(Shared { data, hash }))
    }
}

impl Media {
    /// A still image.
    pub fn image(image: RgbImage) -> Self {
        MediaData::Image(image).into()
    }

    /// A video.
    pub fn video(frames: Vec<RgbImage>, frames_per_second: f32) -> Self {
        MediaData::Video {
            frames,
            frames_per_second,
        }
        .into()
    }

    /// A sound in one channel, with samples from -1 to 1.
    pub fn audio(samples: Vec<f32>, sample_rate: u32) -> Self {
        MediaData::Audio {
            samples,
            sample_rate,
        }
        .into()
    }

    /// Pixels or samples.
    pub fn data(&self) -> &MediaData {
        &self.0.data
    }

    /// Bytes of pixels or samples.
    pub fn bytes(&self) -> usize {
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
        match self.data() {
            MediaData::Image(_) => MediaKind::Image,
            MediaData::Video { .. } => MediaKind::Video,
            MediaData::Audio { .. } => MediaKind::Audio,
        }
    }

    /// Hash of the data, computed on the first call.
    pub fn content_hash(&self) -> u128 {
        *self.0.hash.get_or_init(|| self.data().hash())
    }
}

/// A user's turn that shows `media` and then says `text`.
pub fn user_message(media: &[Media], text: impl Into<String>) -> Message {
    let media = media.iter().map(|medium| Content::Media(medium.kind()));
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
            Self::Video {
                frames,
                frames_per_second,
            } => {
                hasher.update(b"video");
                hasher.update(&frames_per_second.to_le_bytes());
                for frame in frames {
                    hash_image(&mut hasher, frame);
                }
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

fn hash_image(hasher: &mut Xxh3, image: &RgbImage) {
    for size in [image.width(), image.height()] {
        hasher.update(&size.to_le_bytes());
    }
    hasher.update(image.pixels());
}
