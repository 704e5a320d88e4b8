//! Comparison of every stage of a model with the values of the reference implementation.

use std::collections::BTreeMap;

use super::manifest::Manifest;
use super::{Golden, relative};
use edge_lmm::media::MediaData;
use edge_lmm::{Request, Session};
use edge_lmm_models::media::MediaOptions;
use edge_lmm_ops::KernelBackend;
use edge_lmm_ops::probe::{self, Captured};

/// Golden values that are not captured stages.
const NO_STAGES: [&str; 5] = [
    "greedy16",
    "logits_argmax_all",
    "logits_last",
    "token_type_ids",
    "window_index",
];

/// The error of one stage of a sample.
#[derive(Debug, Clone)]
pub struct Compared {
    pub stage: String,
    pub error: f64,
}

/// Checks the answer to a sample; returns the captured stages.
pub fn answer_sample<B: KernelBackend>(
    engine: &mut Session<B>,
    golden: &Golden,
    options: &MediaOptions,
) -> BTreeMap<String, Captured> {
    let messages = golden.messages();
    let request = Request {
        media: &golden.media,
        options: MediaOptions {
            pan_and_scan: golden.pan_and_scan,
            ..options.clone()
        },
        max_tokens: golden.greedy.len(),
        ignore_eos: true,
        sampling: Default::default(),
        ..Request::new(&messages)
    };
    engine.forget();
    probe::start();
    let answer = engine
        .answer(&request, |_| std::ops::ControlFlow::Continue(()))
        .expect(&golden.name);
    let found = probe::finish();
    assert_eq!(answer.tokens, golden.greedy, "{}", golden.name);
    found
}

/// Checks the answer to a sample and all of its stages; returns the captured stages and their errors.
pub fn check_sample<B: KernelBackend>(
    engine: &mut Session<B>,
    manifest: &Manifest,
    golden: &Golden,
    options: &MediaOptions,
) -> (BTreeMap<String, Captured>, Vec<Compared>) {
    let found = answer_sample(engine, golden, options);
    let name = &golden.name;
    let (stage_tolerance, pixel_tolerance) = (
        manifest.tolerance("stage").expect("a tolerance"),
        manifest.tolerance("pixels").expect("a tolerance"),
    );
    let mut compared = Vec::new();
    for (key, value) in &golden.tensors {
        let stage = match manifest.stages.iter().any(|stage| stage == key) {
            true => key.as_str(),
            false => key.trim_end_matches("_head"),
        };
        if NO_STAGES.contains(&stage) || stage.ends_with("_rows") {
            continue;
        }
        assert!(
            manifest.stages.iter().any(|own| own == stage),
            "{name}: {key} is not among the stages of the manifest"
        );
        let (error, tolerance) = match stage {
            "input_ids" => (
                different_ids(&captured(&found, stage).values, &value.1),
                0.0,
            ),
            "position_ids" | "rope_delta" | "grid_thw" => {
                (different(&captured(&found, stage).values, &value.1), 0.0)
            }
            "pixel_values" | "input_features" => (
                beginning(&captured(&found, stage).values, &value.1),
                pixel_tolerance,
            ),
            "mel_head64" | "mel_bin_mean_valid" => {
                let features = captured(&found, "input_features");
                (mel(stage, features, golden, &value.1), pixel_tolerance)
            }
            _ => {
                let own = captured(&found, stage);
                let width = |shape: &[usize]| shape.iter().skip(1).product::<usize>();
                assert_eq!(width(&own.shape), width(&value.0), "{name}: width of {key}");
                let own = match golden.tensors.get(&format!("{stage}_rows")) {
                    Some((_, rows)) => rows_of(own, rows),
                    // Decoding steps are captured after the prompt, so the prompt's values come
                    // first.
                    None => own.values[..value.1.len()].to_vec(),
                };
                (relative(&own, &value.1), stage_tolerance)
            }
        };
        println!("{name}: {key} {error:.1e}");
        assert!(error <= tolerance, "{name}: {key} differs by {error}");
        compared.push(Compared {
            stage: stage.to_owned(),
            error,
        });
    }
    (found, compared)
}

/// Returns some rows of a stage.
fn rows_of(found: &Captured, rows: &[f32]) -> Vec<f32> {
    let width = found.shape.iter().skip(1).product::<usize>();
    let row = |&row: &f32| &found.values[row as usize * width..][..width];
    rows.iter().flat_map(row).copied().collect()
}

fn captured<'a>(found: &'a BTreeMap<String, Captured>, stage: &str) -> &'a Captured {
    found
        .get(stage)
        .unwrap_or_else(|| panic!("{stage} is not captured"))
}

/// Returns the number of values that differ.
fn different(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).filter(|(f, e)| f != e).count() as f64
}

/// Returns the number of ids that differ. The reference marks visual tokens by negative ids; any id
/// matches them.
fn different_ids(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "tokens");
    let same = |(f, e): (&f32, &f32)| *e < 0.0 || f == e;
    found
        .iter()
        .zip(expected)
        .filter(|&pair| !same(pair))
        .count() as f64
}

/// Returns the largest difference of preprocessed values. A golden may contain only the first values,
/// or end in crops of zeros.
fn beginning(found: &[f32], expected: &[f32]) -> f64 {
    let own = found.len().min(expected.len());
    let missing = expected[own..].iter().any(|&value| value != 0.0);
    assert!(own > 0 && !missing, "{own} values");
    largest_difference(found.iter().zip(expected))
}

fn largest_difference<'a>(pairs: impl Iterator<Item = (&'a f32, &'a f32)>) -> f64 {
    pairs
        .map(|(f, e)| f64::from((f - e).abs()))
        .fold(0.0, f64::max)
}

/// Returns the largest difference of a spectrogram: the goldens of a trained checkpoint hold the
/// first frames, or the means of the bins over the frames of the sound.
fn mel(stage: &str, features: &Captured, golden: &Golden, expected: &[f32]) -> f64 {
    let rows = features.values.chunks(features.shape[2]);
    let bins = features.shape[1];
    let found: Vec<f32> = match stage {
        "mel_head64" => rows.flat_map(|row| row[..64].to_vec()).collect(),
        _ => {
            let [sound] = &golden.media[..] else {
                panic!("{} is not one sound", golden.name);
            };
            let MediaData::Audio { samples, .. } = sound.data() else {
                panic!("{} is not a sound", golden.name);
            };
            let valid = samples.len().div_ceil(160);
            rows.map(|row| row[..valid].iter().sum::<f32>() / valid as f32)
                .collect()
        }
    };
    assert_eq!((found.len() % bins, found.len()), (0, expected.len()));
    largest_difference(found.iter().zip(expected))
}
