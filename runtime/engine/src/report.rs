//! An answer with its stages as JSON.

use std::time::Duration;

use edge_lmm_ops::stage::StageRecord;
use serde::Serialize;

use crate::request::{Answer, FinishReason};

/// A stage as `--json` shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageTime {
    /// Name of a top stage, or path of a module.
    pub name: String,
    /// The top stage it ran in.
    pub stage: &'static str,
    /// Milliseconds over all calls.
    pub ms: f64,
    /// Calls.
    pub calls: usize,
    /// Highest heap use while it ran.
    pub peak_bytes: usize,
    /// GPU kernels launched while it ran (0 on the CPU).
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

/// What `--json` prints for one answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AnswerReport {
    /// The answer.
    pub text: String,
    /// Generated ids.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the media among them.
    pub visual_tokens: usize,
    /// Prompt tokens that were in the cache already.
    pub reused_tokens: usize,
    /// Why the answer ended.
    pub finish_reason: FinishReason,
    /// Milliseconds from the undecoded media to the first token.
    pub first_token_ms: f64,
    /// All stages and modules.
    pub stages: Vec<StageTime>,
    /// Generated tokens per second of decoding (`null` without a decode step).
    pub tokens_per_second: Option<f64>,
    /// Most memory the process has held, mapped weights included, where the system tells.
    pub peak_resident_bytes: Option<u64>,
}

impl AnswerReport {
    /// Puts an answer and its stages together.
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

/// Generated tokens over the time of stage `decode`. The first token's scores come from prefill,
/// so the steps are one fewer than the tokens.
pub fn tokens_per_second(answer: &Answer, stages: &[StageRecord]) -> Option<f64> {
    let decode = stages
        .iter()
        .find(|stage| stage.name == "decode" && stage.stage == "decode")?;
    let steps = answer.tokens.len().checked_sub(1).filter(|&n| n > 0)?;
    Some(steps as f64 / decode.time.as_secs_f64())
}

/// Time from the undecoded media to the first token: that of stage `media`, and the engine's.
pub fn first_token(answer: &Answer, stages: &[StageRecord]) -> Duration {
    let media = stages.iter().filter(|stage| stage.name == "media");
    media.map(|stage| stage.time).sum::<Duration>() + answer.first_token
}

/// The most memory this process has held (`VmHWM`), on Linux.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// A readable number of bytes.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        assert_eq!(bytes(12), "12 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 30), "5.0 GiB");
    }
}
