//! ActivityNet-QA: `test_q.json` and `test_a.json` of the authors
//! (https://github.com/MILVLG/activitynet-qa), or one table with both, as `lmms-lab/ActivityNetQA`
//! on the Hugging Face hub. Videos are named `v_NAME` or `NAME`, after YouTube.

use std::collections::HashMap;

use edge_lmm::MediaKind;
use edge_lmm::metric::Metric;

use super::{Layout, Located, distinct, short_answer};
use crate::cmd::data::row::Row;
use crate::cmd::data::sample::{Medium, Sample, YouTube};

pub const LAYOUT: Layout = Layout {
    kind: MediaKind::Video,
    metric: Metric::ActivitynetQa,
    split: "test",
    others: &[],
    column: "video",
    hub: Some("lmms-lab/ActivityNetQA"),
    join,
    sample,
    merge: distinct,
};

/// Names of the types of questions and, from the fourth on, of answers.
const TYPES: [&str; 9] = [
    "motion", "spatial", "temporal", "yes_no", "color", "object", "location", "number", "other",
];

/// Adds the rows of answers to those of questions.
fn join(rows: Vec<Located>) -> anyhow::Result<Vec<Located>> {
    let (mut questions, answers): (Vec<_>, Vec<_>) =
        rows.into_iter().partition(|row| row.row.has("question"));
    let mut by_id = HashMap::new();
    for answer in answers {
        let id = answer.row.text("question_id")?.to_owned();
        by_id.insert(id, answer.row);
    }
    for question in &mut questions {
        if let Some(answer) = by_id.remove(question.row.text("question_id")?) {
            question.row.0.extend(answer.0);
        }
    }
    Ok(questions)
}

fn sample(row: &Row) -> anyhow::Result<Option<Sample>> {
    let Some(answer) = row.optional("answer")? else {
        return Ok(None);
    };
    let kind = row.optional("type")?.unwrap_or_default();
    let kind = kind.parse().ok().and_then(|kind: usize| TYPES.get(kind));
    let name = row.text("video_name")?;
    let name = name.strip_prefix("v_").unwrap_or(name);
    let question = row.text("question")?.trim_end_matches('?');
    Ok(Some(Sample {
        id: row.text("question_id")?.to_owned(),
        question: short_answer(&format!("{question}?")),
        answer: answer.to_owned(),
        answers: Vec::new(),
        choices: Vec::new(),
        task: kind.unwrap_or(&"other").to_string(),
        medium: Medium::file(
            name,
            [format!("v_{name}"), name.to_owned()],
            YouTube::new(name, None).ok(),
        )?,
    }))
}
