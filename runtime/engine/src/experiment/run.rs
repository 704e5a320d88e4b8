//! Planning, running and summarizing an experiment.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use edge_lmm_kernels::pool;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::bench::Bench;
use super::error::ExperimentError;
use super::folder::Folder;
use super::line::{Line, Outcome};
use super::plan::Plan;
use super::report::{ExperimentReport, FORMAT, Failure, VERSION};
use super::results::Results;
use super::sample::Sample;
use super::shard::Shard;
use super::spec::{Case, Experiment, Values};
use super::time_limit::TimeLimit;
use crate::device::Device;
use crate::environment::Environment;
use crate::one_line::one_line;

/// Progress of a run.
pub enum Progress<'a> {
    /// A measurement starts.
    Measuring {
        /// Measurements so far, including those of earlier runs.
        done: usize,
        /// All measurements.
        total: usize,
        /// The model.
        model: &'a str,
        /// Value of the varied quantity, as text.
        setting: &'a str,
    },
    /// A measurement failed.
    Failed(&'a Failure),
}

/// Plans an experiment: its cases and samples, and the parameters that its results belong to.
///
/// # Errors
/// If the models, questions or settings do not suit the experiment.
pub fn plan(
    experiment: &dyn Experiment,
    bench: &mut Bench,
    shard: Shard,
) -> Result<(Plan, Vec<Case>, Vec<Sample>), ExperimentError> {
    let about = experiment.about();
    if bench.models.len() < about.models {
        return Err(ExperimentError::Models {
            experiment: about.name,
            needs: about.needs,
            found: match bench.models.len() {
                1 => "1 record was".to_owned(),
                n => format!("{n} records were"),
            },
        });
    }
    if about.manifest && bench.manifest.is_none() {
        let message = format!("{} needs questions: add --manifest M.csv", about.name);
        return Err(ExperimentError::Impossible(message));
    }
    let samples = bench.samples(&about)?;
    let cases = experiment.cases(bench)?;
    let device = bench
        .models
        .first()
        .map_or(Device::Cpu, |m| m.engine.device());
    let plan = Plan {
        experiment: about.name.to_owned(),
        parameters: parameters(bench, device)?,
        cases: cases.iter().map(|case| case.key.clone()).collect(),
        samples: samples.iter().map(|sample| sample.key.clone()).collect(),
        shard,
        environments: vec![Environment::before(device, None)],
    };
    if plan.units().is_empty() {
        return Err(ExperimentError::EmptyShard {
            shard,
            samples: samples.len(),
        });
    }
    Ok((plan, cases, samples))
}

fn parameters(bench: &Bench, device: Device) -> Result<BTreeMap<String, Value>, ExperimentError> {
    let settings = &bench.settings;
    let models = bench.models.iter().map(|model| {
        json!({
            "name": model.name,
            "hash": format!("{:032x}", model.identity),
            "bytes": model.bytes,
            "second device": model.second.as_ref().map(|engine| engine.device().to_string()),
        })
    });
    let manifest = match &bench.manifest {
        None => Value::Null,
        Some((path, _)) => {
            let bytes = std::fs::read(path).map_err(|source| ExperimentError::Io {
                path: path.clone(),
                source,
            })?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            json!({"name": name, "hash": format!("{:016x}", xxh3_64(&bytes))})
        }
    };
    let chains = settings.chains.iter().map(ToString::to_string);
    let values = [
        ("models", models.collect()),
        ("manifest", manifest),
        ("repeat", json!(settings.repeat)),
        ("warmup", json!(settings.warmup)),
        ("limit", json!(settings.limit)),
        ("max_tokens", json!(settings.max_tokens)),
        ("values", json!(settings.values)),
        ("chains", chains.collect()),
        ("media", json!(format!("{:?}", settings.media))),
        ("device", json!(device.to_string())),
        ("threads", json!(pool::global().threads())),
    ];
    let values = values.into_iter();
    Ok(values
        .map(|(name, value)| (name.to_owned(), value))
        .collect())
}

