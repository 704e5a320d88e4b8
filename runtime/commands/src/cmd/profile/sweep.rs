//! The media of a profile: files, or synthetic ones of several sizes.

use std::path::Path;

use clap::Args;
use edge_lmm::media::MediaData;
use edge_lmm::{Media, RgbImage};
use edge_lmm_models::preprocess::Filter;
use edge_lmm_models::preprocess::resize::resize;

use crate::cmd::options::{FrameChoice, MediaArgs, MediaFiles, SweptMediaArgs};

/// Longer side of synthetic frames without `--image-size`.
const FRAME_SIZE: u32 = 224;
/// Frames per second of synthetic videos.
const FRAME_RATE: f32 = 2.0;
/// Samples per second of synthetic sounds.
const SAMPLE_RATE: u32 = 16_000;
/// Largest size of a sweep in pixels.
const MAX_SIZE: i64 = 16_384;

/// Options for media and their sizes.
#[derive(Debug, Clone, Args)]
pub struct Sweep {
    #[command(flatten)]
    files: MediaFiles,
    #[command(flatten)]
    media: SweptMediaArgs,
    /// Sizes of the image: the longer side in pixels. Files are resized; without --image, the image
    /// is noise, or with --frames, the frames are
    #[arg(
        long,
        value_name = "PIXELS",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(1..=MAX_SIZE)
    )]
    image_size: Vec<u32>,
    /// Lengths of the sound in seconds. Files are cut; without --audio, the sound is synthetic
    #[arg(long, value_name = "SECONDS", value_delimiter = ',', value_parser = parse_seconds)]
    audio_seconds: Vec<f64>,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if seconds > 0.0 && seconds <= 3600.0 => Ok(seconds),
        _ => Err("expected seconds above 0 and up to 3600".to_owned()),
    }
}

/// A combination of sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Longer side of the image in pixels.
    pub image_size: Option<u32>,
    frames: Option<FrameChoice>,
    /// Length of the sound.
    pub audio_seconds: Option<f64>,
}

impl Point {
    /// Returns the number of frames.
    pub fn frames(&self) -> Option<usize> {
        self.frames.map(FrameChoice::count)
    }
}

impl Sweep {
    /// Checks the options.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.image_size.is_empty() || !self.files.has_video(),
            "--image-size resizes images, and --video is a file of one size: leave one of them out"
        );
        self.media().check()
    }

    /// Iterates over the files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.paths().map(|(path, _)| path)
    }

    /// Returns the options for media, without a number of frames.
    pub fn media(&self) -> MediaArgs {
        self.media.with_frames(None)
    }

    /// Returns all combinations.
    pub fn points(&self) -> Vec<Point> {
        let mut points = Vec::new();
        for image_size in each(&self.image_size) {
            for frames in each(&self.media.frames) {
                for audio_seconds in each(&self.audio_seconds) {
                    points.push(Point {
                        image_size,
                        frames,
                        audio_seconds,
                    });
                }
            }
        }
        points
    }

    /// Reads the files as they are (stage `media`).
    pub fn open(&self, point: &Point) -> anyhow::Result<Vec<Media>> {
        self.files.open(&self.media.with_frames(point.frames))
    }

    /// Prepares media of the sizes of a point before the measurement. Returns `None` if the files are
    /// used as they are.
    pub fn prepare(&self, point: &Point) -> anyhow::Result<Option<Vec<Media>>> {
        let resized = point.image_size.is_some() || point.audio_seconds.is_some();
        let no_video = !self.files.has_video();
        if !resized && (point.frames.is_none() || !no_video) {
            return Ok(None);
        }
        let files = self.open(point)?;
        let mut media = Vec::with_capacity(files.len() + 1);
        for medium in &files {
            media.push(sized(medium, point)?);
        }
        if no_video && let Some(frames) = point.frames() {
            let size = point.image_size.unwrap_or(FRAME_SIZE);
            let frames = (0..frames).map(|seed| noise(size, seed as u64));
            media.push(Media::video(frames.collect::<Result<_, _>>()?, FRAME_RATE));
        }
        if let Some(size) = point.image_size
            && !media.iter().any(is_visual)
        {
            media.insert(0, Media::image(noise(size, 0)?));
        }
        if let Some(seconds) = point.audio_seconds
            && !media.iter().any(is_sound)
        {
            media.push(sound(seconds));
        }
        Ok(Some(media))
    }
}

/// Returns the values of a list, or `None` once if it is empty.
fn each<T: Copy>(values: &[T]) -> Vec<Option<T>> {
    match values {
        [] => vec![None],
        values => values.iter().copied().map(Some).collect(),
    }
}

fn is_visual(medium: &Media) -> bool {
    let data = medium.data();
    matches!(data, MediaData::Image(_) | MediaData::Video { .. })
}

fn is_sound(medium: &Media) -> bool {
    matches!(medium.data(), MediaData::Audio { .. })
}

/// Returns copies of media that the engine has not seen: their hashes are not computed yet.
pub fn fresh(media: &[Media]) -> Vec<Media> {
    media.iter().map(copy).collect()
}

