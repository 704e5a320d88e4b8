//! Requests of experiments and what is measured of them.

use std::ops::ControlFlow;
use std::time::Instant;

use edge_lmm_models::ModelError;
use edge_lmm_models::media::MediaOptions;
use edge_lmm_models::prompt::Message;
use edge_lmm_models::reduce::sampling::seed_of;

use super::bench::BenchModel;
use super::error::ExperimentError;
use super::sample::{Sample, since};
use super::spec::Values;
use crate::any_device::AnySession;
use crate::error::EngineError;
use crate::manifest::is_right;
use crate::media::{Media, user_message};
use crate::request::{Answer, Event, Request};
use crate::timing::{Recording, Timing};

/// Stages that are measured, in their order.
pub(super) const STAGES: [&str; 6] = [
    "preprocess",
    "vision",
    "audio",
    "projector",
    "prefill",
    "decode",
];

/// A question about media, with its options.
pub(super) struct Ask<'a> {
    pub media: &'a [Media],
    pub options: MediaOptions,
    pub max_tokens: usize,
}

impl Ask<'_> {
    /// Answers the question of a sample in a new conversation: nothing is reused.
    ///
    /// # Errors
    /// If the model cannot answer.
    pub fn fresh(
        &self,
        model: &mut BenchModel,
        sample: &Sample,
    ) -> Result<(Values, Answer), ExperimentError> {
        model.session.forget();
        let messages = [user_message(self.media, sample.question())];
        self.next(&mut model.session, sample, &messages)
    }

    /// Answers the last message of a conversation.
    ///
    /// # Errors
    /// If the model cannot answer.
    pub fn next(
        &self,
        session: &mut AnySession,
        sample: &Sample,
        messages: &[Message],
    ) -> Result<(Values, Answer), ExperimentError> {
        let request = Request {
            media: self.media,
            options: MediaOptions {
                // Questions about the same medium see the same random tokens.
                seed: sample.media_path().map_or(0, seed_of),
                ..self.options.clone()
            },
            max_tokens: self.max_tokens,
            // Answers about noise are to have the same length.
            ignore_eos: sample.expected().is_none(),
            timing: true,
            ..Request::new(messages)
        };
        let start = Instant::now();
        let answer = session.answer(&request, |_| ControlFlow::Continue(()))?;
        let mut values = values_of(&answer).with("total", since(start));
        if let Some(expected) = sample.expected() {
            let right = is_right(&answer.text, expected);
            values.set("right", f64::from(u8::from(right)));
        }
        values.text = Some(answer.text.trim().to_owned());
        Ok((values, answer))
    }
}

/// Returns the times and counts of an answer.
pub(super) fn values_of(answer: &Answer) -> Values {
    let mut values = stage_times(&answer.timing)
        .with("first_token", answer.first_token.as_secs_f64() * 1e3)
        .with("prompt_tokens", answer.prompt_tokens as f64)
        .with("visual_tokens", answer.visual_tokens as f64)
        .with("reused_tokens", answer.reused_tokens as f64)
        .with("tokens", answer.tokens.len() as f64);
    if let Some(step) = answer.reductions.last() {
        values.set("reduced_tokens", step.tokens as f64);
    }
    values
}

/// Returns the time of each stage, `encoder` (vision and audio), and `hidden`, the part that other
/// stages hid.
pub(super) fn stage_times(timing: &Timing) -> Values {
    let mut values = Values::default();
    for name in STAGES {
        if let Some(stage) = timing.stage(name) {
            values.set(name, stage.ms());
        }
    }
    let encoder = values.get("vision") + values.get("audio");
    values
        .with("encoder", encoder)
        .with("hidden", timing.hidden().as_secs_f64() * 1e3)
}

/// Prepares and encodes media in a new session, without the language model.
///
/// # Errors
/// If the model cannot take them.
pub(super) fn encode(
    session: &mut AnySession,
    media: &[Media],
    options: &MediaOptions,
) -> Result<Values, ExperimentError> {
    session.forget();
    let messages = [user_message(media, "")];
    let request = Request {
        media,
        options: options.clone(),
        max_tokens: 1,
        ..Request::new(&messages)
    };
    let mut recording = Recording::new(session.device());
    let start = Instant::now();
    let outcome = recording.run(|| {
        session.answer(&request, |event| match event {
            Event::Progress {
                stage: "prefill", ..
            } => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
    });
    let total = since(start);
    canceled(outcome)?;
    let mut values = stage_times(&recording.finish());
    // The first layer of the prefill had begun.
    let prefill = values.numbers.remove("prefill").unwrap_or_default();
    values.set("total", total - prefill);
    Ok(values)
}

/// Returns the length of the prompt, without encoding its media.
///
/// # Errors
/// If the model cannot take the media, or the prompt is too long.
pub(super) fn prompt_tokens(
    session: &mut AnySession,
    media: &[Media],
    question: &str,
    options: &MediaOptions,
) -> Result<usize, EngineError> {
    let messages = [user_message(media, question)];
    let request = Request {
        media,
        options: options.clone(),
        max_tokens: 1,
        ..Request::new(&messages)
    };
    let mut tokens = 0;
    let outcome = session.answer(&request, |event| {
        if let Event::Prepared { prompt_tokens, .. } = event {
            tokens = prompt_tokens;
        }
        ControlFlow::Break(())
    });
    canceled(outcome).map(|()| tokens)
}

/// Accepts an answer that was canceled.
fn canceled(outcome: Result<Answer, EngineError>) -> Result<(), EngineError> {
    match outcome {
        Ok(_) | Err(EngineError::Model(ModelError::Canceled)) => Ok(()),
        Err(error) => Err(error),
    }
}
