//! Generated pictures, for calibration without files.
//!
//! A picture is a pile of shapes that cover each other, of which many are small and few are large
//! ("dead leaves": Lee, Mumford and Huang 2001, "Occlusion Models for Natural Images: A Statistical
//! Study of a Scale-Invariant Dead Leaves Model"). With areas of one color and edges at all scales,
//! such pictures resemble photographs in the statistics that filters of an encoder see.

use edge_lmm_models::preprocess::RgbImage;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Widths and heights, in turn.
const SIZES: [(usize, usize); 3] = [(448, 336), (384, 384), (336, 448)];
/// Smallest and largest radius of a shape, as a share of the height.
const RADII: (f32, f32) = (0.02, 0.5);
/// Fewest and most shapes.
const SHAPES: (f32, f32) = (8.0, 160.0);
/// Largest change of a channel by noise.
const NOISE: f32 = 6.0;

/// Returns the picture of a number, always the same.
pub(super) fn picture(number: u64) -> RgbImage {
    let mut random = Random {
        seed: number,
        drawn: 0,
    };
    let (width, height) = SIZES[number as usize % SIZES.len()];
    let size = (width as f32, height as f32);
    let count = SHAPES.0 * (SHAPES.1 / SHAPES.0).powf(random.next());
    // The first shapes cover the later ones; the last one is the ground.
    let mut shapes: Vec<Shape> = (0..count as usize)
        .map(|_| Shape::draw(&mut random, size))
        .collect();
    shapes.push(Shape::ground(&mut random, size));
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            let place = |shape: &Shape| shape.place(x as f32, y as f32);
            let found = shapes.iter().find_map(|shape| Some((shape, place(shape)?)));
            let (shape, u) = found.expect("the ground is everywhere");
            for (color, shade) in shape.color.iter().zip(&shape.shade) {
                let noise = NOISE * (2.0 * random.next() - 1.0);
                pixels.push((color + shade * u + noise).clamp(0.0, 255.0) as u8);
            }
        }
    }
    RgbImage::new(width, height, pixels).expect("three values for each pixel")
}

/// Numbers that are uniformly distributed from 0 to 1.
struct Random {
    seed: u64,
    drawn: u64,
}

impl Random {
    fn next(&mut self) -> f32 {
        self.drawn += 1;
        let bits = xxh3_64_with_seed(&self.drawn.to_le_bytes(), self.seed) >> 40;
        bits as f32 / (1u32 << 24) as f32
    }
}

enum Kind {
    Ground,
    Ellipse,
    Rectangle,
    Triangle,
}

struct Shape {
    kind: Kind,
    center: (f32, f32),
    radius: f32,
    /// Height of an ellipse or rectangle, as a share of its width.
    aspect: f32,
    /// Cosine and sine of the rotation.
    direction: (f32, f32),
    color: [f32; 3],
    /// Change of the color from the center to the right edge.
    shade: [f32; 3],
}

impl Shape {
    fn draw(random: &mut Random, (width, height): (f32, f32)) -> Self {
        // The density of the radii falls with their third power.
        let [smallest, largest] = [RADII.0, RADII.1].map(|share| (share * height).powi(-2));
        let radius = (smallest - random.next() * (smallest - largest)).powf(-0.5);
        let kind = match random.next() {
            x if x < 0.4 => Kind::Ellipse,
            x if x < 0.8 => Kind::Rectangle,
            _ => Kind::Triangle,
        };
        let angle = std::f32::consts::TAU * random.next();
        // Half of the shapes are upright, as most things made by people are.
        let upright = random.next() < 0.5;
        Self {
            kind,
            center: (width * random.next(), height * random.next()),
            radius,
            aspect: 0.3 + 0.7 * random.next(),
            direction: if upright {
                (1.0, 0.0)
            } else {
                (angle.cos(), angle.sin())
            },
            color: [0; 3].map(|_| 255.0 * random.next()),
            shade: [0; 3].map(|_| 60.0 * random.next() - 30.0),
        }
    }

    fn ground(random: &mut Random, size: (f32, f32)) -> Self {
        Self {
            kind: Kind::Ground,
            center: (size.0 / 2.0, size.1 / 2.0),
            radius: size.0 / 2.0,
            ..Self::draw(random, size)
        }
    }

    /// Returns how far right of the center a pixel is, in radii; `None` outside.
    fn place(&self, x: f32, y: f32) -> Option<f32> {
        let (x, y) = (x - self.center.0, y - self.center.1);
        let (cosine, sine) = self.direction;
        let u = (x * cosine + y * sine) / self.radius;
        let v = (y * cosine - x * sine) / self.radius;
        let is_inside = match self.kind {
            Kind::Ground => true,
            Kind::Ellipse => u * u + (v / self.aspect).powi(2) <= 1.0,
            Kind::Rectangle => u.abs() <= 1.0 && v.abs() <= self.aspect,
            Kind::Triangle => v >= -0.5 && v <= 1.0 - 3f32.sqrt() * u.abs(),
        };
        is_inside.then_some(u)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same number gives the same picture, another one another, and the mean difference of
    /// neighbors is much smaller than that of distant pixels, as in photographs.
    #[test]
    fn pictures_are_mostly_smooth() {
        let pictures: Vec<RgbImage> = (0..6).map(picture).collect();
        assert_eq!(picture(4).pixels(), pictures[4].pixels());
        assert_ne!(pictures[0].pixels(), pictures[3].pixels());
        let (mut near, mut far) = (0.0, 0.0);
        for picture in &pictures {
            let (width, height) = (picture.width(), picture.height());
            let red = |x: usize, y: usize| f64::from(picture.pixels()[(y * width + x) * 3]);
            for y in 0..height {
                for x in 0..width / 2 {
                    near += (red(x, y) - red(x + 1, y)).abs();
                    far += (red(x, y) - red(x + width / 2, y)).abs();
                }
            }
        }
        assert!(4.0 * near < far, "{near} {far}");
    }
}
