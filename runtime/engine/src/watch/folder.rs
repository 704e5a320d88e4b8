//! Folders into which images arrive.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use super::reader::PATIENCE;
use super::slot::Slot;
use crate::media::{MediaError, load_image};

/// Age of a file by its last change, and its name among those of one age.
type Age = (SystemTime, OsString);

/// A file as it was at the last look.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    age: Age,
    len: u64,
    path: PathBuf,
}

/// Puts the newest image of a folder in whenever there is a newer one. An image that cannot be decoded
/// is tried again when it has grown; `warn` gets the error if it does not.
///
/// # Errors
/// If the folder cannot be read.
pub(super) fn watch(
    folder: &Path,
    slot: &Slot,
    warn: impl Fn(&MediaError),
) -> Result<(), MediaError> {
    let start = Instant::now();
    let mut last: Option<Found> = None;
    let mut failed: Option<MediaError> = None;
    loop {
        let newest = newest(folder).map_err(|error| MediaError::Io(error).of(folder))?;
        if newest == last {
            if let Some(error) = failed.take() {
                slot.put_damaged();
                warn(&error);
            }
        } else if let Some(found) = &newest {
            failed = None;
            match load_image(&found.path) {
                Ok(image) => {
                    slot.put(image, start.elapsed().as_secs_f64());
                }
                Err(error) => failed = Some(error),
            }
            last = newest;
        }
        if !slot.wait(PATIENCE) {
            return Ok(());
        }
    }
}

/// Returns the file that was changed last. Hidden files are skipped: programs write them before they
/// rename them.
fn newest(folder: &Path) -> std::io::Result<Option<Found>> {
    let mut newest: Option<Found> = None;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        // A file may be removed at any time.
        let Ok(metadata) = entry.path().metadata() else {
            continue;
        };
        if name.to_string_lossy().starts_with('.') || !metadata.is_file() {
            continue;
        }
        let found = Found {
            age: (metadata.modified()?, name),
            len: metadata.len(),
            path: entry.path(),
        };
        if newest.as_ref().is_none_or(|newest| newest.age < found.age) {
            newest = Some(found);
        }
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use edge_lmm_models::demo;

    use super::super::Taken;
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn newer_images_are_put_in_and_damaged_ones_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let image = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        let slot = Slot::new();
        image(".hidden.png", demo::IMAGE);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let warnings = std::cell::Cell::new(0);
                let end = watch(folder.path(), &slot, |error| {
                    assert!(error.to_string().contains("b.png"), "{error}");
                    warnings.set(warnings.get() + 1);
                });
                (end, warnings.get())
            });
            image("a.png", demo::IMAGE);
            assert!(matches!(slot.take(LONG), Taken::Frame(_)));
            image("b.png", &demo::IMAGE[..50]);
            while slot.damaged() == 0 {
                std::thread::sleep(Duration::from_millis(10));
            }
            image("c.png", demo::IMAGE);
            assert!(matches!(slot.take(LONG), Taken::Frame(_)));
            fs::remove_dir_all(folder.path()).unwrap();
            let (end, warnings) = reader.join().unwrap();
            assert!(end.unwrap_err().to_string().contains("cannot be read"));
            assert_eq!(warnings, 1);
        });
        assert_eq!(slot.seen(), 2);
    }
}
