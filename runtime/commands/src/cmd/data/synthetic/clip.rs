//! Clips in which one shape follows another.

use std::time::Duration;

use edge_lmm::MediaKind;
use image::codecs::gif::GifEncoder;
use image::{Delay, DynamicImage, Frame};
use rand::Rng;

use super::Generated;
use super::image::render;
use super::shapes::Scene;

/// Frames of each shape.
const FRAMES: usize = 2;

/// Duration of a frame.
const FRAME: Duration = Duration::from_millis(500);

/// Generates a clip of two seconds.
///
/// # Errors
/// If it cannot be encoded.
pub fn generate(random: &mut impl Rng) -> anyhow::Result<Generated> {
    let both = Scene::with_figures(2, random);
    let mut content = Vec::new();
    let mut encoder = GifEncoder::new(&mut content);
    for figure in &both.figures {
        let scene = Scene {
            background: both.background,
            figures: vec![*figure],
        };
        let pixels = DynamicImage::from(render(&scene)).into_rgba8();
        for _ in 0..FRAMES {
            let delay = Delay::from_saturating_duration(FRAME);
            encoder.encode_frame(Frame::from_parts(pixels.clone(), 0, 0, delay))?;
        }
    }
    drop(encoder);
    let (which, index) = if random.random() {
        ("first", 0)
    } else {
        ("last", 1)
    };
    Ok(Generated {
        question: format!("which color appears {which}?"),
        answer: both.figures[index].color.name.to_owned(),
        kind: MediaKind::Video,
        extension: "gif",
        content,
    })
}
