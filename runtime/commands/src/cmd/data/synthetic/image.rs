//! Images of scenes.

use std::io::Cursor;

use image::{ImageFormat, Rgb, RgbImage};

use super::shapes::{Figure, SIZE, Scene};

/// Points per pixel and axis, for smooth edges.
const POINTS: u32 = 4;

/// Returns a scene as a PNG file.
///
/// # Errors
/// If the image cannot be encoded.
pub fn png(scene: &Scene) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    render(scene).write_to(&mut bytes, ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

/// Draws a scene.
pub fn render(scene: &Scene) -> RgbImage {
    let mut image = RgbImage::from_pixel(SIZE, SIZE, Rgb(scene.background));
    for figure in &scene.figures {
        draw(&mut image, figure);
    }
    image
}

fn draw(image: &mut RgbImage, figure: &Figure) {
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        let cover = cover(figure, x, y);
        for (value, color) in pixel.0.iter_mut().zip(figure.color.rgb) {
            let mixed = f64::from(*value) * (1.0 - cover) + f64::from(color) * cover;
            *value = mixed.round() as u8;
        }
    }
}

/// Returns the share of a pixel that a shape covers.
fn cover(figure: &Figure, x: u32, y: u32) -> f64 {
    let point = |pixel: u32, point: u32, center: u32| {
        let offset = (f64::from(point) + 0.5) / f64::from(POINTS);
        (f64::from(pixel) + offset - f64::from(center)) / figure.radius
    };
    let inside = (0..POINTS * POINTS).filter(|i| {
        let (px, py) = (
            point(x, i % POINTS, figure.x),
            point(y, i / POINTS, figure.y),
        );
        figure.shape.contains(px, py)
    });
    inside.count() as f64 / f64::from(POINTS * POINTS)
}
