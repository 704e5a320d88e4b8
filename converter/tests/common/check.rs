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
const NO_STAGES: [&str; 6] = [
    "greedy16",
    "logits_argmax_all",
    "logits_last",
    "spatial_shapes",
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
            "pixel_values" | "input_features" => {
                let own = captured(&found, stage);
                let own = match golden.tensors.get("spatial_shapes") {
                    Some((_, shapes)) => in_raster(own, [shapes[0], shapes[1]]),
                    None => own.values.clone(),
                };
                (beginning(&own, &value.1), pixel_tolerance)
            }
            "mel_head64" | "mel_bin_mean_valid" => {
                let own = found.iter();
                let own = own.filter(|(key, _)| key.starts_with("input_features"));
                let features: Vec<&Captured> = own.map(|(_, features)| features).collect();
                (mel(stage, &features, golden, &value.1), pixel_tolerance)
            }
            "delta_state_16" => {
                let states = &captured(&found, "delta_state").values;
                let last = &states[states.len() - value.1.len()..];
                (relative(last, &value.1), stage_tolerance)
            }
            "delta_conv_state" => {
                let expected = last_inputs(&value.1, value.0[1]);
                let own = &captured(&found, stage).values[..expected.len()];
                (relative(own, &expected), stage_tolerance)
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

/// Returns the patches of the first image, of `rows` x `columns` patches in squares of 2x2, in raster
/// order.
fn in_raster(found: &Captured, [rows, columns]: [f32; 2]) -> Vec<f32> {
    let (rows, columns, width) = (rows as usize, columns as usize, found.shape[1]);
    let patch = |(row, column): (usize, usize)| {
        let square = row / 2 * (columns / 2) + column / 2;
        let index = 4 * square + row % 2 * 2 + column % 2;
        &found.values[index * width..][..width]
    };
    let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    places.flat_map(patch).copied().collect()
}

/// Returns token by token the inputs of a convolution, of which the reference keeps one more than the
/// next token needs, channel by channel.
fn last_inputs(channels: &[f32], taps: usize) -> Vec<f32> {
    let input = |tap: usize| channels.iter().skip(tap).step_by(taps);
    (1..taps).flat_map(input).copied().collect()
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

/// Returns the largest difference of spectrograms: the goldens of a trained checkpoint hold the first
/// frames of the first sound, or for each sound the means of the bins over its frames.
fn mel(stage: &str, features: &[&Captured], golden: &Golden, expected: &[f32]) -> f64 {
    let spectrogram = |features: &&Captured| {
        let (bins, frames) = (features.shape[1], features.shape[2]);
        let sounds = features.values.chunks(bins * frames);
        let sounds = sounds.map(|sound| (sound.to_vec(), frames));
        sounds.collect::<Vec<_>>()
    };
    let spectrograms: Vec<(Vec<f32>, usize)> = features.iter().flat_map(spectrogram).collect();
    if stage == "mel_head64" {
        // A sound may be shorter.
        let (values, frames) = &spectrograms[0];
        let width = 64.min(*frames);
        let found = values.chunks(*frames).flat_map(|row| &row[..width]);
        let expected = expected.chunks(64).flat_map(|row| &row[..width]);
        assert_eq!(values.len() / frames * width, expected.clone().count());
        return largest_difference(found.zip(expected));
    }
    let samples = golden
        .media
        .iter()
        .filter_map(|medium| match medium.data() {
            MediaData::Audio { samples, .. } => Some(samples.len().div_ceil(160)),
            _ => None,
        });
    let sounds = spectrograms.iter().zip(samples);
    let means = sounds.flat_map(|((values, frames), valid)| {
        let mean = move |row: &[f32]| row[..valid].iter().sum::<f32>() / valid as f32;
        values.chunks(*frames).map(mean)
    });
    let found: Vec<f32> = means.collect();
    assert_eq!(found.len(), expected.len());
    largest_difference(found.iter().zip(expected))
}
