//! Conversion of sample rates.

use edge_lmm_models::preprocess::PreprocessError;
use edge_lmm_models::preprocess::sample_rate::resample;
use proptest::prelude::*;

/// Seconds of the test tones.
const SECONDS: f64 = 0.2;

fn tone(frequency: f64, rate: u32) -> Vec<f32> {
    let step = frequency * std::f64::consts::TAU / f64::from(rate);
    let len = (f64::from(rate) * SECONDS) as u32;
    (0..len)
        .map(|i| (f64::from(i) * step).sin() as f32)
        .collect()
}

/// The middle half, which knows nothing of the sound's ends.
fn middle(samples: &[f32]) -> &[f32] {
    &samples[samples.len() / 4..samples.len() * 3 / 4]
}

/// The filter keeps what is below 85 % of the lower band, but for the ripple of its window:
/// 90 dB are 3e-5 of the amplitude.
#[test]
fn tones_within_the_band_are_kept() {
    for (from, to) in [
        (44_100, 16_000),
        (48_000, 16_000),
        (8_000, 16_000),
        (22_050, 16_000),
        (16_000, 44_100),
        (12_345, 16_001),
    ] {
        let band = f64::from(from.min(to)) / 2.0;
        for share in [0.01, 0.3, 0.8] {
            let found = resample(&tone(band * share, from), from, to).expect("a sound");
            let expected = tone(band * share, to);
            assert!(found.len().abs_diff(expected.len()) <= 1);
            let pairs = middle(&found[..expected.len().min(found.len())]).iter();
            let worst = pairs
                .zip(middle(&expected[..expected.len().min(found.len())]))
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(
                worst < 1e-4,
                "{from} to {to}, {share} of the band: {worst:e}"
            );
        }
    }
}

/// Above the lower band, 90 dB are taken away: 3e-5 of the amplitude is left.
#[test]
fn tones_beyond_the_band_are_removed() {
    for (from, to) in [(44_100, 16_000), (48_000, 16_000), (44_100, 8_000)] {
        for share in [1.05, 1.5, 2.2] {
            let frequency = f64::from(to) / 2.0 * share;
            let found = resample(&tone(frequency, from), from, to).expect("a sound");
            let loudest = middle(&found)
                .iter()
                .fold(0.0, |loudest: f32, v| loudest.max(v.abs()));
            assert!(
                loudest < 1e-4,
                "{from} to {to}, {share} of the band: {loudest:e}"
            );
        }
    }
}

#[test]
fn equal_rates_change_nothing() {
    let sound = tone(440.0, 16_000);
    assert_eq!(resample(&sound, 16_000, 16_000).expect("a sound"), sound);
}

#[test]
fn impossible_conversions_are_refused() {
    for (from, to) in [(0, 16_000), (16_000, 0), (u32::MAX, 16_000)] {
        let error = resample(&[0.5], from, to).unwrap_err();
        assert!(
            matches!(error, PreprocessError::SampleRate { .. }),
            "{error}"
        );
    }
    assert_eq!(
        resample(&[], 8_000, 16_000),
        Err(PreprocessError::NoSamples)
    );
    assert!(resample(&[f32::INFINITY], 8_000, 16_000).is_err());
    let error = resample(&vec![0.0; 100_000], 1, 16_000).unwrap_err();
    assert!(matches!(error, PreprocessError::TooLong { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lengths_follow_the_rates(len in 1..200usize, from in 1..200_000u32, to in 1..50_000u32) {
        let resampled = resample(&vec![0.25; len], from, to).unwrap();
        let exact = (len as u128 * u128::from(to)).div_ceil(u128::from(from));
        prop_assert_eq!(resampled.len() as u128, exact);
        prop_assert!(resampled.iter().all(|v| v.is_finite()));
    }
}
