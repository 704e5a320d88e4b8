//! Charts as SVG, for papers.

use anyhow::{bail, ensure};
use edge_lmm::experiment::{Axis, Bars, Chart, ChartData, ChartLine};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::series::DashedLineSeries;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Width of a drawing in pixels.
const WIDTH: u32 = 900;
/// Height of a chart of lines.
const HEIGHT: u32 = 500;
/// Mean width of a character of a label.
const CHARACTER: u32 = 8;
/// Height of a bar with the gap below it.
const BAR: u32 = 26;

/// Colors of series, of different lightness.
const COLORS: [RGBColor; 6] = [
    RGBColor(11, 95, 165),
    RGBColor(224, 133, 20),
    RGBColor(0, 130, 100),
    RGBColor(170, 100, 190),
    RGBColor(90, 90, 90),
    RGBColor(190, 40, 40),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws a chart.
///
/// # Errors
/// If the chart has no values, or the drawing fails.
pub fn svg(chart: &Chart) -> anyhow::Result<String> {
    match &chart.data {
        ChartData::Lines(lines) => draw_lines(chart, lines),
        ChartData::Bars {
            categories,
            series,
            stacked,
        } => draw_bars(chart, categories, series, *stacked),
    }
}

/// Returns `true` if there is something to draw.
pub fn has_values(chart: &Chart) -> bool {
    match &chart.data {
        ChartData::Lines(lines) => lines.iter().any(|line| !line.points.is_empty()),
        ChartData::Bars { series, .. } => {
            let mut values = series.iter().flat_map(|bars| &bars.values);
            values.any(Option::is_some)
        }
    }
}

fn draw_lines(chart: &Chart, lines: &[ChartLine]) -> anyhow::Result<String> {
    let points = || lines.iter().flat_map(|line| &line.points);
    if points().next().is_none() {
        bail!("\"{}\" has no points", chart.title);
    }
    let (x_low, x_high) = limits(points().map(|point| point.0));
    let margin = match x_high - x_low {
        0.0 => 1.0,
        width => 0.03 * width,
    };
    let (y_low, y_high) = limits(points().map(|point| point.1));
    // Few charts lose by a zero baseline; where values differ little, it would hide the differences.
    let bottom = match y_low >= 0.0 && y_low < 0.5 * y_high {
        true => 0.0,
        false => y_low - 0.05 * (y_high - y_low).max(1e-9),
    };
    let top = y_high + 0.03 * (y_high - bottom).max(1e-9);
    let names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE)?;
        let area = with_legend(&root, &names, false)?;
        let mut drawn = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(x_low - margin..x_high + margin, bottom..top)?;
        drawn
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc(label(&chart.x))
            .y_desc(label(&chart.y))
            .x_label_formatter(&number)
            .y_label_formatter(&number)
            .draw()?;
        for (i, line) in lines.iter().enumerate() {
            let color = COLORS[i % COLORS.len()].stroke_width(2);
            let points = line.points.iter().copied();
            match i < COLORS.len() {
                true => drawn.draw_series(LineSeries::new(points.clone(), color))?,
                false => drawn.draw_series(DashedLineSeries::new(points.clone(), 6, 4, color))?,
            };
            for at in points {
                root.draw(&marker(i, drawn.backend_coord(&at)))?;
            }
        }
        root.present()?;
    }
    Ok(svg)
}

