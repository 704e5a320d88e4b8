//! Check of the free space before a download.

use std::fs;
use std::path::Path;

use anyhow::ensure;
use edge_lmm::units::bytes;

use super::choose::Checkpoint;

/// Bytes that stay free.
const RESERVE: u64 = 64 << 20;

/// Checks that the rest of a download and its record fit on the disk.
///
/// # Errors
/// If they do not.
pub fn check(folder: &Path, place: &Path, checkpoint: &Checkpoint<'_>) -> anyhow::Result<()> {
    let missing = missing(place, checkpoint);
    let record = record(checkpoint);
    let needed = missing.saturating_add(record).saturating_add(RESERVE);
    let Some(free) = free(folder) else {
        return Ok(());
    };
    let size = |n: u64| bytes(usize::try_from(n).unwrap_or(usize::MAX));
    ensure!(
        needed <= free,
        "{} has {} free; the rest of the download needs {} and the record up to {}: free some space, \
         or choose another folder with --models",
        folder.display(),
        size(free),
        size(missing),
        size(record)
    );
    Ok(())
}

/// Returns the bytes that are still to be downloaded.
fn missing(place: &Path, checkpoint: &Checkpoint<'_>) -> u64 {
    let files = checkpoint.files.iter();
    let missing = files.map(|file| {
        let length = |name: &str| fs::metadata(place.join(name)).map_or(0, |m| m.len());
        let done = length(&file.name).max(length(&format!("{}.part", file.name)));
        file.size.unwrap_or(0).saturating_sub(done)
    });
    missing.fold(0, u64::saturating_add)
}

/// Returns an upper bound of the record with formats as by default: at most about 9 of 16 bits per
/// weight, and as much as the checkpoint in GGUF format, whose weights may have fewer bits.
fn record(checkpoint: &Checkpoint<'_>) -> u64 {
    match checkpoint.gguf {
        None => checkpoint.bytes() / 16 * 9,
        Some(_) => checkpoint.bytes(),
    }
}

/// Returns the free bytes that the user may take; `None` if the system does not tell.
#[cfg(unix)]
fn free(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

#[cfg(not(unix))]
fn free(_: &Path) -> Option<u64> {
    None
}
