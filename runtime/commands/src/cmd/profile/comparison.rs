//! Changes between profiles.

use std::collections::BTreeMap;

use edge_lmm::environment::{Environment, MachineState};
use edge_lmm::profile::ProfileReport;
use edge_lmm::profile::report::{ModuleCost, Parameters, ProfileRun};
use edge_lmm::timing::without_numbers;
use serde::Serialize;
use serde_json::Value;

use super::noise::{Sample, half_width};

/// Profiles compared with the first of them, the baseline.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Always `edge-lmm profile comparison`.
    pub format: &'static str,
    /// Version of the fields.
    pub version: u32,
    /// File of the baseline.
    pub baseline: String,
    /// The other profiles.
    pub profiles: Vec<Against>,
}

/// A profile compared with the baseline.
#[derive(Debug, Serialize)]
pub struct Against {
    /// File of the profile.
    pub file: String,
    /// Differences of machine, program, model and questions, which explain differences of times or
    /// make them meaningless.
    pub warnings: Vec<String>,
    /// The runs that both profiles have.
    pub runs: Vec<RunChanges>,
}

/// Changes of a run.
#[derive(Debug, Serialize)]
pub struct RunChanges {
    /// Point of the sweep.
    pub point: String,
    /// Changes of the whole run.
    pub whole: Vec<Change>,
    /// Changes of stages and modules, the largest first. The layers of a stack are added up.
    pub modules: Vec<Change>,
    /// Changes of the layers of stacks, the largest first.
    pub layers: Vec<Change>,
}

/// Change of a measured value. Values are means of the repeats.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Name of the measured value; of a module, its path with `*` for the numbers of layers.
    pub name: String,
    /// Stage of a module; equal to `name` for a stage, `None` for the whole run.
    pub stage: Option<String>,
    /// `ms`, `tokens/s`, `bytes` or `J`.
    pub unit: &'static str,
    /// Value of the baseline, if it has the module.
    pub before: Option<f64>,
    /// Value of the other profile, if it has the module.
    pub after: Option<f64>,
    /// `after - before`; a missing module counts as zero.
    pub difference: f64,
    /// Half the width of the 99 % confidence interval of the difference; `None` if it is unknown.
    pub noise: Option<f64>,
    /// Judgment of the difference.
    pub verdict: Verdict,
    /// Multiply-accumulates of the baseline and of the other profile.
    pub macs: Option<[u64; 2]>,
    /// Bytes moved in the baseline and in the other profile.
    pub bytes: Option<[u64; 2]>,
}

/// Judgment of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Better, beyond noise.
    Better,
    /// Worse, beyond noise.
    Worse,
    /// The confidence interval of the difference contains zero.
    WithinNoise,
    /// A value was measured once.
    NoiseUnknown,
    /// The values are equal and were measured once.
    Equal,
    /// Only the other profile has the module.
    Added,
    /// Only the baseline has the module.
    Removed,
}

impl Comparison {
    /// Compares profiles with the first of them; each has the name of its file.
    pub fn new(profiles: &[(String, ProfileReport)]) -> Self {
        let (baseline, others) = match profiles {
            [baseline, others @ ..] => (Some(baseline), others),
            [] => (None, &[][..]),
        };
        let against = |before: &ProfileReport| {
            let others = others.iter();
            others
                .map(|(file, after)| Against::new(file, before, after))
                .collect()
        };
        Self {
            format: "edge-lmm profile comparison",
            version: 1,
            baseline: baseline.map_or(String::new(), |(file, _)| file.clone()),
            profiles: baseline.map_or(Vec::new(), |(_, report)| against(report)),
        }
    }
}

impl Against {
    fn new(file: &str, before: &ProfileReport, after: &ProfileReport) -> Self {
        let mut warnings = different_environments(&before.environment, &after.environment);
        warnings.extend(different_bandwidths(before, after));
        let mut runs = Vec::new();
        for run in &before.runs {
            match counterpart(run, before, after) {
                Some(other) => {
                    warnings.extend(different_questions(run, other));
                    runs.push(RunChanges::new(run, other));
                }
                None => warnings.push(format!("no run to compare with: {}", point(run))),
            }
        }
        for run in &after.runs {
            if counterpart(run, after, before).is_none() {
                warnings.push(format!("not in the baseline: {}", point(run)));
            }
        }
        Self {
            file: file.to_owned(),
            warnings,
            runs,
        }
    }
}

