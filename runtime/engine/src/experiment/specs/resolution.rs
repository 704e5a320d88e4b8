//! `resolution`: tokens and time of the stages against the size of an image.

use crate::experiment::answer::Ask;
use crate::experiment::report::{Axis, Cell, Table};
use crate::experiment::stages::{self, line_per_model, lines, ms};
use crate::experiment::synthetic::MOST_PIXELS;
use crate::experiment::{
    About, Bench, Case, Experiment, ExperimentError, Findings, Modality, Results, Sample,
};

/// Sides in pixels.
const SIDES: [f64; 5] = [224.0, 336.0, 448.0, 672.0, 896.0];

/// The experiment.
pub struct Resolution;

impl Experiment for Resolution {
    fn about(&self) -> About {
        About {
            name: "resolution",
            question: "What does the resolution of an image cost in tokens and time?",
            varies: "longer side of the image",
            measures: "visual tokens, time of the stages, accuracy with a manifest",
            needs: "a record of a model that takes images",
            models: 1,
            uses: &[Modality::Image],
            common: false,
            values: "sides in pixels [224,336,448,672,896]",
            manifest: false,
        }
    }

    fn cases(&self, bench: &mut Bench) -> Result<Vec<Case>, ExperimentError> {
        let mut cases = Vec::new();
        for model in bench.all_taking(&self.about(), Modality::Image)? {
            for side in bench.counts(&SIDES, MOST_PIXELS)? {
                let name = bench.models[model].name.clone();
                let measure = move |bench: &mut Bench, sample: &Sample| {
                    let image = sample.image(Some(side as usize))?;
                    let ask = Ask {
                        media: &[image.media],
                        options: bench.settings.media.clone(),
                        max_tokens: bench.settings.max_tokens,
                    };
                    let (values, _) = ask.fresh(&mut bench.models[model], sample)?;
                    Ok(values)
                };
                cases.push(Case::new(name, format!("{side} px"), measure).at(side));
            }
        }
        Ok(cases)
    }

    fn findings(&self, results: &Results) -> Findings {
        let mut columns = vec![
            ("model", "", 0),
            ("side", "px", 0),
            ("visual tokens", "", 0),
        ];
        columns.extend(stages::COLUMNS);
        columns.extend([
            ("first token", "ms", 2),
            ("encoder", "%", 1),
            ("right", "%", 1),
        ]);
        let mut table = Table::new(&columns);
        for case in results.cases() {
            let mut row = vec![
                Cell::from(&*case.key.model),
                case.key.x.into(),
                case.median("visual_tokens").into(),
            ];
            row.extend(stages::cells(case));
            row.extend([
                case.median("first_token").into(),
                stages::share(case, "encoder").into(),
                case.accuracy().into(),
            ]);
            table.rows.push(row);
        }
        let axis = || Axis::new("side", "px");
        Findings {
            table,
            charts: vec![
                lines(
                    "Time to the first token by size",
                    axis(),
                    Axis::new("first token", "ms"),
                    line_per_model(results, "first_token"),
                ),
                lines(
                    "Visual tokens by size",
                    axis(),
                    Axis::new("visual tokens", ""),
                    line_per_model(results, "visual_tokens"),
                ),
            ],
            notes: results
                .models()
                .into_iter()
                .filter_map(|model| note(results, model))
                .collect(),
        }
    }
}

/// Compares the smallest and the largest size.
fn note(results: &Results, model: &str) -> Option<String> {
    let cases: Vec<_> = results.of(model).collect();
    let (small, large) = (cases.first()?, cases.last()?);
    let tokens =
        |case: &crate::experiment::results::CaseResults| case.median_or_zero("visual_tokens");
    if tokens(small) == tokens(large) {
        return Some(format!(
            "{model}: every size becomes {} visual tokens, as images are resized to the size of \
             the encoder.",
            tokens(small)
        ));
    }
    let ratio = |name| large.median_or_zero(name) / small.median_or_zero(name).max(1e-9);
    Some(format!(
        "{model}: from {} to {}, {:.1} times the visual tokens take {:.1} times the time of the \
         encoder and {:.1} times that of the prefill; the encoder's share grows from {:.0} % to \
         {:.0} % of {}.",
        small.key.setting,
        large.key.setting,
        ratio("visual_tokens"),
        ratio("encoder"),
        ratio("prefill"),
        stages::share(small, "encoder"),
        stages::share(large, "encoder"),
        ms(stages::sum(large)),
    ))
}
