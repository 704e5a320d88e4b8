//! Videos that a thread decodes while their first frames are used.

use std::mem::take;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use edge_lmm_models::ModelError;
use edge_lmm_models::media::{FrameTimes, VideoFrames};
use edge_lmm_models::preprocess::{PreprocessError, RgbImage};
use edge_lmm_ops::stage::{self, Helper};

use super::error::MediaError;
use super::guard::guarded;
use super::selection::Chosen;
use crate::media::medium::{MediaData, VideoHasher};

/// A video whose frames a thread decodes (stage `media`). The thread ends on drop.
#[derive(Debug)]
pub(crate) struct Decoding {
    progress: Arc<Progress>,
    /// Number of frames.
    count: usize,
    /// Width and height of all frames.
    size: (usize, usize),
    times: FrameTimes,
    thread: Mutex<Option<JoinHandle<Helper>>>,
}

/// The part that the thread shares.
#[derive(Debug, Default)]
struct Progress {
    state: Mutex<State>,
    /// Notified for each frame and at the end.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Frames so far.
    frames: Vec<RgbImage>,
    /// At the end, the hash of the video, or the error.
    outcome: Option<Result<u128, Arc<MediaError>>>,
    /// Asks the thread to end.
    is_dropped: bool,
}

impl Decoding {
    /// Starts a thread that decodes a video of the file `path`, with frames of one `size`.
    ///
    /// # Errors
    /// If the frames do not fit into memory, or the thread cannot be started.
    pub(super) fn start(
        path: &Path,
        mut chosen: Chosen,
        size: (usize, usize),
    ) -> Result<Self, MediaError> {
        chosen.check(size)?;
        let (count, times) = (chosen.count(), chosen.times());
        let progress = Arc::new(Progress::default());
        let (shared, path) = (Arc::clone(&progress), path.to_owned());
        let mut helper = Helper::new();
        let decode = move || {
            let outcome = helper.run(|| guarded(|| shared.decode(&mut chosen, size)));
            let outcome = outcome.map_err(|error| Arc::new(error.of(&path)));
            shared.state().outcome = Some(outcome);
            shared.changed.notify_all();
            helper
        };
        let thread = thread::Builder::new().name("media".to_owned());
        let thread = thread.spawn(decode).map_err(MediaError::Io)?;
        Ok(Self {
            progress,
            count,
            size,
            times,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Returns the bytes of all frames.
    pub fn bytes(&self) -> usize {
        3 * self.count * self.size.0 * self.size.1
    }

    /// Returns the times of the frames.
    pub fn times(&self) -> &FrameTimes {
        &self.times
    }

    /// Returns the hash of the video, once it is decoded.
    pub fn hash(&self) -> Option<u128> {
        match self.progress.state().outcome {
            Some(Ok(hash)) => Some(hash),
            _ => None,
        }
    }

    /// Returns the error of a video that cannot be decoded, once it is known.
    pub fn failure(&self) -> Option<MediaError> {
        match &self.progress.state().outcome {
            Some(Err(error)) => Some(MediaError::Decoding(Arc::clone(error))),
            _ => None,
        }
    }

    /// Waits for the end. Adds the stages of the thread to the recordings of this one, which waited
    /// for frames for `waited` before.
    ///
    /// # Errors
    /// If the video is damaged.
    pub fn finish(&self, waited: Duration) -> Result<(), MediaError> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        join(thread, waited);
        self.failure().map_or(Ok(()), Err)
    }

    /// Waits for the end and returns the video; without frames if it is damaged.
    pub fn data(&self) -> MediaData {
        let state = self.progress.wait_for(|state| state.outcome.is_some());
        MediaData::Video {
            frames: match state.outcome {
                Some(Ok(_)) => state.frames.clone(),
                _ => Vec::new(),
            },
            times: self.times.clone(),
        }
    }
}

/// Joins a thread, unless that was done before.
fn join(mut thread: MutexGuard<'_, Option<JoinHandle<Helper>>>, waited: Duration) {
    let start = Instant::now();
    if let Some(Ok(helper)) = thread.take().map(JoinHandle::join) {
        helper.join(waited + start.elapsed());
    }
}

impl Progress {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for(&self, reached: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let state = self
            .changed
            .wait_while(self.state(), |state| !reached(state));
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// Decodes all frames and returns the hash of the video.
    fn decode(&self, chosen: &mut Chosen, size: (usize, usize)) -> Result<u128, MediaError> {
        let mut hasher = VideoHasher::new(&chosen.times());
        for decoded in 0..chosen.count() {
            let _stage = stage::top("media");
            let frame = chosen.next_frame(|| self.state().is_dropped)?;
            let Some(frame) = frame.filter(|frame| (frame.width(), frame.height()) == size) else {
                return Err(chosen.incomplete(decoded));
            };
            hasher.add(&frame);
            self.state().frames.push(frame);
            self.changed.notify_all();
        }
        Ok(hasher.finish())
    }
}

impl VideoFrames for Decoding {
    fn count(&self) -> usize {
        self.count
    }

    fn size(&self) -> Result<(usize, usize), PreprocessError> {
        Ok(self.size)
    }

    fn undecoded_bytes(&self) -> usize {
        let decoded = self.progress.state().frames.len();
        3 * (self.count - decoded) * self.size.0 * self.size.1
    }

    fn frames(&self, range: Range<usize>) -> Result<Vec<RgbImage>, ModelError> {
        let are_there = |state: &State| state.frames.len() >= range.end;
        let state = self
            .progress
            .wait_for(|state| are_there(state) || state.outcome.is_some());
        match state.frames.get(range) {
            Some(frames) => Ok(frames.to_vec()),
            None => Err(ModelError::Undecoded),
        }
    }
}

impl Drop for Decoding {
    fn drop(&mut self) {
        self.progress.state().is_dropped = true;
        let thread = self
            .thread
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        // A panic outside of the decoder is a bug, which the default hook has reported.
        take(thread).map(JoinHandle::join);
    }
}
