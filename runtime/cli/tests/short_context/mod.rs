//! A record whose context is short, so that conversations soon outgrow it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edge_lmm_convert::source::Checkpoint;
use edge_lmm_convert::{Options, Plan, write_record};

/// Positions of the context.
pub const CONTEXT: usize = 128;

/// Writes the record into a folder.
pub fn record(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tests/data/qwen2vl-tiny");
    let checkpoint = folder.join("checkpoint");
    fs::create_dir(&checkpoint).expect("a folder");
    for file in fs::read_dir(source).expect("a checkpoint") {
        let file = file.expect("a file");
        fs::copy(file.path(), checkpoint.join(file.file_name())).expect("a copy");
    }
    let path = checkpoint.join("config.json");
    let config = fs::read(&path).expect("a configuration");
    let mut config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
    config["max_position_embeddings"] = CONTEXT.into();
    fs::write(&path, config.to_string()).expect("written");
    let checkpoint = Checkpoint::open(&checkpoint, None).expect("a checkpoint");
    let plan = Plan::new(&checkpoint, &Options::default()).expect("a plan");
    let record = folder.join("short.bpk");
    write_record(&plan, Arc::new(checkpoint), &record, |_, _| {}).expect("a record");
    record
}
