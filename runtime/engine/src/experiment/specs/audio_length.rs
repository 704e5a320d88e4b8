//! `audio-length`: time of the audio encoder against the length of the sound.

use edge_lmm_models::media::{AudioPadding, MediaOptions};

use crate::experiment::answer::Ask;
use crate::experiment::report::{Axis, Cell, Table};
use crate::experiment::stages::{line_per_model, lines, points};
use crate::experiment::{
    About, Bench, Case, Experiment, ExperimentError, Findings, Modality, Results, Sample, Values,
};

/// Lengths in seconds.
const SECONDS: [f64; 6] = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0];

/// The experiment.
pub struct AudioLength;

impl Experiment for AudioLength {
    fn about(&self) -> About {
        About {
            name: "audio-length",
            question: "How does the time of the audio encoder grow with the length of the sound?",
            varies: "length of the sound, without padding",
            measures: "tokens, time of preprocessing, encoder and prefill",
            needs: "a record of a model that takes sounds, such as Qwen2-Audio",
            models: 1,
            uses: &[Modality::Audio],
            common: false,
            values: "seconds [1,2,5,10,20,30]",
            manifest: false,
        }
    }

    fn cases(&self, bench: &mut Bench) -> Result<Vec<Case>, ExperimentError> {
        let models = bench.all_taking(&self.about(), Modality::Audio)?;
        let mut cases = Vec::new();
        for model in models {
            for seconds in bench.seconds(&SECONDS)? {
                let name = bench.models[model].name.clone();
                let measure = move |bench: &mut Bench, sample: &Sample| {
                    ask(bench, model, sample, Some(seconds), AudioPadding::None)
                };
                cases.push(Case::new(name, format!("{seconds} s"), measure).at(seconds));
            }
        }
        Ok(cases)
    }

    fn findings(&self, results: &Results) -> Findings {
        let mut table = Table::new(&[
            ("model", "", 0),
            ("seconds", "s", 1),
            ("tokens", "", 0),
            ("preprocess", "ms", 2),
            ("encoder", "ms", 2),
            ("prefill", "ms", 2),
            ("first token", "ms", 2),
        ]);
        for case in results.cases() {
            table.rows.push(vec![
                Cell::from(&*case.key.model),
                case.key.x.into(),
                case.median("visual_tokens").into(),
                case.median("preprocess").into(),
                case.median("encoder").into(),
                case.median("prefill").into(),
                case.median("first_token").into(),
            ]);
        }
        let note = |model: &str| {
            let points = points(results.of(model), "encoder");
            let (first, last) = (points.first()?, points.last()?);
            let (length, time) = (last.0 / first.0, last.1 / first.1.max(1e-9));
            (first.0 != last.0).then(|| {
                format!(
                    "{model}: {length:.1} times the length takes {time:.1} times the time of the \
                     encoder; an exponent of {:.2}.",
                    time.ln() / length.ln()
                )
            })
        };
        Findings {
            table,
            charts: vec![lines(
                "Audio encoder by length",
                Axis::new("length", "s"),
                Axis::new("encoder", "ms"),
                line_per_model(results, "encoder"),
            )],
            notes: results.models().into_iter().filter_map(note).collect(),
        }
    }
}

/// Asks about a sound of a length.
pub(super) fn ask(
    bench: &mut Bench,
    model: usize,
    sample: &Sample,
    seconds: Option<f64>,
    audio_padding: AudioPadding,
) -> Result<Values, ExperimentError> {
    let sound = sample.audio(seconds)?;
    let ask = Ask {
        media: &[sound.media],
        options: MediaOptions {
            audio_padding,
            ..bench.settings.media.clone()
        },
        max_tokens: bench.settings.max_tokens,
    };
    ask.fresh(&mut bench.models[model], sample)
        .map(|(values, _)| values)
}
