//! `--svg` of an experiment: its charts in one or several files.

use std::path::{Path, PathBuf};

use anyhow::bail;
use edge_lmm::experiment::{Chart, ExperimentReport};
use edge_lmm::output::Output;

use super::plot;

/// Reserved output of charts.
pub struct Figures {
    /// File of a single chart.
    file: Output,
    inputs: Vec<PathBuf>,
}

impl Figures {
    /// Reserves `FILE.svg`, so that a wrong path is found before the measurements. The number of
    /// charts is not known yet.
    pub fn reserve<'a>(
        path: &Path,
        inputs: impl IntoIterator<Item = &'a Path> + Clone,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            file: Output::replace(path, inputs.clone())?,
            inputs: inputs.into_iter().map(Path::to_owned).collect(),
        })
    }

    /// Draws a single chart to `FILE.svg` and several to `FILE-1.svg`, `FILE-2.svg`, ... Charts
    /// without values, which failed measurements leave, are skipped and keep their numbers.
    pub fn write(self, report: &ExperimentReport) -> anyhow::Result<()> {
        let charts = || report.charts.iter().zip(1..);
        let drawable = || charts().filter(|(chart, _)| plot::has_values(chart));
        if drawable().next().is_none() {
            bail!(
                "{} has no chart with values: leave out --svg",
                report.experiment
            );
        }
        if let [chart] = &*report.charts {
            return draw(self.file, chart);
        }
        let reserve = |(chart, number)| -> anyhow::Result<(Output, &Chart)> {
            let path = numbered(self.file.path(), number);
            let inputs = self.inputs.iter().map(PathBuf::as_path);
            Ok((Output::replace(&path, inputs)?, chart))
        };
        let files: Vec<_> = drawable().map(reserve).collect::<anyhow::Result<_>>()?;
        files
            .into_iter()
            .try_for_each(|(file, chart)| draw(file, chart))
    }
}

fn draw(file: Output, chart: &Chart) -> anyhow::Result<()> {
    Ok(file.finish_with(plot::svg(chart)?.as_bytes())?)
}

/// Returns the path with a number before the extension.
fn numbered(path: &Path, number: usize) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{number}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use edge_lmm::experiment::{self, Axis, ChartData, ChartLine, Table};

    use super::*;

    /// A report whose charts have the given numbers of points.
    fn report(points: &[usize]) -> ExperimentReport {
        let chart = |&points: &usize| Chart {
            title: format!("{points} points"),
            x: Axis::new("x", ""),
            y: Axis::new("y", ""),
            data: ChartData::Lines(vec![ChartLine {
                name: "line".to_owned(),
                points: (0..points).map(|i| (i as f64, 1.0)).collect(),
            }]),
        };
        ExperimentReport {
            format: experiment::FORMAT.to_owned(),
            version: experiment::VERSION,
            experiment: "x".to_owned(),
            question: String::new(),
            environments: Vec::new(),
            parameters: Default::default(),
            table: Table::default(),
            charts: points.iter().map(chart).collect(),
            notes: Vec::new(),
            failures: Vec::new(),
        }
    }

    #[test]
    fn every_chart_has_a_file() {
        for (points, files) in [
            (&[2][..], &["a.b.svg"][..]),
            (&[2, 3], &["a.b-1.svg", "a.b-2.svg"]),
            (&[2, 0, 3], &["a.b-1.svg", "a.b-3.svg"]),
            (&[], &[]),
            (&[0], &[]),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let figures = Figures::reserve(&folder.path().join("a.b.svg"), []).unwrap();
            let written = figures.write(&report(points));
            assert_eq!(written.is_err(), files.is_empty(), "{written:?}");
            let entries = std::fs::read_dir(folder.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, files);
        }
    }

    #[test]
    fn an_input_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("a-2.svg");
        std::fs::write(&input, "input").unwrap();
        let figures = Figures::reserve(&folder.path().join("a.svg"), [&*input]).unwrap();
        assert!(figures.write(&report(&[2, 2])).is_err());
        assert_eq!(std::fs::read_to_string(&input).unwrap(), "input");
    }
}
