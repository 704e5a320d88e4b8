//! Output files that are complete or not there at all.
//!
//! An [`Output`] is written to an unfinished file beside its place, `.NAME.part`, and renamed in
//! the end, so that a failure leaves the old file as it was. Creating it before the work whose
//! result it is to hold finds a wrong path in time. The unfinished file is locked while its program
//! runs, so that a second one does not write to it; one that a killed program left behind is found
//! and used again.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use same_file::Handle;

/// Why a file cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The path leads to something that is not replaced by a file.
    #[error("cannot write {}: {found}; expected the name of a file", path.display())]
    NotAFile {
        /// The path as given.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The folder of the file does not exist.
    #[error("cannot write {}: there is no folder {}; create it first", path.display(), folder.display())]
    NoFolder {
        /// The path as given.
        path: PathBuf,
        /// Its folder.
        folder: PathBuf,
    },
    /// The file exists.
    #[error("{} exists; use --force to overwrite it", path.display())]
    Exists {
        /// The path as given.
        path: PathBuf,
    },
    /// Another program is writing the same file.
    #[error("cannot write {}: another program is writing it (to {})", path.display(), part.display())]
    Busy {
        /// The path as given.
        path: PathBuf,
        /// The other program's unfinished file.
        part: PathBuf,
    },
    /// The file is one that is read, or another output of the same run.
    #[error("cannot write {}: it is {role} of the same command; choose another name", path.display())]
    InUse {
        /// The path as given.
        path: PathBuf,
        /// What else it is.
        role: String,
    },
    /// The system refuses.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The path as given.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// Unfinished files of this process.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the unfinished files of this process and returns those that could not be removed. No
/// output is finished any more while the guard lives: for a program that ends at once.
pub fn abandon_all() -> (Vec<PathBuf>, impl Sized) {
    let files = unfinished();
    let left = files
        .iter()
        .filter(|part| std::fs::remove_file(part).is_err() && part.exists())
        .cloned()
        .collect();
    (left, files)
}

/// A file that is being written. Dropped before [`Self::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct Output {
    /// As given.
    path: PathBuf,
    /// Where the file will be: symbolic links followed.
    place: PathBuf,
    part: PathBuf,
    /// Holds the lock.
    file: File,
}

impl Output {
    /// Checks that `path` can be written and reserves it; `overwrite` allows it to exist.
    ///
    /// # Errors
    /// If `path` is no place for a file, exists, is being written by another process, or the folder
    /// cannot be written to.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self, OutputError> {
        let place = place(path)?;
        if !overwrite && place.exists() {
            return Err(OutputError::Exists {
                path: path.to_owned(),
            });
        }
        let mut name = std::ffi::OsString::from(".");
        name.push(place.file_name().unwrap_or_default());
        name.push(".part");
        let part = place.with_file_name(name);
        // Under one lock, so that a signal finds the file in the list or not made at all.
        let mut unfinished = unfinished();
        let file = reserve(path, &part)?;
        unfinished.push(part.clone());
        drop(unfinished);
        Ok(Self {
            path: path.to_owned(),
            place,
            part,
            file,
        })
    }

    /// The path as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The unfinished file, open for reading and writing.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// The path of the unfinished file.
    pub fn part(&self) -> &Path {
        &self.part
    }

    /// As [`Self::create`], for a file that may exist, and that is none of `inputs`.
    ///
    /// # Errors
    /// As [`Self::create`] and [`Self::check_inputs`].
    pub fn replace<'a>(
        path: &Path,
        inputs: impl IntoIterator<Item = &'a Path>,
    ) -> Result<Self, OutputError> {
        let output = Self::create(path, true)?;
        output.check_inputs(inputs.into_iter())?;
        Ok(output)
    }

    /// Refuses a file that is also one of the inputs.
    ///
    /// # Errors
    /// If it is.
    pub fn check_inputs<'a>(
        &self,
        mut inputs: impl Iterator<Item = &'a Path>,
    ) -> Result<(), OutputError> {
        let Ok(own) = Handle::from_path(&self.place) else {
            return Ok(());
        };
        match inputs.find(|input| Handle::from_path(input).is_ok_and(|input| input == own)) {
            None => Ok(()),
            Some(_) => Err(self.in_use("an input")),
        }
    }

    /// Whether `path` leads to the same file as this output, which may not exist yet.
    pub fn is(&self, path: &Path) -> bool {
        place(path).is_ok_and(|place| place == self.place)
    }

    /// The error for an output that is something else, too.
    pub fn in_use(&self, role: &str) -> OutputError {
        OutputError::InUse {
            path: self.path.clone(),
            role: role.to_owned(),
        }
    }

    /// Writes `bytes` as the whole content and finishes the file.
    ///
    /// # Errors
    /// If the system refuses; the old file is then unchanged.
    pub fn finish_with(mut self, bytes: &[u8]) -> Result<(), OutputError> {
        use io::Write;
        self.file.write_all(bytes).map_err(|error| self.io(error))?;
        self.finish().map(|_| ())
    }

    /// Puts the content onto the disk and the file in its place. Returns its size in bytes.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn finish(self) -> Result<u64, OutputError> {
        self.file.sync_all().map_err(|error| self.io(error))?;
        let mut unfinished = unfinished();
        std::fs::rename(&self.part, &self.place).map_err(|error| self.io(error))?;
        unfinished.retain(|part| *part != self.part);
        drop(unfinished);
        let metadata = self.file.metadata().map_err(|error| self.io(error))?;
        Ok(metadata.len())
    }

    /// The error for a failed operation on this file.
    pub fn io(&self, source: io::Error) -> OutputError {
        OutputError::Io {
            path: self.path.clone(),
            source,
        }
    }
}

