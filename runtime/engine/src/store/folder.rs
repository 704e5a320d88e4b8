//! The folder of entries.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use edge_lmm_record::FileMap;
use edge_lmm_record::output::{Output, OutputError};

use super::entry::{self, EntryError, Kind, Origin};

/// Bytes of all entries of a folder by default.
pub const DEFAULT_LIMIT: u64 = 1 << 30;

/// Age after which the part file of an entry is left over from a killed process.
const PART_AGE: Duration = Duration::from_secs(3600);

/// Error of opening a [`Store`].
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot create the cache folder {}: {source}; name a folder that this user can create or write \
     to", path.display()
)]
pub struct StoreError {
    path: PathBuf,
    source: io::Error,
}

/// Reason why a file cannot be used as an entry.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Entry(#[from] EntryError),
}

/// A folder of results that are used again by later processes, the least recently used ones removed
/// first.
///
/// Problems after opening are logged as warnings and never affect an answer. Several processes may
/// use the same folder. Entries hold the content of conversations: they are readable by their owner
/// only.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    /// Largest size of all entries, in bytes.
    limit: u64,
    /// `true` after a write failed: it would fail again.
    read_only: AtomicBool,
}

/// The body of an entry.
pub(crate) struct Stored {
    map: FileMap,
    body: Range<usize>,
}

impl Deref for Stored {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.body.clone()]
    }
}

impl Store {
    /// Opens a folder whose entries have at most `limit` bytes. A missing folder is created, for
    /// its owner only.
    ///
    /// If the path is not a folder, a warning is logged and nothing is stored.
    ///
    /// # Errors
    /// If the folder does not exist and cannot be created.
    pub fn open(folder: &Path, limit: u64) -> Result<Self, StoreError> {
        let is_other = folder.exists() && !folder.is_dir();
        if is_other {
            log::warn!(
                "{} is not a folder: nothing is cached; name a folder",
                folder.display()
            );
        } else if !folder.exists() {
            create_private(folder).map_err(|source| StoreError {
                path: folder.to_owned(),
                source,
            })?;
        }
        Ok(Self {
            folder: folder.to_owned(),
            limit,
            read_only: AtomicBool::new(is_other),
        })
    }

    /// Path of an entry. The name identifies the model only roughly; the entry does it exactly.
    fn path(&self, origin: &Origin, kind: Kind, key: u128) -> PathBuf {
        let extension = match kind {
            Kind::Features => "features",
            Kind::Prefix => "prefix",
        };
        let model = origin.model as u64;
        self.folder
            .join(format!("{key:032x}-{model:016x}.{extension}"))
    }

    /// Reads an entry and marks it as used. One that cannot be used is reported and removed.
    pub(crate) fn load(&self, origin: &Origin, kind: Kind, key: u128) -> Option<Stored> {
        let path = self.path(origin, kind, key);
        match read(&path, origin, kind, Some(key)) {
            Ok(stored) => Some(stored),
            Err(FileError::Io(error)) if is_absent(&error) => None,
            Err(error) => {
                self.discard(origin, kind, key, &error);
                None
            }
        }
    }

    /// Reports an entry that cannot be used and removes it.
    pub(crate) fn discard(
        &self,
        origin: &Origin,
        kind: Kind,
        key: u128,
        reason: &dyn std::error::Error,
    ) {
        let path = self.path(origin, kind, key);
        log::warn!("{} is ignored: {reason}", path.display());
        // If it stays, it is replaced or reported again.
        let _ = fs::remove_file(&path);
    }

    /// Writes an entry unless it exists: `write_body` writes `body` bytes. An error is reported,
    /// and nothing is written after it.
    pub(crate) fn save(
        &self,
        origin: &Origin,
        kind: Kind,
        key: u128,
        body: usize,
        write_body: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) {
        let path = self.path(origin, kind, key);
        let size = entry::size(origin, body);
        if self.read_only.load(Ordering::Relaxed) || path.exists() {
            return;
        }
        if size > self.limit {
            log::debug!(
                "an entry of {size} bytes exceeds the cache's {} bytes",
                self.limit
            );
            return;
        }
        let written = self.make_room(size).and_then(|()| {
            let mut output = Output::private(&path, true)?;
            entry::write(&mut output, origin, kind, key, body, write_body)
                .map_err(|error| output.io(error))?;
            output.finish_unsynced()
        });
        match written {
            Ok(bytes) => log::debug!("{} has {bytes} bytes", path.display()),
            // Another process writes the same result.
            Err(OutputError::Busy { .. }) => {}
            Err(error) => {
                self.read_only.store(true, Ordering::Relaxed);
                log::warn!("{error}; nothing more is cached");
            }
        }
    }