fn draw_bars(
    chart: &Chart,
    categories: &[String],
    series: &[Bars],
    stacked: bool,
) -> anyhow::Result<String> {
    let rows = rows(categories, series, stacked);
    ensure!(
        rows.iter().any(|row| !row.parts.is_empty()),
        "\"{}\" has no values",
        chart.title
    );
    let ends = rows.iter().flat_map(|row| &row.parts);
    let (low, high) = limits(ends.flat_map(|part| [part.from, part.to]));
    let (low, high) = (low.min(0.0), high.max(0.0));
    let names: Vec<&str> = series.iter().map(|bars| bars.name.as_str()).collect();
    let longest = rows.iter().map(|row| row.label.chars().count()).max();
    let left = (CHARACTER * longest.unwrap_or(0) as u32 + 10).min(WIDTH / 3);
    let height = 70 + BAR * rows.len() as u32;
    let mut svg = String::new();
    {
        let size = (WIDTH, height.max(70 + 22 * names.len() as u32));
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let legend: &[&str] = if names.len() > 1 { &names } else { &[] };
        let area = with_legend(&root, legend, true)?;
        let mut drawn = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(left)
            .build_cartesian_2d(low..high * 1.03, rows.len() as f64..0.0)?;
        drawn
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .light_line_style(TRANSPARENT)
            .x_desc(label(&chart.y))
            .x_label_formatter(&number)
            .draw()?;
        for (row, place) in rows.iter().zip(0..) {
            let (top, bottom) = (f64::from(place) + 0.12, f64::from(place) + 0.88);
            let corners = |part: &Part| [(part.from, top), (part.to, bottom)];
            drawn.draw_series(row.parts.iter().flat_map(|part| {
                let color = COLORS[part.series % COLORS.len()];
                [
                    Rectangle::new(corners(part), color.filled()),
                    Rectangle::new(corners(part), WHITE.stroke_width(1)),
                ]
            }))?;
            let (x, y) = drawn.backend_coord(&(low, f64::from(place) + 0.5));
            let style = text().pos(Pos::new(HPos::Right, VPos::Center));
            root.draw(&Text::new(row.label.clone(), (x - 6, y), style))?;
        }
        root.present()?;
    }
    Ok(svg)
}

/// A row of bars on one line.
struct Row {
    label: String,
    parts: Vec<Part>,
}

/// A bar, or a part of a stack.
struct Part {
    series: usize,
    from: f64,
    to: f64,
}

fn rows(categories: &[String], series: &[Bars], stacked: bool) -> Vec<Row> {
    let value = |s: usize, c: usize| series[s].values.get(c).copied().flatten();
    let mut rows = Vec::new();
    for (c, category) in categories.iter().enumerate() {
        if stacked {
            let mut end = 0.0;
            let parts = (0..series.len()).filter_map(|s| {
                let from = end;
                end += value(s, c)?;
                Some(Part {
                    series: s,
                    from,
                    to: end,
                })
            });
            rows.push(Row {
                label: category.clone(),
                parts: parts.collect(),
            });
            continue;
        }
        // The bars of a category stand together; its name is beside the first of them.
        for s in 0..series.len() {
            let part = value(s, c).map(|to| Part {
                series: s,
                from: 0.0,
                to,
            });
            rows.push(Row {
                label: if s == 0 {
                    category.clone()
                } else {
                    String::new()
                },
                parts: part.into_iter().collect(),
            });
        }
        if series.len() > 1 && c + 1 < categories.len() {
            rows.push(Row {
                label: String::new(),
                parts: Vec::new(),
            });
        }
    }
    rows
}

/// Draws a legend of lines or bars at the right edge and returns the area that is left. A chart
/// without names has none.
fn with_legend<'a>(root: &Area<'a>, names: &[&str], bars: bool) -> anyhow::Result<Area<'a>> {
    if names.is_empty() {
        return Ok(root.clone());
    }
    let longest = names.iter().map(|name| name.chars().count()).max();
    let width = (CHARACTER * longest.unwrap_or(0) as u32 + 50).min(WIDTH / 3);
    let (left, legend) = root.split_horizontally(WIDTH - width);
    for (i, name) in names.iter().enumerate() {
        let y = 24 + 22 * i as i32;
        match bars {
            true => {
                let color = COLORS[i % COLORS.len()].filled();
                legend.draw(&Rectangle::new([(14, y - 7), (30, y + 7)], color))?;
            }
            false => {
                // The dashes of the seventh line and the following ones.
                let ends: &[(i32, i32)] = match i < COLORS.len() {
                    true => &[(4, 32)],
                    false => &[(4, 10), (26, 32)],
                };
                let color = COLORS[i % COLORS.len()].stroke_width(2);
                for &(from, to) in ends {
                    legend.draw(&PathElement::new([(from, y), (to, y)], color))?;
                }
                legend.draw(&marker(i, (18, y)))?;
            }
        }
        let style = text().pos(Pos::new(HPos::Left, VPos::Center));
        legend.draw(&Text::new((*name).to_owned(), (38, y), style))?;
    }
    Ok(left)
}

