//! Encoding of videos in pieces, the next one prepared meanwhile.

use std::panic::resume_unwind;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use edge_lmm_models::ModelError;
use edge_lmm_models::media::{MediaInput, VideoPieces};
use edge_lmm_models::model::{Encoded, Model};
use edge_lmm_models::monitor::Monitor;
use edge_lmm_ops::{KernelBackend, stage};

/// Encodes the pieces of a video. A thread prepares the next one meanwhile (stage `preprocess`), so
/// that at most the values of two are in memory.
///
/// # Errors
/// If a piece cannot be prepared, the thread cannot be started, or `monitor` cancels.
pub(super) fn encode_pieces<B: KernelBackend, M: Model<B> + ?Sized>(
    model: &M,
    pieces: &VideoPieces<'_>,
    monitor: &mut Monitor<'_>,
) -> Result<Encoded<B>, ModelError> {
    let mut helper = stage::Helper::new();
    let (sender, prepared) = mpsc::sync_channel(0);
    thread::scope(|scope| {
        let prepare = move || {
            helper.run(|| {
                for index in 0..pieces.count() {
                    let piece = {
                        let _stage = stage::top("preprocess");
                        pieces.prepare(index)
                    };
                    // The receiver is gone after an error or a cancellation.
                    if piece.is_err() | sender.send(piece).is_err() {
                        break;
                    }
                }
            });
            helper
        };
        let thread = thread::Builder::new().name("preprocess".to_owned());
        let thread = thread.spawn_scoped(scope, prepare).map_err(|error| {
            ModelError::Compute(format!("cannot start a thread to prepare a video: {error}"))
        })?;
        let mut waited = Duration::ZERO;
        let encoded = encode_all(model, pieces.count(), prepared, &mut waited, monitor);
        match thread.join() {
            Ok(helper) => helper.join(waited),
            Err(panic) => resume_unwind(panic),
        }
        Ok(Encoded::join(encoded?))
    })
}

/// Encodes pieces as they are prepared, and adds up the time that it waits for them.
fn encode_all<B: KernelBackend, M: Model<B> + ?Sized>(
    model: &M,
    count: usize,
    prepared: Receiver<Result<MediaInput, ModelError>>,
    waited: &mut Duration,
    monitor: &mut Monitor<'_>,
) -> Result<Vec<Encoded<B>>, ModelError> {
    let mut encoded = Vec::with_capacity(count);
    loop {
        let start = Instant::now();
        let piece = prepared.recv();
        *waited += start.elapsed();
        // The sender is gone after the last piece, or after a panic, which goes on in the caller.
        let Ok(piece) = piece else {
            return Ok(encoded);
        };
        let piece = piece?;
        encoded.push(monitor.pass(encoded.len(), count, |monitor| {
            model.encode(&piece, monitor)
        })?);
    }
}
