//! `quantization`: size, accuracy and time of several records of one model.

use crate::experiment::answer::Ask;
use crate::experiment::report::{Axis, Cell, Chart, ChartData, Line, Table};
use crate::experiment::results::CaseResults;
use crate::experiment::sample::Read;
use crate::experiment::stages;
use crate::experiment::{
    About, Bench, Case, Experiment, ExperimentError, Findings, Modality, Results, Sample, Values,
};

/// Words of a synthetic text.
const WORDS: usize = 64;
/// Side of synthetic images.
const SIDE: usize = 336;

/// The experiment.
pub struct Quantization;

impl Experiment for Quantization {
    fn about(&self) -> About {
        About {
            name: "quantization",
            question: "What do smaller weights cost in accuracy and bring in size and time?",
            varies: "the record; the first one is the reference",
            measures: "bytes, time of the stages, accuracy with a manifest, and how many answers \
                       are those of the first record",
            needs: "two or more records of one model in different formats \
                    (edge-lmm-convert --text-quant, --vision-quant, --audio-quant)",
            models: 2,
            uses: &Modality::ALL,
            common: true,
            values: "",
            manifest: false,
        }
    }

    fn cases(&self, bench: &mut Bench) -> Result<Vec<Case>, ExperimentError> {
        let all = bench.models.len();
        let modalities = [Modality::Image, Modality::Audio, Modality::Text];
        let common = modalities
            .into_iter()
            .find(|&kind| bench.taking(kind).len() == all);
        let common = common.unwrap_or(Modality::Text);
        let case = |(model, target): (usize, &crate::experiment::BenchModel)| {
            let bytes = target.bytes as f64;
            Case::new(
                &*target.name,
                "",
                move |bench: &mut Bench, sample: &Sample| {
                    let values = measure(bench, sample, model, common)?;
                    Ok(values.with("bytes", bytes))
                },
            )
            .at(bytes / f64::from(1 << 20))
        };
        Ok(bench.models.iter().enumerate().map(case).collect())
    }

    fn findings(&self, results: &Results) -> Findings {
        let mut columns = vec![("record", "", 0), ("size", "MiB", 1)];
        columns.extend(stages::COLUMNS);
        columns.extend([
            ("first token", "ms", 2),
            ("tokens per second", "", 1),
            ("right", "%", 1),
            ("as the first", "%", 1),
        ]);
        let mut table = Table::new(&columns);
        let mut notes = Vec::new();
        let first = results.cases().first();
        for case in results.cases() {
            let same = first.and_then(|first| agreement(first, case));
            let mut row = vec![Cell::from(&*case.key.model), case.key.x.into()];
            row.extend(stages::cells(case));
            row.extend([
                case.median("first_token").into(),
                speed(case).into(),
                case.accuracy().into(),
                same.into(),
            ]);
            table.rows.push(row);
            if let (Some(first), Some(same)) = (first, same)
                && first.key != case.key
            {
                let ratio = |a: f64, b: f64| b / a.max(1e-9);
                let right = match (first.accuracy(), case.accuracy()) {
                    (Some(a), Some(b)) => format!(", accuracy {:+.1} points", b - a),
                    _ => String::new(),
                };
                notes.push(format!(
                    "{} to {}: {:.2} times the size, {:.2} times the time to the first token, \
                     {same:.1} % of the answers the same{right}.",
                    case.key.model,
                    first.key.model,
                    ratio(
                        first.key.x.unwrap_or_default(),
                        case.key.x.unwrap_or_default()
                    ),
                    ratio(
                        first.median_or_zero("first_token"),
                        case.median_or_zero("first_token")
                    ),
                ));
            }
        }
        Findings {
            table,
            charts: charts(results),
            notes,
        }
    }
}

fn charts(results: &Results) -> Vec<Chart> {
    let chart = |title: &str, y: Axis, value: &dyn Fn(&CaseResults) -> Option<f64>| {
        let points = results.cases().iter().filter_map(|case| {
            Some(Line {
                name: case.key.model.clone(),
                points: vec![(case.key.x?, value(case)?)],
            })
        });
        Chart {
            title: title.to_owned(),
            x: Axis::new("size", "MiB"),
            y,
            data: ChartData::Lines(points.collect()),
        }
    };
    let mut charts = vec![chart(
        "Time to the first token by size",
        Axis::new("first token", "ms"),
        &|case| case.median("first_token"),
    )];
    if results.cases().iter().any(|case| case.accuracy().is_some()) {
        let axis = Axis::new("right answers", "%");
        charts.push(chart("Accuracy by size", axis, &|case| case.accuracy()));
    }
    charts
}

/// Returns the median of the generated tokens per second.
fn speed(case: &CaseResults) -> Option<f64> {
    let decode = case.median("decode")?;
    let steps = case.median("tokens")? - 1.0;
    (steps > 0.0).then_some(1e3 * steps / decode)
}

/// Returns the share of samples with the same answer, in percent.
fn agreement(first: &CaseResults, other: &CaseResults) -> Option<f64> {
    let pairs = other.measured().iter().filter_map(|one| {
        let of_first = first.measured().iter().find(|m| m.sample == one.sample)?;
        Some(of_first.text == one.text)
    });
    let same: Vec<bool> = pairs.collect();
    let count = same.iter().filter(|&&same| same).count();
    (!same.is_empty()).then(|| 100.0 * count as f64 / same.len() as f64)
}

fn measure(
    bench: &mut Bench,
    sample: &Sample,
    model: usize,
    common: Modality,
) -> Result<Values, ExperimentError> {
    let text;
    let (sample, read) = match (&sample.question, common) {
        (Some(_), _) => (sample, sample.media()?),
        (None, Modality::Image) => (sample, Some(sample.image(Some(SIDE))?)),
        (None, Modality::Audio) => (sample, Some(sample.audio(None)?)),
        (None, _) => {
            text = sample.saying(WORDS);
            (&text, None)
        }
    };
    let media: Vec<_> = read.into_iter().map(|Read { media, .. }| media).collect();
    let ask = Ask {
        media: &media,
        options: bench.settings.media.clone(),
        max_tokens: bench.settings.max_tokens,
    };
    let (values, _) = ask.fresh(&mut bench.models[model], sample)?;
    Ok(values)
}
