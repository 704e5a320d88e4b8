//! Differences of repeated measurements and their noise.

use edge_lmm::statistics::Statistics;

/// Mean of repeated measurements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Arithmetic mean.
    pub mean: f64,
    /// Sample standard deviation.
    pub std_dev: f64,
    /// Number of measurements.
    pub count: usize,
}

impl Sample {
    /// A value that was measured once.
    pub fn once(value: f64) -> Self {
        Self {
            mean: value,
            std_dev: 0.0,
            count: 1,
        }
    }

    /// Adds the time of another module of the same runs. Means add up exactly. Deviations are added
    /// as if the times rose and fell together, which is the largest that the deviation of the sum
    /// can be.
    pub fn add(&mut self, other: &Self) {
        self.mean += other.mean;
        self.std_dev += other.std_dev;
        self.count = self.count.min(other.count);
    }

    fn variance_of_mean(&self) -> f64 {
        self.std_dev.powi(2) / self.count as f64
    }
}

impl From<&Statistics> for Sample {
    fn from(statistics: &Statistics) -> Self {
        Self {
            mean: statistics.mean,
            std_dev: statistics.std_dev,
            count: statistics.count,
        }
    }
}

/// Returns half the width of the 99 % confidence interval of the difference of two means, by Welch's
/// t-test; `None` if one of them was measured once, as its noise is then unknown.
pub fn half_width(before: &Sample, after: &Sample) -> Option<f64> {
    if before.count < 2 || after.count < 2 {
        return None;
    }
    let (a, b) = (before.variance_of_mean(), after.variance_of_mean());
    if a + b == 0.0 {
        return Some(0.0);
    }
    let squares = a.powi(2) / (before.count - 1) as f64 + b.powi(2) / (after.count - 1) as f64;
    let degrees = (a + b).powi(2) / squares;
    Some(critical(degrees) * (a + b).sqrt())
}

/// Returns the 99.5th percentile of Student's t-distribution, for the next smaller number of degrees
/// of freedom in the table.
fn critical(degrees: f64) -> f64 {
    const TABLE: [(f64, f64); 24] = [
        (120.0, 2.617),
        (60.0, 2.660),
        (40.0, 2.704),
        (30.0, 2.750),
        (20.0, 2.845),
        (19.0, 2.861),
        (18.0, 2.878),
        (17.0, 2.898),
        (16.0, 2.921),
        (15.0, 2.947),
        (14.0, 2.977),
        (13.0, 3.012),
        (12.0, 3.055),
        (11.0, 3.106),
        (10.0, 3.169),
        (9.0, 3.250),
        (8.0, 3.355),
        (7.0, 3.499),
        (6.0, 3.707),
        (5.0, 4.032),
        (4.0, 4.604),
        (3.0, 5.841),
        (2.0, 9.925),
        (1.0, 63.657),
    ];
    // Rounding errors must not turn 4 degrees into 3.
    let degrees = degrees + 1e-9;
    let row = TABLE.iter().find(|(row, _)| *row <= degrees);
    row.map_or(63.657, |&(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(values: &[f64]) -> Sample {
        Sample::from(&Statistics::of(values).expect("finite values"))
    }

    #[test]
    fn the_interval_is_that_computed_by_hand() {
        // Means 10 and 13, variances 1 and 1, three values each: the variance of the difference is
        // 2/3 with 4 degrees of freedom, and the half width is 4.604 * sqrt(2/3).
        let (a, b) = (sample(&[9.0, 10.0, 11.0]), sample(&[12.0, 13.0, 14.0]));
        let half = half_width(&a, &b).expect("both are repeated");
        assert!((half - 3.759_151).abs() < 1e-4, "{half}");
        // Variances 1 and 4: (1/3 + 4/3)^2 / ((1/3)^2 / 2 + (4/3)^2 / 2) = 2.94, of which the table
        // has 2.
        let c = sample(&[11.0, 13.0, 15.0]);
        let half = half_width(&a, &c).expect("both are repeated");
        assert!(
            (half - 9.925 * (5.0f64 / 3.0).sqrt()).abs() < 1e-9,
            "{half}"
        );
    }

    #[test]
    fn the_noise_of_single_measurements_is_unknown() {
        let repeated = sample(&[1.0, 2.0]);
        assert_eq!(half_width(&Sample::once(1.0), &repeated), None);
        assert_eq!(half_width(&repeated, &Sample::once(1.0)), None);
        let equal = sample(&[2.0, 2.0]);
        assert_eq!(half_width(&equal, &equal), Some(0.0));
    }

    #[test]
    fn sums_are_no_less_noisy_than_their_parts() {
        let mut sum = sample(&[1.0, 3.0]);
        sum.add(&sample(&[10.0, 14.0, 12.0]));
        assert_eq!((sum.mean, sum.count), (14.0, 2));
        assert!((sum.std_dev - (2.0f64.sqrt() + 2.0)).abs() < 1e-12);
    }

    #[test]
    fn few_degrees_of_freedom_widen_the_interval() {
        assert_eq!(critical(0.5), 63.657);
        assert_eq!(critical(3.999_999_999_9), 4.604);
        assert_eq!(critical(25.0), 2.845);
        assert_eq!(critical(1e9), 2.617);
    }
}
