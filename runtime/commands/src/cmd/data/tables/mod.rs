//! Tables of questions: Parquet, JSON, CSV and TSV.

mod csv;
mod json;
mod parquet;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context;

use super::names;
use super::row::Row;

/// The file formats, preferred ones first.
pub const FORMATS: [&[&str]; 3] = [&["parquet"], &["json"], &["csv", "tsv"]];

/// Columns and rows of a table to read.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// All rows; the column with this name, which holds the media, has no values.
    Without(&'a str),
    /// These rows, by their numbers, with all columns.
    Rows(&'a BTreeSet<usize>),
}

impl Part<'_> {
    fn has_row(&self, number: usize) -> bool {
        match self {
            Self::Without(_) => true,
            Self::Rows(rows) => rows.contains(&number),
        }
    }

    fn has_column(&self, name: &str) -> bool {
        match self {
            Self::Without(column) => *column != name,
            Self::Rows(_) => true,
        }
    }
}

/// Receives rows with their numbers, from 0.
type Each<'a> = &'a mut dyn FnMut(usize, Row) -> anyhow::Result<()>;

/// Reads a part of a table. The format is that of the extension of `name`.
///
/// # Errors
/// If the file cannot be read or is damaged, or `each` fails.
pub fn read(name: &str, path: &Path, part: Part<'_>, each: Each<'_>) -> anyhow::Result<()> {
    let mut located = |number: usize, row: Row| {
        each(number, row).with_context(|| format!("{name}, row {number}"))
    };
    match names::extension(name).as_str() {
        "parquet" => parquet::read(path, part, &mut located),
        "json" => json::read(path, part, &mut located),
        "tsv" => csv::read(path, b'\t', part, &mut located),
        _ => csv::read(path, b',', part, &mut located),
    }
    .with_context(|| format!("cannot read {}", path.display()))
}
