//! Damaged checkpoints, and the converter's messages about them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

use super::data;

/// Type, shape and bytes of tensors by name.
pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Builds a converter command for a source and a record, with the fastest method.
pub fn command(source: &Path, record: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge-lmm-convert"));
    command.arg(source).arg("-o").arg(record);
    command.args(["--method", "nearest"]);
    command
}

/// A copy of a checkpoint to damage.
pub struct Copy(TempDir);

impl Copy {
    pub fn of(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for entry in fs::read_dir(data().join(name)).expect("test data") {
            let entry = entry.expect("an entry");
            if entry.path().is_file() {
                fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("a copy");
            }
        }
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path().join(file), content).expect("a file");
    }

    pub fn remove(&self, file: &str) {
        fs::remove_file(self.path().join(file)).expect("a file");
    }

    /// Changes the tensors of `model.safetensors`.
    pub fn change_tensors(&self, change: impl FnOnce(&mut Tensors)) {
        let path = self.path().join("model.safetensors");
        let bytes = fs::read(&path).expect("weights");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let mut tensors: Tensors = file
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                let data = view.data().to_vec();
                (name, (view.dtype(), view.shape().to_vec(), data))
            })
            .collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, (dtype, shape, data))| {
            let view = TensorView::new(*dtype, shape.clone(), data).expect("a tensor");
            (name.as_str(), view)
        });
        let bytes = safetensors::serialize(views, None).expect("safetensors");
        fs::write(path, bytes).expect("a file");
    }

    /// Converts with `options`. Returns whether the conversion succeeded, and its messages.
    pub fn convert(&self, options: &[&str]) -> (bool, String) {
        let out = tempfile::tempdir().expect("a folder");
        let output = command(self.path(), &out.path().join("model.bpk"))
            .args(options)
            .output()
            .expect("the command starts");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), stderr)
    }

    pub fn change_json(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let path = self.0.path().join(file);
        let mut value = serde_json::from_slice(&fs::read(&path).expect(file)).expect("JSON");
        change(&mut value);
        fs::write(path, value.to_string()).expect("a file");
    }

    pub fn change(&self, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.0.path().join(file);
        let mut bytes = fs::read(&path).expect(file);
        change(&mut bytes);
        fs::write(path, bytes).expect("a file");
    }

    pub fn expect_error(&self, words: &[&str]) {
        expect_error(self.0.path(), &[], words);
    }
}

/// Converts `source` and expects one error that contains all `words`, exit status 1 and no output
/// file.
pub fn expect_error(source: &Path, options: &[&str], words: &[&str]) {
    let out = tempfile::tempdir().expect("a folder");
    let output = command(source, &out.path().join("model.bpk"))
        .args(options)
        .output()
        .expect("the command starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let errors: Vec<&str> = stderr
        .lines()
        .filter(|l| l.starts_with("error: "))
        .collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    for word in words {
        assert!(errors[0].contains(word), "no {word:?} in {:?}", errors[0]);
    }
    let left: Vec<_> = fs::read_dir(out.path()).expect("the folder").collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}
