//! The report of `edge-lmm profile`.

use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::request::FinishReason;
use crate::statistics::Statistics;

/// Value of [`ProfileReport::format`].
pub const FORMAT: &str = "edge-lmm profile";
/// Version of the fields of a report that this program writes.
pub const VERSION: u32 = 1;

/// Measurements of a model on a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProfileReport {
    /// Always [`FORMAT`].
    #[cfg_attr(test, schemars(extend("const" = FORMAT)))]
    pub format: String,
    /// [`VERSION`] of the program that wrote the report.
    #[cfg_attr(test, schemars(extend("const" = VERSION)))]
    pub version: u32,
    /// Program, machine and model.
    pub environment: Environment,
    /// Peaks of the machine, if they were measured.
    pub roofline: Option<Roofline>,
    /// Source of the energy figures; `None` if the machine has none that can be read.
    pub energy_source: Option<String>,
    /// Stages and modules of loading the model, which happens once.
    pub load: Vec<ModuleCost>,
    /// One run for each turn of each point of the sweep.
    pub runs: Vec<ProfileRun>,
}

impl ProfileReport {
    /// Parses a report.
    ///
    /// # Errors
    /// If `text` is not a report, or one of a version that this program does not know.
    pub fn parse(text: &str) -> Result<Self, ReportError> {
        #[derive(Deserialize)]
        struct Head {
            #[serde(default)]
            format: String,
            #[serde(default)]
            version: u32,
        }
        let head: Head = serde_json::from_str(text)?;
        if head.format != FORMAT {
            return Err(ReportError::Format(head.format));
        }
        if head.version != VERSION {
            return Err(ReportError::Version(head.version));
        }
        Ok(serde_json::from_str(text)?)
    }
}

/// Reason why a file is no report that can be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// Invalid JSON, or a field that is missing or has a wrong type.
    #[error("invalid profile: {0}; write it with `edge-lmm profile MODEL.bpk --json`")]
    Json(#[from] serde_json::Error),
    /// The field `format` has another value.
    #[error(
        "the field `format` is {0:?} instead of {FORMAT:?}: expected the output of `edge-lmm \
         profile MODEL.bpk --json`"
    )]
    Format(String),
    /// Another version.
    #[error(
        "the profile has version {0}, this program reads version {VERSION}: write it with a \
         program of the same version"
    )]
    Version(u32),
}

/// Measured peaks of the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Roofline {
    /// Memory bandwidth of sequential reads by all threads, in bytes per second.
    pub bytes_per_second: f64,
    /// Peak arithmetic throughput by number format.
    pub peaks: Vec<Peak>,
}

/// Peak throughput of products of one number format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Peak {
    /// Format of the weights: `q4`, `q8`, `f16` or `f32`.
    pub format: String,
    /// Multiply-accumulates per second of all threads; `None` if the instruction set has no loop
    /// that measures it.
    pub macs_per_second: Option<f64>,
}

/// Parameters of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Parameters {
    /// Longer side of the image or of the frames in pixels, if the sweep chose it.
    pub image_size: Option<u32>,
    /// Frames of the video, if the sweep chose them.
    pub frames: Option<usize>,
    /// Seconds of sound, if the sweep chose them.
    pub audio_seconds: Option<f64>,
    /// Number of the turn within the conversation, from 1 on.
    pub turn: usize,
    /// The question.
    pub prompt: String,
    /// Files of the media.
    pub media: Vec<String>,
    /// Largest number of generated tokens.
    pub max_tokens: usize,
    /// Reductions of the tokens of media.
    pub reduce: String,
}

