//! The HTML page of a comparison.

use super::report::ComparisonReport;

/// Returns the page of a comparison: a plot of divergence or accuracy over size, and the table.
///
/// # Errors
/// If the report has no JSON form.
pub fn page(report: &ComparisonReport) -> serde_json::Result<String> {
    edge_lmm_page::page("Comparison of records", include_str!("page.js"), report)
}
