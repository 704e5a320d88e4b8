//! Videos: animations, Y4M, folders of numbered images and frame strips.
//!
//! A *frame strip* is a PNG named `NAME.stripN.png` with N frames of equal width side by side, the
//! first one at the left.
//!
//! Compressed video (MP4, Matroska) is not supported; the error explains how to extract frames.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek};
use std::path::{Path, PathBuf};

use edge_lmm_models::preprocess::RgbImage;

use super::error::{MAX_FRAMES, MediaError};
use super::format::{Format, HEAD};
use super::image::load_image;
use super::kind::MediaKind;
use super::source::{Content, Source};
use super::{animation, budget, image, y4m};

/// Frames per second of videos without a rate (folders and strips): the rate that the reference's
/// processors assume for lists of images.
pub const DEFAULT_FRAME_RATE: f32 = 2.0;

/// Maximum files in a folder that is read as a video.
const MAX_FILES: usize = 100_000;

/// Decoded frames in order of time.
#[derive(Debug, Clone, PartialEq)]
pub struct Video {
    /// The frames, at least one.
    pub frames: Vec<RgbImage>,
    /// Frames per second of these frames.
    pub frames_per_second: f32,
}

/// Selection of the frames to keep; others are not held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameSelection {
    /// All frames.
    All,
    /// This many, evenly spaced from the first one: frame `i * frames / n` rounded down, as in the
    /// sampling of the reference's video processor. All frames if there are not more.
    Uniform(usize),
}

/// Reads a video.
///
/// # Errors
/// If the file cannot be read, is not a video of a supported format, is truncated or damaged, or
/// the frames exceed the memory limit.
pub fn load_video(path: &Path, selection: FrameSelection) -> Result<Video, MediaError> {
    Source::file(path)?.video(selection)
}

/// Decodes frames of a video; `path` is its name.
pub(super) fn decode(
    path: &Path,
    content: &Content,
    selection: FrameSelection,
) -> Result<Video, MediaError> {
    match content {
        Content::Folder => load_folder(path, selection),
        Content::Y4m(file) => {
            let mut reader = BufReader::new(file);
            reader.rewind().map_err(MediaError::Io)?;
            y4m::load(reader, selection)
        }
        Content::Whole(Format::Y4m, bytes) => y4m::load(Cursor::new(bytes), selection),
        Content::Whole(format @ Format::Png, bytes) => match strip_frames(path) {
            Some(count) => cut_strip(&image::decode(*format, bytes)?, count, selection),
            None => animation::load(*format, bytes, selection),
        },
        Content::Whole(format @ (Format::Gif | Format::WebP), bytes) => {
            animation::load(*format, bytes, selection)
        }
        Content::Unsupported(Format::Other(MediaKind::Video, name)) => Err(compressed(path, name)),
        other => Err(other.wrong("video")),
    }
}

fn compressed(path: &Path, name: &str) -> MediaError {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    MediaError::Unsupported {
        format: format!("compressed video ({name})"),
        advice: format!(
            "extract frames, for example two per second: \
             mkdir frames && ffmpeg -i '{file}' -vf fps=2 frames/%05d.png, and pass the folder; \
             or create a Y4M: ffmpeg -i '{file}' -vf fps=2 -pix_fmt yuv420p video.y4m"
        ),
    }
}

/// Collector of the selected frames of a video.
pub(super) struct Picker {
    selection: FrameSelection,
    /// Number of frames according to the video.
    total: usize,
    seen: usize,
    kept: Vec<RgbImage>,
}

impl Picker {
    pub fn new(selection: FrameSelection, total: usize) -> Self {
        Self {
            selection,
            total,
            seen: 0,
            kept: Vec::new(),
        }
    }

    /// Returns the index of the next selected frame, if any.
    fn next(&self) -> Option<usize> {
        let kept = self.kept.len();
        match self.selection {
            FrameSelection::Uniform(wanted) if wanted < self.total => {
                // The product may exceed 64 bits.
                let next = kept as u128 * self.total as u128 / wanted.max(1) as u128;
                (kept < wanted).then_some(next as usize)
            }
            _ => (kept < self.total).then_some(kept),
        }
    }

    /// Returns `true` if no further frame is selected.
    pub fn is_done(&self) -> bool {
        self.next().is_none()
    }

    /// Returns `true` if the next frame is selected.
    pub fn wants(&self) -> bool {
        self.next() == Some(self.seen)
    }

    /// Takes the next frame, which is created only if it is selected.
    pub fn offer(
        &mut self,
        frame: impl FnOnce() -> Result<RgbImage, MediaError>,
    ) -> Result<(), MediaError> {
        if self.wants() {
            let frame = frame()?;
            let pixels = self.pixels(frame.width(), frame.height())?;
            // Checked once; later, frames already kept would count twice.
            if self.kept.is_empty() {
                budget::check(3 * pixels)?;
            }
            self.kept.push(frame);
        }
        self.seen += 1;
        Ok(())
    }

