//! Questions about a scene that changes: a thread reads frames into a slot of one, from which the
//! newest is taken, and a question is asked again when the scene has changed.
//!
//! ```
//! use std::time::Duration;
//!
//! use edge_lmm::RgbImage;
//! use edge_lmm::watch::{Slot, Taken, Watched};
//!
//! let slot = Slot::new();
//! for brightness in [10, 20, 30] {
//!     slot.put(RgbImage::new(2, 1, vec![brightness; 6])?, 0.0);
//! }
//! slot.end(Ok(()));
//! let mut watched = Watched::new(2.0);
//! while let Taken::Frame(frame) = slot.take(Duration::from_secs(1)) {
//!     assert!(watched.has_changed(&frame.image));
//!     // Ask about the frame here.
//!     watched.answered(&frame.image);
//! }
//! assert_eq!((slot.seen(), slot.skipped()), (3, 2));
//! # Ok::<(), edge_lmm::PreprocessError>(())
//! ```

mod reader;
mod slot;

use std::time::{Duration, Instant};

use edge_lmm_models::preprocess::RgbImage;
use serde::Serialize;

use crate::media::Thumbnail;

#[cfg(feature = "camera")]
mod camera;
mod folder;

pub use reader::{WatchSource, read};
pub use slot::{Captured, Slot, Taken};

/// Detects changes of a scene since the last answer, and counts frames and answers.
#[derive(Debug)]
pub struct Watched {
    /// Smallest mean absolute difference of a change, from 0 to 255.
    threshold: f32,
    last: Option<Thumbnail>,
    start: Instant,
    answers: usize,
    unchanged: usize,
}

/// Numbers of a watch so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct WatchStatistics {
    /// Answers.
    pub answers: usize,
    /// Frames that arrived.
    pub frames_seen: usize,
    /// Frames that arrived per second.
    pub frames_per_second: f64,
    /// Share of the frames that a newer one replaced before they were looked at.
    pub skipped_share: f64,
    /// Frames that were looked at and showed no change.
    pub frames_unchanged: usize,
    /// Frames that could not be decoded.
    pub frames_damaged: usize,
}

impl Watched {
    /// Begins a watch. A scene has changed if a frame's mean absolute difference of 8-bit values
    /// from the frame of the last answer, both as [`Thumbnail`]s, is at least `threshold`.
    pub fn new(threshold: f32) -> Self {
        Self {
            threshold,
            last: None,
            start: Instant::now(),
            answers: 0,
            unchanged: 0,
        }
    }

    /// Returns `true` if there was no answer yet or the scene has changed since its frame, and counts
    /// the frame as unchanged otherwise.
    pub fn has_changed(&mut self, image: &RgbImage) -> bool {
        let Some(last) = &self.last else { return true };
        let changed = last.difference(&Thumbnail::new(image)) >= f64::from(self.threshold);
        self.unchanged += usize::from(!changed);
        changed
    }

    /// Records that `image` was asked about.
    pub fn answered(&mut self, image: &RgbImage) {
        self.last = Some(Thumbnail::new(image));
        self.answers += 1;
    }

    /// Returns the numbers so far, with the frames of `slot`.
    pub fn statistics(&self, slot: &Slot) -> WatchStatistics {
        let seen = slot.seen();
        let seconds = self
            .start
            .elapsed()
            .max(Duration::from_millis(1))
            .as_secs_f64();
        WatchStatistics {
            answers: self.answers,
            frames_seen: seen,
            frames_per_second: seen as f64 / seconds,
            skipped_share: slot.skipped() as f64 / seen.max(1) as f64,
            frames_unchanged: self.unchanged,
            frames_damaged: slot.damaged(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gray(value: u8) -> RgbImage {
        RgbImage::new(4, 4, vec![value; 48]).unwrap()
    }

    #[test]
    fn frames_are_compared_with_that_of_the_last_answer() {
        let mut watched = Watched::new(2.0);
        assert!(watched.has_changed(&gray(10)));
        watched.answered(&gray(10));
        // Two small steps are a change together.
        assert!(!watched.has_changed(&gray(11)));
        assert!(watched.has_changed(&gray(12)));
        watched.answered(&gray(12));
        assert!(!watched.has_changed(&gray(12)));
        assert!(watched.has_changed(&RgbImage::new(2, 2, vec![12; 12]).unwrap()));
        let slot = Slot::new();
        slot.put(gray(1), 0.0);
        slot.put(gray(2), 0.1);
        let statistics = watched.statistics(&slot);
        assert_eq!((statistics.answers, statistics.frames_unchanged), (2, 2));
        assert_eq!((statistics.frames_seen, statistics.skipped_share), (2, 0.5));
    }
}
