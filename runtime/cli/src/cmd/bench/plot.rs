//! Curves of accuracy against visual tokens as SVG.

use std::collections::BTreeMap;

use edge_lmm::experiment::reduction::Point;
use plotters::prelude::*;
use plotters::series::DashedLineSeries;

const SIZE: (u32, u32) = (800, 500);

/// Draws one curve for each method that was measured at several ratios, and a point for each chain
/// of several methods.
///
/// # Errors
/// If the drawing fails.
pub fn accuracy(points: &[Point]) -> anyhow::Result<String> {
    let percent = |point: &Point| (100.0 * point.kept, 100.0 * point.accuracy());
    let whole = points.iter().find(|point| point.reduce.is_empty());
    let mut curves: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for point in points.iter().filter(|point| !point.reduce.is_empty()) {
        curves
            .entry(method(&point.reduce))
            .or_default()
            .push(percent(point));
    }
    let lowest = points.iter().map(|point| 100.0 * point.accuracy());
    let lowest = (lowest.fold(100.0, f64::min) / 10.0).floor() * 10.0;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d(0.0..100.0, lowest..100.0)?;
        chart
            .configure_mesh()
            .x_desc("visual tokens left, %")
            .y_desc("right answers, %")
            .draw()?;
        for (i, (name, mut curve)) in curves.into_iter().enumerate() {
            curve.extend(whole.map(percent));
            curve.sort_by(|a, b| a.0.total_cmp(&b.0));
            let color = Palette99::pick(i).mix(1.0);
            let legend =
                move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2));
            if name.contains(',') {
                let dashes = DashedLineSeries::new(curve.clone(), 4, 4, color.stroke_width(1));
                chart.draw_series(dashes)?.label(name).legend(legend);
            } else {
                let line = LineSeries::new(curve.clone(), color.stroke_width(2));
                chart.draw_series(line)?.label(name).legend(legend);
            }
            let dots = curve.iter().map(|&at| Circle::new(at, 3, color.filled()));
            chart.draw_series(dots)?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .border_style(BLACK.mix(0.3))
            .background_style(WHITE.mix(0.9))
            .draw()?;
        root.present()?;
    }
    Ok(svg)
}

/// Returns the methods of a chain without their ratios. A tolerance of duplicates is another method
/// than a share of them.
fn method(chain: &str) -> String {
    let name = |step: &str| match step.split_once(':') {
        Some(("duplicates", argument)) if !argument.ends_with('%') => {
            "duplicates (tolerance)".to_owned()
        }
        Some((name, _)) => name.to_owned(),
        None => step.to_owned(),
    };
    chain.split(',').map(name).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_a_curve() {
        let point = |reduce: &str, kept, right| Point {
            reduce: reduce.to_owned(),
            kept,
            right,
            questions: 100,
            tasks: BTreeMap::new(),
            vision_ms: 1.0,
            prefill_ms: 1.0,
        };
        let svg = accuracy(&[
            point("", 1.0, 96),
            point("merge:0.5", 0.5, 95),
            point("merge:0.25", 0.25, 90),
            point("merge:0.5,diverse:0.5", 0.25, 91),
            point("duplicates:1", 0.3, 70),
        ])
        .unwrap();
        for label in ["merge", "merge,diverse", "duplicates (tolerance)"] {
            assert!(svg.contains(label), "{label}");
        }
    }
}
