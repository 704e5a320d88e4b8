//! `multiturn`: time to the first token of each turn of a conversation, with and without reuse.

use edge_lmm_models::prompt::{Message, Role};

use crate::experiment::answer::Ask;
use crate::experiment::report::{Axis, Cell, Line, Table};
use crate::experiment::stages::{lines, ms};
use crate::experiment::{
    About, Bench, Case, Experiment, ExperimentError, Findings, Modality, Results, Sample, Values,
};
use crate::media::user_message;

/// Turns of a conversation.
const TURNS: [f64; 1] = [4.0];
/// Side of the synthetic image.
const SIDE: usize = 448;
/// Seconds of the synthetic sound.
const SECONDS: f64 = 10.0;
/// Ways of answering a turn.
const WAYS: [&str; 2] = ["computed again", "reused"];

/// The experiment.
pub struct Multiturn;

impl Experiment for Multiturn {
    fn about(&self) -> About {
        About {
            name: "multiturn",
            question: "What does a conversation cost if every turn encodes the same medium again, \
                       and what if encoder outputs and state are kept?",
            varies: "turn; everything computed again, or reused",
            measures: "time to the first token of each turn, of which encoder and prefill",
            needs: "a record of a model that takes images or sounds",
            models: 1,
            uses: &[Modality::Image, Modality::Audio],
            common: false,
            values: "number of turns [4]",
            manifest: false,
        }
    }

    fn cases(&self, bench: &mut Bench) -> Result<Vec<Case>, ExperimentError> {
        let turns = bench.counts(&TURNS, 100)?;
        let [turns] = turns[..] else {
            let message = "expected one number of turns, whose every turn is measured".to_owned();
            return Err(ExperimentError::Value(message));
        };
        let turns = turns as usize;
        let images = bench.taking(Modality::Image);
        let sounds = bench.taking(Modality::Audio);
        let mut cases = Vec::new();
        for model in 0..bench.models.len() {
            let modality = match (images.contains(&model), sounds.contains(&model)) {
                (true, _) => Modality::Image,
                (false, true) => Modality::Audio,
                _ => {
                    return Err(ExperimentError::Modality {
                        experiment: self.about().name,
                        needs: self.about().needs,
                        models: bench.models[model].name.clone(),
                        modality: Modality::Image,
                    });
                }
            };
            for way in WAYS {
                let reuse = way == WAYS[1];
                let measure = move |bench: &mut Bench, sample: &Sample| {
                    conversation(bench, model, sample, modality, turns, reuse)
                };
                let name = bench.models[model].name.clone();
                cases.push(Case::new(name, way, measure).of(modality));
            }
        }
        Ok(cases)
    }

    fn findings(&self, results: &Results) -> Findings {
        let mut table = Table::new(&[
            ("model", "", 0),
            ("turn", "", 0),
            ("way", "", 0),
            ("prompt tokens", "", 0),
            ("reused tokens", "", 0),
            ("encoder", "ms", 2),
            ("prefill", "ms", 2),
            ("first token", "ms", 2),
        ]);
        let mut curves = Vec::new();
        for case in results.cases() {
            let mut points = Vec::new();
            for turn in 1.. {
                let value = |name: &str| case.median(&format!("{turn}:{name}"));
                let Some(first_token) = value("first_token") else {
                    break;
                };
                table.rows.push(vec![
                    Cell::from(&*case.key.model),
                    f64::from(turn).into(),
                    Cell::from(&*case.key.setting),
                    value("prompt_tokens").into(),
                    value("reused_tokens").into(),
                    value("encoder").into(),
                    value("prefill").into(),
                    first_token.into(),
                ]);
                points.push((f64::from(turn), first_token));
            }
            curves.push(Line {
                name: case.label(results.models().len()),
                points,
            });
        }
        Findings {
            table,
            charts: vec![lines(
                "Time to the first token by turn",
                Axis::new("turn", ""),
                Axis::new("first token", "ms"),
                curves,
            )],
            notes: results
                .models()
                .into_iter()
                .filter_map(|model| note(results, model))
                .collect(),
        }
    }
}

/// Compares the time of the last turn.
fn note(results: &Results, model: &str) -> Option<String> {
    let [again, reused] = WAYS.map(|way| results.case(model, way));
    let (again, reused) = (again?, reused?);
    let turns = (1..)
        .take_while(|turn| again.median(&format!("{turn}:first_token")).is_some())
        .count();
    let last = format!("{turns}:first_token");
    let (slow, fast) = (again.median(&last)?, reused.median(&last)?);
    let encoder = again.median_or_zero(&format!("{turns}:encoder"));
    Some(format!(
        "{model}: turn {turns} begins after {} if everything is computed again, {:.0} % of it the \
         encoder, and after {} with reuse: {:.1} times as fast.",
        ms(slow),
        100.0 * encoder / slow.max(1e-9),
        ms(fast),
        slow / fast.max(1e-9)
    ))
}

/// Holds a conversation about a medium; each turn asks the sample's question again. The values of a
/// turn are named by its number.
pub(super) fn conversation(
    bench: &mut Bench,
    model: usize,
    sample: &Sample,
    modality: Modality,
    turns: usize,
    reuse: bool,
) -> Result<Values, ExperimentError> {
    let synthetic = sample.question.is_none();
    let medium = match modality {
        Modality::Audio => sample.audio(synthetic.then_some(SECONDS))?,
        _ => sample.image(synthetic.then_some(SIDE))?,
    };
    let media = [medium.media];
    let ask = Ask {
        media: &media,
        options: bench.settings.media.clone(),
        max_tokens: bench.settings.max_tokens,
    };
    let session = &mut bench.models[model].session;
    session.forget();
    let mut messages: Vec<Message> = vec![user_message(&media, sample.question())];
    let mut values = Values::default();
    for turn in 1..=turns {
        if !reuse {
            session.forget();
        }
        let (one, answer) = ask.next(session, sample, &messages)?;
        for (name, value) in one.numbers {
            values.set(format!("{turn}:{name}"), value);
        }
        messages.push(Message::text(Role::Assistant, answer.text));
        messages.push(Message::text(Role::User, sample.question()));
    }
    let sum = |name: &str| {
        (1..=turns)
            .map(|turn| values.get(&format!("{turn}:{name}")))
            .sum()
    };
    let (encoder, first_token) = (sum("encoder"), sum("first_token"));
    Ok(values
        .with("encoder", encoder)
        .with("first_token", first_token))
}
