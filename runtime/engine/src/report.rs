//! An answer with its stages as JSON.

use edge_lmm_models::reduce::ReductionStep;
use serde::Serialize;

use crate::request::{Answer, FinishReason};
use crate::session::{ReusedFrom, SpeculationCounts};
use crate::timing::Timing;

/// Report of one answer, as `--json` prints it.
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
    /// Prompt tokens that were not computed again.
    pub reused_tokens: usize,
    /// Source of the reused tokens: `memory`, `disk`, or `null` if there are none.
    pub cache: Option<ReusedFrom>,
    /// Tokens of the media that each method of reduction left.
    pub reductions: Vec<ReductionStep>,
    /// Reason for the end of the answer.
    pub finish_reason: FinishReason,
    /// Steps, drafted and accepted tokens; `null` without speculation.
    pub speculation: Option<SpeculationCounts>,
    /// Milliseconds from the undecoded media to the first token.
    pub first_token_ms: f64,
    /// Estimated milliseconds from the decoded media to the first token; `null` without a time
    /// limit.
    pub estimated_first_token_ms: Option<f64>,
    /// Returns the stages with their modules.
    pub stages: Timing,
    /// Generated tokens per second of decoding (`null` without a decode step).
    pub tokens_per_second: Option<f64>,
    /// Peak resident memory of the process, including mapped weights, if the system reports it.
    pub peak_resident_bytes: Option<u64>,
}

impl AnswerReport {
    /// Puts an answer and its stages together.
    pub fn new(answer: &Answer, timing: &Timing) -> Self {
        Self {
            text: answer.text.clone(),
            tokens: answer.tokens.clone(),
            prompt_tokens: answer.prompt_tokens,
            visual_tokens: answer.visual_tokens,
            reused_tokens: answer.reused_tokens,
            cache: answer.reused_from,
            reductions: answer.reductions.clone(),
            finish_reason: answer.finish_reason,
            speculation: answer.speculation,
            first_token_ms: answer.first_token_after(timing).as_secs_f64() * 1e3,
            estimated_first_token_ms: answer
                .estimated_first_token
                .map(|time| time.as_secs_f64() * 1e3),
            stages: timing.clone(),
            tokens_per_second: answer.tokens_per_second(timing),
            peak_resident_bytes: peak_resident_bytes(),
        }
    }
}

/// Returns the peak resident memory of this process (`VmHWM`), on Linux.
pub fn peak_resident_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

/// Returns the resident memory of this process (`VmRSS`), on Linux.
pub fn resident_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

fn status_bytes(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Makes the peak resident memory of this process begin anew, on Linux.
pub(crate) fn reset_peak_resident() {
    // Without the right to do so, the peak stays.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