/// Returns the run of the same point; of profiles with one run each, that run.
fn counterpart<'a>(
    run: &ProfileRun,
    of: &ProfileReport,
    others: &'a ProfileReport,
) -> Option<&'a ProfileRun> {
    if let (1, [only]) = (of.runs.len(), others.runs.as_slice()) {
        return Some(only);
    }
    let key = |p: &Parameters| (p.image_size, p.frames, p.audio_seconds, p.turn);
    let mut others = others.runs.iter();
    others.find(|other| key(&other.parameters) == key(&run.parameters))
}

/// Names the point of a sweep.
pub fn point(run: &ProfileRun) -> String {
    let parameters = &run.parameters;
    let size = parameters.image_size;
    let parts = [
        size.map(|size| format!("images of {size} pixels")),
        parameters.frames.map(|frames| format!("frames: {frames}")),
        parameters
            .audio_seconds
            .map(|seconds| format!("{seconds} s of sound")),
        (parameters.turn > 1).then(|| format!("turn {}", parameters.turn)),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    match parts.is_empty() {
        true => "one question".to_owned(),
        false => parts.join(", "),
    }
}

fn different_environments(before: &Environment, after: &Environment) -> Vec<String> {
    let mut warnings = Vec::new();
    let hash = |environment: &Environment| environment.record.as_ref().map(|r| r.hash.clone());
    let path = |environment: &Environment| match &environment.record {
        Some(record) => record.path.clone(),
        None => "none".to_owned(),
    };
    if hash(before) != hash(after) {
        let (a, b) = (path(before), path(after));
        warnings.push(format!("different records: {a} -> {b}"));
    }
    let fields = |environment| match serde_json::to_value(environment) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (a, b) = (fields(before), fields(after));
    for (name, value) in &a {
        let other = b.get(name).unwrap_or(&Value::Null);
        if !["record", "before", "after"].contains(&name.as_str()) && value != other {
            let name = name.replace('_', " ");
            warnings.push(format!(
                "different {name}: {} -> {}",
                plain(value),
                plain(other)
            ));
        }
    }
    let states = [("baseline", before), ("other profile", after)];
    warnings.extend(states.into_iter().filter_map(|(name, environment)| {
        let states = [Some(&environment.before), environment.after.as_ref()];
        let throttled = |state: &MachineState| state.throttling.clone().unwrap_or_default();
        let mut flags: Vec<String> = states.into_iter().flatten().flat_map(throttled).collect();
        flags.sort();
        flags.dedup();
        let flags = flags.join(", ");
        (!flags.is_empty()).then(|| format!("the machine of the {name} was slowed down: {flags}"))
    }));
    warnings
}

/// Formats a JSON value without quotes.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "unknown".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join("+"),
        value => value.to_string(),
    }
}

/// The measured bandwidth of an undisturbed machine repeats within a few percent.
fn different_bandwidths(before: &ProfileReport, after: &ProfileReport) -> Option<String> {
    let a = before.roofline.as_ref()?.bytes_per_second;
    let b = after.roofline.as_ref()?.bytes_per_second;
    let differ = (a - b).abs() > 0.1 * a.max(b);
    let (a, b) = (a * 1e-9, b * 1e-9);
    differ.then(|| format!("different memory bandwidth: {a:.1} -> {b:.1} GB/s"))
}

fn different_questions(before: &ProfileRun, after: &ProfileRun) -> Vec<String> {
    let values = |run: &ProfileRun| {
        let parameters = &run.parameters;
        [
            ("point of the sweep", point(run)),
            ("prompt", parameters.prompt.clone()),
            ("media", parameters.media.join(", ")),
            ("reduction", parameters.reduce.clone()),
            (
                "number of tokens of the prompt",
                run.tokens.prompt.to_string(),
            ),
            (
                "number of generated tokens",
                run.tokens.generated.to_string(),
            ),
        ]
    };
    let pairs = values(before).into_iter().zip(values(after));
    let different = pairs.filter(|((_, a), (_, b))| a != b);
    let at = point(before);
    different
        .map(|((name, a), (_, b))| format!("{at}: different {name}: {a:?} -> {b:?}"))
        .collect()
}

