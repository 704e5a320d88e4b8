//! CSV and TSV.

use std::path::Path;

use anyhow::Context;

use super::{Each, Part};
use crate::cmd::data::row::{Cell, Row};

pub fn read(path: &Path, delimiter: u8, part: Part<'_>, each: Each<'_>) -> anyhow::Result<()> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .from_path(path)?;
    let header = reader.headers()?.clone();
    for (number, record) in reader.records().enumerate() {
        let record = record.context("not a table of text in UTF-8")?;
        if !part.has_row(number) {
            continue;
        }
        let cells = header.iter().zip(record.iter()).map(|(name, value)| {
            let is_read = part.has_column(name) && !value.is_empty();
            let cell = if is_read {
                Cell::Text(value.to_owned())
            } else {
                Cell::Null
            };
            (name.to_owned(), cell)
        });
        each(number, Row(cells.collect()))?;
    }
    Ok(())
}
