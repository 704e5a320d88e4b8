//! Small samples for calibration: enough for what the tests compare, in a fraction of the time.

use std::path::{Path, PathBuf};

use edge_lmm::manifest::Manifest;
use edge_lmm_convert::calibration::Samples;

use super::data;

/// Returns the file of the question set.
pub fn manifest() -> PathBuf {
    data().join("questions/manifest.csv")
}

/// Writes a question set with every `step`-th question into a folder.
pub fn write_questions(folder: &Path, step: usize) -> PathBuf {
    let path = folder.join("questions.csv");
    let mut all = csv::Reader::from_path(manifest()).expect("the question set");
    let mut some = csv::Writer::from_path(&path).expect("a file");
    let header = all.headers().expect("a header").clone();
    some.write_record(&header).expect("a header");
    let medium = header.iter().position(|name| name == "media_path");
    for row in all.records().step_by(step) {
        let row = row.expect("a question");
        let media = data().join("questions").join(&row[medium.expect("media")]);
        assert!(media.exists(), "{}", media.display());
        let media = media.to_str().expect("a path");
        let fields = (0..).zip(&row);
        let fields = fields.map(|(at, field)| if Some(at) == medium { media } else { field });
        some.write_record(fields).expect("a question");
    }
    some.flush().expect("a file");
    path
}

/// Returns every `step`-th question of the question set.
pub fn questions(step: usize) -> Samples {
    let folder = tempfile::tempdir().expect("a folder");
    Samples::read(&[write_questions(folder.path(), step)]).expect("samples")
}

/// Writes the questions with their answers as a text into a folder.
pub fn write_text(folder: &Path) -> PathBuf {
    let path = folder.join("text.txt");
    let questions = Manifest::open(&manifest()).expect("questions").questions;
    let lines = questions
        .iter()
        .map(|q| format!("{} {}\n", q.question, q.answer));
    std::fs::write(&path, lines.collect::<String>()).expect("a text");
    path
}

/// Returns the questions with their answers as a text.
pub fn text() -> Samples {
    let folder = tempfile::tempdir().expect("a folder");
    Samples::read(&[write_text(folder.path())]).expect("samples")
}
