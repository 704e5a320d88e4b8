//! Comparison of every stage of a model with the values of the reference implementation.

use std::collections::BTreeMap;
use std::path::Path;

use super::{F32, Golden, ask, engine, goldens, relative};
use edge_lmm::{Request, Session};
use edge_lmm_models::media::MediaOptions;
use edge_lmm_ops::KernelBackend;
use edge_lmm_ops::probe::{self, Captured};

/// Promised tolerance for f32 records: norm of the difference over the norm.
const STAGE_TOLERANCE: f64 = 1e-3;
/// Promised absolute tolerance for preprocessing; values are of the order of 1.
const PIXEL_TOLERANCE: f32 = 1e-3;

/// Golden values that are not captured stages.
const NOT_CAPTURED: [&str; 5] = [
    "greedy16",
    "logits_argmax_all",
    "mel_bin_mean_valid",
    "mel_head64",
    "window_index",
];

/// Checks every captured stage of an answer against the golden values.
pub fn check_sample<B: KernelBackend>(
    engine: &mut Session<B>,
    golden: &Golden,
    options: &MediaOptions,
) -> BTreeMap<String, Captured> {
    let name = &golden.name;
    let messages = ask(&golden.media, &golden.question);
    let request = Request {
        media: &golden.media,
        options: options.clone(),
        max_tokens: golden.greedy.len(),
        ignore_eos: true,
        sampling: Default::default(),
        ..Request::new(&messages)
    };
    engine.forget();
    probe::start();
    let answer = engine
        .answer(&request, |_| std::ops::ControlFlow::Continue(()))
        .expect(name);
    let found = probe::finish();
    for (key, (shape, expected)) in &golden.tensors {
        let stage = key.trim_end_matches("_head");
        let Some(captured) = found.get(stage) else {
            assert!(
                NOT_CAPTURED.contains(&&**key),
                "{name}: {key} is not captured"
            );
            continue;
        };
        match stage {
            "input_ids" => check_ids(name, &captured.values, expected),
            "position_ids" | "rope_delta" | "grid_thw" => {
                assert_eq!(&captured.values, expected, "{name}: {key}");
            }
            "pixel_values" | "input_features" => {
                // A golden may contain only the first values, or end in crops of zeros.
                let own = captured.values.len().min(expected.len());
                let missing = expected[own..].iter().any(|&value| value != 0.0);
                assert!(own > 0 && !missing, "{name}: {key} has {own} values");
                let worst = (captured.values.iter().zip(expected))
                    .map(|(f, e)| (f - e).abs())
                    .fold(0.0, f32::max);
                assert!(worst <= PIXEL_TOLERANCE, "{name}: {key} differs by {worst}");
            }
            _ => {
                let last: usize = shape.iter().skip(1).product();
                let own: usize = captured.shape.iter().skip(1).product();
                assert_eq!(own, last, "{name}: width of {key}");
                // Decoding steps are captured after the prompt, so the prompt's values come first.
                let error = relative(&captured.values[..expected.len()], expected);
                println!("{name}: {key} {error:.1e}");
                assert!(error <= STAGE_TOLERANCE, "{name}: {key} differs by {error}");
            }
        }
    }
    assert_eq!(answer.tokens, golden.greedy, "{name}");
    found
}

/// Checks that ids are equal. The reference marks visual tokens by negative ids; any id matches
/// them.
fn check_ids(name: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{name}: tokens");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let same = *expected < 0.0 || found == expected;
        assert!(same, "{name}: token {at} is {found}, expected {expected}");
    }
}

/// Checks all samples and that there are `expected` of them.
pub fn check_family(checkpoint: &Path, mmproj: Option<&Path>, folder: &Path, expected: usize) {
    let mut engine = engine(checkpoint, mmproj, &F32);
    let goldens = goldens(folder);
    assert_eq!(goldens.len(), expected);
    for golden in &goldens {
        check_sample(&mut engine, golden, &MediaOptions::default());
    }
}
