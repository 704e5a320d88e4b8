//! DocVQA: the JSON of the challenge (https://www.docvqa.org/datasets), whose `image` is a path, or
//! the tables of `lmms-lab/DocVQA` on the Hugging Face hub, which contain the images.

use edge_lmm::MediaKind;
use edge_lmm::metric::Metric;

use super::{Layout, distinct, no_join, short_answer};
use crate::cmd::data::names;
use crate::cmd::data::row::{Cell, Row};
use crate::cmd::data::sample::{Medium, Sample};

pub const LAYOUT: Layout = Layout {
    kind: MediaKind::Image,
    metric: Metric::Anls,
    split: "validation",
    others: &["infographicvqa", "infographic", "infographicsvqa"],
    column: "image",
    hub: Some("lmms-lab/DocVQA"),
    join: no_join,
    sample,
    merge: distinct,
};

fn sample(row: &Row) -> anyhow::Result<Option<Sample>> {
    let answers = row.list("answers")?;
    let Some(answer) = answers.first().cloned() else {
        return Ok(None);
    };
    let id = row.text("questionId")?;
    let document = row.optional("ucsf_document_id")?;
    let page = row.optional("ucsf_document_page_no")?;
    let medium = match (row.cell("image"), document, page) {
        (Some(Cell::Text(path)), ..) => {
            names::check_below(path)?;
            let stem = names::stem(path);
            Medium::file(stem, [stem.to_owned()], None)?
        }
        (_, Some(document), Some(page)) => Medium::table(&format!("{document}_{page}")),
        _ => Medium::table(id),
    };
    let task = row.list("question_types")?.into_iter().next();
    Ok(Some(Sample {
        id: id.to_owned(),
        question: short_answer(row.text("question")?),
        answer,
        answers,
        choices: Vec::new(),
        task: task.unwrap_or_else(|| "docvqa".to_owned()),
        medium,
    }))
}
