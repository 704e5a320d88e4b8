//! Qwen2-Audio: media that it cannot process, and sounds of other sample rates.

use std::collections::BTreeMap;

use edge_lmm::{Media, Request, Session};

use crate::common::{F32, ask, data, engine};

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
    let image = edge_lmm::media::load_image(&data().join("goldens/qwen25vl-tiny/sample_0.png"));
    let error = answer(&mut engine, &[Media::image(image.expect("an image"))]);
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