/// One turn of a conversation, measured repeatedly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProfileRun {
    /// Parameters of the run.
    pub parameters: Parameters,
    /// Runs before the measured ones, which are not part of the statistics.
    pub warmup: usize,
    /// The first run after the model was loaded; `None` if it was one of another point. Without
    /// runs to warm up it is part of the statistics, too.
    pub cold: Option<ColdRun>,
    /// Sum of the stages in milliseconds; time in which two stages ran at once counts once.
    pub total_ms: Statistics,
    /// The same time measured by one clock around the whole run.
    pub outside_ms: Statistics,
    /// Time to the first token in milliseconds, including the decoding of media.
    pub first_token_ms: Statistics,
    /// Generated tokens per second of decoding, if there is a step.
    pub tokens_per_second: Option<Statistics>,
    /// Stages and their modules. Parents precede their children.
    pub modules: Vec<ModuleCost>,
    /// Tokens of the last run.
    pub tokens: TokenCounts,
    /// Heap use of the last run at the boundaries of its stages and their direct modules.
    pub memory: Vec<MemorySample>,
    /// Peak resident memory of the process so far, including mapped weights.
    pub peak_resident_bytes: Option<u64>,
    /// Energy of the median run in joules, if the machine reports it.
    pub energy_joules: Option<f64>,
    /// Text of the last answer.
    pub answer: String,
    /// Reason for its end.
    pub finish_reason: FinishReason,
}

/// The first run after the model was loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ColdRun {
    /// Sum of the stages in milliseconds.
    pub total_ms: f64,
    /// The same time measured by one clock around the whole run.
    pub outside_ms: f64,
    /// Time to the first token in milliseconds.
    pub first_token_ms: f64,
    /// Stages with their time in milliseconds.
    pub stages: Vec<(String, f64)>,
}

/// Cost of a stage, or of a module within a stage, per run.
///
/// Times are of all calls of a run together; medians are those of the repeats. Counts are those of
/// the last run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModuleCost {
    /// Name of a stage (`vision`), or path of a module (`vision.blocks.7.mlp`).
    pub name: String,
    /// Enclosing stage; equal to `name` for a stage.
    pub stage: String,
    /// Index of the enclosing stage or module in [`ProfileRun::modules`]; `None` for a stage.
    pub parent: Option<usize>,
    /// Wall time in milliseconds.
    pub ms: Statistics,
    /// Median time outside of child modules, in milliseconds.
    pub own_ms: f64,
    /// Median time inside child modules, in milliseconds.
    pub child_ms: f64,
    /// Median part of the time that other stages hid, as they ran at the same time.
    pub hidden_ms: f64,
    /// Calls per run.
    pub calls: usize,
    /// Peak heap use above [`held_bytes`](Self::held_bytes).
    pub peak_bytes: u64,
    /// Heap use at the begin of the call with that peak.
    pub held_bytes: u64,
    /// Bytes of the weights that the module reads.
    pub weight_bytes: u64,
    /// Bytes of these weights in memory after the runs, if they are mapped and the system tells.
    pub weight_resident_bytes: Option<u64>,
    /// Tokens (of an encoder: patches or frames) that the module processes.
    pub tokens: u64,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Bytes moved: weights, activations, keys and values.
    pub bytes: u64,
    /// GPU kernels launched.
    pub launches: usize,
    /// Achieved 10^9 operations per second, two per multiply-accumulate.
    pub gflops: Option<f64>,
    /// Achieved 10^9 bytes per second.
    pub gbs: Option<f64>,
    /// The peak that limits the module.
    pub bound: Bound,
    /// Shortest possible time by the roofline divided by the measured time.
    pub roof_share: Option<f64>,
    /// Median time in milliseconds that threads wait within parallel calls, summed over threads.
    pub wait_ms: f64,
    /// Median energy in joules; stages only.
    pub energy_joules: Option<f64>,
}

/// The peak of the machine that limits a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Memory bandwidth.
    Memory,
    /// Arithmetic throughput.
    Compute,
    /// Neither: the module does no counted work, reaches little of both peaks, or no peaks are
    /// known.
    Neither,
}

