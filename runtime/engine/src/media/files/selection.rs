//! Reading of the selected frames of a video.
//!
//! Only selected frames are held. A selection that depends on all frames takes two passes over a
//! file; over a stream it takes one pass, which holds some frames more ([`Candidates`]).

use edge_lmm_models::preprocess::RgbImage;

use super::budget;
use super::candidates::Candidates;
use super::collector::Collector;
use super::error::MediaError;
use super::frame_stream::{Frames, Length};
use super::frames::{FrameSelection, Video, VideoOptions};
use super::key_frames::{self, Change};
use super::motion_gate::MotionGate;
use super::thumbnail::Thumbnail;

/// Reads the selected frames of a video that `open` opens, more than once if `is_file`.
pub(super) fn read(
    open: impl Fn() -> Result<Box<dyn Frames>, MediaError>,
    is_file: bool,
    options: VideoOptions,
) -> Result<Video, MediaError> {
    let open = || -> Result<MotionGate, MediaError> {
        let mut frames = open()?;
        if let FrameSelection::SyncKey(count) = options.frames {
            frames.only_independent(count)?;
        }
        Ok(MotionGate::new(frames, options.motion_gate))
    };
    let mut frames = open()?;
    match (options.frames, frames.outline().length) {
        (FrameSelection::All, length) => {
            let count = length.map(|length| length.frames);
            collect(&mut frames, count, length, |_, _| true)
        }
        (FrameSelection::Rate(rate), length) => at_rate(&mut frames, rate, length),
        (FrameSelection::Uniform(count), Some(length)) => {
            at(&mut frames, &uniform(length.frames, count), length)
        }
        (FrameSelection::Uniform(count), None) if is_file => {
            let length = measure(&mut frames)?;
            let video = at(&mut open()?, &uniform(length.frames, count), length)?;
            // The second pass ends at the last selected frame.
            let skipped = frames.skipped();
            Ok(Video { skipped, ..video })
        }
        (FrameSelection::Key(count) | FrameSelection::SyncKey(count), _) if is_file => {
            let (changes, length) = changes(&mut frames)?;
            let chosen = key_frames::choose(&changes, count);
            let video = at(&mut open()?, &chosen, length)?;
            let skipped = frames.skipped();
            Ok(Video { skipped, ..video })
        }
        (FrameSelection::Uniform(count), None) => {
            let mut candidates = Candidates::uniform(count);
            while let Some(time) = frames.advance()? {
                let difference = 0.0;
                candidates.offer(Change { time, difference }, || frames.image())?;
            }
            let indices = uniform(candidates.seen(), count);
            let chosen = candidates.nearest(&indices);
            finish(&frames, chosen, None)
        }
        (FrameSelection::Key(count) | FrameSelection::SyncKey(count), _) => {
            let mut candidates = Candidates::key(count);
            let mut last = None;
            while let Some(time) = frames.advance()? {
                let image = frames.image()?;
                let difference = step(&mut last, &image);
                candidates.offer(Change { time, difference }, || Ok(image))?;
            }
            finish(&frames, candidates.key_frames(), None)
        }
    }
}

/// Returns the indices of `count` evenly spaced frames of `total`; all if there are not more.
fn uniform(total: usize, count: usize) -> Vec<usize> {
    if count >= total {
        return (0..total).collect();
    }
    // The product may exceed 64 bits.
    let index = |i: usize| (i as u128 * total as u128 / count as u128) as usize;
    (0..count).map(index).collect()
}

/// Counts the frames.
fn measure(frames: &mut MotionGate) -> Result<Length, MediaError> {
    let mut count = 0;
    while frames.advance()?.is_some() {
        count += 1;
    }
    Ok(Length {
        frames: count,
        seconds: frames.end(),
    })
}

