//! The published JSON Schemas of reports, which are generated from the types.

mod published;

use std::path::Path;

use schemars::JsonSchema;

use crate::profile::ProfileReport;

fn check<T: JsonSchema>(file: &str, id: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema");
    published::check::<T>(&folder, file, id);
}

#[test]
fn profile() {
    check::<ProfileReport>("profile.schema.json", "urn:edge-lmm:profile:1");
}

#[cfg(feature = "experiments")]
#[test]
fn experiment() {
    use crate::experiment::ExperimentReport;
    check::<ExperimentReport>("experiment.schema.json", "urn:edge-lmm:experiment:1");
}
