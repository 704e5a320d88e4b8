//! Folders of numbered images as videos.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use edge_lmm_models::preprocess::RgbImage;

use super::error::MediaError;
use super::format::{Format, HEAD};
use super::frame_stream::{Frames, Length, Outline};
use super::image::load_image;
use super::video::DEFAULT_FRAME_RATE;

/// Maximum files in a folder that is read as a video.
const MAX_FILES: usize = 100_000;

/// The images of a folder.
pub(super) struct FolderFrames {
    images: Vec<PathBuf>,
    /// Number of images passed, including the current one.
    passed: usize,
}

impl FolderFrames {
    pub fn open(folder: &Path) -> Result<Self, MediaError> {
        Ok(Self {
            images: images_of(folder)?,
            passed: 0,
        })
    }
}

impl Frames for FolderFrames {
    fn outline(&self) -> Outline {
        let frames = self.images.len();
        Outline {
            format: "folder of images",
            size: None,
            length: Some(Length {
                frames,
                seconds: frames as f64 / DEFAULT_FRAME_RATE,
            }),
        }
    }

    fn advance(&mut self) -> Result<Option<f64>, MediaError> {
        if self.passed == self.images.len() {
            return Ok(None);
        }
        self.passed += 1;
        Ok(Some((self.passed - 1) as f64 / DEFAULT_FRAME_RATE))
    }

    fn image(&mut self) -> Result<RgbImage, MediaError> {
        load_image(&self.images[self.passed - 1])
    }

    fn end(&self) -> f64 {
        self.passed as f64 / DEFAULT_FRAME_RATE
    }
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
