//! Files over HTTP without encryption.

use std::net::SocketAddr;

use edge_lmm::serve::AddressError;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_LENGTH, HOST, LOCATION, USER_AGENT};
use hyper::{HeaderMap, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::address::Address;
use super::{MAX_BYTES, Reply, TIME, failed, status, too_large, too_slow};
use crate::cmd::serve::http::body::chunk;

/// Requests a file. The calling thread is one of the server's threads for blocking work.
///
/// # Errors
/// If the host fails, or the file is too large or too slow.
pub fn get(address: &Address, socket: SocketAddr) -> Result<Reply, AddressError> {
    let reply = async { timeout(TIME, request(address, socket)).await };
    match Handle::current().block_on(reply) {
        Ok(reply) => reply,
        Err(_) => Err(too_slow(&address.host)),
    }
}

async fn request(address: &Address, socket: SocketAddr) -> Result<Reply, AddressError> {
    let host = &address.host;
    let stream = TcpStream::connect(socket);
    let stream = stream.await.map_err(|error| failed(host, error))?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| failed(host, error))?;
    // Ends with the connection, when the sender and the body are dropped.
    tokio::spawn(connection);
    let request = Request::get(&address.path)
        .header(HOST, host.to_string())
        .header(USER_AGENT, concat!("edge-lmm/", env!("CARGO_PKG_VERSION")))
        .body(String::new())
        .map_err(|error| failed(host, error))?;
    let reply = sender.send_request(request).await;
    let (head, mut body) = reply.map_err(|error| failed(host, error))?.into_parts();
    let location = text(&head.headers, LOCATION);
    if let Some(location) = status(host, head.status.as_u16(), location)? {
        return Ok(Reply::Redirect(location));
    }
    let announced = text(&head.headers, CONTENT_LENGTH).and_then(|length| length.parse().ok());
    if announced.is_some_and(|length: usize| length > MAX_BYTES) {
        return Err(too_large(host));
    }
    let mut content = Vec::new();
    while let Some(data) = chunk(&mut body)
        .await
        .map_err(|error| failed(host, error))?
    {
        if content.len() + data.len() > MAX_BYTES {
            return Err(too_large(host));
        }
        content.extend_from_slice(&data);
    }
    Ok(Reply::Content(content))
}

fn text(headers: &HeaderMap, name: hyper::header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
