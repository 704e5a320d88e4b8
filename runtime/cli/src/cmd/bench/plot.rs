//! Charts of lines as SVG.

use anyhow::bail;
use edge_lmm::experiment::{Axis, Chart, ChartData};
use plotters::prelude::*;
use plotters::series::DashedLineSeries;

const SIZE: (u32, u32) = (800, 500);

/// Draws a chart of lines. Those with a comma in their name, such as chains of several methods, are
/// dashed.
///
/// # Errors
/// If the chart has bars or no points, or the drawing fails.
pub fn svg(chart: &Chart) -> anyhow::Result<String> {
    let ChartData::Lines(lines) = &chart.data else {
        bail!(
            "\"{}\" has bars; only charts of lines can be drawn",
            chart.title
        );
    };
    let points = || lines.iter().flat_map(|line| &line.points);
    if points().next().is_none() {
        bail!("\"{}\" has no points", chart.title);
    }
    let range = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        // Percentages up to 100, other quantities with a margin at the top.
        let high = if high <= 100.0 && low >= 0.0 && high > 50.0 {
            100.0
        } else {
            1.05 * high
        };
        let step = 10f64.powf(high.max(1e-9).log10().floor());
        ((low / step).floor() * step).min(high - step * 1e-3)..high
    };
    let x = range(&mut points().map(|point| point.0));
    let y = range(&mut points().map(|point| point.1));
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut drawn = ChartBuilder::on(&root)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d(0f64.min(x.start)..x.end, y)?;
        drawn
            .configure_mesh()
            .x_desc(label(&chart.x))
            .y_desc(label(&chart.y))
            .draw()?;
        for (i, line) in lines.iter().enumerate() {
            let color = Palette99::pick(i).mix(1.0);
            let legend =
                move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2));
            let points = line.points.iter().copied();
            if line.name.contains(',') {
                let dashes = DashedLineSeries::new(points.clone(), 4, 4, color.stroke_width(1));
                drawn.draw_series(dashes)?.label(&line.name).legend(legend);
            } else {
                let series = LineSeries::new(points.clone(), color.stroke_width(2));
                drawn.draw_series(series)?.label(&line.name).legend(legend);
            }
            drawn.draw_series(points.map(|at| Circle::new(at, 3, color.filled())))?;
        }
        drawn
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .border_style(BLACK.mix(0.3))
            .background_style(WHITE.mix(0.9))
            .draw()?;
        root.present()?;
    }
    Ok(svg)
}

fn label(axis: &Axis) -> String {
    match axis.unit.as_str() {
        "" => axis.label.clone(),
        unit => format!("{}, {unit}", axis.label),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_lmm::experiment::ChartLine;

    #[test]
    fn every_line_has_a_label() {
        let names = ["merge", "merge,diverse", "duplicates (tolerance)"];
        let line = |name: &str| ChartLine {
            name: name.to_owned(),
            points: vec![(25.0, 90.0), (100.0, 96.0)],
        };
        let chart = Chart {
            title: "Accuracy".to_owned(),
            x: Axis::new("visual tokens left", "%"),
            y: Axis::new("right answers", "%"),
            data: ChartData::Lines(names.map(line).into()),
        };
        let svg = svg(&chart).unwrap();
        for text in names.iter().chain(&["visual tokens left, %"]) {
            assert!(svg.contains(text), "{text}");
        }
    }
}