/// Use [`BufWriter`](io::BufWriter) for many small writes.
impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let mut unfinished = unfinished();
        let count = unfinished.len();
        unfinished.retain(|part| *part != self.part);
        // Removed under the lock of the file: no other process uses it yet. A finished file is not
        // in the list.
        if unfinished.len() < count
            && let Err(error) = std::fs::remove_file(&self.part)
        {
            log::warn!("cannot remove {}: {error}", self.part.display());
        }
    }
}

/// Where a file named `path` will be: in an existing folder, under a name that is free or belongs
/// to a regular file.
fn place(path: &Path) -> Result<PathBuf, OutputError> {
    let io = |source| OutputError::Io {
        path: path.to_owned(),
        source,
    };
    let not_a_file = |found| OutputError::NotAFile {
        path: path.to_owned(),
        found,
    };
    let is_link = path
        .symlink_metadata()
        .is_ok_and(|metadata| metadata.is_symlink());
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => return Err(not_a_file("it is a folder")),
        Ok(metadata) if !metadata.is_file() => {
            return Err(not_a_file("it is a device, pipe or socket"));
        }
        // Not the link is replaced but the file that it leads to.
        Ok(_) if is_link => return path.canonicalize().map_err(io),
        Ok(_) => {}
        Err(_) if is_link => {
            return Err(not_a_file("it is a symbolic link that leads nowhere"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(error)),
    }
    let ends_in_separator = path.to_string_lossy().ends_with(std::path::is_separator);
    let name = match path.file_name() {
        Some(name) if !ends_in_separator => name,
        _ => return Err(not_a_file("it has no file name")),
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match folder.canonicalize() {
        Ok(folder) => Ok(folder.join(name)),
        Err(_) => Err(OutputError::NoFolder {
            path: path.to_owned(),
            folder: folder.to_owned(),
        }),
    }
}

/// Creates and locks the unfinished file, or takes over one that was left behind.
fn reserve(path: &Path, part: &Path) -> Result<File, OutputError> {
    let io = |source| OutputError::Io {
        path: path.to_owned(),
        source,
    };
    loop {
        if part.symlink_metadata().is_ok_and(|found| !found.is_file()) {
            return Err(io(io::Error::other(format!(
                "{} is in the way",
                part.display()
            ))));
        }
        let left_behind = part.exists();
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(part)
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OutputError::Busy {
                    path: path.to_owned(),
                    part: part.to_owned(),
                });
            }
            // Some network file systems have no locks.
            Err(TryLockError::Error(error)) => {
                log::debug!("{} cannot be locked: {error}", part.display());
            }
        }
        // Before the lock was taken, its holder may have finished or removed the file.
        let same = file.try_clone().and_then(Handle::from_file).map_err(io)?;
        if !Handle::from_path(part).is_ok_and(|current| current == same) {
            continue;
        }
        if left_behind {
            log::info!("{} was left behind; using it again", part.display());
        }
        file.set_len(0).map_err(io)?;
        return Ok(file);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_appears_when_it_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.json");
        let mut output = Output::create(&path, false).unwrap();
        output.write_all(b"whole").unwrap();
        assert!(!path.exists());
        assert!(output.is(&path));
        assert_eq!(output.finish().unwrap(), 5);
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert!(matches!(
            Output::create(&path, false),
            Err(OutputError::Exists { .. })
        ));
        drop(Output::create(&path, true).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_of_two_writers_wins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.json");
        let first = Output::create(&path, false).unwrap();
        assert!(matches!(
            Output::create(&path, false),
            Err(OutputError::Busy { .. })
        ));
        drop(first);
        Output::create(&path, false).unwrap();
    }

    #[test]
    fn a_part_left_behind_is_used_again() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(".out.json.part"), "half").unwrap();
        let path = folder.path().join("out.json");
        let mut output = Output::create(&path, false).unwrap();
        output.write_all(b"w").unwrap();
        output.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"w");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_or_told() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        symlink("target", &link).unwrap();
        let error = Output::create(&link, true).unwrap_err().to_string();
        assert!(error.contains("leads nowhere"), "{error}");
        std::fs::write(&target, "old").unwrap();
        let mut output = Output::create(&link, true).unwrap();
        output.write_all(b"new").unwrap();
        output.finish().unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        let error = Output::create(Path::new("/dev/null"), true).unwrap_err();
        assert!(error.to_string().contains("device"), "{error}");
    }
}
