//! Samples: questions of a manifest, or repeats with synthetic media.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::Instant;

use edge_lmm_models::media::MediaKind;
use edge_lmm_models::preprocess::{Filter, RgbImage, resize};
use serde::{Deserialize, Serialize};

use super::error::ExperimentError;
use super::synthetic;
use crate::manifest::Question;
use crate::media::{Audio, FrameSelection, Media, Source};

/// Question about a synthetic medium.
pub(super) const QUESTION: &str = "Describe this.";

/// Kind of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Modality {
    /// Text alone.
    Text,
    /// About an image.
    Image,
    /// About a video.
    Video,
    /// About a sound.
    Audio,
}

impl Modality {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Text, Self::Image, Self::Video, Self::Audio];

    /// Returns the name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Image => "image",
            Self::Video => "video",
            Self::Audio => "sound",
        }
    }

    /// Returns the name of several.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Image => "images",
            Self::Video => "videos",
            Self::Audio => "sounds",
        }
    }
}

impl From<MediaKind> for Modality {
    fn from(kind: MediaKind) -> Self {
        match kind {
            MediaKind::Image => Self::Image,
            MediaKind::Video => Self::Video,
            MediaKind::Audio => Self::Audio,
        }
    }
}

/// Name of a sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleKey {
    /// Id of the question, and `#2`, `#3`, ... for its repeats; the number of the repeat without a
    /// manifest.
    pub id: String,
    /// Kind of the question; `None` without a manifest, or if its medium cannot be opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modality: Option<Modality>,
    /// Task of the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
}

impl SampleKey {
    /// Returns `true` if a case for samples of a kind is measured with this one.
    pub fn suits(&self, modality: Option<Modality>) -> bool {
        match (self.modality, modality) {
            (Some(own), Some(wanted)) => own == wanted,
            _ => true,
        }
    }
}

/// A question of a manifest, or a repeat for which experiments make media of their own.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Name.
    pub key: SampleKey,
    /// The question, with the path of its medium.
    pub(super) question: Option<(Question, Option<PathBuf>)>,
    /// Text of the question without a manifest.
    pub(super) text: String,
    /// Start of the random sequence of synthetic media.
    pub(super) seed: u64,
}

/// A medium and the time of reading it in milliseconds.
pub struct Read {
    pub media: Media,
    pub ms: f64,
}

impl Sample {
    /// Returns the question.
    pub fn question(&self) -> &str {
        match &self.question {
            Some((question, _)) => &question.question,
            None => &self.text,
        }
    }

    /// Returns the expected answer.
    pub fn expected(&self) -> Option<&str> {
        let (question, _) = self.question.as_ref()?;
        Some(&question.answer)
    }

    /// Returns the path of the medium, as it is written in the manifest.
    pub fn media_path(&self) -> Option<&str> {
        let (question, _) = self.question.as_ref()?;
        Some(&question.media_path)
    }

    /// Returns the path of the medium.
    pub(super) fn path(&self) -> Option<&Path> {
        self.question.as_ref()?.1.as_deref()
    }

    /// Returns a synthetic sample that asks a question of so many words.
    pub(super) fn saying(&self, words: usize) -> Self {
        Self {
            question: None,
            text: synthetic::text(words),
            ..self.clone()
        }
    }

    fn source(&self) -> Result<Option<Source>, ExperimentError> {
        let path = self.path();
        Ok(path.map(Source::file).transpose()?)
    }

    /// Reads the medium as it is; `None` for a question about text and without a manifest.
    ///
    /// # Errors
    /// If the file is missing or damaged.
    pub fn media(&self) -> Result<Option<Read>, ExperimentError> {
        let start = Instant::now();
        let Some(source) = self.source()? else {
            return Ok(None);
        };
        let media = Media::read(&source, source.kind()?, FrameSelection::All)?;
        Ok(Some(Read {
            media,
            ms: since(start),
        }))
    }

    /// Returns the image, resized so that its longer side has `side` pixels; synthetic noise of
    /// `side` x `side` without a manifest.
    ///
    /// # Errors
    /// If the file is missing, damaged, or not an image.
    pub fn image(&self, side: Option<usize>) -> Result<Read, ExperimentError> {
        let start = Instant::now();
        let image = match self.source()? {
            None => synthetic::image(side.unwrap_or(synthetic::SIDE), self.seed)?,
            Some(source) => {
                let image = source.image()?;
                match side {
                    Some(side) => scaled(&image, side)?,
                    None => image,
                }
            }
        };
        Ok(Read {
            media: Media::image(image),
            ms: since(start),
        })
    }

    /// Returns the selected frames of the video; without a manifest, of a synthetic clip of
    /// `frames` frames of `side` x `side` pixels.
    ///
    /// # Errors
    /// If the file is missing, damaged, or not a video.
    pub fn video(
        &self,
        selection: FrameSelection,
        frames: usize,
        side: usize,
    ) -> Result<Read, ExperimentError> {
        let source = match self.source()? {
            Some(source) => source,
            None => clip(frames, side, self.seed)?,
        };
        // The synthetic clip is not made again in the measured time.
        let start = Instant::now();
        let media = Media::read(&source, MediaKind::Video, selection)?;
        Ok(Read {
            media,
            ms: since(start),
        })
    }

    /// Returns `seconds` of the sound, which is repeated if it is shorter; synthetic noise without
    /// a manifest.
    ///
    /// # Errors
    /// If the file is missing, damaged, or has no sound.
    pub fn audio(&self, seconds: Option<f64>) -> Result<Read, ExperimentError> {
        let start = Instant::now();
        let (samples, rate) = match self.source()? {
            None => {
                let seconds = seconds.unwrap_or(synthetic::SECONDS);
                (synthetic::sound(seconds, self.seed), synthetic::SAMPLE_RATE)
            }
            Some(source) => {
                let Audio {
                    samples,
                    sample_rate,
                } = source.audio()?;
                let wanted = match seconds {
                    Some(seconds) => (seconds * f64::from(sample_rate)) as usize,
                    None => samples.len(),
                };
                let samples = samples.iter().copied().cycle().take(wanted.max(1));
                (samples.collect(), sample_rate)
            }
        };
        Ok(Read {
            media: Media::audio(samples, rate),
            ms: since(start),
        })
    }
}

/// Returns a synthetic clip as an undecoded stream.
pub(super) fn clip(frames: usize, side: usize, seed: u64) -> Result<Source, ExperimentError> {
    let bytes = synthetic::clip(frames, side, seed);
    Ok(Source::stream(Path::new("clip.y4m"), Cursor::new(bytes))?)
}

/// Resizes an image so that its longer side has `side` pixels.
fn scaled(image: &RgbImage, side: usize) -> Result<RgbImage, ExperimentError> {
    let longest = image.width().max(image.height());
    let size = |length: usize| (length * side).div_ceil(longest).max(1);
    let (width, height) = (size(image.width()), size(image.height()));
    Ok(resize::resize(image, width, height, Filter::Bicubic)?)
}

/// Returns the milliseconds since `start`.
pub(super) fn since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
