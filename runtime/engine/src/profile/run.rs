//! Measured runs, and their summary.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use edge_lmm_models::media::{MediaInput, MediaKind};

use super::energy::EnergyTrace;
use super::report::{
    ColdRun, MemorySample, ModuleCost, Parameters, ProfileRun, ReducedTokens, Roofline, TokenCounts,
};
use super::resident::resident_bytes;
use super::roofline::reached;
use crate::media::{Media, MediaData};
use crate::report::peak_resident_bytes;
use crate::request::{Answer, Request};
use crate::statistics::Statistics;
use crate::timing::{Stage, Timing};

/// Largest number of samples of memory in a report.
const MEMORY_SAMPLES: usize = 1000;

/// One measured run.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Start, which the times of `timing` are relative to.
    pub origin: Instant,
    /// Time of the whole run by one clock.
    pub outside: Duration,
    /// Stages and modules, from a [detailed](crate::Recording::detailed) recording.
    pub timing: Timing,
    /// The answer.
    pub answer: Answer,
    /// Tokens.
    pub tokens: TokenCounts,
}

/// The runs of one turn of one point of a sweep.
#[derive(Debug, Clone, Default)]
pub struct Runs {
    /// Parameters of the run.
    pub parameters: Parameters,
    /// The first run after the model was loaded, if it is one of these.
    pub cold: Option<ColdRun>,
    /// Runs before the measured ones.
    pub warmup: usize,
    /// The measured runs.
    pub measured: Vec<Measured>,
}

impl Runs {
    /// Summarizes the runs; `None` if there are none.
    pub fn report(
        &self,
        roofline: Option<&Roofline>,
        energy: Option<&EnergyTrace>,
    ) -> Option<ProfileRun> {
        let last = self.measured.last()?;
        let of = |value: &dyn Fn(&Measured) -> f64| {
            let values: Vec<f64> = self.measured.iter().map(value).collect();
            Statistics::of(&values)
        };
        let speeds: Option<Vec<f64>> = self.measured.iter().map(Measured::speed).collect();
        let joules = |run: &Measured| energy?.between(run.origin, run.origin + run.outside);
        let joules: Option<Vec<f64>> = self.measured.iter().map(joules).collect();
        let timings: Vec<(Instant, &Timing)> = self
            .measured
            .iter()
            .map(|run| (run.origin, &run.timing))
            .collect();
        Some(ProfileRun {
            parameters: self.parameters.clone(),
            warmup: self.warmup,
            cold: self.cold.clone(),
            total_ms: of(&|run| milliseconds(run.timing.total()))?,
            outside_ms: of(&|run| milliseconds(run.outside))?,
            first_token_ms: of(&|run| milliseconds(run.first_token()))?,
            tokens_per_second: speeds.and_then(|speeds| Statistics::of(&speeds)),
            modules: modules(&timings, roofline, energy),
            tokens: last.tokens.clone(),
            memory: memory(&last.timing),
            peak_resident_bytes: peak_resident_bytes(),
            energy_joules: median(joules),
            answer: last.answer.text.clone(),
            finish_reason: last.answer.finish_reason,
        })
    }
}

impl Measured {
    fn speed(&self) -> Option<f64> {
        self.answer.tokens_per_second(&self.timing)
    }

    fn first_token(&self) -> Duration {
        self.answer.first_token_after(&self.timing)
    }