    /// Removes the least recently used entries until `needed` further bytes fit.
    fn make_room(&self, needed: u64) -> Result<(), OutputError> {
        let mut entries = self.entries().map_err(|source| OutputError::Io {
            path: self.folder.clone(),
            source,
        })?;
        entries.sort_unstable();
        let mut bytes: u64 = entries.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in entries {
            if bytes.saturating_add(needed) <= self.limit {
                break;
            }
            // Another process may have removed it.
            match fs::remove_file(&path) {
                Err(error) if !is_absent(&error) => {
                    return Err(OutputError::Io {
                        path,
                        source: error,
                    });
                }
                _ => bytes -= size,
            }
        }
        Ok(())
    }

    /// Lists the entries with the time of their last use and their size. Part files of killed
    /// processes are removed.
    fn entries(&self) -> io::Result<Vec<(SystemTime, u64, PathBuf)>> {
        let mut entries = Vec::new();
        for file in fs::read_dir(&self.folder)? {
            let file = file?;
            let name = file.file_name();
            let name = name.to_string_lossy();
            let part = name
                .strip_prefix('.')
                .and_then(|name| name.strip_suffix(".part"));
            if !is_entry(part.unwrap_or(&name)) {
                continue;
            }
            // Another process may have removed it.
            let Ok(metadata) = file.metadata() else {
                continue;
            };
            let used = metadata.modified()?;
            if part.is_none() {
                entries.push((used, metadata.len(), file.path()));
            } else if used.elapsed().is_ok_and(|age| age > PART_AGE) {
                let _ = fs::remove_file(file.path());
            }
        }
        Ok(entries)
    }
}

/// Reads and checks the entry in a file and marks it as used.
///
/// # Errors
/// If it cannot be read or used.
pub(crate) fn read(
    path: &Path,
    origin: &Origin,
    kind: Kind,
    key: Option<u128>,
) -> Result<Stored, FileError> {
    // A pipe would block.
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file").into());
    }
    if metadata.len() == 0 {
        return Err(EntryError::Damaged("it is empty").into());
    }
    let file = File::open(path)?;
    let map = FileMap::whole(&file)?;
    let body = entry::parse(&map, origin, kind, key)?;
    // Another user's file keeps its time.
    let _ = file.set_modified(SystemTime::now());
    Ok(Stored { map, body })
}

