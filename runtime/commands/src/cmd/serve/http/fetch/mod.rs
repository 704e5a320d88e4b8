//! Files at addresses of allowed hosts, for requests that name them.
//!
//! The server must not become a way into its own network: a host is compared as a whole with the
//! allowed ones, its name is resolved once, no private address is contacted unless it is allowed
//! itself, and redirects to other hosts are not followed.

pub mod address;
mod plain;
#[cfg(feature = "pull")]
mod tls;

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use edge_lmm::serve::{AddressError, AddressReader};

pub use address::Host;
use address::{Address, Name, is_public};

/// Longest time for one file, with its redirects.
const TIME: Duration = Duration::from_secs(15);

/// Maximum size of a file.
const MAX_BYTES: usize = 32 << 20;

/// Maximum redirects to the same host.
const MAX_REDIRECTS: usize = 3;

/// Reads files of allowed hosts.
#[derive(Debug)]
pub struct Fetcher {
    /// Allowed hosts.
    pub hosts: Vec<Host>,
}

/// A reply of a host.
enum Reply {
    Content(Vec<u8>),
    /// The value of `Location`.
    Redirect(String),
}

impl AddressReader for Fetcher {
    fn read(&self, text: &str) -> Result<Vec<u8>, AddressError> {
        let mut address = Address::parse(text)?;
        let host = address.host.clone();
        // Not resolved again for redirects, which could lead elsewhere the second time.
        let ip = self.resolve(&host, address.port())?;
        for _ in 0..=MAX_REDIRECTS {
            match get(&address, SocketAddr::new(ip, address.port()))? {
                Reply::Content(content) => return Ok(content),
                Reply::Redirect(location) => address = address.join(&location)?,
            }
            if address.host != host {
                return Err(AddressError::Refused(format!(
                    "{host} redirects to another host, {}",
                    address.host
                )));
            }
        }
        Err(AddressError::Failed(format!(
            "{host} redirects more than {MAX_REDIRECTS} times"
        )))
    }
}

impl Fetcher {
    /// Returns the IP address of an allowed host.
    fn resolve(&self, host: &Host, port: u16) -> Result<IpAddr, AddressError> {
        if !self.hosts.contains(host) {
            return Err(AddressError::Refused(format!(
                "{host} is not among the hosts that this server reads from (--allow-url-host)"
            )));
        }
        let found = addresses(&host.name, port).map_err(|error| failed(host, error))?;
        self.choose(host, &found)
    }

    /// Returns the first address of a host, if all of them may be contacted.
    fn choose(&self, host: &Host, found: &[IpAddr]) -> Result<IpAddr, AddressError> {
        let is_allowed = |ip: &&IpAddr| {
            is_public(**ip)
                || host.name.is_explicitly_local()
                || self.hosts.iter().any(|allowed| allowed.name.is(**ip))
        };
        match (found.iter().find(|ip| !is_allowed(ip)), found.first()) {
            (Some(private), _) => Err(AddressError::Refused(format!(
                "{host} has the private address {private}, which is not allowed itself"
            ))),
            (None, Some(first)) => Ok(*first),
            (None, None) => Err(failed(host, "it has no address")),
        }
    }
}

/// Returns the IP addresses of a name.
fn addresses(name: &Name, port: u16) -> std::io::Result<Vec<IpAddr>> {
    match name {
        Name::Address(ip) => Ok(vec![*ip]),
        Name::Domain(name) => {
            let found = (name.as_str(), port).to_socket_addrs()?;
            Ok(found.map(|socket| socket.ip()).collect())
        }
    }
}

fn get(address: &Address, socket: SocketAddr) -> Result<Reply, AddressError> {
    if !address.is_encrypted {
        return plain::get(address, socket);
    }
    #[cfg(feature = "pull")]
    return tls::get(address, socket);
    #[cfg(not(feature = "pull"))]
    Err(AddressError::Refused(
        "this program has no TLS (Cargo feature pull): only http:// addresses can be read"
            .to_owned(),
    ))
}

/// Checks the status of a reply. Returns the address of a redirect.
///
/// # Errors
/// If it is no success.
fn status(
    host: &Host,
    status: u16,
    location: Option<&str>,
) -> Result<Option<String>, AddressError> {
    match (status, location) {
        (200, _) => Ok(None),
        (301 | 302 | 303 | 307 | 308, Some(location)) => Ok(Some(location.to_owned())),
        _ => Err(AddressError::Failed(format!(
            "{host} replies with status {status}"
        ))),
    }
}

fn failed(host: &Host, error: impl std::fmt::Display) -> AddressError {
    AddressError::Failed(format!("cannot read from {host}: {error}"))
}

fn too_large(host: &Host) -> AddressError {
    AddressError::Failed(format!(
        "the file of {host} is larger than {} MiB",
        MAX_BYTES >> 20
    ))
}

fn too_slow(host: &Host) -> AddressError {
    AddressError::Failed(format!("{host} takes more than {} s", TIME.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name of the public internet may point to a machine of the own network.
    #[test]
    fn private_addresses_must_be_allowed_themselves() {
        let host = |text: &str| text.parse::<Host>().unwrap();
        let fetcher = |hosts: &[&str]| Fetcher {
            hosts: hosts.iter().map(|text| host(text)).collect(),
        };
        let (public, private) = ("1.1.1.1".parse().unwrap(), "10.0.0.5".parse().unwrap());
        let named = fetcher(&["a.org"]);
        assert_eq!(named.choose(&host("a.org"), &[public]), Ok(public));
        for found in [&[private][..], &[public, private], &[]] {
            assert!(named.choose(&host("a.org"), found).is_err(), "{found:?}");
        }
        let both = fetcher(&["a.org", "10.0.0.5"]);
        assert_eq!(both.choose(&host("a.org"), &[private]), Ok(private));
        let local = fetcher(&["localhost:8080"]);
        let own = "127.0.0.1".parse().unwrap();
        assert_eq!(local.choose(&host("localhost:8080"), &[own]), Ok(own));
        assert!(local.resolve(&host("localhost"), 80).is_err());
    }
}