/// Tokens of a run and what was saved of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TokenCounts {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Prompt tokens that were not computed again.
    pub reused: usize,
    /// Prompt tokens that were computed.
    pub computed: usize,
    /// Generated tokens.
    pub generated: usize,
    /// Tokens of the media before reductions.
    pub visual_before: usize,
    /// Tokens of the media after reductions.
    pub visual: usize,
    /// Tokens that each method of reduction left.
    pub reductions: Vec<ReducedTokens>,
    /// Frames of sound and video with content, at the input of the encoders.
    pub useful_frames: usize,
    /// Frames of padding that the encoders process, too.
    pub padded_frames: usize,
    /// Media whose encoder output was reused.
    pub encoder_hits: usize,
    /// Media that were encoded.
    pub encoder_misses: usize,
}

/// Tokens that a method of reduction left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReducedTokens {
    /// Name of the method.
    pub method: String,
    /// Stage in which it runs.
    pub stage: String,
    /// Tokens left.
    pub tokens: usize,
}

/// Heap use at a time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MemorySample {
    /// Milliseconds from the start of the run.
    pub ms: f64,
    /// Heap bytes in use.
    pub bytes: u64,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::device::Device;

    fn one(value: f64) -> Statistics {
        Statistics::of(&[value]).expect("a finite value")
    }

    /// A module of stage `vision`.
    pub(crate) fn cost(name: &str, parent: Option<usize>, ms: f64, own_ms: f64) -> ModuleCost {
        ModuleCost {
            name: name.to_owned(),
            stage: "vision".to_owned(),
            parent,
            ms: one(ms),
            own_ms,
            child_ms: ms - own_ms,
            hidden_ms: 0.0,
            calls: 1,
            peak_bytes: 2048,
            held_bytes: 4096,
            weight_bytes: 512,
            weight_resident_bytes: Some(512),
            tokens: 16,
            macs: 8192,
            bytes: 4096,
            launches: 0,
            gflops: Some(1.5),
            gbs: Some(0.5),
            bound: Bound::Compute,
            roof_share: Some(0.5),
            wait_ms: 0.25,
            energy_joules: None,
        }
    }

    /// A report with one run of one stage and one module.
    pub(crate) fn example() -> ProfileReport {
        ProfileReport {
            format: FORMAT.to_owned(),
            version: VERSION,
            environment: Environment::before(Device::Cpu, None),
            roofline: Some(Roofline {
                bytes_per_second: 1e10,
                peaks: vec![Peak {
                    format: "q4".to_owned(),
                    macs_per_second: Some(1e11),
                }],
            }),
            energy_source: None,
            load: Vec::new(),
            runs: vec![ProfileRun {
                parameters: Parameters {
                    turn: 1,
                    image_size: Some(224),
                    ..Parameters::default()
                },
                warmup: 0,
                cold: None,
                total_ms: one(10.0),
                outside_ms: one(10.1),
                first_token_ms: one(10.0),
                tokens_per_second: None,
                modules: vec![
                    cost("vision", None, 10.0, 2.0),
                    cost("vision.blocks.0.mlp", Some(0), 8.0, 8.0),
                ],
                tokens: TokenCounts::default(),
                memory: vec![MemorySample {
                    ms: 0.0,
                    bytes: 4096,
                }],
                peak_resident_bytes: None,
                energy_joules: None,
                answer: String::new(),
                finish_reason: FinishReason::Length,
            }],
        }
    }

    #[test]
    fn json_round_trip() {
        let report = example();
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(ProfileReport::parse(&json).unwrap(), report);
    }

    #[test]
    fn other_files_are_refused() {
        let error = |text: &str| ProfileReport::parse(text).unwrap_err().to_string();
        assert!(error("{").contains("invalid profile"), "{}", error("{"));
        assert!(error("{}").contains("`format`"), "{}", error("{}"));
        let newer = r#"{"format": "edge-lmm profile", "version": 2}"#;
        assert!(error(newer).contains("version 2"), "{}", error(newer));
        let empty = r#"{"format": "edge-lmm profile", "version": 1}"#;
        assert!(error(empty).contains("environment"), "{}", error(empty));
    }
}
