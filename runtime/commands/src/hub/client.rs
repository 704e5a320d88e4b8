//! Requests to the hub.

use std::ffi::OsString;
use std::io::Read;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::token;

/// Server without `HF_ENDPOINT`.
const ENDPOINT: &str = "https://huggingface.co";

/// Time without progress after which a request fails, without `HF_HUB_DOWNLOAD_TIMEOUT`.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum redirects of a request.
const MAX_REDIRECTS: usize = 5;

/// A connection to the hub.
#[derive(Debug, Clone)]
pub struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    timeout: Duration,
}

impl Client {
    /// Creates a client from the variables of the hub's own tools: `HF_ENDPOINT`,
    /// `HF_HUB_DOWNLOAD_TIMEOUT`, and those of the token.
    ///
    /// # Errors
    /// If a variable is invalid.
    pub fn from_environment() -> anyhow::Result<Self> {
        Self::new(|name| std::env::var_os(name))
    }

    fn new(variable: impl Fn(&str) -> Option<OsString>) -> anyhow::Result<Self> {
        let text = |name| {
            let value = variable(name).filter(|value| !value.is_empty());
            value.map(|value| value.to_string_lossy().into_owned())
        };
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let is_encrypted = endpoint.starts_with("https://");
        ensure!(
            is_encrypted || endpoint.starts_with("http://"),
            "HF_ENDPOINT is {endpoint:?}; expected an address that begins with https:// or http://"
        );
        let timeout = match text("HF_HUB_DOWNLOAD_TIMEOUT") {
            None => TIMEOUT,
            Some(text) => match text.parse() {
                Ok(seconds @ 1..=86_400) => Duration::from_secs(seconds),
                _ => bail!("HF_HUB_DOWNLOAD_TIMEOUT is {text:?}; expected seconds above 0"),
            },
        };
        let config = Agent::config_builder()
            .https_only(is_encrypted)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("edge-lmm/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(timeout))
            .timeout_connect(Some(timeout))
            .timeout_recv_response(Some(timeout))
            .timeout_per_read(Some(timeout))
            .build();
        Ok(Self {
            agent: config.new_agent(),
            endpoint,
            token: token::find(variable)?,
            timeout,
        })
    }

    /// Returns the address of the server.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Returns the time without progress after which a request fails.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Requests a path from a byte on. The reply has a status of success.
    ///
    /// # Errors
    /// If the server cannot be reached, or has another status.
    pub fn get(&self, path: &str, start: u64) -> Result<Response<Body>, RequestError> {
        let mut address = format!("{}/{path}", self.endpoint);
        // The agent would read the body of a redirect, which may be endless.
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(&address, start)?;
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                status if status.is_redirection() => {
                    let location = response.headers().get("location");
                    let location = location.and_then(|location| location.to_str().ok());
                    address = redirected(&address, location.unwrap_or_default())?;
                }
                status => return Err(RequestError::status(status, self.token.is_some())),
            }
        }
        let message = format!("the server redirects more than {MAX_REDIRECTS} times");
        Err(RequestError::lasting(message))
    }

    fn request(&self, address: &str, start: u64) -> Result<Response<Body>, RequestError> {
        let mut request = self.agent.get(address);
        if let Some(token) = &self.token
            // The servers that files are redirected to must not see the token.
            && origin(address) == origin(&self.endpoint)
        {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if start > 0 {
            request = request.header("Range", format!("bytes={start}-"));
        }
        request.call().map_err(RequestError::connection)
    }

    /// Returns a short text.
    ///
    /// # Errors
    /// As [`get`](Self::get), and if the text is longer than `limit` bytes or not UTF-8.
    pub fn text(&self, path: &str, limit: u64) -> anyhow::Result<String> {
        let response = self.get(path, 0)?;
        let mut body = Vec::new();
        let mut reader = response.into_body().into_reader().take(limit + 1);
        reader
            .read_to_end(&mut body)
            .context("the reply ends early")?;
        ensure!(
            body.len() as u64 <= limit,
            "the reply is longer than {limit} bytes, which no list of files is"
        );
        String::from_utf8(body).context("the reply is not UTF-8 text")
    }
}