impl RunChanges {
    fn new(before: &ProfileRun, after: &ProfileRun) -> Self {
        let combine = |run: &ProfileRun| modules(&run.modules, |name| Some(without_numbers(name)));
        let layers = |run: &ProfileRun| {
            modules(&run.modules, |name| {
                (without_numbers(name) != name).then(|| name.to_owned())
            })
        };
        Self {
            point: point(before),
            whole: whole(before, after),
            modules: changes(&combine(before), &combine(after)),
            layers: changes(&layers(before), &layers(after)),
        }
    }
}

/// Changes of the values of a whole run that both profiles have.
fn whole(before: &ProfileRun, after: &ProfileRun) -> Vec<Change> {
    type Value = fn(&ProfileRun) -> Option<Sample>;
    const VALUES: [(&str, &str, Value); 6] = [
        ("first token", "ms", |run| {
            Some((&run.first_token_ms).into())
        }),
        ("whole run", "ms", |run| Some((&run.total_ms).into())),
        ("tokens per second", "tokens/s", |run| {
            run.tokens_per_second.as_ref().map(Sample::from)
        }),
        ("peak heap", "bytes", |run| {
            let modules = run.modules.iter();
            let peaks = modules.map(|module| module.held_bytes + module.peak_bytes);
            peaks.max().map(|bytes| Sample::once(bytes as f64))
        }),
        ("peak resident memory", "bytes", |run| {
            let bytes = run.peak_resident_bytes;
            bytes.map(|bytes| Sample::once(bytes as f64))
        }),
        ("energy", "J", |run| run.energy_joules.map(Sample::once)),
    ];
    let change = |(name, unit, value): (&str, &'static str, Value)| {
        let (a, b) = (value(before)?, value(after)?);
        Some(Change::new(name, None, unit, Some(&a), Some(&b)))
    };
    VALUES.into_iter().filter_map(change).collect()
}

/// Time and work of a module, or of the layers of a stack.
struct Work {
    ms: Sample,
    macs: u64,
    bytes: u64,
}

/// Adds up the modules to which `name` gives the same name, by stage and name.
fn modules(
    modules: &[ModuleCost],
    name: impl Fn(&str) -> Option<String>,
) -> BTreeMap<(String, String), Work> {
    let mut all: BTreeMap<(String, String), Work> = BTreeMap::new();
    for module in modules {
        let Some(name) = name(&module.name) else {
            continue;
        };
        let ms = Sample::from(&module.ms);
        all.entry((module.stage.clone(), name))
            .and_modify(|work| {
                work.ms.add(&ms);
                work.macs += module.macs;
                work.bytes += module.bytes;
            })
            .or_insert(Work {
                ms,
                macs: module.macs,
                bytes: module.bytes,
            });
    }
    all
}

/// Returns the changes of all modules of both runs, the largest first.
fn changes(
    before: &BTreeMap<(String, String), Work>,
    after: &BTreeMap<(String, String), Work>,
) -> Vec<Change> {
    let added = after.keys().filter(|key| !before.contains_key(*key));
    let mut changes: Vec<Change> = before
        .keys()
        .chain(added)
        .map(|key| {
            let (a, b) = (before.get(key), after.get(key));
            let times = (a.map(|work| &work.ms), b.map(|work| &work.ms));
            let both = |value: fn(&Work) -> u64| Some([value(a?), value(b?)]);
            Change {
                macs: both(|work| work.macs),
                bytes: both(|work| work.bytes),
                ..Change::new(&key.1, Some(&key.0), "ms", times.0, times.1)
            }
        })
        .collect();
    changes.sort_by(|a, b| b.difference.abs().total_cmp(&a.difference.abs()));
    changes
}

impl Change {
    fn new(
        name: &str,
        stage: Option<&str>,
        unit: &'static str,
        before: Option<&Sample>,
        after: Option<&Sample>,
    ) -> Self {
        let mean = |sample: Option<&Sample>| sample.map(|sample| sample.mean);
        let difference = mean(after).unwrap_or(0.0) - mean(before).unwrap_or(0.0);
        let noise = before.zip(after).and_then(|(a, b)| half_width(a, b));
        let better = (difference < 0.0) != (unit == "tokens/s");
        let verdict = match (before, after, noise) {
            (None, _, _) => Verdict::Added,
            (_, None, _) => Verdict::Removed,
            (_, _, None) if difference == 0.0 => Verdict::Equal,
            (_, _, None) => Verdict::NoiseUnknown,
            (_, _, Some(noise)) if difference.abs() <= noise => Verdict::WithinNoise,
            _ if better => Verdict::Better,
            _ => Verdict::Worse,
        };
        Self {
            name: name.to_owned(),
            stage: stage.map(str::to_owned),
            unit,
            before: mean(before),
            after: mean(after),
            difference,
            noise,
            verdict,
            macs: None,
            bytes: None,
        }
    }

