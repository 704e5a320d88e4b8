//! Frames of a stream that may turn out to be selected.

use std::sync::Arc;

use edge_lmm_models::preprocess::RgbImage;

use super::collector::Collector;
use super::error::MediaError;
use super::key_frames::{self, Change};

/// A frame that may be selected.
#[derive(Clone)]
struct Candidate {
    index: usize,
    change: Change,
    image: Arc<RgbImage>,
}

/// Candidates for `count` frames of a stream whose length is unknown: every `stride`-th frame, where
/// `stride` doubles whenever there are `2 * count` of them, and the `count` frames with the largest
/// changes, if these matter.
pub(super) struct Candidates {
    count: usize,
    stride: usize,
    even: Vec<Candidate>,
    /// By difference, the largest first; `None` if differences do not matter.
    changed: Option<Vec<Candidate>>,
    seen: usize,
    collector: Collector,
}

impl Candidates {
    /// Candidates for evenly spaced frames.
    pub fn uniform(count: usize) -> Self {
        Self {
            count,
            stride: 1,
            even: Vec::new(),
            changed: None,
            seen: 0,
            collector: Collector::new(),
        }
    }

    /// Candidates for key frames.
    pub fn key(count: usize) -> Self {
        Self {
            changed: Some(Vec::new()),
            ..Self::uniform(count)
        }
    }

    /// Returns the number of frames offered.
    pub fn seen(&self) -> usize {
        self.seen
    }

    /// Takes the next frame, which is decoded only if it is a candidate.
    pub fn offer(
        &mut self,
        change: Change,
        image: impl FnOnce() -> Result<RgbImage, MediaError>,
    ) -> Result<(), MediaError> {
        let index = self.seen;
        self.seen += 1;
        let is_even = index.is_multiple_of(self.stride) && self.count > 0;
        let is_changed = self.changed.as_ref().is_some_and(|changed| {
            let smallest = changed.get(self.count.wrapping_sub(1));
            smallest.is_none_or(|smallest| change.difference > smallest.change.difference)
        });
        if !is_even && !is_changed {
            return Ok(());
        }
        let image = Arc::new(image()?);
        self.collector.hold(&image)?;
        let candidate = Candidate {
            index,
            change,
            image,
        };
        if is_changed {
            self.add_changed(candidate.clone());
        }
        if is_even {
            self.add_even(candidate);
        }
        Ok(())
    }

    fn add_even(&mut self, candidate: Candidate) {
        if self.even.len() == 2 * self.count {
            self.stride *= 2;
            let (kept, dropped): (Vec<_>, Vec<_>) = std::mem::take(&mut self.even)
                .into_iter()
                .partition(|candidate| candidate.index.is_multiple_of(self.stride));
            self.even = kept;
            dropped
                .into_iter()
                .for_each(|candidate| self.discard(candidate));
        }
        // The frame after an even number of candidates stays one when the stride doubles.
        self.even.push(candidate);
    }

    fn add_changed(&mut self, candidate: Candidate) {
        let Some(changed) = &mut self.changed else {
            return;
        };
        let difference = candidate.change.difference;
        let place = changed.partition_point(|other| other.change.difference >= difference);
        changed.insert(place, candidate);
        if changed.len() > self.count {
            let last = changed.pop();
            last.into_iter()
                .for_each(|candidate| self.discard(candidate));
        }
    }

    /// Drops a candidate, whose image may be held as another one.
    fn discard(&mut self, candidate: Candidate) {
        if let Ok(image) = Arc::try_unwrap(candidate.image) {
            self.collector.release(&image);
        }
    }

    /// Returns the evenly spaced frames nearest before those of these indices, which are in order,
    /// each at most once, with their times in seconds.
    pub fn nearest(self, indices: &[usize]) -> Vec<(f64, RgbImage)> {
        let mut chosen = Vec::new();
        let mut free = 0;
        for (i, index) in indices.iter().enumerate() {
            let left = indices.len() - i;
            let last = self.even.len().saturating_sub(left);
            let place = (index / self.stride).max(free).min(last.max(free));
            chosen.extend(self.even.get(place).cloned());
            free = place + 1;
        }
        images(chosen)
    }

    /// Returns the key frames with their times in seconds.
    pub fn key_frames(self) -> Vec<(f64, RgbImage)> {
        let mut all = self.even;
        all.extend(self.changed.unwrap_or_default());
        all.sort_by_key(|candidate| candidate.index);
        all.dedup_by_key(|candidate| candidate.index);
        let changes: Vec<Change> = all.iter().map(|candidate| candidate.change).collect();
        let chosen = key_frames::choose(&changes, self.count);
        let chosen = chosen.iter().map(|&i| all[i].clone()).collect();
        drop(all);
        images(chosen)
    }
}

/// Returns times and images, without a copy where no other candidate holds them.
fn images(candidates: Vec<Candidate>) -> Vec<(f64, RgbImage)> {
    let image = |candidate: Candidate| {
        let image = Arc::unwrap_or_clone(candidate.image);
        (candidate.change.time, image)
    };
    candidates.into_iter().map(image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_frames_held_is_bounded() {
        let mut candidates = Candidates::key(5);
        for i in 0..1000u32 {
            let change = Change {
                time: i.into(),
                difference: f64::from(i * 7919 % 1000),
            };
            let image = || Ok(RgbImage::new(1, 1, vec![0; 3])?);
            candidates.offer(change, image).unwrap();
            assert!(candidates.even.len() <= 10);
            assert!(candidates.changed.as_ref().unwrap().len() <= 5);
        }
        assert_eq!(candidates.seen(), 1000);
        let strides = candidates.even.iter().map(|candidate| candidate.index);
        assert_eq!(
            strides.collect::<Vec<_>>(),
            [0, 128, 256, 384, 512, 640, 768, 896]
        );
        let differences = candidates.changed.as_ref().unwrap().iter();
        let differences = differences.map(|candidate| candidate.change.difference);
        assert_eq!(
            differences.collect::<Vec<_>>(),
            [999.0, 998.0, 997.0, 996.0, 995.0]
        );
        let images = candidates.nearest(&[0, 200, 400, 600, 800]);
        assert_eq!(images.len(), 5);
    }
}
