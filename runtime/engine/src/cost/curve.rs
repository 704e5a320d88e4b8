//! Time as a function of size.

use serde::{Deserialize, Serialize};

/// Relative error up to which a curve with fewer terms is preferred: that of the measurements.
const ERROR: f64 = 0.05;

/// Milliseconds by the number of rows: `fixed + linear * n + quadratic * n^2`, none of them
/// negative.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// Time of any number of rows, such as reading the weights.
    pub fixed: f64,
    /// Time of a row.
    pub linear: f64,
    /// Time of a pair of rows that attend to each other.
    pub quadratic: f64,
}

/// A measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Rows.
    pub rows: f64,
    /// Pairs of rows that attend to each other.
    pub pairs: f64,
    /// Milliseconds.
    pub ms: f64,
}

impl Curve {
    /// Returns the time of `rows` rows with `pairs` pairs that attend to each other.
    pub fn ms(&self, rows: f64, pairs: f64) -> f64 {
        self.fixed + self.linear * rows + self.quadratic * pairs
    }

    /// Returns `true` if no time is negative or not a number.
    pub fn is_valid(&self) -> bool {
        let terms = [self.fixed, self.linear, self.quadratic];
        terms.iter().all(|term| term.is_finite() && *term >= 0.0)
    }

    /// Fits a curve to measurements by their relative errors. Of curves that fit equally well, the
    /// one with the fewest terms is taken, so that noise is not extrapolated.
    pub fn fit(points: &[Point]) -> Self {
        const TERMS: [&[usize]; 4] = [&[1], &[0, 1], &[1, 2], &[0, 1, 2]];
        let curves = TERMS.iter().filter(|terms| terms.len() <= points.len());
        let mut best = (f64::INFINITY, Self::default());
        for terms in curves {
            let Some(curve) = least_squares(points, terms).filter(Self::is_valid) else {
                continue;
            };
            let errors = points.iter().map(|point| curve.error(point));
            let error = errors.fold(0.0, f64::max);
            if error < best.0 && best.0 > ERROR {
                best = (error, curve);
            }
        }
        best.1
    }

    fn error(&self, point: &Point) -> f64 {
        (self.ms(point.rows, point.pairs) / point.ms - 1.0).abs()
    }
}

/// Minimizes the squares of relative errors of a curve that has only `terms`. `None` if the points
/// do not determine it.
fn least_squares(points: &[Point], terms: &[usize]) -> Option<Curve> {
    let row = |point: &Point| [1.0, point.rows, point.pairs].map(|term| term / point.ms);
    let count = terms.len();
    let mut system = vec![vec![0.0; count + 1]; count];
    for point in points {
        let values = row(point);
        for (i, &a) in terms.iter().enumerate() {
            for (j, &b) in terms.iter().enumerate() {
                system[i][j] += values[a] * values[b];
            }
            system[i][count] += values[a];
        }
    }
    let solution = solve(system)?;
    let mut all = [0.0; 3];
    terms
        .iter()
        .zip(solution)
        .for_each(|(&term, value)| all[term] = value);
    let [fixed, linear, quadratic] = all;
    Some(Curve {
        fixed,
        linear,
        quadratic,
    })
}

/// Solves a symmetric positive system, given with its right side, by elimination. `None` if it is
/// singular.
fn solve(mut system: Vec<Vec<f64>>) -> Option<Vec<f64>> {
    let count = system.len();
    for i in 0..count {
        let scale = system[i][i];
        if scale.is_nan() || scale <= 0.0 {
            return None;
        }
        let pivot: Vec<f64> = system[i].iter().map(|value| value / scale).collect();
        for (j, row) in system.iter_mut().enumerate() {
            if j != i {
                let factor = row[i];
                row.iter_mut()
                    .zip(&pivot)
                    .for_each(|(value, p)| *value -= factor * p);
            }
        }
        system[i] = pivot;
    }
    let solution: Vec<f64> = system.iter().map(|row| row[count]).collect();
    solution
        .iter()
        .all(|value| value.is_finite())
        .then_some(solution)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(curve: Curve, sizes: &[f64], noise: &[f64]) -> Vec<Point> {
        let noise = noise.iter().chain(std::iter::repeat(&1.0));
        let point = |(&rows, noise): (&f64, &f64)| Point {
            rows,
            pairs: rows * rows,
            ms: curve.ms(rows, rows * rows) * noise,
        };
        sizes.iter().zip(noise).map(point).collect()
    }

    fn curve(fixed: f64, linear: f64, quadratic: f64) -> Curve {
        Curve {
            fixed,
            linear,
            quadratic,
        }
    }

    #[test]
    fn exact_times_give_their_curve() {
        for expected in [
            curve(0.0, 0.5, 0.0),
            curve(40.0, 0.5, 0.0),
            curve(0.0, 0.5, 0.01),
            curve(40.0, 0.5, 0.01),
        ] {
            let found = Curve::fit(&points(expected, &[16.0, 64.0, 256.0, 1024.0], &[]));
            for (found, expected) in [
                (found.fixed, expected.fixed),
                (found.linear, expected.linear),
                (found.quadratic, expected.quadratic),
            ] {
                assert!(
                    (found - expected).abs() <= 1e-6 * expected.max(1.0),
                    "{found}"
                );
            }
        }
    }

    /// Noise of a few percent does not become a quadratic term, which would grow with the size.
    #[test]
    fn noise_is_not_extrapolated() {
        let noisy = points(
            curve(0.0, 2.0, 0.0),
            &[32.0, 64.0, 128.0],
            &[1.02, 0.97, 1.03],
        );
        let found = Curve::fit(&noisy);
        assert_eq!((found.fixed, found.quadratic), (0.0, 0.0));
        assert!((found.linear / 2.0 - 1.0).abs() < 0.03);
    }

    #[test]
    fn no_term_is_negative() {
        // Times that fall with the size.
        let falling = points(curve(0.0, 1.0, 0.0), &[10.0, 20.0, 30.0], &[4.0, 1.0, 0.5]);
        assert!(Curve::fit(&falling).is_valid());
        assert!(Curve::fit(&[]).is_valid());
        let one = points(curve(0.0, 3.0, 0.0), &[10.0], &[]);
        assert_eq!(Curve::fit(&one), curve(0.0, 3.0, 0.0));
    }
}
