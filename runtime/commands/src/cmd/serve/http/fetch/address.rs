//! Addresses and hosts.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use edge_lmm::serve::AddressError;
use hyper::Uri;

/// Longest address.
const MAX_ADDRESS: usize = 4096;

/// A host and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub name: Name,
    /// Port; 0 for the usual ones of `http` and `https`.
    pub port: u16,
}

/// The name of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    Address(IpAddr),
    /// In lower case, without a dot at the end.
    Domain(String),
}

impl Name {
    /// Parses a name as in an address: IPv6 may be in brackets.
    fn parse(text: &str) -> Option<Self> {
        let bare = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        if let Ok(ip) = bare.unwrap_or(text).parse() {
            return Some(Self::Address(ip));
        }
        let is_label = |label: &str| {
            let mut characters = label.chars();
            !label.is_empty()
                && label.len() < 64
                && characters.all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
        };
        // Systems read a name whose last label is a number as an IPv4 address: 0x7f.1 is 127.0.0.1.
        let last = text.rsplit('.').next().unwrap_or_default();
        let is_number = last.starts_with(|c: char| c.is_ascii_digit());
        let is_name = text.len() < 254 && text.split('.').all(is_label) && !is_number;
        is_name.then(|| Self::Domain(text.to_ascii_lowercase()))
    }

    /// Returns `true` for the name of the machine itself, which whoever allows it means.
    pub fn is_explicitly_local(&self) -> bool {
        matches!(self, Self::Domain(name) if name == "localhost")
    }

    /// Returns `true` if the name is this IP address.
    pub fn is(&self, ip: IpAddr) -> bool {
        *self == Self::Address(ip)
    }
}

/// Parses the option: `HOST` or `HOST:PORT`.
impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "expected a host such as images.example.com, 192.168.1.5 or [::1]:8080, found {text:?}"
            )
        };
        if let Some(name) = Name::parse(text) {
            return Ok(Self { name, port: 0 });
        }
        let (name, port) = text.rsplit_once(':').ok_or_else(expected)?;
        let port = port.parse().ok().filter(|port| *port > 0);
        match (Name::parse(name), port) {
            (Some(name), Some(port)) => Ok(Self { name, port }),
            _ => Err(expected()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Name::Domain(name) => f.write_str(name)?,
            Name::Address(IpAddr::V4(ip)) => write!(f, "{ip}")?,
            Name::Address(IpAddr::V6(ip)) => write!(f, "[{ip}]")?,
        }
        match self.port {
            0 => Ok(()),
            port => write!(f, ":{port}"),
        }
    }
}

/// An address on the web.
#[derive(Debug, Clone)]
pub struct Address {
    pub is_encrypted: bool,
    pub host: Host,
    /// Path and query.
    pub path: String,
}

impl Address {
    /// Parses an address.
    ///
    /// # Errors
    /// If it is no address of `http` or `https`, or names a user.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let refused = |reason: &str| AddressError::Refused(format!("invalid address: {reason}"));
        if text.len() > MAX_ADDRESS {
            return Err(refused(&format!("it is longer than {MAX_ADDRESS} bytes")));
        }
        let uri = Uri::from_str(text).map_err(|error| refused(&error.to_string()))?;
        let is_encrypted = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(refused("expected http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| refused("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(refused("it names a user"));
        }
        let name = Name::parse(authority.host()).ok_or_else(|| refused("invalid host"))?;
        let usual = if is_encrypted { 443 } else { 80 };
        let given = authority.as_str().len() > authority.host().len();
        let port = match (given, authority.port_u16()) {
            (false, _) => 0,
            (true, Some(0) | None) => return Err(refused("invalid port")),
            (true, Some(port)) if port == usual => 0,
            (true, Some(port)) => port,
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            is_encrypted,
            host: Host { name, port },
            path: path.to_owned(),
        })
    }

    /// Returns the address of a redirect, which may be a path.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), and for one from `https` to `http`.
    pub fn join(&self, location: &str) -> Result<Self, AddressError> {
        let is_path = location.starts_with('/') && !location.starts_with("//");
        let next = match is_path {
            true => Self::parse(&format!("{}://{}{location}", self.scheme(), self.host))?,
            false => Self::parse(location)?,
        };
        match self.is_encrypted && !next.is_encrypted {
            true => Err(AddressError::Refused(format!(
                "{} redirects to an address without encryption",
                self.host
            ))),
            false => Ok(next),
        }
    }

    /// Returns the scheme.
    pub fn scheme(&self) -> &'static str {
        if self.is_encrypted { "https" } else { "http" }
    }

    /// Returns the port, which may be the usual one.
    pub fn port(&self) -> u16 {
        match (self.host.port, self.is_encrypted) {
            (0, true) => 443,
            (0, false) => 80,
            (port, _) => port,
        }
    }
}

