//! Videos: MP4 with H.264, animations, Y4M, folders of numbered images and frame strips.
//!
//! A *frame strip* is a PNG named `NAME.stripN.png` with N frames of equal width side by side, the
//! first one at the left.
//!
//! Other compressed video (Matroska, HEVC, ...) is converted by the program ffmpeg if it may be
//! started ([`Source::with_ffmpeg`]); otherwise the error explains how to convert it.

use std::io::BufReader;
use std::path::Path;

use edge_lmm_models::media::MediaKind;

use super::animation::{Animation, DEFAULT_DELAY};
use super::decoding::Decoding;
use super::error::MediaError;
use super::ffmpeg::{self, Input};
use super::folder::FolderFrames;
use super::format::Format;
use super::frame_stream::{FrameStream, Frames};
use super::selection::Selected;
use super::shared::Shared;
use super::source::{Content, Source};
use super::strip::{StripFrames, strip_frames};
use super::y4m::Y4mFrames;
use super::{image, mp4, selection};

pub use super::frames::{FrameSelection, Video, VideoOptions};

/// Frames per second of videos without a rate (folders and strips): the rate that the reference's
/// processors assume for lists of images.
pub const DEFAULT_FRAME_RATE: f64 = 2.0;

/// Reads a video.
///
/// # Errors
/// If the file cannot be read, is not a video of a supported format, is truncated or damaged, or
/// the frames exceed the memory limit.
pub fn load_video(path: &Path, options: impl Into<VideoOptions>) -> Result<Video, MediaError> {
    Source::file(path)?.video(options)
}

impl Source {
    /// Decodes the selected frames of a video. Others are not held in memory.
    ///
    /// # Errors
    /// If it is not a video, is truncated or damaged, or exceeds the memory limit.
    pub fn video(&self, options: impl Into<VideoOptions>) -> Result<Video, MediaError> {
        let is_file = !matches!(self.content(), Content::Stream(..));
        self.read(|| selection::read(|| open(self), is_file, options.into()))
    }

    /// Decodes a video as [`Self::video`] does, on a thread if the choice of frames and their size
    /// are known before.
    pub(super) fn decode_video(&self, options: VideoOptions) -> Result<Decoded, MediaError> {
        let is_file = !matches!(self.content(), Content::Stream(..));
        self.read(|| {
            Ok(match selection::select(|| open(self), is_file, options)? {
                Selected::Read(video) => Decoded::Whole(video),
                Selected::Chosen(chosen) => match chosen.size().filter(|_| chosen.count() > 0) {
                    Some(size) => Decoded::Later(Decoding::start(self.path(), chosen, size)?),
                    None => Decoded::Whole(chosen.read()?),
                },
            })
        })
    }

    /// Opens a video as a stream of frames.
    ///
    /// # Errors
    /// If it is not a video, or is recognized as truncated or damaged before its frames are read.
    pub fn frames(&self) -> Result<FrameStream, MediaError> {
        let frames = self.read(|| open(self))?;
        Ok(FrameStream::new(self.path().to_owned(), frames))
    }
}

/// A video that is decoded, or that a thread decodes.
pub(super) enum Decoded {
    Whole(Video),
    Later(Decoding),
}

fn open(source: &Source) -> Result<Box<dyn Frames>, MediaError> {
    let path = source.path();
    Ok(match source.content() {
        Content::Folder => Box::new(FolderFrames::open(path)?),
        Content::Stream(Format::Y4m, stream) => {
            Box::new(Y4mFrames::stream(Box::new(BufReader::new(stream.take()?)))?)
        }
        Content::Stream(format, stream) => converted(source, *format, format.name(), || {
            Ok(Input::Pipe(stream.take()?))
        })?,
        Content::Unsupported(format @ Format::Other(MediaKind::Video, name)) => {
            converted(source, *format, name, || Ok(Input::File(path)))?
        }
        Content::Whole(format @ Format::Png, bytes) => match strip_frames(path) {
            Some(count) => {
                let strip = image::decode(*format, bytes)?;
                Box::new(StripFrames::new(strip, count)?)
            }
            None => open_animation(*format, bytes)?,
        },
        Content::Whole(format @ (Format::Gif | Format::WebP), bytes) => {
            open_animation(*format, bytes)?
        }
        content => match content.bytes() {
            Some((Format::Y4m, bytes)) => Box::new(Y4mFrames::open(&bytes)?),
            Some((format @ Format::Mp4, bytes)) => match mp4::open_video(&bytes) {
                Err(MediaError::Unsupported { format: codec, .. }) => {
                    converted(source, format, &codec, || Input::of(source))?
                }
                frames => frames?,
            },
            _ => return Err(content.wrong("video")),
        },
    })
}

/// Opens an animation; a still image is a video of one frame.
fn open_animation(format: Format, bytes: &Shared) -> Result<Box<dyn Frames>, MediaError> {
    Ok(match Animation::of(format, bytes) {
        Some(animation) => Box::new(animation.open(format, bytes)?),
        None => {
            let image = image::decode(format, bytes)?;
            Box::new(StripFrames::still(image, DEFAULT_DELAY))
        }
    })
}

/// Opens a video that ffmpeg converts. `name` is that of its format or codec.
fn converted<'a>(
    source: &Source,
    format: Format,
    name: &str,
    input: impl FnOnce() -> Result<Input<'a>, MediaError>,
) -> Result<Box<dyn Frames>, MediaError> {
    let (Some(program), Some(demuxer)) = (source.ffmpeg(), ffmpeg::demuxer(format)) else {
        return Err(unsupported(source.path(), name, ""));
    };
    match ffmpeg::video(program, input()?, demuxer)? {
        Some(output) => Ok(Box::new(Y4mFrames::stream(Box::new(output))?)),
        None => {
            let missing = "the program ffmpeg, which would convert it, was not found: install it, \
                           for example with apt install ffmpeg; or elsewhere, ";
            Err(unsupported(source.path(), name, missing))
        }
    }
}

fn unsupported(path: &Path, name: &str, missing: &str) -> MediaError {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    MediaError::Unsupported {
        format: format!("compressed video ({name})"),
        advice: format!(
            "{missing}convert it, for example \
             ffmpeg -i '{file}' -c:v libx264 -pix_fmt yuv420p video.mp4; or extract frames, for \
             example two per second: mkdir frames && ffmpeg -i '{file}' -vf fps=2 frames/%05d.png, \
             and pass the folder"
        ),
    }
}
