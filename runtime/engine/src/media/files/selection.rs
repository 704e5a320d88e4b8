//! Reading of the selected frames of a video.
//!
//! Only selected frames are held. A selection that depends on all frames takes two passes over a
//! file; over a stream it takes one pass, which holds some frames more ([`Candidates`]).

use edge_lmm_models::media::FrameTimes;
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

/// Description of the error of a video without frames.
const NO_FRAME: &str = "it has no complete frame";

/// The selected frames of a video, or the way to them.
pub(super) enum Selected {
    /// The choice is known, nothing is decoded.
    Chosen(Chosen),
    /// The frames are decoded.
    Read(Video),
}

/// Selects frames of a video that `open` opens, more than once if `is_file`. They are read if the
/// choice depends on the frames.
pub(super) fn select(
    open: impl Fn() -> Result<Box<dyn Frames>, MediaError>,
    is_file: bool,
    options: VideoOptions,
) -> Result<Selected, MediaError> {
    let open = || -> Result<MotionGate, MediaError> {
        let mut frames = open()?;
        if let FrameSelection::SyncKey(count) = options.frames {
            frames.only_independent(count)?;
        }
        Ok(MotionGate::new(frames, options.motion_gate))
    };
    let frames = open()?;
    match (options.frames, frames.outline().length) {
        (FrameSelection::All, Some(length)) => {
            let count = length.frames;
            Ok(Selected::Chosen(Chosen::new(frames, count, length)))
        }
        (FrameSelection::Uniform(count), Some(length)) => {
            Ok(Selected::Chosen(Chosen::new(frames, count, length)))
        }
        _ => read_opened(frames, open, is_file, options).map(Selected::Read),
    }
}

/// Reads the selected frames of a video that `open` opens, more than once if `is_file`.
pub(super) fn read(
    open: impl Fn() -> Result<Box<dyn Frames>, MediaError>,
    is_file: bool,
    options: VideoOptions,
) -> Result<Video, MediaError> {
    match select(open, is_file, options)? {
        Selected::Chosen(chosen) => chosen.read(),
        Selected::Read(video) => Ok(video),
    }
}

