//! MMBench with a single correct option: the TSV files of the authors
//! (https://github.com/open-compass/MMBench), images in base64, or the tables of `lmms-lab/MMBench`
//! on the Hugging Face hub. An image that is a number is that of the question with this index.

use edge_lmm::MediaKind;
use edge_lmm::metric::Metric;

use super::{Layout, distinct, multiple_choice, no_join};
use crate::cmd::data::row::Row;
use crate::cmd::data::sample::{Medium, Sample};

pub const LAYOUT: Layout = Layout {
    kind: MediaKind::Image,
    metric: Metric::Choice,
    split: "dev",
    others: &["cn", "cc"],
    column: "image",
    hub: Some("lmms-lab/MMBench"),
    join: no_join,
    sample,
    merge: distinct,
};

fn sample(row: &Row) -> anyhow::Result<Option<Sample>> {
    let Some(answer) = row.optional("answer")? else {
        return Ok(None);
    };
    let id = row.text("index")?;
    let mut choices = Vec::new();
    for letter in ["A", "B", "C", "D", "E"] {
        match row.optional(letter)? {
            Some(choice) => choices.push(choice.to_owned()),
            None => break,
        }
    }
    let question = row.text("question")?;
    let question = match row.optional("hint")? {
        Some(hint) => format!("{hint}\n{question}"),
        None => question.to_owned(),
    };
    Ok(Some(Sample {
        id: id.to_owned(),
        question: multiple_choice(&question, &choices),
        answer: answer.to_owned(),
        answers: Vec::new(),
        choices,
        task: row.optional("category")?.unwrap_or("mmbench").to_owned(),
        medium: Medium::table(id),
    }))
}
