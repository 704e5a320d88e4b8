//! `threads`: time of each stage against the number of threads.

use std::num::NonZeroUsize;
use std::sync::Arc;

use edge_lmm_kernels::pool::{self, ThreadPool};

use crate::device::Device;
use crate::experiment::answer::Ask;
use crate::experiment::report::{Axis, Cell, Line, Table};
use crate::experiment::stages::{self, lines, points};
use crate::experiment::{
    About, Bench, Case, Experiment, ExperimentError, Findings, Modality, Results, Sample, Values,
};

/// Side of synthetic images.
const SIDE: usize = 336;
/// Words of a synthetic text.
const WORDS: usize = 128;

/// The experiment.
pub struct Threads;

impl Experiment for Threads {
    fn about(&self) -> About {
        About {
            name: "threads",
            question: "How do the stages scale with the number of threads?",
            varies: "number of threads",
            measures: "time of each stage, speed-up to one thread",
            needs: "any record",
            models: 1,
            uses: &[Modality::Image, Modality::Audio, Modality::Text],
            common: false,
            values: "numbers of threads [1, 2, 4, ... up to all]",
            manifest: false,
        }
    }

    fn cases(&self, bench: &mut Bench) -> Result<Vec<Case>, ExperimentError> {
        let device = bench.models.first().map(|model| model.engine.device());
        if let Some(device) = device.filter(|&device| device != Device::Cpu) {
            return Err(ExperimentError::Impossible(format!(
                "threads compares numbers of CPU threads, but the device is {device}: leave out \
                 --device"
            )));
        }
        let threads = pool::global().threads();
        let counts = bench.counts(&all_counts(threads), threads.max(256))?;
        let mut cases = Vec::new();
        for model in 0..bench.models.len() {
            let kinds = [Modality::Image, Modality::Audio];
            let modality = kinds
                .into_iter()
                .find(|&kind| bench.models[model].takes(kind));
            let modality = modality.unwrap_or(Modality::Text);
            for &count in &counts {
                let name = bench.models[model].name.clone();
                let threads = NonZeroUsize::new(count as usize).unwrap_or(NonZeroUsize::MIN);
                let measure = move |bench: &mut Bench, sample: &Sample| {
                    let pool = Arc::new(ThreadPool::new(threads));
                    pool::scoped(pool, || measure(bench, sample, model, modality))
                };
                let setting = match count as usize {
                    1 => "1 thread".to_owned(),
                    n => format!("{n} threads"),
                };
                cases.push(Case::new(name, setting, measure).at(count).of(modality));
            }
        }
        Ok(cases)
    }

    fn findings(&self, results: &Results) -> Findings {
        let mut columns = vec![("model", "", 0), ("threads", "", 0)];
        columns.extend(stages::COLUMNS);
        columns.extend([("sum", "ms", 2), ("speed-up", "", 2)]);
        let mut table = Table::new(&columns);
        let (mut curves, mut notes) = (Vec::new(), Vec::new());
        for model in results.models() {
            let one = results.of(model).find(|case| case.key.x == Some(1.0));
            for case in results.of(model) {
                let mut row = vec![Cell::from(model), case.key.x.into()];
                row.extend(stages::cells(case));
                let speed_up = one.map(|one| stages::sum(one) / stages::sum(case));
                row.extend([stages::sum(case).into(), speed_up.into()]);
                table.rows.push(row);
            }
            for stage in stages::NAMES {
                let points: Vec<_> = points(results.of(model), stage);
                let Some(&(_, first)) = points.first().filter(|point| point.0 == 1.0) else {
                    continue;
                };
                let last = points[points.len() - 1];
                notes.push(format!(
                    "{model}, {stage}: {:.2} times as fast with {} threads as with one.",
                    first / last.1.max(1e-9),
                    last.0
                ));
                curves.push(Line {
                    name: match results.models().len() {
                        1 => stage.to_owned(),
                        _ => format!("{model}, {stage}"),
                    },
                    points: points
                        .into_iter()
                        .map(|(threads, time)| (threads, first / time.max(1e-9)))
                        .collect(),
                });
            }
        }
        Findings {
            table,
            charts: vec![lines(
                "Speed-up by threads",
                Axis::new("threads", ""),
                Axis::new("speed-up to one thread", ""),
                curves,
            )],
            notes,
        }
    }
}

/// Returns the powers of two up to `most`, and `most`.
fn all_counts(most: usize) -> Vec<f64> {
    let powers = std::iter::successors(Some(1), |count| Some(count * 2));
    let mut counts: Vec<f64> = powers
        .take_while(|&count| count < most)
        .map(|count| count as f64)
        .collect();
    counts.push(most as f64);
    counts
}

fn measure(
    bench: &mut Bench,
    sample: &Sample,
    model: usize,
    modality: Modality,
) -> Result<Values, ExperimentError> {
    let synthetic = sample.question.is_none();
    let text;
    let (sample, read) = match modality {
        Modality::Image => (sample, Some(sample.image(synthetic.then_some(SIDE))?)),
        Modality::Audio => (sample, Some(sample.audio(None)?)),
        _ => {
            text = sample.saying(WORDS);
            (if synthetic { &text } else { sample }, None)
        }
    };
    let media: Vec<_> = read.into_iter().map(|read| read.media).collect();
    let ask = Ask {
        media: &media,
        options: bench.settings.media.clone(),
        max_tokens: bench.settings.max_tokens,
    };
    let (values, _) = ask.fresh(&mut bench.models[model], sample)?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_threads_are_the_last_count() {
        assert_eq!(all_counts(1), [1.0]);
        assert_eq!(all_counts(2), [1.0, 2.0]);
        assert_eq!(all_counts(6), [1.0, 2.0, 4.0, 6.0]);
    }
}
