//! Who may use the server: the API key, and the names under which browsers reach it.

use std::fmt;
use std::hint::black_box;
use std::net::IpAddr;

use edge_lmm::serve::openai::ApiError;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HOST};
use hyper::http::uri::Authority;

/// Rules of access.
#[derive(Debug, Clone)]
pub struct Access {
    /// The key that clients have to send.
    pub key: Option<Key>,
    /// Names of the server that are accepted in addition.
    pub hosts: Vec<String>,
}

/// An API key.
#[derive(Clone)]
pub struct Key(String);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// Creates a key.
    pub fn new(key: String) -> Self {
        Self(key)
    }

    /// Compares in a time that depends on the length only.
    fn is(&self, given: &[u8]) -> bool {
        let key = self.0.as_bytes();
        let pairs = key.iter().zip(given);
        let differences = pairs.fold(0, |sum, (a, b)| black_box(sum | (a ^ b)));
        key.len() == given.len() && differences == 0
    }
}

impl Access {
    /// Checks the key of a request.
    ///
    /// # Errors
    /// If the key is missing or wrong.
    pub fn check_key(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(key) = &self.key else {
            return Ok(());
        };
        let given = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
        let (scheme, given) = given.and_then(|value| value.split_at_checked(7)).unzip();
        let is_bearer = scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "));
        match given.filter(|_| is_bearer) {
            Some(given) if key.is(given.trim_ascii()) => Ok(()),
            Some(_) => Err(ApiError::new(
                401,
                "invalid_api_key",
                "the API key is wrong",
            )),
            None => Err(ApiError::new(
                401,
                "missing_api_key",
                "an API key is required: send the header \"Authorization: Bearer KEY\"",
            )),
        }
    }

    /// Checks the name under which the client reaches the server. A web page can make a name of its
    /// own point to this machine, and thus use the server with the browser of its visitor; but it
    /// cannot know a key.
    ///
    /// # Errors
    /// If there is no key and the name is unknown.
    pub fn check_host(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if self.key.is_some() {
            return Ok(());
        }
        let Some(value) = headers.get(HOST) else {
            return Ok(());
        };
        let authority = value.to_str().ok();
        let authority = authority.and_then(|text| text.parse::<Authority>().ok());
        match authority {
            Some(authority) if self.knows(authority.host()) => Ok(()),
            _ => Err(ApiError::new(
                421,
                "unknown_host",
                "the server is not known under this name; its operator can allow it with \
                 --allow-host NAME or require a key",
            )),
        }
    }

    fn knows(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let is_local = |name: &str| {
            !name.contains('.') || name.ends_with(".local") || name.ends_with(".localhost")
        };
        let is_allowed = |name: &String| name.eq_ignore_ascii_case(&host);
        bare.parse::<IpAddr>().is_ok() || is_local(&host) || self.hosts.iter().any(is_allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(key: Option<&str>) -> Access {
        Access {
            key: key.map(|key| Key::new(key.to_owned())),
            hosts: vec!["lab.example".to_owned()],
        }
    }

    fn headers(name: hyper::header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().expect("a value"))])
    }

    #[test]
    fn only_the_key_opens() {
        let access = access(Some("sesame"));
        let status = |value: &str| {
            let checked = access.check_key(&headers(AUTHORIZATION, value));
            checked.err().map(|error| error.code)
        };
        assert_eq!(status("Bearer sesame"), None);
        assert_eq!(status("bearer sesame"), None);
        for wrong in ["Bearer sesam", "Bearer sesame1", "Bearer SESAME", "Bearer "] {
            assert!(status(wrong).is_some(), "{wrong}");
        }
        for missing in ["Basic sesame", "sesame", "Bear"] {
            assert_eq!(status(missing), Some("missing_api_key"), "{missing}");
        }
        let none = access.check_key(&HeaderMap::new());
        assert_eq!(none.expect_err("a key is required").status, 401);
    }

    #[test]
    fn foreign_names_are_rejected_without_a_key() {
        let open = access(None);
        for known in [
            "127.0.0.1:8080",
            "localhost",
            "192.168.1.7",
            "[::1]:8080",
            "raspberrypi:80",
            "board.local",
            "LAB.example:1",
        ] {
            assert!(open.check_host(&headers(HOST, known)).is_ok(), "{known}");
        }
        for foreign in [
            "evil.example",
            "127.0.0.1.evil.example:8080",
            "lab.example.com",
        ] {
            let error = open.check_host(&headers(HOST, foreign));
            assert_eq!(error.expect_err(foreign).status, 421);
        }
        let closed = access(Some("sesame"));
        assert!(closed.check_host(&headers(HOST, "evil.example")).is_ok());
    }
}
