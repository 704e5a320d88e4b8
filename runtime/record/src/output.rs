//! Output files that are either complete or absent.
//!
//! An [`Output`] is written to a temporary file in the same folder, `.NAME.part`, and renamed at
//! the end, so that a failure leaves an existing file unchanged. Creating the output before long
//! work detects a wrong path early. The temporary file is locked while its program runs, so that a
//! second program does not write to it; one left behind by a killed program is reused.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use same_file::Handle;

/// The error returned when a file cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The path leads to something other than a regular file.
    #[error("cannot write {}: {found}; expected the name of a file", path.display())]
    NotAFile {
        /// The path as given.
        path: PathBuf,
        /// A description of what was found.
        found: &'static str,
    },
    /// The parent folder does not exist.
    #[error("cannot write {}: there is no folder {}; create it first", path.display(), folder.display())]
    NoFolder {
        /// The path as given.
        path: PathBuf,
        /// Folder of the output.
        folder: PathBuf,
    },
    /// The file exists.
    #[error("{} exists; choose another name or allow it to be overwritten", path.display())]
    Exists {
        /// The path as given.
        path: PathBuf,
    },
    /// Another program is writing the same file.
    #[error("cannot write {}: another program is writing it (to {})", path.display(), part.display())]
    Busy {
        /// The path as given.
        path: PathBuf,
        /// The temporary file of the other program.
        part: PathBuf,
    },
    /// The file is an input or another output of the same command.
    #[error("cannot write {}: it is {role} of the same command; choose another name", path.display())]
    InUse {
        /// The path as given.
        path: PathBuf,
        /// Other role of the path.
        role: String,
    },
    /// The operating system reports an error.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The path as given.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// Temporary files of this process.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the temporary files of this process and returns those that could not be removed. While
/// the guard lives, no output is finished; the program is expected to exit.
pub fn abandon_all() -> (Vec<PathBuf>, impl Sized) {
    let files = unfinished();
    let left = files
        .iter()
        .filter(|part| std::fs::remove_file(part).is_err() && part.exists())
        .cloned()
        .collect();
    (left, files)
}

/// A file that is being written. If dropped before [`Self::finish`], it is removed.
#[derive(Debug)]
pub struct Output {
    /// The path as given.
    path: PathBuf,
    /// The path after following symbolic links.
    place: PathBuf,
    part: PathBuf,
    /// Open temporary file, which holds the lock.
    file: File,
    /// `true` after the temporary file was renamed. Its path may then be that of another output.
    finished: bool,
}

impl Output {
    /// Checks that `path` can be written and reserves it. With `overwrite` it may exist.
    ///
    /// # Errors
    /// If no file can be created at `path`, it exists, another process is writing it, or the folder
    /// is not writable.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self, OutputError> {
        Self::create_for(path, overwrite, Readers::Default)
    }

    /// Creates an output like [`Self::create`] that only the user of this process can read.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn private(path: &Path, overwrite: bool) -> Result<Self, OutputError> {
        Self::create_for(path, overwrite, Readers::Owner)
    }

    fn create_for(path: &Path, overwrite: bool, readers: Readers) -> Result<Self, OutputError> {
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
        // Creation and registration happen under one lock, so that a signal handler sees both or
        // neither.
        let mut unfinished = unfinished();
        let file = reserve(path, &part, readers)?;
        unfinished.push(part.clone());
        drop(unfinished);
        Ok(Self {
            path: path.to_owned(),
            place,
            part,
            file,
            finished: false,
        })
    }

    /// Returns the path as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the temporary file, open for reading and writing.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Returns the path of the temporary file.
    pub fn part(&self) -> &Path {
        &self.part
    }

    /// Creates an output that may exist and that is none of `inputs`.
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

    /// Rejects an output that is also one of the inputs.
    ///
    /// # Errors
    /// If it is an input.
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

    /// Returns `true` if `path` leads to the same file as this output, which may not exist yet.
    pub fn is(&self, path: &Path) -> bool {
        place(path).is_ok_and(|place| place == self.place)
    }

    /// Returns the error for an output that has another role in the command.
    pub fn in_use(&self, role: &str) -> OutputError {
        OutputError::InUse {
            path: self.path.clone(),
            role: role.to_owned(),
        }
    }

    /// Writes `bytes` as the complete content and finishes the file.
    ///
    /// # Errors
    /// If the system reports an error; an existing file is then unchanged.
    pub fn finish_with(mut self, bytes: &[u8]) -> Result<(), OutputError> {
        use io::Write;
        self.file.write_all(bytes).map_err(|error| self.io(error))?;
        self.finish().map(|_| ())
    }

    /// Flushes the content to disk and renames the file. Returns its size in bytes.
    ///
    /// # Errors
    /// If the system reports an error.
    pub fn finish(self) -> Result<u64, OutputError> {
        self.file.sync_all().map_err(|error| self.io(error))?;
        self.finish_unsynced()
    }

    /// Renames the file without waiting for the disk. After a power failure it may have any
    /// content, so its readers must verify it. Returns its size in bytes.
    ///
    /// # Errors
    /// If the system reports an error.
    pub fn finish_unsynced(mut self) -> Result<u64, OutputError> {
        let mut unfinished = unfinished();
        std::fs::rename(&self.part, &self.place).map_err(|error| self.io(error))?;
        unfinished.retain(|part| *part != self.part);
        self.finished = true;
        drop(unfinished);
        let metadata = self.file.metadata().map_err(|error| self.io(error))?;
        Ok(metadata.len())
    }

    /// Returns the error for a failed operation on this file.
    pub fn io(&self, source: io::Error) -> OutputError {
        OutputError::Io {
            path: self.path.clone(),
            source,
        }
    }
}

