//! Columns, charts and sentences about stages.

use super::report::{Axis, Bars, Cell, Chart, ChartData, Line};
use super::results::{CaseResults, Results};

/// Stages in tables and charts; `encoder` is vision and audio.
pub(super) const NAMES: [&str; 5] = ["preprocess", "encoder", "projector", "prefill", "decode"];

/// Columns of the stages.
pub(super) const COLUMNS: [(&str, &str, usize); 5] = [
    ("preprocess", "ms", 2),
    ("encoder", "ms", 2),
    ("projector", "ms", 2),
    ("prefill", "ms", 2),
    ("decode", "ms", 2),
];

/// Returns the median of each stage.
pub(super) fn cells(case: &CaseResults<'_>) -> Vec<Cell> {
    let cells = NAMES.iter().map(|name| Cell::from(case.median(name)));
    cells.collect()
}

/// Returns the sum of the medians of all stages; time that another stage hid counts once.
pub(super) fn sum(case: &CaseResults<'_>) -> f64 {
    let stages = NAMES.iter().map(|name| case.median_or_zero(name));
    stages.sum::<f64>() - case.median_or_zero("hidden")
}

/// Returns the share of a stage in percent.
pub(super) fn share(case: &CaseResults<'_>, stage: &str) -> f64 {
    100.0 * case.median_or_zero(stage) / sum(case).max(f64::MIN_POSITIVE)
}

/// Returns the longest stage and its share in percent.
pub(super) fn longest(case: &CaseResults<'_>) -> (&'static str, f64) {
    let stages = NAMES.into_iter();
    let longest = stages.max_by(|a, b| {
        let time = |name| case.median_or_zero(name);
        time(a).total_cmp(&time(b))
    });
    let name = longest.unwrap_or(NAMES[0]);
    (name, share(case, name))
}

/// Returns a chart of the time of each stage, stacked.
pub(super) fn stacked(title: &str, results: &Results<'_>) -> Chart {
    let models = results.models().len();
    let series = NAMES.map(|name| Bars {
        name: name.to_owned(),
        values: results
            .cases()
            .iter()
            .map(|case| case.median(name))
            .collect(),
    });
    Chart {
        title: title.to_owned(),
        x: Axis::new("input", ""),
        y: Axis::new("time", "ms"),
        data: ChartData::Bars {
            categories: results
                .cases()
                .iter()
                .map(|case| case.label(models))
                .collect(),
            series: series.into(),
            stacked: true,
        },
    }
}

/// Returns a line of each model: the median of `value` against the varied quantity.
pub(super) fn line_per_model(results: &Results<'_>, value: &str) -> Vec<Line> {
    let line = |model: &str| Line {
        name: model.to_owned(),
        points: points(results.of(model), value),
    };
    results.models().into_iter().map(line).collect()
}

/// Returns the median of `value` against the varied quantity of cases.
pub(super) fn points<'r>(
    cases: impl Iterator<Item = &'r CaseResults<'r>>,
    value: &str,
) -> Vec<(f64, f64)> {
    cases
        .filter_map(|case| Some((case.key.x?, case.median(value)?)))
        .collect()
}

/// Returns a chart of lines.
pub(super) fn lines(title: &str, x: Axis, y: Axis, lines: Vec<Line>) -> Chart {
    Chart {
        title: title.to_owned(),
        x,
        y,
        data: ChartData::Lines(lines),
    }
}

/// Formats a time.
pub(super) fn ms(time: f64) -> String {
    match time {
        10_000.0.. => format!("{:.1} s", time / 1e3),
        10.0.. => format!("{time:.0} ms"),
        _ => format!("{time:.2} ms"),
    }
}

/// Fits `a + b * x` by least squares and returns `(a, b)`; `None` for fewer than two different `x`.
pub(super) fn fit(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let n = points.len() as f64;
    let (mean_x, mean_y) = (
        points.iter().map(|p| p.0).sum::<f64>() / n,
        points.iter().map(|p| p.1).sum::<f64>() / n,
    );
    let squares: f64 = points.iter().map(|p| (p.0 - mean_x).powi(2)).sum();
    let products: f64 = points.iter().map(|p| (p.0 - mean_x) * (p.1 - mean_y)).sum();
    (squares > 0.0).then(|| {
        let slope = products / squares;
        (mean_y - slope * mean_x, slope)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_through_points() {
        let (a, b) = fit(&[(1.0, 5.0), (2.0, 7.0), (4.0, 11.0)]).unwrap();
        assert!((a - 3.0).abs() < 1e-9 && (b - 2.0).abs() < 1e-9);
        assert_eq!(fit(&[(1.0, 5.0), (1.0, 6.0)]), None);
        assert_eq!(fit(&[]), None);
    }
}
