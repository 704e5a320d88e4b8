//! Synthetic media: noise, which costs the same as photographs of that size.

use edge_lmm_models::preprocess::{PreprocessError, RgbImage};
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::error::ExperimentError;

/// Width and height of an image or frame if nothing else is asked for.
pub const SIDE: usize = 336;
/// Largest width and height of an image.
pub const MOST_PIXELS: usize = 8192;
/// Most frames of a clip.
pub const MOST_FRAMES: usize = 512;
/// Length of a sound if nothing else is asked for.
pub const SECONDS: f64 = 5.0;
/// Samples per second of a sound.
pub const SAMPLE_RATE: u32 = 16_000;
/// Frames per second of a clip.
const FRAME_RATE: usize = 8;
/// Scenes of a clip.
const SCENES: usize = 3;

/// Returns an image of noise.
///
/// # Errors
/// If `side` is 0 or too large.
pub fn image(side: usize, seed: u64) -> Result<RgbImage, PreprocessError> {
    let mut pixels = vec![0; RgbImage::bytes(side, side)?];
    ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut pixels);
    RgbImage::new(side, side, pixels)
}

/// Returns an image of noise as a JPEG file.
///
/// # Errors
/// If `side` is 0 or too large for an image or its format.
pub fn jpeg(side: usize, seed: u64) -> Result<Vec<u8>, ExperimentError> {
    let image = image(side, seed)?;
    let side = side as u32;
    let mut bytes = Vec::new();
    JpegEncoder::new(&mut bytes)
        .encode(image.pixels(), side, side, ExtendedColorType::Rgb8)
        .map_err(|error| ExperimentError::Impossible(error.to_string()))?;
    Ok(bytes)
}

/// Returns a clip as a Y4M stream: still scenes of noise through which a bright square moves.
pub fn clip(frames: usize, side: usize, seed: u64) -> Vec<u8> {
    let mut bytes = format!("YUV4MPEG2 W{side} H{side} F{FRAME_RATE}:1 C444\n").into_bytes();
    let mut scene = vec![0; 3 * side * side];
    let square = (side / 8).max(1);
    for frame in 0..frames {
        let number = frame * SCENES / frames;
        if frame == 0 || number != (frame - 1) * SCENES / frames {
            let seed = seed.wrapping_add(number as u64 * 1000);
            ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut scene);
        }
        let mut planes = scene.clone();
        let left = (frame * square) % (side - square).max(1);
        for row in planes.chunks_mut(side).take(square) {
            row[left..left + square].fill(235);
        }
        bytes.extend_from_slice(b"FRAME\n");
        bytes.extend_from_slice(&planes);
    }
    bytes
}

/// Returns a sound of noise.
pub fn sound(seconds: f64, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let samples = (seconds * f64::from(SAMPLE_RATE)) as usize;
    (0..samples.max(1))
        .map(|_| random.random_range(-0.5..0.5))
        .collect()
}

/// Returns a text of `words` words.
pub fn text(words: usize) -> String {
    const WORDS: [&str; 8] = ["the", "shapes", "are", "red", "and", "blue", "or", "green"];
    let words = (0..words).map(|i| WORDS[i % WORDS.len()]);
    words.collect::<Vec<_>>().join(" ")
}
