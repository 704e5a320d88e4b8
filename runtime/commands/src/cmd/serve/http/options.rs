//! Options of the HTTP server.

use std::fs;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use clap::Args;
use edge_lmm::AnyEngine;
use edge_lmm::serve::AddressReader;

use super::access::{Access, Key};
use super::connections;
use super::fetch::{Fetcher, Host};
use super::routes::{Facts, Server};
use crate::cmd::serve::service::Service;

/// Longest API key in bytes.
const MAX_KEY: usize = 1024;

/// Options of the HTTP server.
#[derive(Debug, Clone, Args)]
pub struct HttpOptions {
    /// Answer clients of OpenAI's interface over HTTP at this address, such as 127.0.0.1:8080;
    /// browsers get a page
    #[arg(long, value_name = "ADDRESS")]
    http: Option<String>,
    /// Require this key from clients of HTTP. Other users of the machine see options: prefer
    /// --api-key-file or the environment variable EDGE_LMM_SERVE_API_KEY
    #[arg(
        long,
        value_name = "KEY",
        requires = "http",
        conflicts_with = "api_key_file"
    )]
    api_key: Option<String>,
    /// Require the key in this file from clients of HTTP
    #[arg(long, value_name = "FILE", requires = "http")]
    api_key_file: Option<PathBuf>,
    /// Accept this name of the server, besides its addresses, names without a dot and those in
    /// .local. Without a key, other names are rejected: a web page could have made them point here
    #[arg(long, value_name = "NAME", requires = "http")]
    allow_host: Vec<String>,
    /// Let requests name files at http:// addresses (https:// with the Cargo feature pull) of this
    /// host, with the port unless it is the usual one; may be repeated. Private addresses are
    /// contacted only if they are given themselves, such as 192.168.1.5
    #[arg(long, value_name = "HOST[:PORT]", requires = "http")]
    allow_url_host: Vec<Host>,
    /// Name of the model for clients of HTTP [default: that of the file, without its suffix]
    #[arg(long, value_name = "NAME", requires = "http")]
    model_name: Option<String>,
    /// Maximum size of a request over HTTP
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_body)]
    max_body: usize,
    /// Maximum number of connections; when all are in use, the one that has been idle longest is
    /// closed
    #[arg(long, value_name = "N", default_value = "256", value_parser = parse_connections)]
    connections: usize,
}

fn parse_body(text: &str) -> Result<usize, String> {
    let bytes = edge_lmm::units::parse_bytes(text)?;
    match usize::try_from(bytes) {
        Ok(bytes @ 1..=edge_lmm::serve::MAX_LINE) => Ok(bytes),
        _ => Err("expected at most 64MiB".to_owned()),
    }
}

fn parse_connections(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=4096) => Ok(count),
        _ => Err("expected 1 to 4096 connections".to_owned()),
    }
}

impl HttpOptions {
    /// Returns `true` if the server is wanted.
    pub fn is_on(&self) -> bool {
        self.http.is_some()
    }

    /// Returns the reader of addresses that requests name, if they may.
    pub fn addresses(&self) -> Option<Arc<dyn AddressReader>> {
        let hosts = self.allow_url_host.clone();
        (!hosts.is_empty()).then(|| Arc::new(Fetcher { hosts }) as Arc<dyn AddressReader>)
    }

    /// Starts the server on a thread, if it is wanted. Returns its address.
    ///
    /// # Errors
    /// If the address or the key cannot be used.
    pub fn start(
        &self,
        model: &Path,
        engine: &AnyEngine,
        service: Service,
    ) -> anyhow::Result<Option<SocketAddr>> {
        let Some(address) = &self.http else {
            return Ok(None);
        };
        let key = self.key()?;
        let listener = listen(address)?;
        let address = listener.local_addr()?;
        if key.is_none() && !address.ip().is_loopback() {
            log::warn!(
                "{address} can be reached from other machines, and no key is required \
                 (--api-key-file)"
            );
        }
        let server = Server {
            service,
            access: Access {
                key,
                hosts: self.allow_host.clone(),
            },
            facts: self.facts(model, engine),
            max_body: self.max_body,
        };
        connections::start(listener, server, self.connections)?;
        Ok(Some(address))
    }

    fn key(&self) -> anyhow::Result<Option<Key>> {
        let key = match (&self.api_key, &self.api_key_file) {
            (Some(key), _) => key.clone(),
            (None, Some(path)) => {
                let text = fs::read_to_string(path);
                let text = text.with_context(|| format!("cannot read {}", path.display()))?;
                text.trim().to_owned()
            }
            (None, None) => return Ok(None),
        };
        ensure!(!key.is_empty(), "the API key is empty");
        let is_plain = key.bytes().all(|byte| byte.is_ascii_graphic());
        if key.len() > MAX_KEY || !is_plain {
            bail!("the API key is not up to {MAX_KEY} visible ASCII characters without blanks");
        }
        Ok(Some(Key::new(key)))
    }

    fn facts(&self, model: &Path, engine: &AnyEngine) -> Facts {
        let metadata = fs::metadata(model).ok();
        let modified = metadata.as_ref().and_then(|m| m.modified().ok());
        let stem = model.file_stem().unwrap_or(model.as_os_str());
        let name = self.model_name.clone();
        Facts {
            name: name.unwrap_or_else(|| stem.to_string_lossy().into_owned()),
            created: modified.map_or(0, seconds_since_1970),
            record_bytes: metadata.map(|metadata| metadata.len()),
            context: engine.context_length(),
            device: engine.device().to_string(),
        }
    }
}

/// Returns a time in seconds since 1970.
pub fn seconds_since_1970(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs()
}

fn listen(address: &str) -> anyhow::Result<TcpListener> {
    let found = address.to_socket_addrs().with_context(|| {
        format!("cannot listen on {address:?}: expected HOST:PORT, such as 127.0.0.1:8080")
    })?;
    let found: Vec<SocketAddr> = found.collect();
    let listener = TcpListener::bind(&found[..]);
    let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