    /// Checks that all selected frames of this size fit into memory.
    pub fn check_room(&self, width: usize, height: usize) -> Result<(), MediaError> {
        budget::check(3 * self.pixels(width, height)?)
    }

    /// Returns the pixels of all selected frames of this size.
    fn pixels(&self, width: usize, height: usize) -> Result<u64, MediaError> {
        let frames = match self.selection {
            FrameSelection::Uniform(wanted) => wanted.min(self.total),
            FrameSelection::All => self.total,
        };
        let pixels = width.saturating_mul(height).saturating_mul(frames);
        if pixels > RgbImage::MAX_PIXELS || frames > MAX_FRAMES {
            return Err(MediaError::TooManyFrames {
                frames,
                width,
                height,
            });
        }
        Ok(pixels as u64)
    }

    /// Builds the video from the frame rate of the source.
    pub fn finish(self, format: &'static str, frames_per_second: f32) -> Result<Video, MediaError> {
        if self.kept.is_empty() {
            return Err(MediaError::damaged(format, "it has no complete frame"));
        }
        let share = self.kept.len() as f32 / self.total.max(1) as f32;
        Ok(Video {
            frames_per_second: match self.selection {
                FrameSelection::Uniform(_) => frames_per_second * share,
                FrameSelection::All => frames_per_second,
            },
            frames: self.kept,
        })
    }
}

/// Returns the number of frames N if the name is that of a frame strip.
pub(super) fn strip_frames(path: &Path) -> Option<usize> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".png")?;
    let (_, count) = stem.rsplit_once(".strip")?;
    let all_digits = !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit());
    count.parse().ok().filter(|&n| all_digits && n > 0)
}

fn cut_strip(
    strip: &RgbImage,
    count: usize,
    selection: FrameSelection,
) -> Result<Video, MediaError> {
    if !strip.width().is_multiple_of(count) {
        return Err(MediaError::damaged(
            "frame strip",
            format!(
                "its width of {} pixels is not divisible by {count} frames",
                strip.width()
            ),
        ));
    }
    let width = strip.width() / count;
    let mut picker = Picker::new(selection, count);
    picker.check_room(width, strip.height())?;
    for i in 0..count {
        picker.offer(|| {
            let rows = 0..strip.height();
            let pixels = rows.flat_map(|y| &strip.row(y)[i * width * 3..(i + 1) * width * 3]);
            Ok(RgbImage::new(
                width,
                strip.height(),
                pixels.copied().collect(),
            )?)
        })?;
    }
    picker.finish("frame strip", DEFAULT_FRAME_RATE)
}

fn load_folder(folder: &Path, selection: FrameSelection) -> Result<Video, MediaError> {
    let images = images_of(folder)?;
    let mut picker = Picker::new(selection, images.len());
    for image in &images {
        picker.offer(|| load_image(image))?;
    }
    picker.finish("folder of images", DEFAULT_FRAME_RATE)
}

/// Lists the images of a folder in the order of their numbers; other files are skipped.
fn images_of(folder: &Path) -> Result<Vec<PathBuf>, MediaError> {
    let mut images = Vec::new();
    for entry in folder.read_dir().map_err(MediaError::Io)?.take(MAX_FILES) {
        let path = entry.map_err(MediaError::Io)?.path();
        let hidden = |name: &str| name.starts_with('.');
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_none_or(hidden) || !path.is_file() {
            continue;
        }
        let head = head(&path).map_err(|error| MediaError::Io(error).of(&path))?;
        use Format::{Bmp, Gif, Jpeg, Png, WebP};
        if let Some(Png | Jpeg | Gif | WebP | Bmp) = Format::of(&head) {
            images.push(path);
        }
    }
    if images.is_empty() {
        return Err(MediaError::WrongKind {
            wanted: "video",
            found: "a folder without images".to_owned(),
            expected: "a folder of numbered images",
        });
    }
    images.sort_by(|a, b| by_number(&a.to_string_lossy(), &b.to_string_lossy()));
    Ok(images)
}

/// Reads the first bytes of a file.
fn head(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(HEAD);
    File::open(path)?
        .take(HEAD as u64)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Compares names with numbers by value: `frame9` comes before `frame10`.
fn by_number(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let (number, other) = (digits(left), digits(right));
        if !number.is_empty() && !other.is_empty() {
            // Without leading zeros, the longer number is the larger one.
            let (n, m) = (
                number.trim_start_matches('0'),
                other.trim_start_matches('0'),
            );
            let order = n.len().cmp(&m.len()).then_with(|| n.cmp(m));
            if order != Ordering::Equal {
                return order;
            }
            (left, right) = (&left[number.len()..], &right[other.len()..]);
            continue;
        }
        let (mut next, mut other) = (left.chars(), right.chars());
        match (next.next(), other.next()) {
            (Some(x), Some(y)) if x == y => (left, right) = (next.as_str(), other.as_str()),
            (x, y) => return x.cmp(&y).then_with(|| a.cmp(b)),
        }
    }
}

fn digits(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_digit());
    &text[..end.unwrap_or(text.len())]
}
