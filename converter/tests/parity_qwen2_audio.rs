//! Comparison of every stage of Qwen2-Audio with the reference implementation, with and without
//! padding.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::check::check_sample;
use common::{F32, Golden, ask, data, engine, goldens, relative};
use edge_lmm::media::MediaData;
use edge_lmm::{Media, Request, Session};
use edge_lmm_models::media::{AudioPadding, MediaOptions};
use edge_lmm_ops::probe::Captured;

/// Promised absolute tolerance of spectrograms.
const MEL_TOLERANCE: f32 = 1e-3;

/// Padding may only change the order of additions. An f32 has a relative error of 6e-8, a sum of a
/// few hundred products about ten times that, and there are about ten such sums in sequence.
const PADDING_TOLERANCE: f64 = 1e-5;

fn padding(audio_padding: AudioPadding) -> MediaOptions {
    MediaOptions {
        audio_padding,
        ..MediaOptions::default()
    }
}

/// Compares with the padded reference: the spectrogram only with padding, everything else both
/// ways.
fn check(checkpoint: &Path, folder: &Path, expected: usize) {
    let mut engine = engine(checkpoint, None, &F32);
    let goldens = goldens(folder);
    assert_eq!(goldens.len(), expected);
    for mut golden in goldens {
        let padded = check_sample(&mut engine, &golden, &padding(AudioPadding::Window));
        check_mel(&golden, &padded["input_features"]);
        golden.tensors.remove("input_features");
        let found = check_sample(&mut engine, &golden, &padding(AudioPadding::None));
        for stage in ["vision_out", "projector_out", "lm_hidden_last"] {
            let error = relative(&found[stage].values, &padded[stage].values);
            println!("{}: {stage} without padding {error:.1e}", golden.name);
            assert!(
                error <= PADDING_TOLERANCE,
                "{}: {stage} differs by {error}",
                golden.name
            );
        }
    }
}

/// Checks a spectrogram: the goldens of the trained checkpoint hold the first frames and the means
/// of the bins.
fn check_mel(golden: &Golden, features: &Captured) {
    let bins = features.shape[1];
    let rows: Vec<&[f32]> = features.values.chunks(features.shape[2]).collect();
    if let Some((shape, expected)) = golden.tensors.get("mel_head64") {
        assert_eq!(shape, &[bins, 64]);
        for (row, expected) in rows.iter().zip(expected.chunks(64)) {
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= MEL_TOLERANCE;
            assert!(row.iter().zip(expected).all(close), "{}", golden.name);
        }
    }
    if let Some((shape, expected)) = golden.tensors.get("mel_bin_mean_valid") {
        assert_eq!(shape, &[bins]);
        let [sound] = &golden.media[..] else {
            panic!("{} is not one sound", golden.name);
        };
        let MediaData::Audio { samples, .. } = sound.data() else {
            panic!("{} is not a sound", golden.name);
        };
        let valid = samples.len().div_ceil(160);
        for (row, expected) in rows.iter().zip(expected) {
            let mean = row[..valid].iter().sum::<f32>() / valid as f32;
            assert!((mean - expected).abs() <= MEL_TOLERANCE, "{}", golden.name);
        }
    }
}

#[test]
fn trained() {
    let folder = data().join("goldens/qwen2audio-tiny");
    check(&data().join("qwen2audio-tiny"), &folder, 8);
}

/// 80 bins and windows of two seconds; a very short clip, one that is truncated, two in one prompt,
/// stored positions that are not sinusoids.
#[test]
fn of_other_dimensions() {
    let folder = data().join("qwen2audio-odd");
    check(&folder, &folder.join("goldens"), 3);
}

fn answer(engine: &mut Session<edge_lmm::Cpu>, media: &[Media]) -> Result<String, String> {
    let messages = ask(media, "is the sound high or low?");
    let request = Request {
        media,
        max_tokens: 16,
        sampling: Default::default(),
        ..Request::new(&messages)
    };
    let answer = engine.answer(&request, |_| std::ops::ControlFlow::Continue(()));
    answer.map(|a| a.text).map_err(|error| error.to_string())
}

/// Media that the model cannot process give an error with the reason, and the model still works
/// afterwards.
#[test]
fn odd_media() {
    let mut engine = engine(&data().join("qwen2audio-tiny"), None, &F32);
    let sound = Media::audio;
    let refused: BTreeMap<&str, Media> = [
        ("no samples", sound(vec![], 16_000)),
        ("hears none of less than 321", sound(vec![0.1; 320], 16_000)),
        ("hears none of less than 883", sound(vec![0.1; 882], 44_100)),
        ("NaN", sound(vec![f32::NAN; 4000], 16_000)),
        ("samples per second", sound(vec![0.1; 4000], 0)),
    ]
    .into();
    for (expected, medium) in refused {
        let error = answer(&mut engine, &[medium]).expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }
    let picture = edge_lmm::media::load_image(&data().join("goldens/qwen25vl-tiny/sample_0.png"));
    let error = answer(&mut engine, &[Media::image(picture.expect("a picture"))]);
    assert!(error.unwrap_err().contains("takes no images"));
    // Silence, something far too loud and 40 seconds are sounds like any other.
    for samples in [vec![0.0; 16_000], vec![1e6; 16_000], vec![0.1; 640_000]] {
        answer(&mut engine, &[sound(samples, 16_000)]).expect("an answer");
    }
}

/// A tone resampled from another rate gives the same answer.
#[test]
fn other_rates_sound_alike() {
    let mut engine = engine(&data().join("qwen2audio-tiny"), None, &F32);
    let tone = |frequency: f32, rate: u32| {
        let step = 2.0 * std::f32::consts::PI * frequency / rate as f32;
        let samples = (0..rate / 2).map(|i| 0.5 * (i as f32 * step).sin());
        Media::audio(samples.collect(), rate)
    };
    for (frequency, expected) in [(300.0, "low"), (1800.0, "high")] {
        for rate in [16_000, 44_100, 8000, 48_000] {
            let found = answer(&mut engine, &[tone(frequency, rate)]).unwrap();
            assert_eq!(found, expected, "{frequency} Hz at {rate}");
        }
    }
}
