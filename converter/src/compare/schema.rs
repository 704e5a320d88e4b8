//! The published JSON Schema of comparisons, which is generated from the types.

#[path = "../../../runtime/engine/src/schema/published.rs"]
mod published;

use std::path::Path;

use super::ComparisonReport;

#[test]
fn comparison() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema");
    let id = "urn:edge-lmm:comparison:1";
    published::check::<ComparisonReport>(&folder, "comparison.schema.json", id);
}
