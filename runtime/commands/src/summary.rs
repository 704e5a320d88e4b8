//! One answer in figures, for people.

use edge_lmm::report::peak_resident_bytes;
use edge_lmm::timing::readable;
use edge_lmm::units::bytes;
use edge_lmm::{Answer, Timing};

/// Formats tokens, speed and time to the first token.
pub fn summary(answer: &Answer, timing: &Timing) -> String {
    let speed = answer.tokens_per_second(timing);
    let speed = speed.map_or_else(String::new, |speed| format!(" at {speed:.1} tokens/s"));
    let resident = peak_resident_bytes().map_or_else(String::new, |n| {
        format!("; peak resident memory {}", bytes(n as usize))
    });
    let reductions: String = answer
        .reductions
        .iter()
        .map(|step| format!("\n{}: {} tokens left", step.method, step.tokens))
        .collect();
    let estimate = answer.estimated_first_token;
    let estimate = estimate.map_or_else(String::new, |time| {
        format!(" (estimated without decoding of media: {})", readable(time))
    });
    let speculation = answer.speculation.filter(|counts| counts.drafted > 0);
    let speculation = speculation.map_or_else(String::new, |counts| {
        format!(
            " ({} steps, {} of {} drafted tokens accepted)",
            counts.steps, counts.accepted, counts.drafted
        )
    });
    format!(
        "first token after {}{estimate}; {} tokens generated{speed}{speculation}\n\
         prompt of {} tokens: {} visual, {} reused{resident}{reductions}",
        readable(answer.first_token_after(timing)),
        answer.tokens.len(),
        answer.prompt_tokens,
        answer.visual_tokens,
        answer.reused_tokens,
    )
}
