//! Output files that are complete or not there at all.
//!
//! A file is written under another name beside its place and renamed when it is complete, so that a
//! failure leaves the old file as it was. Creating it early, before the work whose result it is to
//! hold, finds a wrong path in time.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::NamedTempFile;

/// Why an output file cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The path names something other than a regular file.
    #[error("cannot write {path}: {found}; name a regular file", path = .path.display())]
    NotAFile {
        /// The path as given.
        path: PathBuf,
        /// Description of what is there.
        found: &'static str,
    },
    /// The output would replace an input.
    #[error("cannot write {path}: it is an input of the same command; choose another name", path = .path.display())]
    IsInput {
        /// The path as given.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("cannot write {path}: {source}", path = .path.display())]
    Io {
        /// The path as given.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
}

/// Temporary files that exist at the moment.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes the temporary files of all unfinished outputs, for a program that is about to be ended
/// by a signal.
pub fn remove_unfinished() {
    let files = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
    for file in files.iter() {
        if let Err(error) = std::fs::remove_file(file) {
            log::warn!("cannot remove {}: {error}", file.display());
        }
    }
}

/// Entry of [`UNFINISHED`] that ends on drop.
#[derive(Debug)]
struct Unfinished(PathBuf);

impl Unfinished {
    fn new(path: &Path) -> Self {
        let mut files = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
        files.push(path.to_owned());
        Self(path.to_owned())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let mut files = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|file| *file != self.0);
    }
}

/// A file that replaces `path` when it is [finished](Self::finish), and vanishes otherwise.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
    target: PathBuf,
    file: BufWriter<NamedTempFile>,
    unfinished: Unfinished,
}

impl OutputFile {
    /// Creates the temporary file beside `path`. A symbolic link is followed, so that the file it
    /// points to is replaced and the link stays.
    ///
    /// # Errors
    /// If `path` is a folder, a device or a dangling link, is one of `inputs`, or if its folder
    /// does not exist or cannot be written.
    pub fn create<'a>(
        path: &Path,
        inputs: impl IntoIterator<Item = &'a Path>,
    ) -> Result<Self, OutputError> {
        let io = |source| OutputError::Io {
            path: path.to_owned(),
            source,
        };
        let not_a_file = |found| OutputError::NotAFile {
            path: path.to_owned(),
            found,
        };
        let target = match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(io(error)),
            Ok(found) if found.is_symlink() => path
                .canonicalize()
                .map_err(|_| not_a_file("it is a symbolic link that points nowhere"))?,
            Ok(_) => path.to_owned(),
        };
        match target.metadata() {
            Ok(found) if found.is_dir() => return Err(not_a_file("it is a folder")),
            Ok(found) if !found.is_file() => {
                return Err(not_a_file("it is a device, pipe or socket"));
            }
            _ => {}
        }
        let is_input = |input: &Path| match (input.canonicalize(), target.canonicalize()) {
            (Ok(input), Ok(target)) => input == target,
            _ => false,
        };
        if inputs.into_iter().any(is_input) {
            return Err(OutputError::IsInput {
                path: path.to_owned(),
            });
        }
        let name = target
            .file_name()
            .ok_or_else(|| not_a_file("it has no file name"))?;
        let folder = match target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        let file = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".part")
            .permissions(permissions(&target))
            .tempfile_in(folder)
            .map_err(io)?;
        Ok(Self {
            path: path.to_owned(),
            unfinished: Unfinished::new(file.path()),
            file: BufWriter::new(file),
            target,
        })
    }

    /// The path as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes everything out and puts the file in its place.
    ///
    /// # Errors
    /// If the disk is full or the file cannot be renamed; the old file is then unchanged.
    pub fn finish(self) -> Result<(), OutputError> {
        let Self {
            path,
            target,
            file,
            unfinished: _unfinished,
        } = self;
        let io = |source| OutputError::Io { path, source };
        let finish = || {
            let file = file.into_inner().map_err(|error| error.into_error())?;
            file.as_file().sync_all()?;
            file.persist(&target).map_err(|error| error.error)?;
            Ok(())
        };
        finish().map_err(io)
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Permissions of the file that is replaced, or the usual ones, of which the system takes away what
/// the user's mask forbids.
#[cfg(unix)]
fn permissions(target: &Path) -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    target.metadata().map_or_else(
        |_| std::fs::Permissions::from_mode(0o666),
        |found| found.permissions(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(path: &Path) -> Result<OutputFile, OutputError> {
        OutputFile::create(path, [])
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).expect("the folder opens");
        entries
            .map(|entry| {
                let entry = entry.expect("an entry");
                entry.file_name().to_string_lossy().into_owned()
            })
            .collect()
    }

    #[test]
    fn a_file_is_complete_or_not_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.json");
        std::fs::write(&path, "old").expect("the old file");
        let mut file = create(&path).expect("it can be created");
        file.write_all(b"new").expect("it can be written");
        assert_eq!(std::fs::read(&path).expect("the file"), b"old");
        drop(file);
        assert_eq!(std::fs::read(&path).expect("the file"), b"old");
        assert_eq!(names(folder.path()), ["out.json"]);

        let mut file = create(&path).expect("it can be created");
        file.write_all(b"new").expect("it can be written");
        file.finish().expect("it can be finished");
        assert_eq!(std::fs::read(&path).expect("the file"), b"new");
        assert_eq!(names(folder.path()), ["out.json"]);
    }

    #[test]
    fn wrong_paths_are_found_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let missing = folder.path().join("missing/out.json");
        for (path, reason) in [
            (folder.path(), "folder"),
            (Path::new("/dev/null"), "device"),
            (missing.as_path(), "No such file"),
        ] {
            let error = create(path).expect_err("a wrong path").to_string();
            assert!(error.contains(reason), "{error}");
        }
        let input = folder.path().join("model.bpk");
        std::fs::write(&input, "weights").expect("an input");
        let error = OutputFile::create(&input, [input.as_path()]).expect_err("an input");
        assert!(error.to_string().contains("input"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn links_stay() {
        let folder = tempfile::tempdir().expect("a folder");
        let (link, target) = (folder.path().join("link"), folder.path().join("target"));
        std::os::unix::fs::symlink(&target, &link).expect("a link");
        let error = create(&link).expect_err("a dangling link").to_string();
        assert!(error.contains("points nowhere"), "{error}");

        std::fs::write(&target, "old").expect("the target");
        let mut file = create(&link).expect("it can be created");
        file.write_all(b"new").expect("it can be written");
        file.finish().expect("it can be finished");
        assert!(link.symlink_metadata().expect("the link").is_symlink());
        assert_eq!(std::fs::read(&target).expect("the target"), b"new");
    }
}