/// Unbuffered; use [`BufWriter`](io::BufWriter) for many small writes.
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
        if self.finished {
            return;
        }
        let mut unfinished = unfinished();
        unfinished.retain(|part| *part != self.part);
        // Removed while the file is locked, so that nobody has reused it.
        if let Err(error) = std::fs::remove_file(&self.part) {
            log::warn!("cannot remove {}: {error}", self.part.display());
        }
    }
}

/// Resolves `path` to its final location: in an existing folder, under a name that is free or
/// belongs to a regular file.
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
        // The target of a link is replaced, not the link.
        Ok(_) if is_link => return path.canonicalize().map_err(io),
        Ok(_) => {}
        Err(_) if is_link => {
            return Err(not_a_file("it is a broken symbolic link"));
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

/// The users who may read an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readers {
    /// According to the file mode creation mask.
    Default,
    /// The user of this process.
    Owner,
}

impl Readers {
    /// Sets the permissions with which a file is created.
    fn restrict(self, options: &mut OpenOptions) {
        #[cfg(unix)]
        if self == Self::Owner {
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600);
        }
        #[cfg(not(unix))]
        let _ = options;
    }

    /// Restricts a file that exists and is empty.
    fn restrict_existing(self, file: &File) -> io::Result<()> {
        #[cfg(unix)]
        if self == Self::Owner {
            use std::os::unix::fs::PermissionsExt;
            file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        }
        #[cfg(not(unix))]
        let _ = file;
        Ok(())
    }
}

/// Creates and locks the temporary file, or reuses one that was left behind.
fn reserve(path: &Path, part: &Path, readers: Readers) -> Result<File, OutputError> {
    let io = |source| OutputError::Io {
        path: path.to_owned(),
        source,
    };
    loop {
        if part.symlink_metadata().is_ok_and(|found| !found.is_file()) {
            return Err(io(io::Error::other(format!(
                "{} is not a regular file",
                part.display()
            ))));
        }
        let left_behind = part.exists();
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        readers.restrict(&mut options);
        let file = options.open(part).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OutputError::Busy {
                    path: path.to_owned(),
                    part: part.to_owned(),
                });
            }
            // Some network file systems do not support locks.
            Err(TryLockError::Error(error)) => {
                log::debug!("{} cannot be locked: {error}", part.display());
            }
        }
        // The previous holder of the lock may have finished or removed the file.
        let same = file.try_clone().and_then(Handle::from_file).map_err(io)?;
        if !Handle::from_path(part).is_ok_and(|current| current == same) {
            continue;
        }
        if left_behind {
            log::info!("{} was left behind; reusing it", part.display());
        }
        file.set_len(0).map_err(io)?;
        readers.restrict_existing(&file).map_err(io)?;
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

    /// An output that is finished leaves the temporary file of the next one alone.
    #[test]
    fn writers_of_one_file_do_not_disturb_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.json");
        let write = || {
            let mut finished = 0;
            for _ in 0..400 {
                match Output::create(&path, true) {
                    Ok(output) => {
                        output.finish_unsynced().unwrap();
                        finished += 1;
                    }
                    Err(error) => assert!(matches!(error, OutputError::Busy { .. }), "{error}"),
                }
            }
            finished
        };
        let finished: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(write)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert!(finished > 0);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
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

    /// Only the owner can read a private output, even if a part file with other permissions was left
    /// behind.
    #[cfg(unix)]
    #[test]
    fn private_files_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.json");
        for left_behind in [false, true] {
            if left_behind {
                std::fs::write(folder.path().join(".out.json.part"), "half").unwrap();
            }
            let mut output = Output::private(&path, true).unwrap();
            output.write_all(b"whole").unwrap();
            assert_eq!(output.finish_unsynced().unwrap(), 5);
            let mode = path.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_or_told() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        symlink("target", &link).unwrap();
        let error = Output::create(&link, true).unwrap_err().to_string();
        assert!(error.contains("broken symbolic link"), "{error}");
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
