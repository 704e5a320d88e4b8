//! Log-mel spectrograms.

use edge_lmm_models::preprocess::PreprocessError;
use edge_lmm_models::preprocess::mel::{MelConfig, Padding};
use proptest::prelude::*;
use serde_json::json;

use crate::fixtures::{self, floats, noise, rows, sizes};

/// The reference transforms in 32 bits: amplitudes are off by about 1e-7 of the loudest one. At
/// the floor, where they are 1e-4 of it, that is a share of 1e-3, which makes
/// 2 * 1e-3 / ln(10) / 4 = 2.2e-4 of a value.
const TOLERANCE: f32 = 2.2e-4;

#[test]
fn equals_the_goldens() {
    let file = fixtures::json("qwen2audio-tiny/preprocessor_config.json");
    let config = MelConfig::parse(Some(&file)).expect("configuration");
    for (sample, tensors) in fixtures::goldens("qwen2audio-tiny") {
        let samples = pcm16(&format!(
            "goldens/qwen2audio-tiny/{}",
            sample["media"][0].as_str().expect("a name")
        ));
        let mel = config.features(&samples, Padding::Chunk).expect("features");
        assert_eq!((mel.bins, mel.frames), (128, 3000));
        assert_eq!(sample["mel_valid_frames"], mel.valid_frames);
        for (bin, row) in mel.values.chunks_exact(mel.frames).enumerate() {
            let expected = &tensors["mel_head64"][bin * 64..(bin + 1) * 64];
            for (found, expected) in row.iter().zip(expected) {
                assert!(
                    (found - expected).abs() <= TOLERANCE,
                    "{found} and {expected}"
                );
            }
            let valid = &row[..mel.valid_frames];
            let mean = valid.iter().sum::<f32>() / valid.len() as f32;
            let expected = tensors["mel_bin_mean_valid"][bin];
            assert!(
                (mean - expected).abs() <= TOLERANCE,
                "{mean} and {expected}"
            );
        }
        let sum: f64 = mel.values.iter().copied().map(f64::from).sum();
        let expected = sample["pixel_values"]["sum"].as_f64().expect("a sum");
        let tolerated = f64::from(TOLERANCE) * mel.values.len() as f64;
        assert!((sum - expected).abs() <= tolerated, "{sum} and {expected}");
    }
}

/// Samples of a plain 16-bit WAV file with a header of 44 bytes.
fn pcm16(name: &str) -> Vec<f32> {
    let bytes = std::fs::read(fixtures::path(name)).expect(name);
    assert_eq!(
        (&bytes[..4], &bytes[36..40]),
        (&b"RIFF"[..], &b"data"[..]),
        "{name}"
    );
    let samples = bytes[44..].chunks_exact(2);
    samples
        .map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32_768.0)
        .collect()
}

/// The sound that `make_fixtures.py` makes of a seed.
fn sound(seed: usize, len: usize) -> Vec<f32> {
    let noise = noise(seed, len, 1);
    let step = 0.05 + 0.1 * seed as f64;
    let sample = |(i, &byte): (usize, &u8)| {
        let tone = (i as f64 * step).sin() / 2.0;
        (f32::from(byte) - 128.0) / 512.0 + tone as f32
    };
    noise.pixels()[..len]
        .iter()
        .enumerate()
        .map(sample)
        .collect()
}

#[test]
fn equals_the_reference() {
    for (seed, row) in rows("mel").iter().enumerate() {
        let [bins, len, valid] = [&row["bins"], &row["samples"], &row["valid"]]
            .map(|n| n.as_u64().expect("a number") as usize);
        let config = MelConfig::parse(Some(&json!({"feature_size": bins}))).expect("configuration");
        let mel = config
            .features(&sound(seed, len), Padding::Chunk)
            .expect("features");
        assert_eq!(
            (mel.bins, mel.frames, mel.valid_frames),
            (bins, 3000, valid)
        );
        for (frame, expected) in row["frames"].as_object().expect("frames") {
            let frame: usize = frame.parse().expect("a number");
            for (bin, expected) in floats(expected).iter().enumerate() {
                let found = mel.values[bin * mel.frames + frame];
                assert!(
                    (found - expected).abs() <= TOLERANCE,
                    "bin {bin} of frame {frame}, {len} samples: {found} and {expected}"
                );
            }
        }
    }
}

