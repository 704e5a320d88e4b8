//! A slot for the newest frame.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use edge_lmm_models::preprocess::RgbImage;

use crate::media::MediaError;

/// Holds the newest frame that a reader has put in until it is taken. A newer frame replaces one that
/// was not taken: that one is skipped.
#[derive(Debug, Default)]
pub struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    frame: Option<Captured>,
    seen: usize,
    skipped: usize,
    damaged: usize,
    end: Option<Result<(), MediaError>>,
    closed: bool,
}

/// A frame of a watched source.
#[derive(Debug, Clone)]
pub struct Captured {
    /// The frame.
    pub image: RgbImage,
    /// Its time in seconds: from the start of a file or stream, otherwise of the watch.
    pub time: f64,
    /// Time at which it was put into the slot.
    pub at: Instant,
}

/// Outcome of [`Slot::take`].
#[derive(Debug)]
pub enum Taken {
    /// The newest frame.
    Frame(Captured),
    /// There was no new frame in the given time.
    Nothing,
    /// The source has ended or failed, and its last frame was taken.
    End(Result<(), MediaError>),
}

impl Slot {
    /// Creates an empty slot.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a frame in. Returns `false` if the slot is [closed](Self::close).
    pub fn put(&self, image: RgbImage, time: f64) -> bool {
        let mut state = self.state();
        state.seen += 1;
        let at = Instant::now();
        let replaced = state.frame.replace(Captured { image, time, at });
        state.skipped += usize::from(replaced.is_some());
        self.changed.notify_all();
        !state.closed
    }

    /// Counts a frame that cannot be decoded.
    pub fn put_damaged(&self) {
        self.state().damaged += 1;
    }

    /// Ends the frames, with an error or without.
    pub fn end(&self, end: Result<(), MediaError>) {
        self.state().end.get_or_insert(end);
        self.changed.notify_all();
    }

    /// Takes the newest frame; waits for at most `limit` if there is none.
    pub fn take(&self, limit: Duration) -> Taken {
        let waits = |state: &mut State| state.frame.is_none() && state.end.is_none();
        let state = self.changed.wait_timeout_while(self.state(), limit, waits);
        let (mut state, _) = state.unwrap_or_else(PoisonError::into_inner);
        if let Some(frame) = state.frame.take() {
            return Taken::Frame(frame);
        }
        match state.end.as_mut() {
            Some(end) => Taken::End(std::mem::replace(end, Ok(()))),
            None => Taken::Nothing,
        }
    }

    /// Tells the reader to end.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Returns `true` if the reader is to end.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Waits for `time`. Returns `false` as soon as the slot is closed.
    pub fn wait(&self, time: Duration) -> bool {
        let open = |state: &mut State| !state.closed;
        let state = self.changed.wait_timeout_while(self.state(), time, open);
        let (state, _) = state.unwrap_or_else(PoisonError::into_inner);
        !state.closed
    }

    /// Returns the number of frames that were put in.
    pub fn seen(&self) -> usize {
        self.state().seen
    }

    /// Returns the number of frames that were replaced before they were taken.
    pub fn skipped(&self) -> usize {
        self.state().skipped
    }

    /// Returns the number of frames that could not be decoded.
    pub fn damaged(&self) -> usize {
        self.state().damaged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gray(value: u8) -> RgbImage {
        RgbImage::new(1, 1, vec![value; 3]).unwrap()
    }

    /// A consumer that is slower than the reader gets the newest frame, and the last one before the
    /// end.
    #[test]
    fn the_newest_frame_is_taken() {
        let slot = Slot::new();
        for i in 0..5 {
            assert!(slot.put(gray(i), f64::from(i)));
        }
        let Taken::Frame(frame) = slot.take(Duration::ZERO) else {
            panic!("no frame")
        };
        assert_eq!((frame.time, frame.image), (4.0, gray(4)));
        assert!(matches!(slot.take(Duration::ZERO), Taken::Nothing));
        slot.put(gray(9), 5.0);
        slot.end(Err(MediaError::NotAFile("a pipe")));
        assert!(matches!(slot.take(Duration::ZERO), Taken::Frame(_)));
        assert!(matches!(slot.take(Duration::ZERO), Taken::End(Err(_))));
        assert_eq!((slot.seen(), slot.skipped()), (6, 4));
    }

    #[test]
    fn a_reader_ends_when_the_slot_is_closed() {
        let slot = Slot::new();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut frames = 0;
                while slot.put(gray(0), 0.0) && slot.wait(Duration::from_secs(60)) {
                    frames += 1;
                }
                frames
            });
            assert!(matches!(
                slot.take(Duration::from_secs(60)),
                Taken::Frame(_)
            ));
            slot.close();
            assert_eq!(reader.join().unwrap(), 0);
        });
    }
}
