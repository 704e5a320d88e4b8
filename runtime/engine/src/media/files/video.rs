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

use edge_lmm_models::media::MediaKind;
use edge_lmm_models::preprocess::RgbImage;

use super::animation::{Animation, DEFAULT_DELAY};
use super::error::MediaError;
use super::format::{Format, HEAD};
use super::frames::Picker;
use super::image::{self, load_image};
use super::source::{Content, Source};
use super::y4m;

pub use super::frames::{FrameSelection, Video};

/// Frames per second of videos without a rate (folders and strips): the rate that the reference's
/// processors assume for lists of images.
pub const DEFAULT_FRAME_RATE: f32 = 2.0;

/// Maximum files in a folder that is read as a video.
const MAX_FILES: usize = 100_000;

/// Reads a video.
///
/// # Errors
/// If the file cannot be read, is not a video of a supported format, is truncated or damaged, or
/// the frames exceed the memory limit.
pub fn load_video(path: &Path, selection: FrameSelection) -> Result<Video, MediaError> {
    Source::file(path)?.video(selection)
}

impl Source {
    /// Decodes frames of a video.
    ///
    /// # Errors
    /// If it is not a video, is truncated or damaged, or exceeds the memory limit.
    pub fn video(&self, selection: FrameSelection) -> Result<Video, MediaError> {
        self.read(|path, content| decode(path, content, selection))
    }
}

/// Decodes frames of a video; `path` is its name.
fn decode(path: &Path, content: &Content, selection: FrameSelection) -> Result<Video, MediaError> {
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
            None => decode_animation(*format, bytes, selection),
        },
        Content::Whole(format @ (Format::Gif | Format::WebP), bytes) => {
            decode_animation(*format, bytes, selection)
        }
        Content::Unsupported(Format::Other(MediaKind::Video, name)) => Err(compressed(path, name)),
        other => Err(other.wrong("video")),
    }
}

/// Decodes the selected frames of an animation; a still image is a video of one frame.
fn decode_animation(
    format: Format,
    bytes: &[u8],
    selection: FrameSelection,
) -> Result<Video, MediaError> {
    match Animation::of(format, bytes) {
        Some(animation) => animation.decode(format, bytes, selection),
        None => Ok(Video {
            frames: vec![image::decode(format, bytes)?],
            frames_per_second: (1.0 / DEFAULT_DELAY) as f32,
        }),
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