/// Makes the measurements of a plan that are not among `lines` and adds them. A measurement that
/// fails is recorded, and repeated when the run is continued. With a limit, measurements that do not
/// fit are left out, which is recorded as a failure of a case without any measurement. The state of
/// the machine afterwards is added to the plan.
///
/// # Errors
/// If a measurement cannot be written.
pub fn run(
    bench: &mut Bench,
    (plan, cases, samples): (&mut Plan, &[Case], &[Sample]),
    mut folder: Option<&mut Folder>,
    mut lines: Vec<Line>,
    mut limit: Option<&mut TimeLimit>,
    mut on_progress: impl FnMut(Progress<'_>),
) -> Result<Vec<Line>, ExperimentError> {
    let measured = lines.iter().filter(|line| !line.failed());
    let known: HashSet<_> = measured.map(Line::key).collect();
    let units = plan.units();
    lines.retain(|line| !line.failed());
    let mut covered: HashSet<usize> = units
        .iter()
        .filter(|&&unit| known.contains(&plan.key(unit)))
        .map(|unit| unit.case)
        .collect();
    // Time of a measurement by case.
    let mut times: HashMap<usize, Duration> = HashMap::new();
    let (mut last, mut no_repeats) = (None, false);
    let missing = units
        .iter()
        .filter(|&&unit| !known.contains(&plan.key(unit)));
    for (done, unit) in (known.len()..).zip(missing) {
        let next = last
            .replace(unit.sample)
            .is_some_and(|last| last != unit.sample);
        let ends = |limit: &TimeLimit| !limit.repeats(times.values().sum());
        no_repeats |= next && limit.as_deref().is_some_and(ends);
        if no_repeats && covered.contains(&unit.case) {
            continue;
        }
        let (sample, case) = (&samples[unit.sample], &cases[unit.case]);
        let time = times.get(&unit.case).copied();
        let warmup = match time {
            Some(_) => 0,
            None => bench.settings.warmup,
        };
        let first = covered.insert(unit.case);
        let excess = limit
            .as_deref()
            .filter(|limit| !limit.fits(time, warmup + 1));
        let outcome = match excess {
            Some(limit) if first => Err(limit.reason()),
            Some(_) => continue,
            None => {
                on_progress(Progress::Measuring {
                    done,
                    total: units.len(),
                    model: &case.key.model,
                    setting: &case.key.setting,
                });
                let (outcome, time) = measure(bench, case, sample, warmup);
                times.insert(unit.case, time);
                if let Some(limit) = limit.as_mut() {
                    limit.add(time);
                }
                outcome
            }
        };
        let line = Line::new(&case.key, &sample.key.id, outcome);
        if let Some(failure) = failure(&line) {
            on_progress(Progress::Failed(&failure));
        }
        if let Some(folder) = &mut folder {
            folder.append(&line)?;
        }
        lines.push(line);
    }
    plan.finish();
    if let Some(folder) = folder {
        folder.finish()?;
    }
    Ok(lines)
}

/// Measures a case after `warmup` measurements that do not count. Returns their mean time, too.
fn measure(
    bench: &mut Bench,
    case: &Case,
    sample: &Sample,
    warmup: usize,
) -> (Result<Values, String>, Duration) {
    let start = Instant::now();
    for _ in 0..warmup {
        // A failure is reported by the measurement.
        let _ = (case.measure)(bench, sample);
    }
    // What the warm-up has encoded is encoded again.
    for model in &mut bench.models {
        model.medium = None;
    }
    let outcome = (case.measure)(bench, sample).map_err(|error| one_line(&error));
    let count = u32::try_from(warmup).unwrap_or(u32::MAX).saturating_add(1);
    (outcome, start.elapsed() / count)
}

fn failure(line: &Line) -> Option<Failure> {
    match &line.outcome {
        Outcome::Measured { .. } => None,
        Outcome::Failed { error } => Some(Failure {
            model: line.model.clone(),
            setting: line.setting.clone(),
            sample: line.sample.clone(),
            error: error.clone(),
        }),
    }
}

/// Summarizes the measurements of a plan.
///
/// # Errors
/// If this program does not know the experiment.
pub fn report(plan: &Plan, lines: &[Line]) -> Result<ExperimentReport, ExperimentError> {
    let experiment = super::find(&plan.experiment)
        .ok_or_else(|| ExperimentError::Unknown(plan.experiment.clone()))?;
    let results = Results::new(plan, lines);
    let mut findings = experiment.findings(&results);
    if results.cases().is_empty() {
        findings.notes = vec!["All measurements failed.".to_owned()];
    }
    if plan.environments.len() > 1 {
        findings.notes.push(format!(
            "The shards were measured in {} environments. All cases of a sample were measured in \
             the same one, so that ratios between cases are not affected.",
            plan.environments.len()
        ));
    }
    Ok(ExperimentReport {
        format: FORMAT.to_owned(),
        version: VERSION,
        experiment: plan.experiment.clone(),
        question: experiment.about().question.to_owned(),
        environments: plan.environments.clone(),
        parameters: plan.parameters.clone(),
        table: findings.table,
        charts: findings.charts,
        notes: findings.notes,
        failures: lines.iter().filter_map(failure).collect(),
    })
}
