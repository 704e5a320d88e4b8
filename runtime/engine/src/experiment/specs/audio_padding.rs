//! `audio-padding`: work of the audio encoder on silence up to 30 seconds.

use edge_lmm_models::media::AudioPadding;

use super::audio_length::ask;
use crate::experiment::report::{Axis, Cell, Line, Table};
use crate::experiment::stages::{lines, ms};
use crate::experiment::{
    About, Bench, Case, Experiment, ExperimentError, Findings, Modality, Results, Sample,
};

/// Lengths in seconds.
const SECONDS: [f64; 5] = [1.0, 3.0, 5.0, 10.0, 30.0];
/// Paddings with their names.
const PADDINGS: [(&str, AudioPadding); 2] = [
    ("padded to 30 s", AudioPadding::Window),
    ("not padded", AudioPadding::None),
];

/// The experiment.
pub struct AudioPaddingCost;

impl Experiment for AudioPaddingCost {
    fn about(&self) -> About {
        About {
            name: "audio-padding",
            question: "How much of the encoder's work is silence if a sound is padded to 30 s?",
            varies: "length of the sound, padded to 30 s or not",
            measures: "tokens, time of preprocessing, encoder and prefill; accuracy and equal \
                       answers with a manifest, whose sounds keep their length",
            needs: "a record of a model that takes sounds, such as Qwen2-Audio",
            models: 1,
            uses: &[Modality::Audio],
            common: false,
            values: "seconds [1,3,5,10,30]",
            manifest: false,
        }
    }

    fn cases(&self, bench: &mut Bench) -> Result<Vec<Case>, ExperimentError> {
        let models = bench.all_taking(&self.about(), Modality::Audio)?;
        let lengths: Vec<Option<f64>> = match (&bench.manifest, &bench.settings.values) {
            (Some(_), None) => vec![None],
            _ => bench.seconds(&SECONDS)?.into_iter().map(Some).collect(),
        };
        let mut cases = Vec::new();
        for model in models {
            for &seconds in &lengths {
                for (name, padding) in PADDINGS {
                    let setting = match seconds {
                        Some(seconds) => format!("{seconds} s, {name}"),
                        None => name.to_owned(),
                    };
                    let measure = move |bench: &mut Bench, sample: &Sample| {
                        ask(bench, model, sample, seconds, padding)
                    };
                    let case = Case::new(bench.models[model].name.clone(), setting, measure);
                    cases.push(match seconds {
                        Some(seconds) => case.at(seconds),
                        None => case,
                    });
                }
            }
        }
        Ok(cases)
    }

    fn findings(&self, results: &Results) -> Findings {
        let mut table = Table::new(&[
            ("model", "", 0),
            ("sound", "", 0),
            ("tokens", "", 0),
            ("preprocess", "ms", 2),
            ("encoder", "ms", 2),
            ("prefill", "ms", 2),
            ("first token", "ms", 2),
            ("right", "%", 1),
        ]);
        for case in results.cases() {
            table.rows.push(vec![
                Cell::from(&*case.key.model),
                Cell::from(&*case.key.setting),
                case.median("visual_tokens").into(),
                case.median("preprocess").into(),
                case.median("encoder").into(),
                case.median("prefill").into(),
                case.median("first_token").into(),
                case.accuracy().into(),
            ]);
        }
        let mut curves = Vec::new();
        for model in results.models() {
            for (name, _) in PADDINGS {
                let cases = results.of(model);
                let cases = cases.filter(|case| case.key.setting.ends_with(name));
                curves.push(Line {
                    name: format!("{model}, {name}"),
                    points: cases
                        .filter_map(|case| Some((case.key.x?, case.median("encoder")?)))
                        .collect(),
                });
            }
        }
        Findings {
            table,
            charts: vec![lines(
                "Audio encoder with and without padding",
                Axis::new("length", "s"),
                Axis::new("encoder", "ms"),
                curves,
            )],
            notes: notes(results),
        }
    }
}

fn notes(results: &Results) -> Vec<String> {
    let mut notes = Vec::new();
    for padded in results.cases() {
        let Some(setting) = padded.key.setting.strip_suffix(PADDINGS[0].0) else {
            continue;
        };
        let fixed = format!("{setting}{}", PADDINGS[1].0);
        let Some(short) = results.case(&padded.key.model, &fixed) else {
            continue;
        };
        let (with, without) = (
            padded.median_or_zero("encoder"),
            short.median_or_zero("encoder"),
        );
        notes.push(format!(
            "{}, {}: {:.0} % of the encoder's time is spent on padding ({} padded, {} not).",
            padded.key.model,
            match padded.key.x {
                Some(seconds) => format!("{seconds} s"),
                None => "sounds of the manifest".to_owned(),
            },
            100.0 * (1.0 - without / with.max(1e-9)),
            ms(with),
            ms(without),
        ));
        let pairs = padded.measured().iter().filter_map(|one| {
            let other = short.measured().iter().find(|m| m.sample == one.sample)?;
            Some(one.text == other.text)
        });
        let same: Vec<bool> = pairs.collect();
        notes.push(format!(
            "{}: {} of {} answers are the same with and without padding.",
            padded.key.setting,
            same.iter().filter(|&&same| same).count(),
            same.len(),
        ));
    }
    notes
}
