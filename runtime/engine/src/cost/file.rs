//! Cost models in files.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use edge_lmm_kernels::pool;
use edge_lmm_record::Record;
use edge_lmm_record::output::{Output, OutputError};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::CostModel;
use crate::device::Device;
use crate::store::Origin;

/// Version of the files.
const VERSION: u32 = 1;

/// Model, program, device and threads that times were measured with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CostKey {
    /// Hash of the record, in hexadecimal.
    record: String,
    /// Program, device and instruction set.
    device: String,
    /// Threads of the processor.
    threads: usize,
}

/// A folder of cost models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CostFolder(PathBuf);

#[derive(Serialize, Deserialize)]
struct CostFile {
    version: u32,
    key: CostKey,
    costs: CostModel,
}

impl CostKey {
    /// Describes the model of a record on a device with the current number of threads.
    ///
    /// # Errors
    /// If the device cannot be used.
    pub fn new(record: &Record, device: Device) -> Result<Self, crate::DeviceError> {
        device.check()?;
        let origin = Origin::new(record.identity(), &device.fingerprint());
        Ok(Self::of_origin(&origin))
    }

    pub(crate) fn of_origin(origin: &Origin) -> Self {
        Self {
            record: format!("{:032x}", origin.model),
            device: origin.maker.clone(),
            threads: pool::global().threads(),
        }
    }

    fn file_name(&self) -> String {
        let place = format!("{} {}", self.device, self.threads);
        let record = self.record.get(..16).unwrap_or(&self.record);
        format!("{record}-{:016x}.json", xxh3_64(place.as_bytes()))
    }
}

impl CostFolder {
    /// Returns the folder `edge-lmm/costs` below `XDG_CACHE_HOME` or `~/.cache`; `None` if there is
    /// no such place.
    pub fn of_user() -> Option<Self> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let root = match variable("XDG_CACHE_HOME") {
            Some(root) => PathBuf::from(root),
            None => PathBuf::from(variable("HOME")?).join(".cache"),
        };
        Some(Self::within(&root.join("edge-lmm")))
    }

    /// Returns the folder `costs` of a cache folder.
    pub fn within(cache: &Path) -> Self {
        Self(cache.join("costs"))
    }

    /// Returns the path of the file of a cost model.
    pub fn path(&self, key: &CostKey) -> PathBuf {
        self.0.join(key.file_name())
    }

    /// Reads a cost model; `None` if it was not measured or the file is damaged, which is logged.
    pub fn load(&self, key: &CostKey) -> Option<CostModel> {
        let path = self.path(key);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => {
                log::warn!("{} is ignored: {error}", path.display());
                return None;
            }
        };
        match parse(&text, key) {
            Ok(costs) => Some(costs),
            Err(reason) => {
                log::warn!("{} is ignored: {reason}", path.display());
                None
            }
        }
    }

    /// Writes a cost model. If that fails, a warning is logged.
    pub fn save(&self, key: &CostKey, costs: &CostModel) {
        let file = CostFile {
            version: VERSION,
            key: key.clone(),
            costs: *costs,
        };
        let path = self.path(key);
        let written = fs::create_dir_all(&self.0)
            .map_err(|source| OutputError::Io {
                path: self.0.clone(),
                source,
            })
            .and_then(|()| {
                let text = serde_json::to_vec_pretty(&file).expect("numbers are JSON");
                Output::create(&path, true)?.finish_with(&text)
            });
        if let Err(error) = written {
            log::warn!("the measured times are not kept: {error}");
        }
    }
}

fn parse(text: &[u8], key: &CostKey) -> Result<CostModel, String> {
    let file: CostFile = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if file.version != VERSION {
        return Err(format!(
            "found version {}, expected {VERSION}",
            file.version
        ));
    }
    if file.key != *key {
        return Err("it is of another model, device or number of threads".to_owned());
    }
    match file.costs.is_valid() {
        true => Ok(file.costs),
        false => Err("a time is negative or not a number".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::tests::COSTS;

    fn key(threads: usize) -> CostKey {
        CostKey {
            record: "00".repeat(16),
            device: "a device".to_owned(),
            threads,
        }
    }

    #[test]
    fn a_cost_model_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let folder = CostFolder::within(folder.path());
        assert_eq!(folder.load(&key(2)), None);
        folder.save(&key(2), &COSTS);
        assert_eq!(folder.load(&key(2)), Some(COSTS));
        assert_eq!(folder.load(&key(4)), None);
    }

    #[test]
    fn damaged_files_are_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let folder = CostFolder::within(folder.path());
        folder.save(&key(2), &COSTS);
        let path = folder.path(&key(2));
        let whole = fs::read_to_string(&path).unwrap();
        for damaged in [
            String::new(),
            whole[..whole.len() / 2].to_owned(),
            whole.replacen("\"version\": 1", "\"version\": 2", 1),
            whole.replacen("10.0", "-10.0", 1),
            whole.replacen("\"threads\": 2", "\"threads\": 3", 1),
            whole.replacen("\"linear\"", "\"other\"", 1),
        ] {
            assert_ne!(damaged, whole);
            fs::write(&path, damaged).unwrap();
            assert_eq!(folder.load(&key(2)), None);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let folder = CostFolder::within(file.path());
        folder.save(&key(2), &COSTS);
        assert_eq!(folder.load(&key(2)), None);
    }
}
