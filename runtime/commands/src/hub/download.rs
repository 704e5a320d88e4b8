//! Downloads that continue after an interruption and are complete or absent.
//!
//! A file grows as `NAME.part`. When it has the announced size and hash, it is renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};
use ureq::Body;
use ureq::http::{Response, StatusCode};

use super::client::RequestError;
use super::{RemoteFile, Repository};

/// Attempts without progress before a download fails.
const ATTEMPTS: u32 = 4;

/// Bytes after which an attempt counts as the first one again.
const PROGRESS: u64 = 1 << 16;

/// Wait before the second attempt; doubled for each further one.
const WAIT: Duration = Duration::from_millis(250);

/// Slowest download that goes on, in bytes per second.
const MIN_RATE: u64 = 256;

/// Maximum size of a file that the server announces no size for.
const MAX_UNKNOWN: u64 = 1 << 40;

const BUFFER: usize = 1 << 17;

impl Repository {
    /// Downloads a file to `path` unless it is there. `progress` is called with the bytes that are
    /// on the disk.
    ///
    /// # Errors
    /// If the server fails repeatedly, what it sends has another size or hash than announced, or the
    /// file cannot be written.
    pub fn download(
        &self,
        file: &RemoteFile,
        path: &Path,
        mut progress: impl FnMut(u64),
    ) -> anyhow::Result<()> {
        if let Some(metadata) = regular(path)? {
            // Only complete files have this name.
            progress(metadata.len());
            return Ok(());
        }
        let part = part_of(path);
        let mut download = Download::open(&part)?;
        progress(download.length);
        let result = self.complete(file, &mut download, &mut progress);
        let result = result.and_then(|()| download.check(file));
        if let Err(error) = result {
            if error.is::<Corrupt>() {
                // Continuing it would fail again.
                let _ = fs::remove_file(&part);
            }
            let (name, repository) = (&file.name, &self.reference.name);
            return Err(error.context(format!("cannot download {name} of {repository}")));
        }
        download.file.sync_all()?;
        fs::rename(&part, path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Requests the rest of a file until it is complete.
    fn complete(
        &self,
        file: &RemoteFile,
        download: &mut Download,
        progress: &mut impl FnMut(u64),
    ) -> anyhow::Result<()> {
        let mut attempt = 0;
        loop {
            let before = download.length;
            let error = match self.request_rest(file, download, progress) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let is_temporary = match error.downcast_ref::<RequestError>() {
                Some(error) => error.is_temporary,
                None => error.is::<Interrupted>(),
            };
            if !is_temporary {
                return Err(error);
            }
            attempt = match download.length - before.min(download.length) {
                PROGRESS.. => 1,
                _ => attempt + 1,
            };
            if attempt == ATTEMPTS {
                return Err(error.context(Interrupted("the download stopped".to_owned())));
            }
            std::thread::sleep(WAIT * 2_u32.pow(attempt - 1));
        }
    }

    fn request_rest(
        &self,
        file: &RemoteFile,
        download: &mut Download,
        progress: &mut impl FnMut(u64),
    ) -> anyhow::Result<()> {
        if file.size.is_some_and(|size| size == download.length) {
            return Ok(());
        }
        let response = self.client.get(&self.path_of(file), download.length)?;
        if response.status() == StatusCode::OK && download.length > 0 {
            // The server does not continue files.
            download.restart()?;
        }
        let size = announced(&response, download.length)?;
        if let (Some(expected), Some(found)) = (file.size, size)
            && expected != found
        {
            bail!(Corrupt(format!(
                "expected {expected} bytes, the server sends a file of {found}"
            )));
        }
        let limit = file.size.or(size).unwrap_or(MAX_UNKNOWN);
        download.receive(response.into_body(), limit, self.client.timeout(), progress)?;
        match file.size.or(size) {
            Some(size) if download.length < size => Err(Interrupted(format!(
                "the connection was closed after {} of {size} bytes",
                download.length
            ))
            .into()),
            _ => Ok(()),
        }
    }
}

/// A download that can be continued at once.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Interrupted(String);

/// A file other than the announced one.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Corrupt(String);

/// Returns the size of the whole file according to a reply that begins at `start`.
fn announced(response: &Response<Body>, start: u64) -> anyhow::Result<Option<u64>> {
    let header = |name| {
        let value = response.headers().get(name);
        value.and_then(|value| value.to_str().ok())
    };
    if response.status() == StatusCode::OK {
        return Ok(response.body().content_length());
    }
    let range = header("content-range").unwrap_or_default();
    let parsed = (range.strip_prefix("bytes ")).and_then(|range| {
        let (range, size) = range.split_once('/')?;
        let (first, _) = range.split_once('-')?;
        Some((first.parse::<u64>().ok()?, size.parse::<u64>().ok()?))
    });
    match parsed {
        Some((first, size)) if first == start => Ok(Some(size)),
        _ => bail!("asked for the bytes from {start} on, the server sends {range:?}"),
    }
}

/// Returns the path of the unfinished file.
fn part_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    path.with_file_name(name)
}

/// Returns the metadata of a regular file; `None` if there is nothing.
///
/// # Errors
/// If there is something else, such as a symbolic link, which would lead writes elsewhere.
fn regular(path: &Path) -> anyhow::Result<Option<fs::Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata)),
        Ok(_) => bail!("{} is not a regular file; remove it", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// An unfinished file.
struct Download {
    path: PathBuf,
    file: File,
    /// Bytes so far.
    length: u64,
    hash: Sha256,
}

impl Download {
    /// Opens an unfinished file, which may exist.
    fn open(path: &Path) -> anyhow::Result<Self> {
        regular(path)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path);
        let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
        let mut hash = Sha256::new();
        let length = io::copy(&mut file, &mut HashWriter(&mut hash))
            .with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            length,
            hash,
        })
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.length = 0;
        self.hash = Sha256::new();
        Ok(())
    }

    /// Appends a body up to the size of the file.
    fn receive(
        &mut self,
        body: Body,
        size: u64,
        patience: Duration,
        progress: &mut impl FnMut(u64),
    ) -> anyhow::Result<()> {
        // One byte more tells whether the body ends.
        let mut reader = body.into_reader().take((size - size.min(self.length)) + 1);
        let mut buffer = vec![0; BUFFER];
        let mut rate = Rate::new(patience);
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Interrupted(format!("connection: {error}")).into()),
            };
            if self.length + read as u64 > size {
                bail!(Corrupt(format!(
                    "the server sends more than the announced {size} bytes"
                )));
            }
            let written = self.file.write_all(&buffer[..read]);
            written.with_context(|| format!("cannot write {}", self.path.display()))?;
            self.hash.update(&buffer[..read]);
            self.length += read as u64;
            progress(self.length);
            rate.add(read)?;
        }
    }

    /// Compares size and hash with what the server announced.
    fn check(&mut self, file: &RemoteFile) -> anyhow::Result<()> {
        if let Some(size) = file.size
            && self.length != size
        {
            let found = self.length;
            bail!(Corrupt(format!("expected {size} bytes, found {found}")));
        }
        let Some(expected) = &file.sha256 else {
            return Ok(());
        };
        let digest = self.hash.clone().finalize();
        let found: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        if found != *expected {
            bail!(Corrupt(format!(
                "the SHA-256 is {found}, expected {expected}: the file was changed on its way and \
                 is removed"
            )));
        }
        Ok(())
    }
}

struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Ends downloads that a server keeps alive with single bytes.
struct Rate {
    patience: Duration,
    since: Instant,
    bytes: u64,
}

impl Rate {
    fn new(patience: Duration) -> Self {
        Self {
            patience,
            since: Instant::now(),
            bytes: 0,
        }
    }

    fn add(&mut self, bytes: usize) -> anyhow::Result<()> {
        self.bytes += bytes as u64;
        if self.since.elapsed() < self.patience {
            return Ok(());
        }
        let seconds = self.patience.as_secs();
        ensure!(
            self.bytes >= MIN_RATE * seconds,
            "the server sends only {} bytes in {seconds} s; run the command again to continue",
            self.bytes
        );
        *self = Self::new(self.patience);
        Ok(())
    }
}