/// Returns the scheme, host and port of an address.
fn origin(address: &str) -> &str {
    let start = address.find("://").map_or(0, |start| start + 3);
    let end = address[start..].find(['/', '?', '#']);
    &address[..end.map_or(address.len(), |end| start + end)]
}

/// Returns the address that a redirect leads to, which may be a path on the same server.
fn redirected(address: &str, location: &str) -> Result<String, RequestError> {
    if ["http://", "https://"]
        .iter()
        .any(|scheme| location.starts_with(scheme))
    {
        return Ok(location.to_owned());
    }
    if location.starts_with('/') && !location.starts_with("//") {
        return Ok(format!("{}{location}", origin(address)));
    }
    let start: String = location.chars().take(80).collect();
    Err(RequestError::lasting(format!(
        "the server redirects to {start:?}, which is no address on the web"
    )))
}

/// The error returned when a request fails.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    message: String,
    /// `true` if the same request may succeed later.
    pub is_temporary: bool,
}

impl RequestError {
    fn lasting(message: String) -> Self {
        Self {
            message,
            is_temporary: false,
        }
    }

    fn connection(error: ureq::Error) -> Self {
        let is_temporary = matches!(
            error,
            ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed
        );
        let message = match error {
            ureq::Error::HostNotFound => {
                "the server's name cannot be resolved; check the network and HF_ENDPOINT".to_owned()
            }
            ureq::Error::RequireHttpsOnly(address) => {
                format!("the server redirects to {address}, which is not encrypted")
            }
            error => error.to_string(),
        };
        Self {
            message,
            is_temporary,
        }
    }

    fn status(status: StatusCode, has_token: bool) -> Self {
        let message = match (status, has_token) {
            (StatusCode::UNAUTHORIZED, true) => {
                "the server does not accept the token (401): it is wrong or has expired, or there \
                 is no such repository"
            }
            (StatusCode::UNAUTHORIZED, false) => {
                "there is no such repository, or it needs a token (401): set HF_TOKEN"
            }
            (StatusCode::FORBIDDEN, true) => {
                "the token gives no access (403): accept the terms on the repository's page, or use \
                 a token that may read it"
            }
            (StatusCode::FORBIDDEN, false) => {
                "access is restricted (403): accept the terms on the repository's page and set \
                 HF_TOKEN"
            }
            (StatusCode::NOT_FOUND, _) => "there is no such repository, revision or file (404)",
            (StatusCode::TOO_MANY_REQUESTS, _) => {
                "the server limits requests (429): try again later, or set HF_TOKEN for a higher limit"
            }
            _ => "",
        };
        let message = match message {
            "" => format!("the server replies {status}"),
            known => known.to_owned(),
        };
        Self {
            message,
            is_temporary: status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_joined() {
        let joined = |location| redirected("https://a.org:1/b/c?d", location).ok();
        assert_eq!(joined("/e?f").as_deref(), Some("https://a.org:1/e?f"));
        assert_eq!(
            joined("https://b.org/e").as_deref(),
            Some("https://b.org/e")
        );
        for location in ["", "e", "//b.org/e", "file:///etc/passwd", "ftp://a.org/"] {
            assert_eq!(joined(location), None, "{location}");
        }
        assert_eq!(origin("http://a.org"), "http://a.org");
        assert_ne!(origin("http://a.org.b.org/"), origin("http://a.org/"));
    }

    #[test]
    fn variables_are_checked() {
        let client = |name: &'static str, value: &'static str| {
            Client::new(|asked| (asked == name).then(|| value.into()))
        };
        let client = |name, value| client(name, value).map(|client| client.endpoint);
        assert_eq!(client("X", "").unwrap(), ENDPOINT);
        assert_eq!(client("HF_ENDPOINT", "http://a/").unwrap(), "http://a");
        for (name, value) in [
            ("HF_ENDPOINT", "file:///etc"),
            ("HF_ENDPOINT", "hub"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "0"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "soon"),
        ] {
            let error = client(name, value).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }
}
