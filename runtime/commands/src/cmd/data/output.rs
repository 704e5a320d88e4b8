//! The files that describe a prepared question set: `manifest.csv` and `missing.csv`.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context;
use edge_lmm::metric::Metric;
use edge_lmm::output::Output;

use super::media::Stored;
use super::sample::Sample;

/// Columns of a manifest.
const MANIFEST: [&str; 9] = [
    "id",
    "media_path",
    "question",
    "answer",
    "task",
    "answers",
    "choices",
    "metric",
    "sha256",
];

/// Writes a manifest.
///
/// # Errors
/// If the file cannot be written.
pub fn write_manifest<'a>(
    path: &Path,
    metric: Metric,
    questions: impl IntoIterator<Item = (&'a Sample, &'a Stored)>,
) -> anyhow::Result<()> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(MANIFEST)?;
    for (sample, stored) in questions {
        writer.write_record([
            &sample.id,
            &stored.path,
            &sample.question,
            &sample.answer,
            &sample.task,
            &list(&sample.answers)?,
            &list(&sample.choices)?,
            metric.name(),
            &stored.sha256,
        ])?;
    }
    finish(path, writer)
}

/// A question that cannot be asked.
pub struct Missing<'a> {
    pub id: &'a str,
    /// Name of the medium.
    pub medium: &'a str,
    pub reason: &'a str,
}

/// Writes the list of questions without a medium, or removes that of an earlier run if there are
/// none.
///
/// # Errors
/// If the file cannot be written or removed.
pub fn write_missing(path: &Path, missing: &[Missing<'_>]) -> anyhow::Result<()> {
    if missing.is_empty() {
        return remove(path);
    }
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["id", "medium", "reason"])?;
    for missing in missing {
        writer.write_record([missing.id, missing.medium, missing.reason])?;
    }
    finish(path, writer)
}

/// Removes a file of an earlier run, if there is one.
///
/// # Errors
/// If it cannot be removed.
pub fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn finish(path: &Path, writer: csv::Writer<Vec<u8>>) -> anyhow::Result<()> {
    let rows = writer
        .into_inner()
        .map_err(csv::IntoInnerError::into_error)?;
    Ok(Output::create(path, true)?.finish_with(&rows)?)
}

/// Returns a list as JSON; an empty one as an empty cell.
fn list(texts: &[String]) -> anyhow::Result<String> {
    Ok(match texts {
        [] => String::new(),
        texts => serde_json::to_string(texts)?,
    })
}
