//! Beeps.

use std::f32::consts::TAU;

use edge_lmm::MediaKind;
use edge_lmm::media::Audio;
use rand::Rng;

use super::{Generated, NUMBERS, Task};
use crate::cmd::data::soundtrack::wav;

/// Samples per second.
const RATE: u32 = 16_000;

/// Seconds over which a beep fades in and out.
const FADE: f32 = 0.01;

/// Amplitude of the noise behind the beeps.
const NOISE: f32 = 0.012;

/// Generates one to four beeps, all low or all high.
pub fn generate(task: Task, random: &mut impl Rng) -> Generated {
    let beeps = random.random_range(1..=4);
    let is_high: bool = random.random();
    let frequency = if is_high {
        random.random_range(2000.0..3000.0)
    } else {
        random.random_range(300.0..550.0)
    };
    let amplitude = random.random_range(0.4..0.75);
    let mut samples = Vec::new();
    silence(&mut samples, random.random_range(0.05..0.15));
    for _ in 0..beeps {
        let seconds = random.random_range(0.11..0.2);
        beep(&mut samples, seconds, frequency, amplitude);
        silence(&mut samples, random.random_range(0.15..0.25));
    }
    for sample in &mut samples {
        *sample += random.random_range(-NOISE..NOISE);
    }
    let audio = Audio {
        samples,
        sample_rate: RATE,
    };
    let (question, answer) = match (task, is_high) {
        (Task::AudioPitch, true) => ("is the sound high or low?", "high"),
        (Task::AudioPitch, false) => ("is the sound high or low?", "low"),
        _ => ("how many beeps do you hear?", NUMBERS[beeps]),
    };
    Generated {
        question: question.to_owned(),
        answer: answer.to_owned(),
        kind: MediaKind::Audio,
        extension: "wav",
        content: wav(&audio),
    }
}

fn silence(samples: &mut Vec<f32>, seconds: f32) {
    let count = (seconds * RATE as f32) as usize;
    samples.resize(samples.len() + count, 0.0);
}

fn beep(samples: &mut Vec<f32>, seconds: f32, frequency: f32, amplitude: f32) {
    let count = (seconds * RATE as f32) as usize;
    samples.extend((0..count).map(|i| {
        let time = i as f32 / RATE as f32;
        let fade = (time.min(seconds - time) / FADE).clamp(0.0, 1.0);
        amplitude * fade * (TAU * frequency * time).sin()
    }));
}
