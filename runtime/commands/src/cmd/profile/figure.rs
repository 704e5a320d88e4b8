//! The stages of a profile as a figure.

use edge_lmm::experiment::{Axis, Bars, Chart, ChartData};
use edge_lmm::profile::ProfileReport;
use edge_lmm::profile::report::ProfileRun;

use super::comparison::point;

/// Returns a chart with a bar of its stages for each run. Time that other stages hide is left out, so
/// that the length of a bar is the time of the run.
pub fn stages(report: &ProfileReport) -> Chart {
    let mut names: Vec<&str> = Vec::new();
    for run in &report.runs {
        for (name, _) in times(run) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let value = |run: &ProfileRun, name: &str| {
        let mut times = times(run);
        times.find(|(stage, _)| *stage == name).map(|(_, ms)| ms)
    };
    let series = names.iter().map(|name| Bars {
        name: (*name).to_owned(),
        values: report.runs.iter().map(|run| value(run, name)).collect(),
    });
    Chart {
        title: "Time by stage".to_owned(),
        x: Axis::new("run", ""),
        y: Axis::new("time", "ms"),
        data: ChartData::Bars {
            categories: report.runs.iter().map(point).collect(),
            series: series.collect(),
            stacked: true,
        },
    }
}

/// Iterates over the stages with their times in milliseconds.
fn times(run: &ProfileRun) -> impl Iterator<Item = (&str, f64)> {
    let stages = run.modules.iter().filter(|module| module.parent.is_none());
    stages.map(|stage| {
        let ms = stage.ms.median - stage.hidden_ms;
        (stage.name.as_str(), ms.max(0.0))
    })
}
