//! Files over HTTPS.

use std::io::Read;
use std::net::SocketAddr;

use edge_lmm::serve::AddressError;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use super::address::Address;
use super::{MAX_BYTES, Reply, TIME, failed, status, too_large};

/// Requests a file.
///
/// # Errors
/// If the host fails, or the file is too large or too slow.
pub fn get(address: &Address, socket: SocketAddr) -> Result<Reply, AddressError> {
    let host = &address.host;
    let config = Config::builder()
        .https_only(true)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        // A proxy would resolve the name again.
        .proxy(None)
        .accept_encoding("identity")
        .user_agent(concat!("edge-lmm/", env!("CARGO_PKG_VERSION")))
        .timeout_global(Some(TIME))
        .build();
    let agent = Agent::with_parts(config, DefaultConnector::default(), Resolved(socket));
    let reply = agent.get(format!("https://{host}{}", address.path)).call();
    let reply = reply.map_err(|error| failed(host, error))?;
    let location = reply.headers().get("location");
    let location = location.and_then(|location| location.to_str().ok());
    if let Some(location) = status(host, reply.status().as_u16(), location)? {
        return Ok(Reply::Redirect(location));
    }
    let mut content = Vec::new();
    let mut body = reply.into_body().into_reader().take(MAX_BYTES as u64 + 1);
    body.read_to_end(&mut content)
        .map_err(|error| failed(host, error))?;
    match content.len() > MAX_BYTES {
        true => Err(too_large(host)),
        false => Ok(Reply::Content(content)),
    }
}

/// Resolves every name to an address that was checked before.
#[derive(Debug)]
struct Resolved(SocketAddr);

impl Resolver for Resolved {
    fn resolve(
        &self,
        _: &Uri,
        _: &Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        addresses.push(self.0);
        Ok(addresses)
    }
}