/// Reads selected frames of an opened video whose choice is not known before.
fn read_opened(
    mut frames: MotionGate,
    open: impl Fn() -> Result<MotionGate, MediaError>,
    is_file: bool,
    options: VideoOptions,
) -> Result<Video, MediaError> {
    match (options.frames, frames.outline().length) {
        (FrameSelection::All, length) => collect(&mut frames, None, length, |_, _| true),
        (FrameSelection::Rate(rate), length) => at_rate(&mut frames, rate, length),
        (FrameSelection::Uniform(count), _) if is_file => {
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
        (FrameSelection::Uniform(count), _) => {
            let mut candidates = Candidates::uniform(count);
            while let Some(time) = frames.advance()? {
                let difference = 0.0;
                candidates.offer(Change { time, difference }, || frames.image())?;
            }
            let total = candidates.seen();
            let indices = uniform(total, count);
            let chosen = candidates.nearest(&indices);
            let (times, chosen) = chosen.into_iter().unzip();
            let times = unless_all(times, total, frames.skipped());
            finish(&frames, (chosen, times), None)
        }
        (FrameSelection::Key(count) | FrameSelection::SyncKey(count), _) => {
            let mut candidates = Candidates::key(count);
            let mut last = None;
            while let Some(time) = frames.advance()? {
                let image = frames.image()?;
                let difference = step(&mut last, &image);
                candidates.offer(Change { time, difference }, || Ok(image))?;
            }
            let total = candidates.seen();
            let (times, chosen) = candidates.key_frames().into_iter().unzip();
            let times = unless_all(times, total, frames.skipped());
            finish(&frames, (chosen, times), None)
        }
    }
}

/// Evenly spaced frames of a video of known length, which are decoded one by one.
pub(super) struct Chosen {
    frames: MotionGate,
    /// Number of frames to choose, at most all.
    count: usize,
    length: Length,
    collector: Collector,
    /// Number of frames passed.
    passed: usize,
    /// Number of frames returned.
    returned: usize,
}

impl Chosen {
    fn new(frames: MotionGate, count: usize, length: Length) -> Self {
        Self {
            frames,
            count: count.min(length.frames),
            length,
            collector: Collector::new(),
            passed: 0,
            returned: 0,
        }
    }

    /// Returns the number of frames.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns width and height of all frames if they are known.
    pub fn size(&self) -> Option<(usize, usize)> {
        self.frames.outline().size
    }

    /// Returns the times if all frames can be decoded and have the same duration.
    pub fn times(&self) -> FrameTimes {
        let Length { frames, seconds } = self.length;
        let time = |i| uniform_index(i, frames, self.count) as f64 * seconds / frames as f64;
        let is_all = self.count == frames;
        FrameTimes {
            frames_per_second: rate(self.count, seconds),
            seconds: (!is_all).then(|| (0..self.count).map(time).collect()),
        }
    }

    /// Checks that the frames fit into memory if they have this size.
    ///
    /// # Errors
    /// If they do not, or are too many.
    pub fn check(&self, size: (usize, usize)) -> Result<(), MediaError> {
        self.collector.check(size, self.count)
    }

    /// Decodes the next frame; `None` after the last one, or if `is_canceled` returns `true` before.
    ///
    /// # Errors
    /// If the video is damaged, or does not fit into memory.
    pub fn next_frame(
        &mut self,
        is_canceled: impl Fn() -> bool,
    ) -> Result<Option<RgbImage>, MediaError> {
        let next = uniform_index(self.returned, self.length.frames, self.count);
        while self.returned < self.count && !is_canceled() {
            if self.frames.advance()?.is_none() {
                break;
            }
            self.passed += 1;
            if self.passed > next {
                let image = self.frames.image()?;
                if self.returned == 0 {
                    self.check((image.width(), image.height()))?;
                }
                self.collector.hold(&image)?;
                self.returned += 1;
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    /// Returns the error for a video of which only `decoded` frames can be decoded.
    pub fn incomplete(&self, decoded: usize) -> MediaError {
        let message = match decoded {
            0 => NO_FRAME.to_owned(),
            _ => format!("only {decoded} of {} frames can be decoded", self.count),
        };
        MediaError::damaged(self.frames.outline().format, message)
    }

    /// Decodes all frames.
    pub fn read(mut self) -> Result<Video, MediaError> {
        if let Some(size) = self.size() {
            self.check(size)?;
        }
        let mut images = Vec::new();
        while let Some(image) = self.next_frame(|| false)? {
            images.push(image);
        }
        let times = self.times().seconds;
        let times = times.map(|times| times[..images.len()].to_vec());
        finish(&self.frames, (images, times), Some(self.length.seconds))
    }
}

/// Returns the indices of `count` evenly spaced frames of `total`; all if there are not more.
fn uniform(total: usize, count: usize) -> Vec<usize> {
    if count >= total {
        return (0..total).collect();
    }
    (0..count).map(|i| uniform_index(i, total, count)).collect()
}

/// Returns the index of frame `i` of `count` evenly spaced ones of `total`.
fn uniform_index(i: usize, total: usize, count: usize) -> usize {
    // The product may exceed 64 bits.
    (i as u128 * total as u128 / count.max(1) as u128) as usize
}

/// Returns the rate of `frames` frames in `seconds`.
fn rate(frames: usize, seconds: f64) -> f32 {
    (frames as f64 / seconds) as f32
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
    let (mut images, mut times) = (Vec::new(), Vec::new());
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
            times.push(time);
        }
        index += 1;
    }
    let total = length.map_or(index, |length| length.frames);
    let times = unless_all(times, total, frames.skipped());
    let seconds = length.map(|length| length.seconds);
    finish(frames, (images, times), seconds)
}

/// Returns the times of selected frames; `None` if these are all of `total` frames, which are taken as
/// evenly spaced.
fn unless_all(times: Vec<f64>, total: usize, skipped: usize) -> Option<Vec<f64>> {
    (times.len() < total || skipped > 0).then_some(times)
}

/// Builds the video of frames and their times. Without `seconds`, the current frame is the last one.
fn finish(
    frames: &MotionGate,
    (images, times): (Vec<RgbImage>, Option<Vec<f64>>),
    seconds: Option<f64>,
) -> Result<Video, MediaError> {
    if images.is_empty() {
        let format = frames.outline().format;
        return Err(MediaError::damaged(format, NO_FRAME));
    }
    let seconds = seconds.unwrap_or_else(|| frames.end());
    Ok(Video {
        frames_per_second: rate(images.len(), seconds),
        frames: images,
        seconds: times.map(Into::into),
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
