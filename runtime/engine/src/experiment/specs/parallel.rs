//! `parallel`: answers that are decoded together against answers in turn.

use std::ops::ControlFlow;
use std::time::Instant;

use edge_lmm_models::prompt::Message;
use edge_lmm_ops::KernelBackend;

use crate::engine::Engine;
use crate::error::EngineError;
use crate::experiment::report::{Axis, Cell, Line, Table};
use crate::experiment::stages::{lines, points};
use crate::experiment::{
    About, Bench, Case, Experiment, ExperimentError, Findings, Modality, Results, Sample, Values,
};
use crate::media::user_message;
use crate::request::Request;
use crate::session::{Generation, Session};
use crate::statistics::Statistics;

/// Numbers of conversations.
const CONVERSATIONS: [f64; 4] = [1.0, 2.0, 4.0, 8.0];
/// Largest number of conversations.
const MOST: usize = 64;

/// The experiment.
pub struct Parallel;

impl Experiment for Parallel {
    fn about(&self) -> About {
        About {
            name: "parallel",
            question: "How many more tokens per second does the model give if it decodes several \
                       answers together?",
            varies: "number of conversations",
            measures: "tokens per second of all answers, decoded in turn and together",
            needs: "any record",
            models: 1,
            uses: &[Modality::Text],
            common: false,
            values: "conversations [1,2,4,8]",
            manifest: false,
        }
    }

    fn cases(&self, bench: &mut Bench) -> Result<Vec<Case>, ExperimentError> {
        if bench.settings.max_tokens < 2 {
            return Err(ExperimentError::Value(
                "the first token of an answer needs no decoding: give --max-tokens 2 or more"
                    .to_owned(),
            ));
        }
        let counts = bench.counts(&CONVERSATIONS, MOST)?;
        let mut cases = Vec::new();
        for (index, model) in bench.models.iter().enumerate() {
            for &count in &counts {
                let measure = move |bench: &mut Bench, sample: &Sample| {
                    let questions =
                        (1..=count as usize).map(|i| format!("{} {i}", sample.question()));
                    let messages: Vec<_> =
                        questions.map(|text| [user_message(&[], text)]).collect();
                    // The first of the two is often slower.
                    let together_first = sample.seed.is_multiple_of(2);
                    let (engine, settings) = (&bench.models[index].engine, &bench.settings);
                    Ok(engine.measure_parallel(&messages, settings.max_tokens, together_first)?)
                };
                let setting = match count as usize {
                    1 => "1 conversation".to_owned(),
                    n => format!("{n} conversations"),
                };
                cases.push(Case::new(&*model.name, setting, measure).at(count));
            }
        }
        Ok(cases)
    }

    fn findings(&self, results: &Results) -> Findings {
        let mut table = Table::new(&[
            ("model", "", 0),
            ("conversations", "", 0),
            ("in turn", "tokens/s", 1),
            ("together", "tokens/s", 1),
            ("ratio", "", 2),
            ("lowest", "", 2),
            ("highest", "", 2),
        ]);
        let (mut curves, mut notes) = (Vec::new(), Vec::new());
        for model in results.models() {
            for case in results.of(model) {
                let ratios = Statistics::of(&case.values("ratio"));
                table.rows.push(vec![
                    Cell::from(model),
                    case.key.x.into(),
                    case.median("turn").into(),
                    case.median("together").into(),
                    ratios.map(|ratios| ratios.median).into(),
                    ratios.map(|ratios| ratios.min).into(),
                    ratios.map(|ratios| ratios.max).into(),
                ]);
            }
            let mut ratios = points(results.of(model), "ratio");
            // A single answer is decoded in the same way.
            ratios.retain(|&(count, _)| count > 1.0);
            if let Some((count, ratio)) = ratios.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)) {
                notes.push(format!(
                    "{model}: decoding together gains most with {count} of these numbers of \
                     conversations, {ratio:.2} times the tokens per second of answers in turn."
                ));
            }
            curves.extend(
                [("in turn", "turn"), ("together", "together")].map(|(name, value)| Line {
                    name: match results.models().len() {
                        1 => name.to_owned(),
                        _ => format!("{model}, {name}"),
                    },
                    points: points(results.of(model), value),
                }),
            );
        }
        Findings {
            table,
            charts: vec![lines(
                "Decoding of several conversations",
                Axis::new("conversations", ""),
                Axis::new("all answers", "tokens/s"),
                curves,
            )],
            notes,
        }
    }
}

/// Answers each of the messages in a conversation of its own, once in turn and once together, which
/// comes first if `together_first`. Returns the tokens per second of all answers without their first
/// tokens, which the prompts give.
///
/// # Errors
/// If the model cannot answer.
pub fn measure<B: KernelBackend>(
    engine: &Engine<B>,
    messages: &[[Message; 1]],
    max_tokens: usize,
    together_first: bool,
) -> Result<Values, EngineError> {
    let mut sessions: Vec<Session<B>> = messages.iter().map(|_| engine.session()).collect();
    let mut speed = |decode: fn(&mut [Generation<'_, B>]) -> Result<usize, EngineError>| {
        let mut answers = Vec::new();
        for (session, messages) in sessions.iter_mut().zip(messages) {
            let request = Request {
                max_tokens,
                ignore_eos: true,
                ..Request::new(messages)
            };
            let go_on = |_: crate::Event<'_>| ControlFlow::Continue(());
            let mut answer = session.generate(&request, Vec::new(), go_on)?;
            answer.next().transpose()?;
            answers.push(answer);
        }
        let start = Instant::now();
        let tokens = decode(&mut answers)?;
        Ok::<_, EngineError>(tokens as f64 / start.elapsed().as_secs_f64())
    };
    let (turn, together) = match together_first {
        false => (speed(in_turn)?, speed(together)?),
        true => {
            let together = speed(together)?;
            (speed(in_turn)?, together)
        }
    };
    Ok(Values::default()
        .with("turn", turn)
        .with("together", together)
        .with("ratio", together / turn))
}

/// Decodes the answers one after the other and returns the number of tokens.
fn in_turn<B: KernelBackend>(answers: &mut [Generation<'_, B>]) -> Result<usize, EngineError> {
    let mut tokens = 0;
    for token in answers.iter_mut().flatten() {
        token?;
        tokens += 1;
    }
    Ok(tokens)
}

/// Decodes the answers together and returns the number of tokens.
fn together<B: KernelBackend>(answers: &mut [Generation<'_, B>]) -> Result<usize, EngineError> {
    let mut tokens = 0;
    loop {
        let before = tokens;
        for token in Generation::next_together(&mut *answers)
            .into_iter()
            .flatten()
        {
            token?;
            tokens += 1;
        }
        if tokens == before {
            return Ok(tokens);
        }
    }
}