/// Returns `true` for the names that [`Store::path`] gives.
fn is_entry(name: &str) -> bool {
    let is_hex = |text: &str, digits: usize| {
        text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    match name.split_once('.') {
        Some((stem, "features" | "prefix")) => stem
            .split_once('-')
            .is_some_and(|(key, model)| is_hex(key, 32) && is_hex(model, 16)),
        _ => false,
    }
}

/// Returns `true` if there is no such file, or its folder is a file.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Creates a folder that only its owner can read.
fn create_private(folder: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin::new(7, "cpu test")
    }

    fn save(store: &Store, key: u128, body: &[u8]) {
        let write = |out: &mut dyn Write| out.write_all(body);
        store.save(&origin(), Kind::Prefix, key, body.len(), write);
    }

    fn load(store: &Store, key: u128) -> Option<Vec<u8>> {
        let stored = store.load(&origin(), Kind::Prefix, key)?;
        Some(stored.to_vec())
    }

    fn files(store: &Store) -> usize {
        fs::read_dir(&store.folder).expect("the folder").count()
    }

    /// Makes an entry look as if it had been used `age` seconds ago.
    fn age(store: &Store, key: u128, age: u64) {
        let path = store.path(&origin(), Kind::Prefix, key);
        let file = File::open(path).expect("the entry");
        let time = SystemTime::now() - Duration::from_secs(age);
        file.set_modified(time).expect("the time is set");
    }

    #[test]
    fn the_least_recently_used_entries_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let limit = 3 * entry::size(&origin(), 100);
        let store = Store::open(folder.path(), limit).unwrap();
        fs::write(folder.path().join("not-an-entry.prefix"), [0; 4096]).unwrap();
        for key in 0..3 {
            save(&store, key, &[1; 100]);
            age(&store, key, 100 - key as u64);
        }
        assert!(load(&store, 0).is_some());
        save(&store, 3, &[1; 100]);
        let found: Vec<bool> = (0..4).map(|key| load(&store, key).is_some()).collect();
        assert_eq!(found, [true, false, true, true]);
        // One that exceeds the limit is not written and removes nothing.
        save(&store, 4, &vec![1; limit as usize]);
        assert!(load(&store, 4).is_none());
        assert_eq!(files(&store), 4);
    }

    /// Part files of killed processes are removed some time later, those of running ones stay.
    #[test]
    fn old_part_files_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), DEFAULT_LIMIT).unwrap();
        for (key, age) in [(1, 10), (2, 2 * PART_AGE.as_secs())] {
            let path = store.path(&origin(), Kind::Prefix, key);
            let name = path.file_name().unwrap().to_string_lossy();
            let part = path.with_file_name(format!(".{name}.part"));
            let file = File::create(part).unwrap();
            let time = SystemTime::now() - Duration::from_secs(age);
            file.set_modified(time).unwrap();
        }
        save(&store, 3, b"body");
        assert_eq!(files(&store), 2);
    }

    /// A full disk: the entry is absent, and no further one is tried.
    #[test]
    fn a_failed_write_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), DEFAULT_LIMIT).unwrap();
        let mut tries = 0;
        for key in [1, 2] {
            store.save(&origin(), Kind::Prefix, key, 1 << 20, |out| {
                tries += 1;
                out.write_all(&[1; 1 << 19])?;
                Err(io::ErrorKind::StorageFull.into())
            });
        }
        assert_eq!((tries, files(&store)), (1, 0));
        save(&store, 3, b"body");
        assert_eq!((load(&store, 3), files(&store)), (None, 0));
    }

    /// Whatever is in the place of an entry, it is ignored and replaced.
    #[test]
    fn damaged_entries_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), DEFAULT_LIMIT).unwrap();
        save(&store, 1, b"body");
        save(&store, 2, b"other");
        let [path, other] = [1, 2].map(|key| store.path(&origin(), Kind::Prefix, key));
        let [whole, other] = [&path, &other].map(|path| fs::read(path).unwrap());
        let cut = whole[..whole.len() - 1].to_vec();
        let mut flipped = whole.clone();
        flipped[60] ^= 1;
        for bytes in [other, cut, flipped, Vec::new(), b"text".to_vec()] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(load(&store, 1), None);
            save(&store, 1, b"body");
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn a_file_in_place_of_the_folder_stores_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "text").unwrap();
        let store = Store::open(&path, DEFAULT_LIMIT).unwrap();
        save(&store, 1, b"body");
        assert_eq!(load(&store, 1), None);
        assert_eq!(fs::read(&path).unwrap(), b"text");
        let error = Store::open(&path.join("folder"), 1)
            .unwrap_err()
            .to_string();
        assert!(error.contains("name a folder"), "{error}");
    }

    /// Writers of the same entries, with too little room for all of them, never leave one that is
    /// not whole.
    #[test]
    fn concurrent_writers_do_not_disturb_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let limit = 2 * entry::size(&origin(), 1 << 16);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let store = Store::open(folder.path(), limit).unwrap();
                scope.spawn(move || {
                    for i in 0..50 {
                        let key = (i * 7 + thread) % 4;
                        let body = vec![key as u8; 1 << 16];
                        save(&store, key, &body);
                        if let Some(found) = load(&store, key) {
                            assert!(found == body);
                        }
                    }
                    assert!(!store.read_only.load(Ordering::Relaxed));
                });
            }
        });
    }

    #[cfg(unix)]
    #[test]
    fn folder_and_entries_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("a/b"), DEFAULT_LIMIT).unwrap();
        save(&store, 1, b"body");
        let path = store.path(&origin(), Kind::Prefix, 1);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&store.folder), mode(&path)), (0o700, 0o600));
    }
}
