//! Cost of verifying drafts, and the gain of speculation on three kinds of text.

use std::ops::ControlFlow;
use std::time::Instant;

use edge_lmm_models::language::OutputRows;
use edge_lmm_models::prompt::{Message, Role};
use edge_lmm_ops::KernelBackend;
use serde::Serialize;

use crate::engine::Engine;
use crate::error::EngineError;
use crate::request::{Answer, Event, Request};
use crate::session::{Session, Speculation, SpeculationCounts};
use crate::statistics::Statistics;

/// Numbers of tokens of a step.
const STEP_TOKENS: [usize; 4] = [1, 2, 4, 8];
/// Drafted tokens of a step with forced acceptance.
const FORCED_DRAFT: usize = 7;
/// Shares of drafted tokens that are accepted.
const FORCED: [f64; 3] = [0.0, 0.5, 1.0];
/// Tokens that are decoded with each forced acceptance.
const FORCED_TOKENS: usize = 32;

/// A passage that the model is to repeat.
const PASSAGE: &str = "The harbour was built in 1872 by the engineer Anna Lindqvist, who had \
    studied in Gothenburg. It has a lighthouse of 31 metres, two breakwaters of granite, and a \
    dry dock for ships of up to 4,000 tonnes. In 1911 a storm destroyed the northern breakwater, \
    which was rebuilt within three years. The fish market moved to the eastern quay in 1958.";

/// Options of the measurement.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Largest number of tokens of an answer.
    pub max_tokens: usize,
    /// Answers of each text with and without speculation, in turn.
    pub runs: usize,
    /// The speculation that is compared with none.
    pub speculation: Speculation,
}

/// Time of a step.
#[derive(Debug, Clone, Serialize)]
pub struct StepTime {
    /// Tokens of the step.
    pub tokens: usize,
    /// Median time in milliseconds.
    pub ms: f64,
    /// Time relative to a step of one token.
    pub ratio: f64,
}

/// Speed with an acceptance that does not depend on the model.
#[derive(Debug, Clone, Serialize)]
pub struct Forced {
    /// Share of seven drafted tokens that every step accepts, rounded down to whole tokens.
    pub acceptance: f64,
    /// Median of the speed relative to steps of one token.
    pub ratio: f64,
}

/// Answers to one text.
#[derive(Debug, Clone, Serialize)]
pub struct TextReport {
    /// Kind of text.
    pub text: &'static str,
    /// Tokens of the answer.
    pub tokens: usize,
    /// Median tokens per second without speculation.
    pub without: f64,
    /// Median tokens per second with speculation.
    pub with: f64,
    /// Median of the ratios of pairs of answers.
    pub ratio: f64,
    /// Steps and drafts of the last answer.
    pub counts: SpeculationCounts,
    /// `true` if all answers have the same tokens.
    pub same: bool,
}

/// All measurements.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Times of steps; empty for models that cannot be truncated.
    pub steps: Vec<StepTime>,
    /// Speed with forced acceptance; empty for models that cannot be truncated.
    pub forced: Vec<Forced>,
    /// Speed of answers.
    pub texts: Vec<TextReport>,
}

/// Measures a model and calls `progress` with the name of each measurement before it starts.
///
/// # Errors
/// If the model cannot answer.
pub fn run<B: KernelBackend>(
    engine: &Engine<B>,
    options: Options,
    mut progress: impl FnMut(&str),
) -> Result<Report, EngineError> {
    progress("steps");
    let mut session = engine.session();
    let text = format!("Repeat this text:\n\n{PASSAGE}");
    let messages = messages(engine, &text);
    let request = Request {
        max_tokens: FORCED_TOKENS + FORCED_DRAFT + 1,
        raw: !engine.text().has_template(),
        ..Request::new(&messages)
    };
    session.prefill(&request, go_on)?;
    let can_truncate = session.truncate(session.len() - 1).is_ok();
    let (mut steps, mut forced) = (Vec::new(), Vec::new());
    if can_truncate {
        steps = step_times(&mut session)?;
        progress("forced acceptance");
        forced = forced_ratios(&mut session, options.runs)?;
    }
    let mut texts = Vec::new();
    for (text, prompt) in [
        (
            "extraction",
            format!("Repeat this text word for word:\n\n{PASSAGE}"),
        ),
        (
            "JSON",
            "Write a JSON array of eight objects with the fields \"name\", \"age\" and \"city\"."
                .to_owned(),
        ),
        (
            "free text",
            "Tell a story about a lighthouse keeper who finds a letter.".to_owned(),
        ),
    ] {
        progress(text);
        texts.push(measure_text(engine, text, &prompt, options)?);
    }
    Ok(Report {
        steps,
        forced,
        texts,
    })
}

