//! Repositories of the Hugging Face hub: their list of files, and verified downloads.
//!
//! Neither the names, sizes and hashes of a server nor its replies are trusted: names stay below
//! their folder, bodies end at the announced size, and files have the announced hash.

mod client;
mod download;
mod token;

use std::path::{Component, Path};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

pub use client::Client;

/// Maximum length of a list of files.
const MAX_LISTING: u64 = 16 << 20;

/// Maximum length of a commit.
const MAX_COMMIT: usize = 64;

/// Maximum length of the name of a revision.
const MAX_REVISION: usize = 100;

/// The kind of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A checkpoint.
    #[cfg_attr(not(feature = "pull"), expect(dead_code))]
    Model,
    /// A dataset.
    #[cfg_attr(not(feature = "data"), expect(dead_code))]
    Dataset,
}

impl Kind {
    /// Returns the part of the hub's API.
    fn api(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// Returns the start of the paths of files.
    fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
        }
    }
}

/// A repository and its revision, as `OWNER/NAME` or `OWNER/NAME@REVISION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `OWNER/NAME`
    pub name: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl Reference {
    /// Parses a reference without the prefix `hf:`.
    ///
    /// # Errors
    /// If a part is empty, begins with a dot, or has characters other than ASCII letters, digits,
    /// `-`, `_` and `.`; revisions may also have `/`.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let is_plain = |part: &str| {
            let mut characters = part.chars();
            !part.is_empty()
                && part.len() <= MAX_REVISION
                && !part.starts_with('.')
                && characters.all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        ensure!(
            name.split('/').count() == 2
                && name.split('/').all(is_plain)
                && revision.split('/').all(is_plain),
            "expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION, found hf:{text}"
        );
        Ok(Self {
            name: name.to_owned(),
            revision: revision.to_owned(),
        })
    }

    /// Returns the name without its owner.
    #[cfg(feature = "pull")]
    pub fn base_name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or(&self.name)
    }
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Relative path with `/`.
    pub name: String,
    /// Bytes, if the server announces them.
    pub size: Option<u64>,
    /// SHA-256 in lower-case hexadecimal digits, for files in large file storage.
    pub sha256: Option<String>,
}

/// A commit of a repository.
pub struct Repository {
    client: Client,
    kind: Kind,
    /// Repository and requested revision.
    pub reference: Reference,
    /// Commit that the revision stood for when it was listed.
    pub commit: String,
    /// Files, sorted by name.
    pub files: Vec<RemoteFile>,
}

#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    size: u64,
    sha256: String,
}

impl Repository {
    /// Lists a repository.
    ///
    /// # Errors
    /// If the server cannot be reached, refuses the request or sends anything but a valid list.
    pub fn open(client: Client, kind: Kind, reference: Reference) -> anyhow::Result<Self> {
        let Reference { name, revision } = &reference;
        let revision = revision.replace('/', "%2F");
        let path = format!("api/{}/{name}/revision/{revision}?blobs=true", kind.api());
        let listed = client.text(&path, MAX_LISTING);
        let (commit, files) = (listed.and_then(|body| parse_listing(&body)))
            .with_context(|| format!("cannot list {name} on {}", client.endpoint()))?;
        Ok(Self {
            client,
            kind,
            commit,
            reference,
            files,
        })
    }

    /// Returns the path of a file on the server.
    fn path_of(&self, file: &RemoteFile) -> String {
        let (prefix, repository) = (self.kind.prefix(), &self.reference.name);
        let name = percent_encoded(&file.name);
        format!("{prefix}{repository}/resolve/{}/{name}", self.commit)
    }
}

/// Parses the hub's list of files. Returns the commit, and the files sorted by name.
///
/// # Errors
/// If it is not a list of files, the commit is invalid, or a name leads out of its folder.
pub fn parse_listing(body: &str) -> anyhow::Result<(String, Vec<RemoteFile>)> {
    let listing: Listing = serde_json::from_str(body).map_err(|error| {
        let start: String = body.chars().take(40).collect();
        anyhow::anyhow!(
            "expected the hub's list of files as JSON, found {start:?} ({error}); check \
             HF_ENDPOINT and the proxy"
        )
    })?;
    let commit = listing.sha;
    let is_plain = commit.chars().all(|c| c.is_ascii_alphanumeric());
    if !(1..=MAX_COMMIT).contains(&commit.len()) || !is_plain {
        let start: String = commit.chars().take(MAX_COMMIT).collect();
        bail!("invalid commit {start:?}");
    }
    let mut files = Vec::new();
    for sibling in listing.siblings {
        check_below(&sibling.rfilename)?;
        files.push(sibling.try_into()?);
    }
    files.sort_by(|a: &RemoteFile, b| a.name.cmp(&b.name));
    Ok((commit, files))
}

impl TryFrom<Sibling> for RemoteFile {
    type Error = anyhow::Error;

    fn try_from(sibling: Sibling) -> anyhow::Result<Self> {
        let (size, sha256) = match sibling.lfs {
            Some(large) => (Some(large.size), Some(large.sha256.to_ascii_lowercase())),
            None => (sibling.size, None),
        };
        let is_hash =
            |hash: &String| hash.len() == 64 && hash.chars().all(|c| c.is_ascii_hexdigit());
        if let Some(hash) = sha256.as_ref().filter(|hash| !is_hash(hash)) {
            bail!(
                "the list names an invalid SHA-256 of {}: {hash:?}",
                sibling.rfilename
            );
        }
        Ok(Self {
            name: sibling.rfilename,
            size,
            sha256,
        })
    }
}

/// Encodes the bytes of a path that have a meaning in a URL.
fn percent_encoded(path: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    path.bytes()
        .map(|byte| match is_plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

/// Checks that a relative name stays below its folder.
///
/// # Errors
/// If it is empty or absolute, or has `..`, a backslash, a drive or a control character.
pub fn check_below(name: &str) -> anyhow::Result<()> {
    let mut parts = Path::new(name).components();
    let is_below = parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        && !name.is_empty()
        && !name.contains(|c: char| matches!(c, '\\' | ':') || c.is_control());
    ensure!(
        is_below,
        "the name {name:?} leads out of its folder or is not portable; expected a relative path \
         without \"..\""
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_have_an_owner_and_a_name() {
        for name in [
            "",
            "a",
            "a/b/c",
            "../a",
            "a/b?c",
            "a/..",
            "a/b@",
            "a/b@..",
            "a/b@x/../y",
            "a/b\0",
            "/a",
            "a/b@/x",
        ] {
            let error = Reference::parse(name).unwrap_err().to_string();
            assert!(error.contains("hf:OWNER/NAME"), "{name}: {error}");
        }
        let reference = Reference::parse("a/b@refs/pr/1").unwrap();
        assert_eq!(reference.revision, "refs/pr/1");
        assert_eq!(Reference::parse("A-1/b_2.x").unwrap().revision, "main");
    }

    #[test]
    fn names_are_encoded() {
        assert_eq!(percent_encoded("a/b-c_d.txt"), "a/b-c_d.txt");
        assert_eq!(percent_encoded("a b?#%\u{e9}"), "a%20b%3F%23%25%C3%A9");
    }
}