/// Returns `true` for addresses of the public internet.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let is_special = ip.is_loopback()
        || ip.is_private()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        || matches!(
            (a, b, c),
            // This network, shared address space, protocol assignments, benchmarks, reserved.
            (0, _, _) | (100, 64..=127, _) | (192, 0, 0) | (198, 18..=19, _) | (240..=255, _, _)
        );
    !is_special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // IPv4 in IPv6: mapped, NAT64, 6to4.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            embedded(high, low)
        }
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo and documentation.
        [0x2001, 0 | 0xdb8, ..] => false,
        // Global unicast is 2000::/3.
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Host {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_are_compared_as_a_whole() {
        let allowed = host("images.example.com");
        for text in [
            "http://images.example.com/a",
            "HTTP://IMAGES.Example.COM:80/a?b#c",
        ] {
            assert_eq!(Address::parse(text).unwrap().host, allowed, "{text}");
        }
        for text in [
            "http://images.example.com.evil.org/",
            "http://evilimages.example.com/",
            "http://example.com/images.example.com",
            "http://images.example.com:22/",
            "http://evil.org/?@images.example.com",
            "http://evil.org#images.example.com",
        ] {
            assert_ne!(
                Address::parse(text).ok().map(|a| a.host),
                Some(allowed.clone()),
                "{text}"
            );
        }
        assert_eq!(
            Address::parse("https://a.org:443/x").unwrap().host,
            host("a.org")
        );
        assert_eq!(
            Address::parse("http://[::1]:81/").unwrap().host,
            host("[::1]:81")
        );
        assert_eq!(host("::1"), host("[::1]"));
    }

    #[test]
    fn tricks_with_names_are_refused() {
        for text in [
            "http://user@a.org/",
            "http://a.org@evil.org/",
            "http://a.org:80@evil.org/",
            "http://a.org./",
            "http://a..org/",
            "http:///a",
            "http://",
            "file:///etc/passwd",
            "ftp://a.org/",
            "http://0x7f.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0177.0.0.1/",
            "http://a.org:0/",
            "http://a.org:99999/",
            "http://a.org:/",
            "http://a.org\\@evil.org/",
            "http://\u{ff41}.org/",
            "http://a .org/",
            "http://a.org\r\nX: y/",
            "http://%61.org/",
        ] {
            assert!(Address::parse(text).is_err(), "{text:?}");
        }
        for text in [
            "",
            "a.org/",
            "http://a.org",
            "*.a.org",
            "a.org:0",
            "user@a.org",
            "0x7f.1",
        ] {
            assert!(text.parse::<Host>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn redirects_are_joined() {
        let address = Address::parse("https://a.org/b").unwrap();
        let joined = |location| {
            address
                .join(location)
                .map(|next| (next.host.to_string(), next.path))
        };
        assert_eq!(
            joined("/c?d").unwrap(),
            ("a.org".to_owned(), "/c?d".to_owned())
        );
        assert_eq!(joined("https://b.org/c").unwrap().0, "b.org");
        for location in ["http://a.org/", "//b.org/", "file:///etc/passwd", ""] {
            assert!(joined(location).is_err(), "{location}");
        }
    }

    #[test]
    fn private_addresses_are_known() {
        for ip in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "192.0.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "::127.0.0.1",
            "fec0::1",
        ] {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "1.1.1.1",
            "93.184.216.34",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
            "2002:101:101::",
        ] {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
    }
}