fn go_on(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Returns a prompt that ends with a blank line if the model has no chat template.
fn messages<B: KernelBackend>(engine: &Engine<B>, prompt: &str) -> [Message; 1] {
    let end = match engine.text().has_template() {
        true => "",
        false => "\n\n",
    };
    [Message::text(Role::User, format!("{prompt}{end}"))]
}

/// Returns the median; 0 if there are no values or one is not finite, as without any decode step.
fn median(values: &[f64]) -> f64 {
    Statistics::of(values).map_or(0.0, |statistics| statistics.median)
}

/// Takes `tokens` tokens in, keeps the first `kept` of them, and returns the seconds.
fn step<B: KernelBackend>(
    session: &mut Session<B>,
    tokens: usize,
    kept: usize,
) -> Result<f64, EngineError> {
    let ids = vec![1; tokens];
    let len = session.len();
    let start = Instant::now();
    session.step(&ids, OutputRows::All)?;
    session.truncate(len + kept)?;
    Ok(start.elapsed().as_secs_f64())
}

/// Times steps of different numbers of tokens in turn.
fn step_times<B: KernelBackend>(session: &mut Session<B>) -> Result<Vec<StepTime>, EngineError> {
    let mut times = STEP_TOKENS.map(|_| Vec::new());
    for _ in 0..15 {
        for (tokens, times) in STEP_TOKENS.into_iter().zip(&mut times) {
            times.push(step(session, tokens, 0)?);
        }
    }
    let ms = times.map(|times| 1e3 * median(&times));
    let all = STEP_TOKENS.into_iter().zip(ms);
    let step = |(tokens, time)| StepTime {
        tokens,
        ms: time,
        ratio: time / ms[0],
    };
    Ok(all.map(step).collect())
}

/// Decodes with every forced acceptance and with steps of one token in turn.
fn forced_ratios<B: KernelBackend>(
    session: &mut Session<B>,
    runs: usize,
) -> Result<Vec<Forced>, EngineError> {
    let len = session.len();
    let mut seconds_per_token = |tokens: usize, kept: usize| -> Result<f64, EngineError> {
        let mut seconds = 0.0;
        while session.len() < len + FORCED_TOKENS {
            seconds += step(session, tokens, kept)?;
        }
        let decoded = session.len() - len;
        session.truncate(len)?;
        Ok(seconds / decoded as f64)
    };
    let mut ratios = FORCED.map(|_| Vec::new());
    for _ in 0..runs {
        for (acceptance, ratios) in FORCED.into_iter().zip(&mut ratios) {
            let kept = 1 + (acceptance * FORCED_DRAFT as f64) as usize;
            let single = seconds_per_token(1, 1)?;
            ratios.push(single / seconds_per_token(1 + FORCED_DRAFT, kept)?);
        }
    }
    let all = FORCED.into_iter().zip(ratios);
    let forced = |(acceptance, ratios): (f64, Vec<f64>)| Forced {
        acceptance,
        ratio: median(&ratios),
    };
    Ok(all.map(forced).collect())
}

/// Answers a prompt with and without speculation in turn.
fn measure_text<B: KernelBackend>(
    engine: &Engine<B>,
    text: &'static str,
    prompt: &str,
    options: Options,
) -> Result<TextReport, EngineError> {
    let mut session = engine.session();
    let messages = messages(engine, prompt);
    let mut answer = |speculation| {
        let request = Request {
            max_tokens: options.max_tokens,
            raw: !engine.text().has_template(),
            timing: true,
            speculation,
            ..Request::new(&messages)
        };
        session.answer(&request, go_on)
    };
    let speed = |answer: &Answer| answer.tokens_per_second(&answer.timing).unwrap_or_default();
    let (mut without, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    // The first answer also computes the prompt.
    let expected = answer(Speculation::Off)?;
    let mut same = true;
    let mut counts = SpeculationCounts::default();
    for _ in 0..options.runs {
        let pair = [answer(Speculation::Off)?, answer(options.speculation)?];
        same &= pair.iter().all(|answer| answer.tokens == expected.tokens);
        counts = pair[1].speculation.unwrap_or_default();
        let [off, on] = [speed(&pair[0]), speed(&pair[1])];
        without.push(off);
        with.push(on);
        ratios.push(on / off);
    }
    Ok(TextReport {
        text,
        tokens: expected.tokens.len(),
        without: median(&without),
        with: median(&with),
        ratio: median(&ratios),
        counts,
        same,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, Record, demo};

    #[test]
    fn the_demo_is_measured() {
        let record = Record::from_static(demo::RECORD, "the demo").expect("a record");
        let engine = Engine::<Cpu>::load(&record, Default::default()).expect("an engine");
        let options = Options {
            max_tokens: 12,
            runs: 1,
            speculation: Speculation::Fixed(3),
        };
        let mut parts = Vec::new();
        let report = run(&engine, options, |part| parts.push(part.to_owned()));
        let report = report.expect("measurements");
        assert_eq!(parts.len(), 5);
        assert_eq!((report.steps.len(), report.forced.len()), (4, 3));
        assert!(report.steps.iter().all(|step| step.ms > 0.0));
        assert!(report.forced.iter().all(|forced| forced.ratio > 0.0));
        for text in &report.texts {
            assert!(text.same, "{text:?}");
            assert!(text.counts.accepted <= text.counts.drafted, "{text:?}");
        }
    }
}
