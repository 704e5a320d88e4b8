//! Output of a report: table, JSON, CSV, page, figure.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use comfy_table::{CellAlignment, presets};
use edge_lmm::experiment::{Cell, ExperimentReport, Table};
use edge_lmm::output::Output;

use super::super::options::print_now;
use crate::page;

#[cfg(feature = "plots")]
use super::figures::Figures;

/// Options for the output of a report.
#[derive(Debug, Clone, Args)]
pub struct OutputOptions {
    /// Print the report as one JSON object instead of the table
    #[arg(long)]
    json: bool,
    /// Write the table to a CSV file
    #[arg(long, value_name = "FILE.csv")]
    csv: Option<PathBuf>,
    /// Write a page with charts, a single file for a browser
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
    /// Draw the charts: FILE.svg for a single one, FILE-1.svg, FILE-2.svg, ... for several
    #[cfg(feature = "plots")]
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
}

/// Reserved output files.
pub struct Files {
    json: bool,
    csv: Option<Output>,
    html: Option<Output>,
    #[cfg(feature = "plots")]
    svg: Option<Figures>,
}

impl OutputOptions {
    /// Reserves the output files, so that a wrong path is found before the measurements.
    pub fn reserve<'a>(
        &self,
        inputs: impl IntoIterator<Item = &'a Path> + Clone,
    ) -> anyhow::Result<Files> {
        let reserve = |path: &Option<PathBuf>| {
            let path = path.as_deref();
            path.map(|path| Output::replace(path, inputs.clone()))
                .transpose()
        };
        Ok(Files {
            json: self.json,
            csv: reserve(&self.csv)?,
            html: reserve(&self.html)?,
            #[cfg(feature = "plots")]
            svg: self
                .svg
                .as_deref()
                .map(|path| Figures::reserve(path, inputs.clone()))
                .transpose()?,
        })
    }
}

impl Files {
    /// Writes the files and prints the report. If measurements failed, this is an error.
    pub fn write(self, report: &ExperimentReport) -> anyhow::Result<()> {
        self.write_all(report, &[])
    }

    /// Writes the files and prints the report, which summarizes `parts`; the page has these, too. If
    /// measurements failed, this is an error.
    pub fn write_all(
        self,
        report: &ExperimentReport,
        parts: &[ExperimentReport],
    ) -> anyhow::Result<()> {
        if let Some(file) = self.csv {
            file.finish_with(&csv(&report.table)?)?;
        }
        if let Some(file) = self.html {
            file.finish_with(html(report, parts)?.as_bytes())?;
        }
        #[cfg(feature = "plots")]
        if let Some(figures) = self.svg {
            figures.write(report)?;
        }
        let text = match self.json {
            true => serde_json::to_string(report)?,
            false => text(report),
        };
        print_now(&format!("{text}\n"))?;
        match report.failures.first() {
            None => Ok(()),
            Some(first) => bail!(
                "{} measurements failed; the first is {}, {}, sample {}: {}",
                report.failures.len(),
                first.model,
                first.setting,
                first.sample,
                first.error
            ),
        }
    }
}

/// Returns the page of a report and its parts. Charts and failures are shown with the parts.
fn html(report: &ExperimentReport, parts: &[ExperimentReport]) -> serde_json::Result<String> {
    let mut first = report.clone();
    if !parts.is_empty() {
        first.charts.clear();
        first.failures.clear();
    }
    let title = format!("Experiment {}", report.experiment);
    let reports: Vec<_> = std::iter::once(first)
        .chain(parts.iter().cloned())
        .collect();
    page::experiments(&title, &reports)
}

/// Formats the question, the table and the notes.
fn text(report: &ExperimentReport) -> String {
    let mut text = format!("{}\n{}", report.question, table(&report.table));
    for note in &report.notes {
        text += &format!("\n- {note}");
    }
    text
}

fn table(table: &Table) -> comfy_table::Table {
    let mut shown = comfy_table::Table::new();
    shown.load_style(presets::ASCII_MARKDOWN);
    shown.set_header(table.columns.iter().map(|column| column.heading()));
    for row in &table.rows {
        let cells = row.iter().zip(&table.columns);
        shown.add_row(cells.map(|(cell, column)| cell.text(column)));
    }
    let is_text = |column: usize| {
        let mut cells = table.rows.iter().map(|row| &row[column]);
        cells.any(|cell| matches!(cell, Cell::Text(_)))
    };
    for (i, column) in shown.column_iter_mut().enumerate() {
        if !is_text(i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    shown
}

/// Writes the table as CSV, numbers in full precision.
fn csv(table: &Table) -> anyhow::Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(table.columns.iter().map(|column| column.heading()))?;
    for row in &table.rows {
        writer.write_record(row.iter().map(|cell| match cell {
            Cell::Number(value) => value.to_string(),
            Cell::Text(text) => text.clone(),
            Cell::Empty => String::new(),
        }))?;
    }
    Ok(writer
        .into_inner()
        .map_err(csv::IntoInnerError::into_error)?)
}
