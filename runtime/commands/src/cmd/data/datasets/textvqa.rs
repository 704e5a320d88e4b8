//! TextVQA: `TextVQA_0.5.1_val.json` (https://textvqa.org/dataset), whose images are named by
//! `image_id`, or the tables of `lmms-lab/textvqa` on the Hugging Face hub, which contain them.

use std::collections::HashMap;

use edge_lmm::MediaKind;
use edge_lmm::metric::Metric;

use super::{Layout, distinct, no_join, short_answer};
use crate::cmd::data::row::Row;
use crate::cmd::data::sample::{Medium, Sample};

pub const LAYOUT: Layout = Layout {
    kind: MediaKind::Image,
    metric: Metric::Vqa,
    split: "validation",
    others: &[],
    column: "image",
    hub: Some("lmms-lab/textvqa"),
    join: no_join,
    sample,
    merge: distinct,
};

fn sample(row: &Row) -> anyhow::Result<Option<Sample>> {
    let answers = row.list("answers")?;
    let Some(answer) = most_frequent(&answers) else {
        return Ok(None);
    };
    let image = row.text("image_id")?;
    let medium = if row.has("image") {
        Medium::table(image)
    } else {
        Medium::file(image, [image.to_owned()], None)?
    };
    Ok(Some(Sample {
        id: row.text("question_id")?.to_owned(),
        question: short_answer(row.text("question")?),
        answer: answer.to_owned(),
        answers,
        choices: Vec::new(),
        task: "textvqa".to_owned(),
        medium,
    }))
}

/// Returns the answer that most annotators gave, the first of several.
fn most_frequent(answers: &[String]) -> Option<&str> {
    let mut counts = HashMap::new();
    for answer in answers {
        *counts.entry(answer.as_str()).or_insert(0) += 1;
    }
    let most = counts.values().copied().max()?;
    let mut answers = answers.iter().map(String::as_str);
    answers.find(|answer| counts.get(answer) == Some(&most))
}
