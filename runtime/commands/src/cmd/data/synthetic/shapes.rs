//! Scenes of colored shapes.

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};

/// Width and height of an image in pixels.
pub const SIZE: u32 = 112;

/// Width of the cells in which shapes lie: a visual token of the small models.
const CELL: u32 = 28;

/// Largest number of shapes in a scene.
const MAX_FIGURES: usize = 3;

/// A color and its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Color {
    pub name: &'static str,
    pub rgb: [u8; 3],
}

const COLORS: [Color; 6] = [
    Color {
        name: "red",
        rgb: [220, 30, 30],
    },
    Color {
        name: "green",
        rgb: [32, 160, 60],
    },
    Color {
        name: "blue",
        rgb: [30, 55, 222],
    },
    Color {
        name: "yellow",
        rgb: [248, 210, 15],
    },
    Color {
        name: "orange",
        rgb: [242, 130, 12],
    },
    Color {
        name: "purple",
        rgb: [140, 45, 168],
    },
];

const BACKGROUNDS: [[u8; 3]; 4] = [
    [255, 255, 255],
    [230, 230, 230],
    [245, 235, 215],
    [205, 228, 242],
];

/// A shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Circle,
    Square,
    Triangle,
    Star,
    Diamond,
    Cross,
}

const SHAPES: [Shape; 6] = [
    Shape::Circle,
    Shape::Square,
    Shape::Triangle,
    Shape::Star,
    Shape::Diamond,
    Shape::Cross,
];

impl Shape {
    /// Returns the name in questions and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Star => "star",
            Self::Diamond => "diamond",
            Self::Cross => "cross",
        }
    }

    /// Returns `true` if a point is inside; the shape fills the square from -1 to 1, y downwards.
    pub fn contains(self, x: f64, y: f64) -> bool {
        match self {
            Self::Circle => x * x + y * y <= 1.0,
            Self::Square => x.abs().max(y.abs()) <= 0.9,
            Self::Triangle => y.abs() <= 1.0 && x.abs() <= (y + 1.0) / 2.0,
            Self::Diamond => x.abs() / 0.75 + y.abs() <= 1.0,
            Self::Cross => x.abs().min(y.abs()) <= 0.33 && x.abs().max(y.abs()) <= 1.0,
            Self::Star => is_in_star(x, y),
        }
    }
}

/// A star with five points, one of them upwards.
fn is_in_star(x: f64, y: f64) -> bool {
    use std::f64::consts::PI;
    const INNER: f64 = 0.4;
    // The angle from the closest point of the star, at most a tenth of a turn.
    let angle = x.atan2(-y).rem_euclid(2.0 * PI / 5.0);
    let angle = angle.min(2.0 * PI / 5.0 - angle);
    let radius = x.hypot(y);
    let (px, py) = (radius * angle.cos(), radius * angle.sin());
    // The edge from the point (1, 0) to the notch.
    let (nx, ny) = (INNER * (PI / 5.0).cos(), INNER * (PI / 5.0).sin());
    (nx - 1.0) * py - ny * (px - 1.0) >= 0.0
}

/// A shape in a scene.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    pub color: Color,
    pub shape: Shape,
    /// Center in pixels.
    pub x: u32,
    pub y: u32,
    /// Half of the width in pixels.
    pub radius: f64,
}

/// Shapes on a background. No two have the same color, shape or column.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    pub background: [u8; 3],
    pub figures: Vec<Figure>,
}

impl Scene {
    /// Draws a scene of one to three shapes.
    pub fn random(random: &mut impl Rng) -> Self {
        let figures = random.random_range(1..=MAX_FIGURES);
        Self::with_figures(figures, random)
    }

    /// Draws a scene with this number of shapes, at most 4.
    pub fn with_figures(figures: usize, random: &mut impl Rng) -> Self {
        let mut colors = COLORS;
        let mut shapes = SHAPES;
        let mut columns: Vec<u32> = (0..SIZE / CELL).collect();
        colors.shuffle(random);
        shapes.shuffle(random);
        columns.shuffle(random);
        let places = columns.into_iter().zip(colors).zip(shapes);
        let figures = places.take(figures).map(|((column, color), shape)| Figure {
            color,
            shape,
            x: column * CELL + random.random_range(12..=16),
            y: random.random_range(0..SIZE / CELL) * CELL + random.random_range(12..=16),
            radius: random.random_range(9.0..12.0),
        });
        let figures = figures.collect();
        let background = BACKGROUNDS.choose(random).copied();
        Self {
            background: background.unwrap_or(BACKGROUNDS[0]),
            figures,
        }
    }

    /// Returns a color and a shape that do not occur together.
    pub fn absent(&self, random: &mut impl Rng) -> (Color, Shape) {
        loop {
            let color = COLORS[random.random_range(0..COLORS.len())];
            let shape = SHAPES[random.random_range(0..SHAPES.len())];
            let mut figures = self.figures.iter();
            if !figures.any(|figure| (figure.color, figure.shape) == (color, shape)) {
                return (color, shape);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn shapes_have_their_form() {
        for shape in SHAPES {
            assert!(shape.contains(0.0, 0.0), "{shape:?}");
            assert!(
                !shape.contains(1.1, 0.0) && !shape.contains(0.0, 1.1),
                "{shape:?}"
            );
        }
        assert!(Shape::Star.contains(0.0, -0.95) && !Shape::Star.contains(0.0, 0.6));
        assert!(Shape::Triangle.contains(0.9, 0.95) && !Shape::Triangle.contains(0.5, -0.5));
        assert!(Shape::Cross.contains(0.9, 0.2) && !Shape::Cross.contains(0.6, 0.6));
        assert!(Shape::Square.contains(0.8, 0.8) && !Shape::Circle.contains(0.8, 0.8));
    }

    #[test]
    fn scenes_are_unambiguous() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for _ in 0..200 {
            let scene = Scene::random(&mut random);
            for (i, a) in scene.figures.iter().enumerate() {
                assert!(a.x.max(a.y) + 12 <= SIZE && a.x.min(a.y) >= 12);
                for b in &scene.figures[..i] {
                    assert!(a.color != b.color && a.shape != b.shape);
                    assert!(a.x.abs_diff(b.x) >= 24);
                }
            }
            let (color, shape) = scene.absent(&mut random);
            assert!(
                scene
                    .figures
                    .iter()
                    .all(|f| f.color != color || f.shape != shape)
            );
        }
    }
}