fn copy(medium: &Media) -> Media {
    match medium.data() {
        MediaData::Image(image) => Media::image(image.clone()),
        MediaData::Video { frames, times } => Media::video(frames.clone(), times.clone()),
        MediaData::Audio {
            samples,
            sample_rate,
        } => Media::audio(samples.clone(), *sample_rate),
        // `Media` has no other kinds, but may get some.
        _ => medium.clone(),
    }
}

/// Resizes an image and cuts a sound to the sizes of a point.
fn sized(medium: &Media, point: &Point) -> anyhow::Result<Media> {
    Ok(match (medium.data(), point) {
        (
            MediaData::Image(image),
            Point {
                image_size: Some(size),
                ..
            },
        ) => Media::image(resized(image, *size as usize)?),
        (
            MediaData::Audio {
                samples,
                sample_rate,
            },
            Point {
                audio_seconds: Some(seconds),
                ..
            },
        ) => {
            let wanted = (seconds * f64::from(*sample_rate)).round() as usize;
            if samples.len() < wanted {
                anyhow::bail!(
                    "--audio-seconds {seconds}: the sound has {:.1} s; use a longer one, or none \
                     for a synthetic one",
                    samples.len() as f64 / f64::from(*sample_rate)
                );
            }
            Media::audio(samples[..wanted].to_vec(), *sample_rate)
        }
        _ => copy(medium),
    })
}

/// Resizes an image so that its longer side has `size` pixels.
fn resized(image: &RgbImage, size: usize) -> anyhow::Result<RgbImage> {
    let longer = image.width().max(image.height());
    let scaled = |side: usize| (side * size).div_ceil(longer).max(1);
    let (width, height) = (scaled(image.width()), scaled(image.height()));
    Ok(resize(image, width, height, Filter::Bicubic)?)
}

/// Creates a square image of noise, which no method of reduction can shorten.
fn noise(size: u32, seed: u64) -> anyhow::Result<RgbImage> {
    let side = size as usize;
    let mut state = 0x9E37_79B9_7F4A_7C15 ^ (seed << 32 | u64::from(size));
    let pixels = (0..3 * side * side).map(|_| {
        // Xorshift (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    });
    Ok(RgbImage::new(side, side, pixels.collect())?)
}

/// Creates a tone whose frequency rises.
fn sound(seconds: f64) -> Media {
    let count = (seconds * f64::from(SAMPLE_RATE)).round() as usize;
    let sample = |i: usize| {
        let time = i as f64 / f64::from(SAMPLE_RATE);
        let phase = std::f64::consts::TAU * time * (200.0 + 20.0 * time);
        (0.5 * phase.sin()) as f32
    };
    Media::audio((0..count).map(sample).collect(), SAMPLE_RATE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Options {
        #[command(flatten)]
        sweep: Sweep,
    }

    fn sweep(arguments: &[&str]) -> Sweep {
        let arguments = ["profile"].iter().chain(arguments);
        Options::try_parse_from(arguments)
            .expect("valid options")
            .sweep
    }

    #[test]
    fn lists_are_combined() {
        let points = sweep(&["--image-size", "224,448", "--audio-seconds", "1,5,30"]).points();
        assert_eq!(points.len(), 6);
        assert_eq!(
            (points[4].image_size, points[4].audio_seconds),
            (Some(448), Some(5.0))
        );
        assert_eq!(sweep(&[]).points().len(), 1);
    }

    #[test]
    fn media_without_files_are_synthetic() {
        let media = |arguments: &[&str]| {
            let sweep = sweep(arguments);
            let point = sweep.points()[0];
            sweep
                .prepare(&point)
                .expect("media can be made")
                .expect("media")
        };
        let image = media(&["--image-size", "32"]);
        let MediaData::Image(image) = image[0].data() else {
            panic!("{image:?}")
        };
        assert_eq!((image.width(), image.height()), (32, 32));
        let video = media(&["--image-size", "32", "--frames", "4"]);
        let [video] = &video[..] else {
            panic!("{video:?}")
        };
        let MediaData::Video { frames, .. } = video.data() else {
            panic!("{video:?}")
        };
        assert_eq!((frames.len(), frames[0].width()), (4, 32));
        assert_ne!(frames[0].pixels(), frames[1].pixels());
        let sound = media(&["--audio-seconds", "0.5"]);
        let MediaData::Audio { samples, .. } = sound[0].data() else {
            panic!("{sound:?}")
        };
        assert_eq!(samples.len(), 8000);
        assert!(
            sweep(&[])
                .prepare(&sweep(&[]).points()[0])
                .expect("no media")
                .is_none()
        );
    }

    #[test]
    fn every_selection_of_frames_has_a_count() {
        let points = sweep(&["--frames", "4,keyframes:5,syncframes:6"]).points();
        let counts: Vec<_> = points.iter().map(Point::frames).collect();
        assert_eq!(counts, [Some(4), Some(5), Some(6)]);
    }

    #[test]
    fn videos_have_no_image_size() {
        let sweep = sweep(&["--video", "clip.mp4", "--image-size", "224,448"]);
        let error = sweep.check().expect_err("one size").to_string();
        assert!(error.contains("--image-size"), "{error}");
    }

    #[test]
    fn images_keep_their_aspect() {
        let image = RgbImage::new(40, 20, vec![7; 40 * 20 * 3]).expect("an image");
        let small = resized(&image, 10).expect("it can be resized");
        assert_eq!((small.width(), small.height()), (10, 5));
    }
}
