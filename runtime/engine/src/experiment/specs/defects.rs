//! `defects`: padded sounds and media that every turn encodes again, each with the fix off and on.

use edge_lmm_models::media::AudioPadding;

use super::audio_length::ask;
use super::multiturn::conversation;
use crate::experiment::report::{Axis, Bars, Cell, Chart, ChartData, Table};
use crate::experiment::stages::ms;
use crate::experiment::{
    About, Bench, Case, Experiment, ExperimentError, Findings, Modality, Results, Sample,
};

/// Turns of the conversation.
const TURNS: usize = 3;
/// Seconds of the sound.
const SECONDS: [f64; 1] = [3.0];
/// Defects: cases without and with the fix, and what the fix is.
const DEFECTS: [(&str, [&str; 2], &str); 2] = [
    (
        "padding of sounds",
        ["padded to 30 s", "not padded"],
        "sounds are not padded",
    ),
    (
        "redundant encoding",
        ["3 turns, encoded again", "3 turns, encoded once"],
        "encoder outputs and the state of the conversation are kept",
    ),
];

/// The experiment.
pub struct Defects;

impl Experiment for Defects {
    fn about(&self) -> About {
        About {
            name: "defects",
            question: "How much work do two defects of common pipelines waste: sounds padded to \
                       30 s, and media that every turn of a conversation encodes again?",
            varies: "each defect, with its fix off and on",
            measures: "time of the encoder and to the first token",
            needs: "a record of a model that takes images or sounds",
            models: 1,
            uses: &[Modality::Image, Modality::Audio],
            common: false,
            values: "seconds of the padded sound [3]",
            manifest: false,
        }
    }

    fn cases(&self, bench: &mut Bench) -> Result<Vec<Case>, ExperimentError> {
        let seconds = match bench.manifest.is_some() && bench.settings.values.is_none() {
            true => None,
            false => match bench.seconds(&SECONDS)?[..] {
                [seconds] => Some(seconds),
                _ => {
                    let message = "expected one length of the sound".to_owned();
                    return Err(ExperimentError::Value(message));
                }
            },
        };
        let (images, sounds) = (bench.taking(Modality::Image), bench.taking(Modality::Audio));
        let mut cases = Vec::new();
        for model in 0..bench.models.len() {
            let name = bench.models[model].name.clone();
            if sounds.contains(&model) {
                let paddings = [AudioPadding::Window, AudioPadding::None];
                for (setting, padding) in DEFECTS[0].1.into_iter().zip(paddings) {
                    let measure = move |bench: &mut Bench, sample: &Sample| {
                        ask(bench, model, sample, seconds, padding)
                    };
                    cases.push(Case::new(&*name, setting, measure).of(Modality::Audio));
                }
            }
            let modality = match (images.contains(&model), sounds.contains(&model)) {
                (true, _) => Modality::Image,
                (_, true) => Modality::Audio,
                _ => continue,
            };
            for (setting, reuse) in DEFECTS[1].1.into_iter().zip([false, true]) {
                let measure = move |bench: &mut Bench, sample: &Sample| {
                    conversation(bench, model, sample, modality, TURNS, reuse)
                };
                cases.push(Case::new(&*name, setting, measure).of(modality));
            }
        }
        if cases.is_empty() {
            bench.all_taking(&self.about(), Modality::Image)?;
        }
        Ok(cases)
    }

    fn findings(&self, results: &Results) -> Findings {
        let mut table = Table::new(&[
            ("model", "", 0),
            ("defect", "", 0),
            ("encoder", "ms", 2),
            ("encoder, fixed", "ms", 2),
            ("wasted", "%", 1),
            ("first token", "ms", 2),
            ("first token, fixed", "ms", 2),
        ]);
        let (mut notes, mut labels, mut bars) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new()]);
        for model in results.models() {
            for (defect, settings, fix) in DEFECTS {
                let [Some(broken), Some(fixed)] =
                    settings.map(|setting| results.case(model, setting))
                else {
                    continue;
                };
                let [before, after] = [broken, fixed].map(|case| case.median_or_zero("encoder"));
                let [slow, fast] = [broken, fixed].map(|case| case.median_or_zero("first_token"));
                let wasted = 100.0 * (1.0 - after / before.max(1e-9));
                table.rows.push(vec![
                    Cell::from(model),
                    Cell::from(defect),
                    before.into(),
                    after.into(),
                    wasted.into(),
                    slow.into(),
                    fast.into(),
                ]);
                notes.push(format!(
                    "{model}: {defect} wastes {wasted:.0} % of the encoder's time; the time to the \
                     first token falls from {} to {} if {fix}.",
                    ms(slow),
                    ms(fast)
                ));
                labels.push(match results.models().len() {
                    1 => defect.to_owned(),
                    _ => format!("{model}, {defect}"),
                });
                bars[0].push(Some(slow));
                bars[1].push(Some(fast));
            }
        }
        if !results
            .cases()
            .iter()
            .any(|case| case.key.setting == DEFECTS[0].1[0])
        {
            notes.push(
                "The padding of sounds was not measured: add a record of a model that takes \
                 sounds, such as Qwen2-Audio."
                    .to_owned(),
            );
        }
        let [slow, fast] = bars;
        let series = [("defect", slow), ("fixed", fast)].map(|(name, values)| Bars {
            name: name.to_owned(),
            values,
        });
        let chart = Chart {
            title: "Time to the first token, all turns together".to_owned(),
            x: Axis::new("defect", ""),
            y: Axis::new("first token", "ms"),
            data: ChartData::Bars {
                categories: labels,
                series: series.into(),
                stacked: false,
            },
        };
        Findings {
            table,
            charts: vec![chart],
            notes,
        }
    }
}