    /// Summarizes the first run after the model was loaded.
    pub fn cold(&self) -> ColdRun {
        let stages = self.timing.stages().iter().filter(|stage| stage.is_top());
        ColdRun {
            total_ms: milliseconds(self.timing.total()),
            outside_ms: milliseconds(self.outside),
            first_token_ms: milliseconds(self.first_token()),
            stages: stages
                .map(|stage| (stage.name.clone(), stage.ms()))
                .collect(),
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(values: Option<Vec<f64>>) -> Option<f64> {
    let statistics = Statistics::of(&values?)?;
    Some(statistics.median)
}

/// Summarizes the stages and modules of repeated recordings, given with their starts. They are those
/// of the last one.
pub fn modules(
    timings: &[(Instant, &Timing)],
    roofline: Option<&Roofline>,
    energy: Option<&EnergyTrace>,
) -> Vec<ModuleCost> {
    let Some((_, last)) = timings.last() else {
        return Vec::new();
    };
    let found: Vec<HashMap<(&str, &str), &Stage>> = timings
        .iter()
        .map(|(_, timing)| {
            let stages = timing.stages().iter();
            stages
                .map(|stage| ((stage.stage, stage.name.as_str()), stage))
                .collect()
        })
        .collect();
    let weights = weights(last);
    let costs = last
        .stages()
        .iter()
        .zip(&weights)
        .filter_map(|(stage, weights)| {
            let of = |value: &dyn Fn(&Stage) -> Duration| {
                let key = (stage.stage, stage.name.as_str());
                let in_run = |stages: &HashMap<_, &Stage>| {
                    let stage = stages.get(&key);
                    milliseconds(stage.map_or(Duration::ZERO, |stage| value(stage)))
                };
                let values: Vec<f64> = found.iter().map(in_run).collect();
                Statistics::of(&values)
            };
            let ms = of(&|stage| stage.time)?;
            let reached = reached(&stage.work, ms.median / 1e3, roofline);
            Some(ModuleCost {
                name: stage.name.clone(),
                stage: stage.stage.to_owned(),
                parent: stage.parent,
                ms,
                own_ms: of(&Stage::own_time)?.median,
                child_ms: of(&|stage| stage.child_time)?.median,
                hidden_ms: of(&|stage| stage.hidden)?.median,
                calls: stage.calls,
                peak_bytes: stage.own_peak_bytes as u64,
                held_bytes: stage.held_bytes as u64,
                weight_bytes: stage.work.weight_bytes,
                weight_resident_bytes: resident(weights),
                tokens: stage.work.tokens,
                macs: stage.work.total_macs(),
                bytes: stage.work.bytes,
                launches: stage.launches,
                gflops: reached.gflops,
                gbs: reached.gbs,
                bound: reached.bound,
                roof_share: reached.share,
                wait_ms: of(&|stage| stage.wait)?.median,
                energy_joules: energy.and_then(|energy| joules(stage, timings, energy)),
            })
        });
    costs.collect()
}

/// Returns the weights of every stage and module, with those of the modules inside.
fn weights(timing: &Timing) -> Vec<BTreeSet<(usize, usize)>> {
    let stages = timing.stages();
    let own = |stage: &Stage| stage.weights.iter().copied().collect();
    let mut weights: Vec<BTreeSet<_>> = stages.iter().map(own).collect();
    // Parents precede their children.
    for child in (0..stages.len()).rev() {
        if let Some(parent) = stages[child].parent {
            let inside = weights[child].clone();
            weights[parent].extend(inside);
        }
    }
    weights
}

fn resident(weights: &BTreeSet<(usize, usize)>) -> Option<u64> {
    let ranges: Vec<_> = weights.iter().copied().collect();
    match ranges.is_empty() {
        true => None,
        false => resident_bytes(&ranges),
    }
}

/// Returns the median energy of a stage in joules; `None` for a module.
fn joules(stage: &Stage, timings: &[(Instant, &Timing)], energy: &EnergyTrace) -> Option<f64> {
    if !stage.is_top() {
        return None;
    }
    let in_run = |(origin, timing): &(Instant, &Timing)| {
        let Some(stage) = timing.stage(&stage.name) else {
            return Some(0.0);
        };
        let spans = stage.spans.iter().map(|span| {
            let start = *origin + span.start;
            energy.between(start, start + span.time)
        });
        spans.sum::<Option<f64>>()
    };
    median(timings.iter().map(in_run).collect())
}

/// Returns the heap use at the boundaries of stages and their direct modules, evenly thinned out.
fn memory(timing: &Timing) -> Vec<MemorySample> {
    let stages = timing.stages();
    let samples = timing.memory_samples(|stage| {
        let outer = stage.parent.map(|parent| &stages[parent]);
        outer.is_none_or(Stage::is_top)
    });
    let step = samples.len().div_ceil(MEMORY_SAMPLES).max(1);
    let thinned = samples.into_iter().step_by(step);
    thinned
        .map(|(time, bytes)| MemorySample {
            ms: milliseconds(time),
            bytes: bytes as u64,
        })
        .collect()
}

impl TokenCounts {
    /// Counts a request whose media `encoded` are to be encoded; `earlier` is the turn before.
    pub fn prepared(
        request: &Request<'_>,
        encoded: &[MediaInput],
        earlier: Option<&TokenCounts>,
    ) -> Self {
        let hits = request.media.len().saturating_sub(encoded.len());
        let known = earlier.filter(|_| hits > 0);
        let new: usize = encoded.iter().map(|input| input.layout.tokens()).sum();
        let mut counts = Self {
            visual_before: new + known.map_or(0, |earlier| earlier.visual_before),
            encoder_hits: hits,
            encoder_misses: encoded.len(),
            ..Self::default()
        };
        let sounds = encoded
            .iter()
            .filter(|input| input.kind == MediaKind::Audio);
        for input in sounds {
            let all = input.shape.last().copied().unwrap_or(0);
            counts.add_frames(input.grid[0], all);
        }
        let videos: Vec<_> = encoded
            .iter()
            .filter(|input| input.kind == MediaKind::Video)
            .collect();
        let frames: Vec<usize> = request.media.iter().filter_map(frames).collect();
        if videos.len() == frames.len() {
            for (input, frames) in videos.into_iter().zip(frames) {
                // An encoder that takes frames in groups fills the last one.
                let times = input.grid[0].max(1);
                counts.add_frames(frames, frames.div_ceil(times) * times);
            }
        }
        counts
    }

    fn add_frames(&mut self, useful: usize, all: usize) {
        self.useful_frames += useful;
        self.padded_frames += all.saturating_sub(useful);
    }

    /// Adds what the answer tells.
    pub fn answered(&mut self, answer: &Answer) {
        self.prompt = answer.prompt_tokens;
        self.reused = answer.reused_tokens;
        self.computed = answer.prompt_tokens - answer.reused_tokens;
        self.generated = answer.tokens.len();
        self.visual = answer.language_tokens.unwrap_or(answer.visual_tokens);
        self.visual_before = self.visual_before.max(answer.visual_tokens);
        let steps = answer.reductions.iter().map(|step| ReducedTokens {
            method: step.method.to_owned(),
            stage: step.stage.to_owned(),
            tokens: step.tokens,
        });
        self.reductions = steps.collect();
    }
}

/// Returns the number of frames of a video.
fn frames(medium: &Media) -> Option<usize> {
    match medium.data() {
        MediaData::Video { frames, .. } => Some(frames.len()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::timing::{self, Recording};

    fn record() -> (Instant, Timing) {
        let mut recording = Recording::detailed(Device::Cpu);
        let origin = recording.origin().expect("it has started");
        recording.run(|| {
            let _stage = timing::stage("vision");
            for block in 0..2 {
                let _block = timing::scope(format_args!("vision.blocks.{block}"));
                let _module = timing::module("mlp");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        (origin, recording.finish())
    }

    #[test]
    fn own_and_child_times_are_the_whole_time() {
        let runs = [record(), record(), record()];
        let timings: Vec<_> = runs
            .iter()
            .map(|(origin, timing)| (*origin, timing))
            .collect();
        let costs = modules(&timings[..1], None, None);
        let names: Vec<&str> = costs.iter().map(|cost| cost.name.as_str()).collect();
        assert_eq!(
            names,
            ["vision", "vision.blocks.0.mlp", "vision.blocks.1.mlp"]
        );
        assert_eq!((costs[0].parent, costs[1].parent), (None, Some(0)));
        let inside = costs[1].ms.median + costs[2].ms.median;
        assert!((costs[0].child_ms - inside).abs() < 1e-6, "{costs:?}");
        for cost in &costs {
            let sum = cost.own_ms + cost.child_ms;
            assert!((sum - cost.ms.median).abs() < 1e-6, "{cost:?}");
        }
        let costs = modules(&timings, None, None);
        assert_eq!(costs[0].ms.count, 3);
        assert!(costs[1].ms.min >= 1.0, "{costs:?}");
    }

    #[test]
    fn a_long_run_has_few_samples_of_memory() {
        let mut recording = Recording::detailed(Device::Cpu);
        recording.run(|| {
            for _ in 0..2000 {
                drop(timing::stage("decode"));
            }
        });
        let samples = memory(&recording.finish());
        assert_eq!(samples.len(), MEMORY_SAMPLES);
        assert!(samples.is_sorted_by(|a, b| a.ms <= b.ms));
    }
}