    /// Returns the difference relative to the baseline, if that is not zero.
    pub fn relative(&self) -> Option<f64> {
        let (before, _) = self.before.zip(self.after)?;
        (before != 0.0).then(|| self.difference / before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_lmm::profile::report;
    use edge_lmm::statistics::Statistics;
    use edge_lmm::{Device, FinishReason};
    use serde_json::json;

    fn module(name: &str, stage: &str, times: &[f64]) -> ModuleCost {
        let ms = Statistics::of(times).expect("finite values");
        let cost = json!({
            "name": name, "stage": stage, "parent": null, "ms": ms, "own_ms": 0.0, "child_ms": 0.0,
            "hidden_ms": 0.0, "calls": 1, "peak_bytes": 0, "held_bytes": 0, "weight_bytes": 0,
            "weight_resident_bytes": null, "tokens": 1, "macs": 8, "bytes": 4, "launches": 0,
            "gflops": null, "gbs": null, "bound": "neither", "roof_share": null, "wait_ms": 0.0,
            "energy_joules": null
        });
        serde_json::from_value(cost).expect("a module")
    }

    fn run(total: &[f64], modules: Vec<ModuleCost>) -> ProfileRun {
        let total = Statistics::of(total).expect("finite values");
        ProfileRun {
            parameters: Parameters {
                turn: 1,
                ..Parameters::default()
            },
            warmup: 0,
            cold: None,
            total_ms: total,
            outside_ms: total,
            first_token_ms: total,
            tokens_per_second: None,
            modules,
            tokens: Default::default(),
            memory: Vec::new(),
            peak_resident_bytes: None,
            energy_joules: None,
            answer: String::new(),
            finish_reason: FinishReason::Length,
        }
    }

    fn profile(runs: Vec<ProfileRun>) -> ProfileReport {
        let mut environment = Environment::before(Device::Cpu, None);
        environment.before.throttling = None;
        ProfileReport {
            format: report::FORMAT.to_owned(),
            version: report::VERSION,
            environment,
            roofline: None,
            energy_source: None,
            load: Vec::new(),
            runs,
        }
    }

    fn compare(before: ProfileReport, after: ProfileReport) -> Against {
        let files = [("a".to_owned(), before), ("b".to_owned(), after)];
        let mut comparison = Comparison::new(&files);
        assert_eq!(comparison.baseline, "a");
        comparison.profiles.pop().expect("one comparison")
    }

    #[test]
    fn changes_are_judged_and_sorted() {
        let before = run(
            &[100.0, 102.0, 104.0],
            vec![
                module("vision", "vision", &[60.0, 61.0, 62.0]),
                module("vision.blocks.0.mlp", "vision", &[20.0, 21.0, 22.0]),
                module("vision.blocks.1.mlp", "vision", &[30.0, 31.0, 32.0]),
                module("decode", "decode", &[40.0, 41.0, 42.0]),
                module("old", "decode", &[1.0, 1.0, 1.0]),
            ],
        );
        let after = run(
            &[80.0, 82.0, 84.0],
            vec![
                module("vision", "vision", &[40.0, 41.0, 42.0]),
                module("vision.blocks.0.mlp", "vision", &[11.0, 12.0, 13.0]),
                module("vision.blocks.1.mlp", "vision", &[19.0, 20.0, 21.0]),
                module("decode", "decode", &[40.5, 41.5, 42.5]),
            ],
        );
        let against = compare(profile(vec![before]), profile(vec![after]));
        assert!(against.warnings.is_empty(), "{:?}", against.warnings);
        let [changes] = against.runs.as_slice() else {
            panic!("one run");
        };
        let total = changes
            .whole
            .iter()
            .find(|c| c.name == "whole run")
            .expect("the run");
        assert_eq!((total.difference, total.verdict), (-20.0, Verdict::Better));
        let listed: Vec<_> = changes
            .modules
            .iter()
            .map(|c| (c.name.as_str(), c.difference, c.verdict))
            .collect();
        let expected = [
            // The means of the layers add up: 52 and 32.
            ("vision", -20.0, Verdict::Better),
            ("vision.blocks.*.mlp", -20.0, Verdict::Better),
            ("old", -1.0, Verdict::Removed),
            ("decode", 0.5, Verdict::WithinNoise),
        ];
        assert_eq!(listed.len(), expected.len());
        for change in expected {
            assert!(listed.contains(&change), "{change:?} in {listed:?}");
        }
        assert_eq!(listed[2..], expected[2..]);
        let mlp = changes
            .modules
            .iter()
            .find(|c| c.name.ends_with("mlp"))
            .expect("the stack");
        assert_eq!(mlp.macs, Some([16, 16]));
        // Deviations of 2 on both sides: 4.604 * sqrt(4/3 + 4/3).
        let noise = mlp.noise.expect("repeated");
        assert!(
            (noise - 4.604 * (8.0f64 / 3.0).sqrt()).abs() < 1e-9,
            "{noise}"
        );
        assert_eq!(changes.layers.len(), 2);
        assert_eq!(changes.layers[0].name, "vision.blocks.1.mlp");
        assert_eq!(changes.layers[0].relative(), Some(-11.0 / 31.0));
    }

    #[test]
    fn one_repeat_tells_nothing_about_noise() {
        let against = compare(
            profile(vec![run(
                &[10.0],
                vec![module("vision", "vision", &[10.0])],
            )]),
            profile(vec![run(
                &[5.0, 5.0],
                vec![module("vision", "vision", &[5.0, 5.0])],
            )]),
        );
        let vision = &against.runs[0].modules[0];
        assert_eq!(
            (vision.noise, vision.verdict),
            (None, Verdict::NoiseUnknown)
        );
    }

    #[test]
    fn more_tokens_per_second_are_better() {
        let (slow, fast) = (Sample::once(1.0), Sample::once(2.0));
        let repeated = |sample: Sample| Sample { count: 2, ..sample };
        let change = |unit| {
            Change::new(
                "x",
                None,
                unit,
                Some(&repeated(slow)),
                Some(&repeated(fast)),
            )
        };
        assert_eq!(change("tokens/s").verdict, Verdict::Better);
        assert_eq!(change("ms").verdict, Verdict::Worse);
    }

    #[test]
    fn other_machines_records_and_questions_are_named() {
        let before = profile(vec![run(&[1.0], Vec::new())]);
        let mut after = before.clone();
        after.environment.threads += 1;
        after.environment.record = Some(edge_lmm::environment::RecordName {
            path: "other.bpk".to_owned(),
            hash: "00".to_owned(),
            bytes: 1,
        });
        after.environment.before.throttling = Some(vec!["frequency capped".to_owned()]);
        after.runs[0].parameters.prompt = "Why?".to_owned();
        after.runs[0].tokens.generated = 3;
        let against = compare(before, after);
        let warnings = against.warnings.join("\n");
        for part in [
            "different records: none -> other.bpk",
            "different threads: ",
            "other profile was slowed down: frequency capped",
            "different prompt: \"\" -> \"Why?\"",
            "different number of generated tokens: \"0\" -> \"3\"",
        ] {
            assert!(warnings.contains(part), "{part} in {warnings}");
        }
    }

    #[test]
    fn runs_are_matched_by_their_point() {
        let at = |size| {
            let mut run = run(&[f64::from(size)], Vec::new());
            run.parameters.image_size = Some(size);
            run
        };
        let before = profile(vec![at(224), at(448)]);
        let after = profile(vec![at(448), at(672)]);
        let against = compare(before, after);
        assert_eq!(against.runs.len(), 1);
        assert_eq!(against.runs[0].whole[0].difference, 0.0);
        assert_eq!(against.runs[0].point, "images of 448 pixels");
        let warnings = against.warnings.join("\n");
        assert!(
            warnings.contains("no run to compare with: images of 224 pixels"),
            "{warnings}"
        );
        assert!(
            warnings.contains("not in the baseline: images of 672 pixels"),
            "{warnings}"
        );
    }
}
