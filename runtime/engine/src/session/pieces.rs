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

/// An encoded video.
pub(super) struct EncodedPieces<B: KernelBackend> {
    pub encoded: Encoded<B>,
    /// `true` if it was found elsewhere, before all pieces were encoded.
    pub is_found: bool,
    /// Time that the encoder waited for frames to be decoded.
    pub waited: Duration,
}

/// Encodes the pieces of a video. A thread prepares the next one meanwhile (stage `preprocess`), so
/// that at most the values of two are in memory. Before each piece, `find` may return the whole
/// encoded video instead.
///
/// # Errors
/// If a piece cannot be decoded or prepared, the thread cannot be started, or `monitor` cancels.
pub(super) fn encode_pieces<B: KernelBackend, M: Model<B> + ?Sized>(
    model: &M,
    pieces: &VideoPieces<'_>,
    find: impl FnMut() -> Option<Encoded<B>>,
    monitor: &mut Monitor<'_>,
) -> Result<EncodedPieces<B>, ModelError> {
    let mut helper = stage::Helper::new();
    let (sender, prepared) = mpsc::sync_channel(0);
    thread::scope(|scope| {
        let prepare = move || {
            let mut decoding = Duration::ZERO;
            helper.run(|| {
                for index in 0..pieces.count() {
                    let start = Instant::now();
                    let frames = pieces.frames(index);
                    decoding += start.elapsed();
                    let piece = frames.and_then(|frames| {
                        let _stage = stage::top("preprocess");
                        pieces.prepare(index, &frames)
                    });
                    // The receiver is gone after an error or a cancellation.
                    if piece.is_err() | sender.send(piece).is_err() {
                        break;
                    }
                }
            });
            (helper, decoding)
        };
        let thread = thread::Builder::new().name("preprocess".to_owned());
        let thread = thread.spawn_scoped(scope, prepare).map_err(|error| {
            ModelError::Compute(format!("cannot start a thread to prepare a video: {error}"))
        })?;
        let mut waited = Duration::ZERO;
        let encoded = encode_all(model, pieces.count(), prepared, find, &mut waited, monitor);
        let (helper, decoding) = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        // Both threads were waited for; the rest of their times was hidden.
        let decoding = decoding.min(waited);
        helper.join(waited - decoding);
        let (encoded, is_found) = match encoded? {
            Outcome::Found(encoded) => (encoded, true),
            Outcome::Encoded(pieces) => (Encoded::join(pieces), false),
        };
        Ok(EncodedPieces {
            encoded,
            is_found,
            waited: decoding,
        })
    })
}

enum Outcome<B: KernelBackend> {
    Encoded(Vec<Encoded<B>>),
    Found(Encoded<B>),
}

/// Encodes pieces as they are prepared, and adds up the time that it waits for them.
fn encode_all<B: KernelBackend, M: Model<B> + ?Sized>(
    model: &M,
    count: usize,
    prepared: Receiver<Result<MediaInput, ModelError>>,
    mut find: impl FnMut() -> Option<Encoded<B>>,
    waited: &mut Duration,
    monitor: &mut Monitor<'_>,
) -> Result<Outcome<B>, ModelError> {
    let mut encoded = Vec::with_capacity(count);
    loop {
        if let Some(found) = find() {
            return Ok(Outcome::Found(found));
        }
        let start = Instant::now();
        let piece = prepared.recv();
        *waited += start.elapsed();
        // The sender is gone after the last piece, or after a panic, which goes on in the caller.
        let Ok(piece) = piece else {
            return Ok(Outcome::Encoded(encoded));
        };
        let piece = piece?;
        encoded.push(monitor.pass(encoded.len(), count, |monitor| {
            model.encode(&piece, monitor)
        })?);
    }
}
