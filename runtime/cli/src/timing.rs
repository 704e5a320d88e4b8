//! The timing of an answer, for people.

use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use edge_lmm::Answer;
use edge_lmm::report::{bytes, first_token, peak_resident_bytes, tokens_per_second};
use edge_lmm_ops::stage::StageRecord;

/// Formats tokens, speed and time to the first token as text.
pub fn summary(answer: &Answer, stages: &[StageRecord]) -> String {
    let speed = tokens_per_second(answer, stages)
        .map_or_else(String::new, |speed| format!(" at {speed:.1} tokens/s"));
    let resident = peak_resident_bytes().map_or_else(String::new, |n| {
        format!("; peak resident memory {}", bytes(n as usize))
    });
    format!(
        "first token after {}; {} tokens generated{speed}\n\
         prompt of {} tokens: {} visual, {} reused{resident}",
        milliseconds(first_token(answer, stages)),
        answer.tokens.len(),
        answer.prompt_tokens,
        answer.visual_tokens,
        answer.reused_tokens,
    )
}

/// Milliseconds, or seconds from ten of them on.
fn milliseconds(time: Duration) -> String {
    match time.as_secs() {
        0..10 => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

/// A row of the table: a top-level stage, or its modules of one kind.
struct Row {
    name: String,
    time: Duration,
    calls: usize,
    peak_bytes: usize,
    top: bool,
}

/// Lists the top-level stages, each followed by its modules with the layers of a stack combined.
fn rows(stages: &[StageRecord]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for top in stages.iter().filter(|stage| stage.name == stage.stage) {
        rows.push(Row {
            name: top.name.clone(),
            time: top.time,
            calls: top.calls,
            peak_bytes: top.peak_bytes,
            top: true,
        });
        let first = rows.len();
        let inside = |stage: &&StageRecord| stage.stage == top.name && stage.name != top.name;
        for module in stages.iter().filter(inside) {
            let name = without_numbers(&module.name);
            match rows[first..].iter_mut().find(|row| row.name == name) {
                Some(row) => {
                    row.time += module.time;
                    row.calls += module.calls;
                    row.peak_bytes = row.peak_bytes.max(module.peak_bytes);
                }
                None => rows.push(Row {
                    name,
                    time: module.time,
                    calls: module.calls,
                    peak_bytes: module.peak_bytes,
                    top: false,
                }),
            }
        }
    }
    rows
}

/// Strips the first component of a module's path, which the stage repeats.
fn within_stage(path: &str) -> &str {
    path.split_once('.').map_or(path, |(_, rest)| rest)
}

/// Replaces numbers: `vision.blocks.7.mlp` becomes `vision.blocks.*.mlp`.
fn without_numbers(path: &str) -> String {
    let parts: Vec<&str> = path
        .split('.')
        .map(|part| {
            if part.parse::<usize>().is_ok() {
                "*"
            } else {
                part
            }
        })
        .collect();
    parts.join(".")
}

/// Formats the table of stages: time, fraction of the total, calls and peak heap; the largest stage
/// is marked.
pub fn table(stages: &[StageRecord]) -> String {
    let rows = rows(stages);
    let total: Duration = rows.iter().filter(|row| row.top).map(|row| row.time).sum();
    let largest = rows.iter().filter(|row| row.top).map(|row| row.time).max();
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(["stage", "time", "share", "calls", "peak heap"]);
    for row in &rows {
        let share = 100.0 * row.time.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE);
        let mark = row.top && Some(row.time) == largest;
        table.add_row([
            match (row.top, mark) {
                (true, true) => format!("{} <- bottleneck", row.name),
                (true, false) => row.name.clone(),
                (false, _) => format!("  {}", within_stage(&row.name)),
            },
            milliseconds(row.time),
            format!("{share:.1} %"),
            row.calls.to_string(),
            bytes(row.peak_bytes),
        ]);
    }
    table.add_row([
        "total".to_owned(),
        milliseconds(total),
        "100.0 %".to_owned(),
        String::new(),
        String::new(),
    ]);
    for column in 1..=4 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(name: &str, stage: &'static str, ms: u64) -> StageRecord {
        StageRecord {
            name: name.to_owned(),
            stage,
            time: Duration::from_millis(ms),
            calls: 1,
            peak_bytes: 2048,
            launches: 0,
            spans: Vec::new(),
        }
    }

    #[test]
    fn layers_are_taken_together_and_the_largest_stage_is_marked() {
        let stages = [
            stage("vision", "vision", 1150),
            stage("vision.blocks.0.mlp", "vision", 300),
            stage("text.decoder.layers.0.cross_attention", "decode", 90),
            stage("load", "load", 0),
            stage("vision.blocks.1.mlp", "vision", 200),
            stage("projector", "projector", 5),
            stage("decode", "decode", 95),
        ];
        let text = table(&stages);
        let line = |start: &str| {
            text.lines()
                .find(|line| line.trim_start_matches(['|', ' ']).starts_with(start))
                .unwrap_or_else(|| panic!("no {start} in\n{text}"))
        };
        assert!(line("vision ").contains("92.0 %"), "{text}");
        assert!(line("vision <- bottleneck").contains("92.0 %"), "{text}");
        assert!(line("blocks.*.mlp").contains("500.0 ms"), "{text}");
        assert!(!line("decode").contains("bottleneck"), "{text}");
        assert!(line("total").contains("1250.0 ms"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }

    #[test]
    fn long_times_are_in_seconds() {
        assert_eq!(milliseconds(Duration::from_millis(1234)), "1234.0 ms");
        assert_eq!(milliseconds(Duration::from_millis(123_456)), "123.5 s");
    }
}