/// Returns a marker with its center in pixels. Markers differ in shape as well as in color.
fn marker(series: usize, (x, y): (i32, i32)) -> Polygon<(i32, i32)> {
    let corners: &[(i32, i32)] = match series % 4 {
        0 => &[
            (-2, -5),
            (2, -5),
            (5, -2),
            (5, 2),
            (2, 5),
            (-2, 5),
            (-5, 2),
            (-5, -2),
        ],
        1 => &[(-4, -4), (4, -4), (4, 4), (-4, 4)],
        2 => &[(0, -6), (5, 4), (-5, 4)],
        _ => &[(0, -6), (6, 0), (0, 6), (-6, 0)],
    };
    let corners: Vec<(i32, i32)> = corners.iter().map(|(dx, dy)| (x + dx, y + dy)).collect();
    Polygon::new(corners, COLORS[series % COLORS.len()].filled())
}

fn text() -> TextStyle<'static> {
    ("sans-serif", 14).into_font().color(&BLACK)
}

fn limits(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    })
}

/// Formats a value of an axis, without the errors of its binary representation.
fn number(value: &f64) -> String {
    let rounded = (value * 1e6).round() / 1e6;
    // No negative zero.
    (rounded + 0.0).to_string()
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

    fn chart(data: ChartData) -> Chart {
        Chart {
            title: "Accuracy".to_owned(),
            x: Axis::new("visual tokens left", "%"),
            y: Axis::new("right answers", "%"),
            data,
        }
    }

    #[test]
    fn every_line_has_a_label() {
        let names = ["merge", "merge,diverse", "duplicates (tolerance)"];
        let line = |name: &str| ChartLine {
            name: name.to_owned(),
            points: vec![(25.0, 90.0), (100.0, 96.0)],
        };
        let svg = svg(&chart(ChartData::Lines(names.map(line).into()))).unwrap();
        for text in names.iter().chain(&["visual tokens left, %"]) {
            assert!(svg.contains(text), "{text}");
        }
    }

    fn bars(stacked: bool) -> ChartData {
        let series = |name: &str, values: [Option<f64>; 2]| Bars {
            name: name.to_owned(),
            values: values.to_vec(),
        };
        ChartData::Bars {
            categories: vec!["q4 <a>".to_owned(), "q8".to_owned()],
            series: vec![
                series("vision", [Some(3.0), Some(-1.0)]),
                series("decode", [None, Some(2.0)]),
            ],
            stacked,
        }
    }

    #[test]
    fn bars_have_names_and_values() {
        for stacked in [false, true] {
            let svg = svg(&chart(bars(stacked))).unwrap();
            for text in ["q4 &lt;a&gt;", "q8", "vision", "decode", "right answers, %"] {
                assert!(svg.contains(text), "{text} in {svg}");
            }
            // Each of the three values has a rectangle with a border, besides the background and
            // the legend.
            assert_eq!(svg.matches("<rect").count(), 9, "{svg}");
        }
    }

    #[test]
    fn stacked_parts_follow_each_other() {
        let ChartData::Bars {
            categories, series, ..
        } = bars(true)
        else {
            panic!("bars");
        };
        let rows = rows(&categories, &series, true);
        let ends = |row: &Row| -> Vec<(f64, f64)> {
            row.parts.iter().map(|part| (part.from, part.to)).collect()
        };
        assert_eq!(ends(&rows[0]), [(0.0, 3.0)]);
        assert_eq!(ends(&rows[1]), [(0.0, -1.0), (-1.0, 1.0)]);
    }

    #[test]
    fn charts_without_values_are_errors() {
        let empty = ChartData::Bars {
            categories: vec!["a".to_owned()],
            series: Vec::new(),
            stacked: false,
        };
        for data in [empty, ChartData::Lines(Vec::new())] {
            let error = svg(&chart(data)).unwrap_err().to_string();
            assert!(error.contains("Accuracy"), "{error}");
        }
    }
}