#[test]
fn unpadded_frames_are_those_of_the_padded_sound() {
    let config = MelConfig::default();
    for len in [1, 159, 160, 161, 5000] {
        let sound = sound(2, len);
        let padded = config.features(&sound, Padding::Chunk).expect("features");
        let mel = config.features(&sound, Padding::None).expect("features");
        assert_eq!(
            (mel.frames, mel.valid_frames),
            (len.div_ceil(160), len.div_ceil(160))
        );
        assert_eq!(padded.valid_frames, mel.frames);
        for (row, whole) in mel
            .values
            .chunks_exact(mel.frames)
            .zip(padded.values.chunks_exact(padded.frames))
        {
            assert_eq!(row, &whole[..mel.frames], "{len} samples");
        }
    }
}

#[test]
fn a_tone_is_loudest_in_its_bin() {
    // 1000 Hz are 15 mel of 45.2 (8000 Hz); bin i of 80 is centered at (i + 1) / 81 of the range.
    let tone: Vec<f32> = (0..16_000)
        .map(|i| (f64::from(i) * std::f64::consts::TAU / 16.0).sin() as f32)
        .collect();
    let mel = MelConfig::default()
        .features(&tone, Padding::None)
        .expect("features");
    let loudness = |bin: usize| mel.values[bin * mel.frames + 50];
    let loudest = (0..80).max_by(|&a, &b| loudness(a).total_cmp(&loudness(b)));
    assert_eq!(
        loudest,
        Some((15.0 / 45.2453 * 81.0f64).round() as usize - 1)
    );
}

#[test]
fn silence_is_even() {
    let mel = MelConfig::default()
        .features(&[0.0; 800], Padding::Chunk)
        .expect("features");
    // The floor of 1e-10, which is also the loudest value.
    assert!(mel.values.iter().all(|&v| v == -1.5), "{}", mel.values[0]);
}

#[test]
fn sounds_that_are_none_are_refused() {
    let config = MelConfig::default();
    assert_eq!(
        config.features(&[], Padding::None),
        Err(PreprocessError::NoSamples)
    );
    let error = config
        .features(&[0.0, f32::NAN], Padding::None)
        .unwrap_err();
    assert!(
        matches!(error, PreprocessError::Sample { index: 1, .. }),
        "{error}"
    );
}

#[test]
fn unusable_configurations_are_refused() {
    for (file, word) in [
        (json!({"feature_size": 0}), "feature_size"),
        (json!({"hop_length": 0}), "hop_length"),
        (json!({"n_fft": 1}), "every"),
        (json!({"n_fft": 60_000, "sampling_rate": 1000}), "every"),
        (json!({"chunk_length": 1_000_000}), "chunk_length"),
        (json!({"dither": 0.1}), "dither"),
        (json!({"sampling_rate": -1}), "-1"),
        (json!([[]]), "[[]]"),
        (json!({"padding_side": "left"}), "padding_side"),
        (json!({"padding_value": 1.0}), "padding_value"),
        (
            json!({"feature_extractor_type": "Wav2Vec2FeatureExtractor"}),
            "Wav2Vec2",
        ),
    ] {
        let error = MelConfig::parse(Some(&file)).expect_err(word).to_string();
        assert!(error.contains(word), "{error} does not name {word}");
    }
    let whole: [usize; 3] = sizes(&json!([480_000, 3000, 480_000]));
    let config = MelConfig::default();
    assert_eq!(
        [
            config.chunk_samples(),
            config.frames(),
            config.frames() * 160
        ],
        whole
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_finite_sound_has_finite_features(
        samples in prop::collection::vec(prop::num::f32::NORMAL | prop::num::f32::ZERO, 1..900),
        n_fft in 2..500usize,
        hop in 1..400usize,
    ) {
        let config = json!({"n_fft": n_fft, "hop_length": hop, "chunk_length": 1, "sampling_rate": 1000});
        let config = MelConfig::parse(Some(&config)).unwrap();
        for padding in [Padding::None, Padding::Chunk] {
            let mel = config.features(&samples, padding).unwrap();
            prop_assert_eq!(mel.values.len(), mel.bins * mel.frames);
            prop_assert!(mel.values.iter().all(|v| v.is_finite()));
        }
    }
}
