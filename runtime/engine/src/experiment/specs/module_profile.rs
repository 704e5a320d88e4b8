//! `module-profile`: time of every kind of module, of one or several models.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::experiment::answer::{STAGES, values_of};
use crate::experiment::report::{Axis, Bars, Cell, Chart, ChartData, Table};
use crate::experiment::results::CaseResults;
use crate::experiment::{
    About, Bench, Case, Experiment, ExperimentError, Findings, Modality, Results, Sample, Values,
};
use crate::media::{FrameSelection, user_message};
use crate::request::Request;
use crate::statistics::Statistics;
use crate::timing::without_numbers;

/// Side of synthetic images.
const SIDE: usize = 336;
/// Frames of a synthetic clip, and their side.
const CLIP: (usize, usize) = (8, 224);
/// Modules in the chart of a model.
const SHOWN: usize = 12;
/// Prefix of the values of modules.
const PREFIX: &str = "module:";

/// The experiment.
pub struct ModuleProfile;

impl Experiment for ModuleProfile {
    fn about(&self) -> About {
        About {
            name: "module-profile",
            question: "Which modules inside the stages take the time, and do models differ?",
            varies: "model and kind of input",
            measures: "time, calls and share of each kind of module; the layers of a stack are one \
                       row",
            needs: "any record",
            models: 1,
            uses: &Modality::ALL,
            common: false,
            values: "",
            manifest: false,
        }
    }

    fn cases(&self, bench: &mut Bench) -> Result<Vec<Case>, ExperimentError> {
        let mut cases = Vec::new();
        for model in 0..bench.models.len() {
            for modality in [Modality::Image, Modality::Video, Modality::Audio] {
                if bench.models[model].takes(modality) {
                    cases.push(case(bench, model, modality));
                }
            }
            // The decoder of a model with an encoder is in its other cases.
            if !cases
                .iter()
                .any(|case| case.key.model == bench.models[model].name)
            {
                cases.push(case(bench, model, Modality::Text));
            }
        }
        Ok(cases)
    }

    fn findings(&self, results: &Results) -> Findings {
        let mut table = Table::new(&[
            ("model", "", 0),
            ("input", "", 0),
            ("stage", "", 0),
            ("module", "", 0),
            ("calls", "", 0),
            ("time", "ms", 3),
            ("share", "%", 1),
        ]);
        let (mut charts, mut notes) = (Vec::new(), Vec::new());
        for case in results.cases() {
            let modules = modules(case);
            let total = case.median_or_zero("stages").max(f64::MIN_POSITIVE);
            for module in &modules {
                table.rows.push(vec![
                    Cell::from(&*case.key.model),
                    Cell::from(&*case.key.setting),
                    Cell::from(&*module.stage),
                    Cell::from(&*module.name),
                    module.calls.into(),
                    module.ms.into(),
                    (100.0 * module.ms / total).into(),
                ]);
            }
            let mut sorted: Vec<&Module> = modules.iter().filter(|m| m.name != m.stage).collect();
            sorted.sort_by(|a, b| b.ms.total_cmp(&a.ms));
            sorted.truncate(SHOWN);
            let title = format!("{}, {}", case.key.model, case.key.setting);
            if let Some(longest) = sorted.first() {
                notes.push(format!(
                    "{title}: the longest module is {} with {:.1} % of all time.",
                    longest.name,
                    100.0 * longest.ms / total
                ));
            }
            charts.push(chart(&format!("Longest modules of {title}"), &sorted));
        }
        Findings {
            table,
            charts,
            notes,
        }
    }
}

/// Time of the modules of one kind.
struct Module {
    stage: String,
    name: String,
    calls: f64,
    ms: f64,
}

/// Returns the medians of modules: the stages in their order, each followed by its modules, the
/// longest first.
fn modules(case: &CaseResults) -> Vec<Module> {
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for measured in case.measured() {
        for (name, &value) in measured.values {
            if let Some(name) = name.strip_prefix(PREFIX) {
                values.entry(name).or_default().push(value);
            }
        }
    }
    let median = |name: &str| {
        let values = values.get(name)?;
        Statistics::of(values).map(|statistics| statistics.median)
    };
    let times = values.keys().filter_map(|key| key.strip_suffix(":ms"));
    let modules = times.filter_map(|key| {
        let (stage, name) = key.split_once(':')?;
        Some(Module {
            stage: stage.to_owned(),
            name: name.to_owned(),
            calls: median(&format!("{key}:calls"))?,
            ms: median(&format!("{key}:ms"))?,
        })
    });
    let mut modules: Vec<Module> = modules.collect();
    let place = |module: &Module| STAGES.iter().position(|&stage| stage == module.stage);
    modules.sort_by(|a, b| {
        let order = (place(a), a.name != a.stage).cmp(&(place(b), b.name != b.stage));
        order.then(b.ms.total_cmp(&a.ms))
    });
    modules
}

fn chart(title: &str, modules: &[&Module]) -> Chart {
    Chart {
        title: title.to_owned(),
        x: Axis::new("module", ""),
        y: Axis::new("time", "ms"),
        data: ChartData::Bars {
            categories: modules.iter().map(|module| module.name.clone()).collect(),
            series: vec![Bars {
                name: "time".to_owned(),
                values: modules.iter().map(|module| Some(module.ms)).collect(),
            }],
            stacked: false,
        },
    }
}

fn case(bench: &Bench, model: usize, modality: Modality) -> Case {
    let name = bench.models[model].name.clone();
    Case::new(name, modality.name(), move |bench, sample| {
        measure(bench, sample, model, modality)
    })
    .of(modality)
}

fn measure(
    bench: &mut Bench,
    sample: &Sample,
    model: usize,
    modality: Modality,
) -> Result<Values, ExperimentError> {
    let synthetic = sample.expected().is_none();
    let read = match modality {
        Modality::Text => None,
        Modality::Image => Some(sample.image(synthetic.then_some(SIDE))?),
        Modality::Video => Some(sample.video(FrameSelection::All, CLIP.0, CLIP.1)?),
        Modality::Audio => Some(sample.audio(None)?),
    };
    let media: Vec<_> = read.into_iter().map(|read| read.media).collect();
    let messages = [user_message(&media, sample.question())];
    let request = Request {
        media: &media,
        options: bench.settings.media.clone(),
        max_tokens: bench.settings.max_tokens,
        ignore_eos: synthetic,
        timing: true,
        ..Request::new(&messages)
    };
    let session = &mut bench.models[model].session;
    session.forget();
    let answer = session.answer(&request, |_| ControlFlow::Continue(()))?;
    let mut values = values_of(&answer).with("stages", answer.timing.total().as_secs_f64() * 1e3);
    for stage in answer.timing.stages() {
        let key = format!("{PREFIX}{}:{}", stage.stage, without_numbers(&stage.name));
        let mut add = |name: String, value: f64| {
            *values.numbers.entry(name).or_default() += value;
        };
        add(format!("{key}:ms"), stage.ms());
        add(format!("{key}:calls"), stage.calls as f64);
    }
    Ok(values)
}