/// Returns the change of each frame and the length of the video.
fn changes(frames: &mut MotionGate) -> Result<(Vec<Change>, Length), MediaError> {
    let mut changes = Vec::new();
    let mut last = None;
    while let Some(time) = frames.advance()? {
        // The list doubles when it grows.
        if changes.len() == changes.capacity() {
            budget::check((changes.len() * 3 * size_of::<Change>()) as u64)?;
        }
        let difference = step(&mut last, &frames.image()?);
        changes.push(Change { time, difference });
    }
    let length = Length {
        frames: changes.len(),
        seconds: frames.end(),
    };
    Ok((changes, length))
}

/// Returns the difference of a frame from the last one, which it becomes.
fn step(last: &mut Option<Thumbnail>, image: &RgbImage) -> f64 {
    let thumbnail = Thumbnail::new(image);
    let difference = last.as_ref().map(|last| last.difference(&thumbnail));
    *last = Some(thumbnail);
    difference.unwrap_or(f64::INFINITY)
}

/// Reads the frames of these indices, which are in order.
fn at(frames: &mut MotionGate, indices: &[usize], length: Length) -> Result<Video, MediaError> {
    let mut next = indices.iter().copied().peekable();
    collect(frames, Some(indices.len()), Some(length), |index, _| {
        next.next_if_eq(&index).is_some()
    })
}

/// Reads the first frame at or after each multiple of the period.
fn at_rate(
    frames: &mut MotionGate,
    rate: f32,
    length: Option<Length>,
) -> Result<Video, MediaError> {
    let rate = f64::from(rate);
    // Times are rounded, so a frame may come a little early.
    const EARLY: f64 = 1e-6;
    let mut next = 0.0;
    let mut video = collect(frames, None, length, |_, time| {
        let period = (time * rate + EARLY).floor();
        let is_first = time * rate + EARLY >= next;
        if is_first {
            next = period + 1.0;
        }
        is_first
    })?;
    // The last period may be incomplete.
    video.frames_per_second = video.frames_per_second.min(rate as f32);
    Ok(video)
}

/// Reads the frames for which `wants` returns `true`, given their index and time: `count` frames if
/// that is known. `length` is the length of the whole video if that is known.
fn collect(
    frames: &mut MotionGate,
    count: Option<usize>,
    length: Option<Length>,
    mut wants: impl FnMut(usize, f64) -> bool,
) -> Result<Video, MediaError> {
    let outline = frames.outline();
    let mut collector = Collector::new();
    if let (Some(size), Some(count)) = (outline.size, count) {
        collector.check(size, count)?;
    }
    let mut images = Vec::new();
    let mut index = 0;
    while count.is_none_or(|count| images.len() < count) {
        let Some(time) = frames.advance()? else { break };
        if wants(index, time) {
            let image = frames.image()?;
            if let (true, Some(count)) = (images.is_empty(), count) {
                collector.check((image.width(), image.height()), count)?;
            }
            collector.hold(&image)?;
            images.push(image);
        }
        index += 1;
    }
    finish(frames, images, length.map(|length| length.seconds))
}

/// Builds the video. Without `seconds`, the current frame is the last one.
fn finish(
    frames: &MotionGate,
    images: Vec<RgbImage>,
    seconds: Option<f64>,
) -> Result<Video, MediaError> {
    if images.is_empty() {
        let format = frames.outline().format;
        return Err(MediaError::damaged(format, "it has no complete frame"));
    }
    let seconds = seconds.unwrap_or_else(|| frames.end());
    Ok(Video {
        frames_per_second: (images.len() as f64 / seconds) as f32,
        frames: images,
        skipped: frames.skipped(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_indices_are_rounded_down() {
        assert_eq!(uniform(10, 4), [0, 2, 5, 7]);
        assert_eq!(uniform(3, 3), [0, 1, 2]);
        assert_eq!(uniform(3, 5), [0, 1, 2]);
        assert!(uniform(0, 5).is_empty());
        assert_eq!(uniform(usize::MAX, 2), [0, usize::MAX / 2]);
    }
}
