//! AudioCaps: `test.csv` of the authors (https://github.com/cdjkim/audiocaps) with the sounds as
//! files, or tables that contain them in a column `audio`. Sounds are named `YOUTUBE_START`,
//! `YOUTUBE`, `YYOUTUBE` or by `audiocap_id`. The captions of a clip are its accepted answers.

use std::collections::HashMap;

use anyhow::Context;
use edge_lmm::MediaKind;
use edge_lmm::metric::Metric;

use super::{Layout, Located, Samples, no_join};
use crate::cmd::data::row::Row;
use crate::cmd::data::sample::{Medium, Sample, YouTube};

pub const LAYOUT: Layout = Layout {
    kind: MediaKind::Audio,
    metric: Metric::RougeL,
    split: "test",
    others: &[],
    column: "audio",
    hub: None,
    join: no_join,
    sample,
    merge,
};

fn sample(row: &Row) -> anyhow::Result<Option<Sample>> {
    let Some(caption) = row.optional("caption")? else {
        return Ok(None);
    };
    let youtube = row.text("youtube_id")?;
    let start = row.optional("start_time")?.unwrap_or("0");
    let start: f64 = start
        .parse()
        .ok()
        .filter(|start: &f64| (0.0..1e6).contains(start))
        .with_context(|| format!("expected a time in seconds in start_time, found {start:?}"))?;
    let start = start as u32;
    let id = format!("{youtube}_{start}");
    let medium = if row.has("audio") {
        Medium::table(&id)
    } else {
        let mut stems = vec![id.clone(), youtube.to_owned(), format!("Y{youtube}")];
        stems.extend(row.optional("audiocap_id")?.map(str::to_owned));
        Medium::file(&id, stems, YouTube::new(youtube, Some(start)).ok())?
    };
    Ok(Some(Sample {
        id,
        question: "Describe the sound in one sentence.".to_owned(),
        answer: caption.to_owned(),
        answers: vec![caption.to_owned()],
        choices: Vec::new(),
        task: "caption".to_owned(),
        medium,
    }))
}

/// Combines the captions of a clip.
fn merge(samples: Samples) -> anyhow::Result<Samples> {
    let mut by_id = HashMap::new();
    let mut merged = Samples::new();
    for (located, sample) in samples {
        match by_id.get(&sample.id) {
            Some(&index) => {
                let (_, first): &mut (Located, Sample) = &mut merged[index];
                first.answers.push(sample.answer);
            }
            None => {
                by_id.insert(sample.id.clone(), merged.len());
                merged.push((located, sample));
            }
        }
    }
    Ok(merged)
}
