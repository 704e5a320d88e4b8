//! A record that exists only while a model is measured.

use std::cell::Cell;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edge_lmm::one_line;
use edge_lmm_record::Record;

use crate::plan::{ConvertError, Plan};
use crate::progress::Progress;
use crate::source::Checkpoint;
use crate::write::write_record;

/// A mapped record whose file is removed.
pub(crate) struct TemporaryRecord {
    record: Option<Record>,
    /// The file, if it could not be removed while it is mapped.
    left: Option<PathBuf>,
}

impl TemporaryRecord {
    /// Writes the record of a plan to `path` and maps it.
    ///
    /// # Errors
    /// If a tensor cannot be read or packed, or the file cannot be written or mapped.
    pub fn write(
        plan: &Plan,
        checkpoint: &Arc<Checkpoint>,
        path: &Path,
        progress: &Progress,
    ) -> Result<Self, ConvertError> {
        let (progress, all, done) = (progress.clone(), plan.bytes(), Cell::new(0));
        write_record(plan, checkpoint.clone(), path, move |_, bytes| {
            done.set(done.get() + bytes);
            progress.report("writing a temporary record", done.get(), all);
        })?;
        let record = Record::open(path);
        // On Unix, the mapping keeps the contents, and nothing is left behind whatever happens.
        let removed = std::fs::remove_file(path);
        let record = record.map_err(|error| ConvertError::Write {
            path: path.to_owned(),
            reason: one_line(&error),
        })?;
        Ok(Self {
            record: Some(record),
            left: removed.is_err().then(|| path.to_owned()),
        })
    }
}

impl Deref for TemporaryRecord {
    type Target = Record;

    fn deref(&self) -> &Record {
        self.record.as_ref().expect("it is there until the drop")
    }
}

impl Drop for TemporaryRecord {
    fn drop(&mut self) {
        self.record = None;
        if let Some(path) = &self.left {
            let _ = std::fs::remove_file(path);
        }
    }
}
