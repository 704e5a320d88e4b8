//! Debian packages (deb(5)) and tarballs, written without Debian's tools.

use std::io::Write;

use anyhow::Context;
use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

/// A file of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path without the leading slash; parent folders are created.
    pub path: String,
    /// Permissions.
    pub mode: u32,
    /// `None` for a folder.
    pub content: Option<Vec<u8>>,
}

impl Entry {
    /// Creates a world-readable file.
    pub fn file(path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.into(),
            mode: 0o644,
            content: Some(content.into()),
        }
    }

    /// Creates an executable.
    pub fn program(path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        Self {
            mode: 0o755,
            ..Self::file(path, content)
        }
    }

    /// Creates a folder.
    pub fn folder(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            mode: 0o755,
            content: None,
        }
    }
}

/// Compresses with gzip; equal input gives equal bytes.
pub fn gzip(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut out = GzEncoder::new(Vec::new(), Compression::best());
    out.write_all(bytes)?;
    Ok(out.finish()?)
}

/// Creates a tar archive of files owned by root; `time` is in seconds since 1970.
pub fn tar(entries: &[Entry], time: u64) -> anyhow::Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    let mut made = std::collections::BTreeSet::new();
    for entry in entries {
        for (at, _) in entry.path.match_indices('/') {
            let folder = &entry.path[..at];
            if made.insert(folder.to_owned()) {
                append(&mut builder, &Entry::folder(folder), time)?;
            }
        }
        if made.insert(entry.path.clone()) {
            append(&mut builder, entry, time)?;
        }
    }
    Ok(builder.into_inner()?)
}

fn append(builder: &mut Builder<Vec<u8>>, entry: &Entry, time: u64) -> anyhow::Result<()> {
    let mut header = Header::new_gnu();
    let content = entry.content.as_deref().unwrap_or_default();
    let is_folder = entry.content.is_none();
    header.set_entry_type(if is_folder {
        EntryType::Directory
    } else {
        EntryType::Regular
    });
    header.set_mode(entry.mode);
    header.set_size(content.len() as u64);
    header.set_mtime(time);
    header.set_username("root")?;
    header.set_groupname("root")?;
    let slash = if is_folder { "/" } else { "" };
    builder
        .append_data(&mut header, format!("{}{slash}", entry.path), content)
        .with_context(|| format!("cannot pack {}", entry.path))
}

/// Creates a package: an `ar` archive of version, control files and content.
pub fn package(control: &[Entry], content: &[Entry], time: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = b"!<arch>\n".to_vec();
    let control = gzip(&tar(control, time)?)?;
    let content = gzip(&tar(content, time)?)?;
    let members: [(&str, &[u8]); 3] = [
        ("debian-binary", b"2.0\n"),
        ("control.tar.gz", &control),
        ("data.tar.gz", &content),
    ];
    for (name, member) in members {
        let len = member.len();
        writeln!(
            bytes,
            "{name:<16}{time:<12}{:<6}{:<6}{:<8}{len:<10}`",
            0, 0, 100_644
        )?;
        bytes.extend_from_slice(member);
        if !len.is_multiple_of(2) {
            bytes.push(b'\n');
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_begin_at_even_places() {
        let control = [Entry::file("control", "Package: x\n")];
        let content = [Entry::program("usr/bin/x", "#!/bin/sh\n")];
        let bytes = package(&control, &content, 7).unwrap();
        assert_eq!(&bytes[..8], b"!<arch>\n");
        let mut at = 8;
        let mut names = Vec::new();
        while at < bytes.len() {
            assert!(at.is_multiple_of(2));
            let header = std::str::from_utf8(&bytes[at..at + 60]).unwrap();
            assert!(header.ends_with("`\n"), "{header:?}");
            names.push(header[..16].trim().to_owned());
            let len: usize = header[48..58].trim().parse().unwrap();
            at += 60 + len.next_multiple_of(2);
        }
        assert_eq!(names, ["debian-binary", "control.tar.gz", "data.tar.gz"]);
    }

    #[test]
    fn folders_come_before_their_files_and_once() {
        let entries = [
            Entry::file("usr/share/a", "a"),
            Entry::file("usr/share/b", "b"),
            Entry::folder("usr/share"),
        ];
        let bytes = tar(&entries, 0).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["usr/", "usr/share/", "usr/share/a", "usr/share/b"]);
    }
}
