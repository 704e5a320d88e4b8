//! `frame-ablation`: accuracy and latency against the number of video frames.

use crate::experiment::answer::Ask;
use crate::experiment::report::{Axis, Cell, Line, Table};
use crate::experiment::results::CaseResults;
use crate::experiment::stages::{lines, ms};
use crate::experiment::synthetic::MOST_FRAMES;
use crate::experiment::{
    About, Bench, Case, Experiment, ExperimentError, Findings, Modality, Results, Sample, Values,
};
use crate::media::FrameSelection;

/// Numbers of frames.
const FRAMES: [f64; 5] = [1.0, 2.0, 4.0, 8.0, 16.0];
/// Frames of a synthetic clip, and their side.
const CLIP: (usize, usize) = (32, 224);
/// Ways of choosing frames.
const SELECTIONS: [&str; 2] = ["uniform", "key frames"];

/// The experiment.
pub struct FrameAblation;

impl Experiment for FrameAblation {
    fn about(&self) -> About {
        About {
            name: "frame-ablation",
            question: "What does each doubling of the video frames cost and bring, and do key \
                       frames bring more than evenly spaced ones?",
            varies: "number of frames, evenly spaced or key frames",
            measures: "visual tokens, time of the stages, time to the first token with the \
                       decoding of the video; accuracy with a manifest",
            needs: "a record of a model that takes videos, such as Qwen2-VL",
            models: 1,
            uses: &[Modality::Video],
            common: false,
            values: "numbers of frames [1,2,4,8,16]",
            manifest: false,
        }
    }

    fn cases(&self, bench: &mut Bench) -> Result<Vec<Case>, ExperimentError> {
        let models = bench.all_taking(&self.about(), Modality::Video)?;
        let frames = bench.counts(&FRAMES, MOST_FRAMES)?;
        let mut cases = Vec::new();
        for model in models {
            for selection in SELECTIONS {
                for &count in &frames {
                    let name = bench.models[model].name.clone();
                    let setting = format!("{count} {selection}");
                    let measure = move |bench: &mut Bench, sample: &Sample| {
                        let frames = match selection {
                            "uniform" => FrameSelection::Uniform(count as usize),
                            _ => FrameSelection::Key(count as usize),
                        };
                        measure(bench, sample, model, frames)
                    };
                    cases.push(Case::new(name, setting, measure).at(count));
                }
            }
        }
        Ok(cases)
    }

    fn findings(&self, results: &Results) -> Findings {
        let mut table = Table::new(&[
            ("model", "", 0),
            ("frames", "", 0),
            ("selection", "", 0),
            ("visual tokens", "", 0),
            ("media", "ms", 2),
            ("preprocess", "ms", 2),
            ("encoder", "ms", 2),
            ("prefill", "ms", 2),
            ("latency", "ms", 2),
            ("right", "%", 1),
        ]);
        for case in results.cases() {
            table.rows.push(vec![
                Cell::from(&*case.key.model),
                case.key.x.into(),
                Cell::from(selection(case)),
                case.median("visual_tokens").into(),
                case.median("media").into(),
                case.median("preprocess").into(),
                case.median("encoder").into(),
                case.median("prefill").into(),
                case.median("latency").into(),
                case.accuracy().into(),
            ]);
        }
        let chart = |title, y, value: &dyn Fn(&CaseResults) -> Option<f64>| {
            lines(title, Axis::new("frames", ""), y, curves(results, value))
        };
        let latency = Axis::new("latency", "ms");
        let mut charts = vec![chart("Latency by frames", latency, &|case| {
            case.median("latency")
        })];
        if results.cases().iter().any(|case| case.accuracy().is_some()) {
            let right = Axis::new("right answers", "%");
            charts.push(chart("Accuracy by frames", right, &|case| case.accuracy()));
        }
        Findings {
            table,
            charts,
            notes: notes(results),
        }
    }
}

fn selection<'r>(case: &'r CaseResults) -> &'r str {
    let setting = &case.key.setting;
    setting
        .split_once(' ')
        .map_or("", |(_, selection)| selection)
}

fn curves(results: &Results, value: &dyn Fn(&CaseResults) -> Option<f64>) -> Vec<Line> {
    let mut curves = Vec::new();
    for model in results.models() {
        for wanted in SELECTIONS {
            let cases = results.of(model).filter(|case| selection(case) == wanted);
            curves.push(Line {
                name: match results.models().len() {
                    1 => wanted.to_owned(),
                    _ => format!("{model}, {wanted}"),
                },
                points: cases
                    .filter_map(|case| Some((case.key.x?, value(case)?)))
                    .collect(),
            });
        }
    }
    curves
}

/// Says what each further step of frames costs and brings, and what key frames change.
fn notes(results: &Results) -> Vec<String> {
    let mut notes = Vec::new();
    for model in results.models() {
        let of = |wanted: &'static str| {
            let cases = results.of(model);
            cases.filter(move |case| selection(case) == wanted)
        };
        let uniform: Vec<_> = of("uniform").collect();
        for pair in uniform.windows(2) {
            let [a, b] = pair else { continue };
            let (before, after) = (a.median_or_zero("latency"), b.median_or_zero("latency"));
            let brings = match (a.accuracy(), b.accuracy()) {
                (Some(a), Some(b)) => format!(" and changes accuracy by {:+.1} points", b - a),
                _ => String::new(),
            };
            notes.push(format!(
                "{model}: from {} to {} frames costs {:+.0} % latency ({} to {}){brings}.",
                a.key.x.unwrap_or_default(),
                b.key.x.unwrap_or_default(),
                100.0 * (after / before.max(1e-9) - 1.0),
                ms(before),
                ms(after),
            ));
        }
        for (even, key) in of("uniform").zip(of("key frames")) {
            let (Some(a), Some(b)) = (even.accuracy(), key.accuracy()) else {
                continue;
            };
            notes.push(format!(
                "{model}: {} key frames answer {b:.1} % right, as many evenly spaced ones {a:.1} %.",
                even.key.x.unwrap_or_default(),
            ));
        }
    }
    if results.cases().iter().all(|case| case.accuracy().is_none()) {
        let note = "Accuracy is measured with --manifest only: the clips are noise.";
        notes.push(note.to_owned());
    }
    notes
}

fn measure(
    bench: &mut Bench,
    sample: &Sample,
    model: usize,
    frames: FrameSelection,
) -> Result<Values, ExperimentError> {
    let read = sample.video(frames, CLIP.0, CLIP.1)?;
    let ask = Ask {
        media: &[read.media],
        options: bench.settings.media.clone(),
        max_tokens: bench.settings.max_tokens,
    };
    let (values, _) = ask.fresh(&mut bench.models[model], sample)?;
    let latency = read.ms + values.get("first_token");
    Ok(values.with("media", read.ms).with("latency", latency))
}
