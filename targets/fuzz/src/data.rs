//! Test data of the other crates, used as seeds, and folders for files of a run.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

/// Returns a path relative to the repository root.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(name)
}

/// Reads a JSON file; null if it does not exist.
///
/// # Panics
/// If it is not JSON.
pub fn json(name: &str) -> Value {
    match std::fs::read(path(name)) {
        Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{name}: {e}")),
        Err(_) => Value::Null,
    }
}

/// Returns the names of the test checkpoints with random weights, sorted; every family has one.
///
/// # Panics
/// If the folder of their manifests cannot be read.
pub fn checkpoints() -> Vec<String> {
    let folder = "models/tests/data/checkpoints";
    let entries = path(folder).read_dir().expect(folder);
    let manifests = entries.map(|entry| entry.expect(folder).path());
    let mut names: Vec<String> = manifests
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .filter(|name| name.ends_with("-odd"))
        .collect();
    names.sort();
    names
}

/// Reads the files of a folder whose names end in one of `endings` and whose size is at most `max`
/// bytes, sorted by name.
///
/// # Panics
/// If the folder cannot be read.
pub fn files(folder: &str, endings: &[&str], max: usize) -> Vec<Vec<u8>> {
    let entries = path(folder).read_dir().expect(folder);
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect(folder).path()).collect();
    paths.sort();
    let wanted = |path: &&PathBuf| {
        let extension = path.extension().and_then(|e| e.to_str());
        extension.is_some_and(|extension| endings.contains(&extension))
    };
    paths
        .iter()
        .filter(wanted)
        .map(|path| std::fs::read(path).expect(folder))
        .filter(|content| content.len() <= max)
        .collect()
}

/// Creates a temporary folder for a run, in memory if the system has /dev/shm.
///
/// # Panics
/// If it cannot be created.
pub fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a temporary folder")
}
