//! Statistics of repeated measurements.

use serde::{Deserialize, Serialize};

/// Summary of the values of a measurement that was repeated.
///
/// ```
/// use edge_lmm::statistics::Statistics;
///
/// let times = Statistics::of(&[4.0, 1.0, 3.0, 2.0]).expect("four numbers");
/// assert_eq!((times.min, times.median, times.max), (1.0, 2.5, 4.0));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Statistics {
    /// Number of values.
    pub count: usize,
    /// Smallest value.
    pub min: f64,
    /// Middle value; the mean of the two middle ones if the count is even.
    pub median: f64,
    /// Arithmetic mean.
    pub mean: f64,
    /// 95th percentile. Between two values it is interpolated linearly: the percentile `p` of `n`
    /// sorted values is at index `p / 100 * (n - 1)`, as in NumPy.
    pub p95: f64,
    /// Largest value.
    pub max: f64,
    /// Sample standard deviation (with the divisor `n - 1`); 0 for a single value.
    pub std_dev: f64,
}

impl Statistics {
    /// Summarizes values. Returns `None` if there are none, or if one of them is not finite.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() || !values.iter().all(|value| value.is_finite()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        let mean = sorted.iter().map(|value| value / count as f64).sum::<f64>();
        let squares: f64 = sorted.iter().map(|value| (value - mean).powi(2)).sum();
        Some(Self {
            count,
            min: sorted[0],
            median: percentile(&sorted, 50.0),
            mean,
            p95: percentile(&sorted, 95.0),
            max: sorted[count - 1],
            std_dev: match count {
                1 => 0.0,
                _ => (squares / (count - 1) as f64).sqrt(),
            },
        })
    }
}

/// Returns a percentile of sorted values, of which there is at least one.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let place = percent / 100.0 * (sorted.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let values = [15.0, 20.0, 35.0, 40.0, 50.0];
        let statistics = Statistics::of(&values).expect("finite values");
        assert_eq!(statistics.count, 5);
        assert_eq!((statistics.min, statistics.max), (15.0, 50.0));
        assert_eq!((statistics.median, statistics.mean), (35.0, 32.0));
        // Index 3.8: 40 + 0.8 * 10.
        assert!((statistics.p95 - 48.0).abs() < 1e-9, "{statistics:?}");
        // The squares of the deviations add up to 830.
        assert!((statistics.std_dev - (830.0f64 / 4.0).sqrt()).abs() < 1e-9);
    }

    #[test]
    fn the_order_of_the_values_does_not_matter() {
        let (a, b) = ([3.0, 1.0, 2.0, 5.0], [5.0, 3.0, 2.0, 1.0]);
        assert_eq!(Statistics::of(&a), Statistics::of(&b));
        assert_eq!(Statistics::of(&a).expect("finite values").median, 2.5);
    }

    #[test]
    fn a_single_value_has_no_deviation() {
        let one = Statistics::of(&[7.0]).expect("a finite value");
        assert_eq!(
            (one.min, one.p95, one.max, one.std_dev),
            (7.0, 7.0, 7.0, 0.0)
        );
    }

    #[test]
    fn values_that_are_not_finite_have_no_statistics() {
        for values in [
            &[][..],
            &[1.0, f64::NAN],
            &[f64::INFINITY],
            &[f64::NEG_INFINITY, 0.0],
        ] {
            assert_eq!(Statistics::of(values), None, "{values:?}");
        }
    }

    #[test]
    fn json_round_trip() {
        let statistics = Statistics::of(&[0.0, 2.0, 4.0]).expect("finite values");
        let json = serde_json::to_string(&statistics).unwrap();
        assert_eq!(
            serde_json::from_str::<Statistics>(&json).unwrap(),
            statistics
        );
    }
}
