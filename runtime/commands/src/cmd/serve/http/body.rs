//! Bodies of requests, with limits on size, memory and time.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use edge_lmm::serve::openai::ApiError;
use hyper::body::{Body, Bytes, Frame, Incoming};
use tokio::time::timeout;

use crate::cmd::serve::limits::{Budget, Reservation};

/// Limit for receiving a body.
const BODY_TIME: Duration = Duration::from_secs(60);
/// Bytes of the first and of the largest reservation for a body.
const RESERVE: (usize, usize) = (64 << 10, 1 << 20);
/// Limits for reading past the body of a rejected request, so that its client reads the reply.
const SKIP_TIME: Duration = Duration::from_secs(5);
const SKIP_BYTES: usize = 256 << 20;

/// Reads a body of at most `limit` bytes, whose memory comes from `budget`. `id` names the request in
/// the log.
///
/// # Errors
/// If it is too long, too slow, or the memory is in use; the rest is read past.
pub async fn read(
    mut body: Incoming,
    limit: usize,
    budget: &Budget,
    id: &str,
) -> Result<(Vec<u8>, Vec<Reservation>), ApiError> {
    let read = match timeout(BODY_TIME, read_whole(&mut body, limit, budget, id)).await {
        Ok(read) => read,
        Err(_) => {
            let seconds = BODY_TIME.as_secs();
            let message = format!("the request did not arrive within {seconds} s");
            return Err(ApiError::new(408, "request_timeout", message));
        }
    };
    if read.is_err() {
        skip(body).await;
    }
    read
}

async fn read_whole(
    body: &mut Incoming,
    limit: usize,
    budget: &Budget,
    id: &str,
) -> Result<(Vec<u8>, Vec<Reservation>), ApiError> {
    let incomplete = |error| {
        log::debug!("{id}: the body is incomplete: {error}");
        let message = "the body of the request is incomplete or not valid HTTP";
        ApiError::new(400, "invalid_body", message)
    };
    let too_long = || {
        let message = format!("the request is longer than {limit} bytes");
        ApiError::new(413, "request_too_large", message)
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    let (mut reserved, mut total) = (Vec::new(), 0);
    while let Some(data) = chunk(body).await.map_err(incomplete)? {
        if bytes.len() + data.len() > limit {
            return Err(too_long());
        }
        while total < bytes.len() + data.len() {
            let more = total.clamp(RESERVE.0, RESERVE.1);
            let reservation = budget.reserve(more).ok_or_else(|| {
                let message = "unfinished requests take all memory; try again later";
                ApiError::new(503, "overloaded", message)
            })?;
            reserved.push(reservation);
            total += more;
            // The growth of the vector stays within the reservation.
            bytes.reserve_exact(total - bytes.len());
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, reserved))
}

/// Reads the next data of a body; `None` at its end.
///
/// # Errors
/// If the connection fails or the body is not valid HTTP.
pub async fn chunk(body: &mut Incoming) -> hyper::Result<Option<Bytes>> {
    loop {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        // Frames without data are trailers.
        match frame.transpose()?.map(Frame::into_data) {
            None => return Ok(None),
            Some(Ok(data)) => return Ok(Some(data)),
            Some(Err(_)) => {}
        }
    }
}

/// Reads past a body without keeping it. A client that writes to a closed connection would never
/// read the reply.
pub async fn skip(mut body: Incoming) {
    let skipped = async {
        let mut bytes = 0;
        while let Ok(Some(data)) = chunk(&mut body).await {
            bytes += data.len();
            if bytes > SKIP_BYTES {
                break;
            }
        }
    };
    // A client that is slower has to do without the reply.
    let _ = timeout(SKIP_TIME, skipped).await;
}
