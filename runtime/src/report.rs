//! Timing table and its JSON form.

use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use edge_lmm_ops::stage::StageRecord;
use serde::Serialize;

use crate::engine::{Answer, FinishReason};

/// A stage in the output of `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageTime {
    /// Name of a top-level stage, or path of a module.
    pub name: String,
    /// Top-level stage that it belongs to.
    pub stage: &'static str,
    /// Total milliseconds of all calls.
    pub ms: f64,
    /// Number of calls.
    pub calls: usize,
    /// Peak heap use during the stage.
    pub peak_bytes: usize,
    /// GPU kernels launched during the stage (0 on the CPU).
    pub launches: usize,
}

impl From<&StageRecord> for StageTime {
    fn from(record: &StageRecord) -> Self {
        Self {
            name: record.name.clone(),
            stage: record.stage,
            ms: record.time.as_secs_f64() * 1e3,
            calls: record.calls,
            peak_bytes: record.peak_bytes,
            launches: record.launches,
        }
    }
}

/// Output of `--json` for one answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AnswerReport {
    /// The answer.
    pub text: String,
    /// Generated token ids.
    pub tokens: Vec<u32>,
    /// Number of tokens in the prompt.
    pub prompt_tokens: usize,
    /// Number of media tokens among them.
    pub visual_tokens: usize,
    /// Prompt tokens reused from the cache.
    pub reused_tokens: usize,
    /// Reason why the answer ended.
    pub finish_reason: FinishReason,
    /// Milliseconds from the undecoded media to the first token.
    pub first_token_ms: f64,
    /// All stages and modules.
    pub stages: Vec<StageTime>,
    /// Generated tokens per second of decoding (`null` without a decoding step).
    pub tokens_per_second: Option<f64>,
    /// Peak resident memory of the process including mapped weights, if the system reports it.
    pub peak_resident_bytes: Option<u64>,
}

impl AnswerReport {
    /// Builds the report from an answer and its stages.
    pub fn new(answer: &Answer, stages: &[StageRecord]) -> Self {
        Self {
            text: answer.text.clone(),
            tokens: answer.tokens.clone(),
            prompt_tokens: answer.prompt_tokens,
            visual_tokens: answer.visual_tokens,
            reused_tokens: answer.reused_tokens,
            finish_reason: answer.finish_reason,
            first_token_ms: first_token(answer, stages).as_secs_f64() * 1e3,
            stages: stages.iter().map(StageTime::from).collect(),
            tokens_per_second: tokens_per_second(answer, stages),
            peak_resident_bytes: peak_resident_bytes(),
        }
    }
}

/// Returns the generated tokens divided by the time of stage `decode`. The logits of the first
/// token come from prefill, so there is one step less than tokens.
pub fn tokens_per_second(answer: &Answer, stages: &[StageRecord]) -> Option<f64> {
    let decode = stages
        .iter()
        .find(|stage| stage.name == "decode" && stage.stage == "decode")?;
    let steps = answer.tokens.len().checked_sub(1).filter(|&n| n > 0)?;
    Some(steps as f64 / decode.time.as_secs_f64())
}

/// Returns the time from the undecoded media to the first token: stage `media` plus the time of the
/// engine.
pub fn first_token(answer: &Answer, stages: &[StageRecord]) -> Duration {
    let media = stages.iter().filter(|stage| stage.name == "media");
    media.map(|stage| stage.time).sum::<Duration>() + answer.first_token
}

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

/// Returns the peak resident memory of this process (`VmHWM`), on Linux.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Formats a number of bytes with a unit.
pub fn bytes(n: usize) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Formats a time in milliseconds, or in seconds from ten seconds on.
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
    fn sizes_are_readable() {
        assert_eq!(milliseconds(Duration::from_millis(1234)), "1234.0 ms");
        assert_eq!(milliseconds(Duration::from_millis(123_456)), "123.5 s");
        assert_eq!(bytes(12), "12 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 30), "5.0 GiB");
    }
}
