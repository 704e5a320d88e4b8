//! Video-MME, as `lmms-lab/Video-MME` on the Hugging Face hub: `videomme/test-*.parquet` and the
//! videos, named by `videoID`, in `videos_chunked_*.zip`.

use edge_lmm::MediaKind;
use edge_lmm::metric::Metric;

use super::{Layout, distinct, multiple_choice, no_join};
use crate::cmd::data::row::Row;
use crate::cmd::data::sample::{Medium, Sample, YouTube};

pub const LAYOUT: Layout = Layout {
    kind: MediaKind::Video,
    metric: Metric::Choice,
    split: "test",
    others: &["subtitle"],
    column: "video",
    hub: Some("lmms-lab/Video-MME"),
    join: no_join,
    sample,
    merge: distinct,
};

fn sample(row: &Row) -> anyhow::Result<Option<Sample>> {
    let Some(answer) = row.optional("answer")? else {
        return Ok(None);
    };
    let video = row.text("videoID")?;
    let options = row.list("options")?;
    let choices: Vec<String> = options
        .iter()
        .zip('A'..='Z')
        .map(|(option, letter)| without_letter(option, letter).to_owned())
        .collect();
    Ok(Some(Sample {
        id: row.text("question_id")?.to_owned(),
        question: multiple_choice(row.text("question")?, &choices),
        answer: answer.to_owned(),
        answers: Vec::new(),
        choices,
        task: row.text("task_type")?.to_owned(),
        medium: Medium::file(video, [video.to_owned()], YouTube::new(video, None).ok())?,
    }))
}

/// Removes the letter from an option such as `A. Apples.`.
fn without_letter(option: &str, letter: char) -> &str {
    let rest = option.trim().strip_prefix(letter);
    let rest = rest.and_then(|rest| rest.strip_prefix(['.', ':', ')']));
    rest.unwrap_or(option).trim()
}
