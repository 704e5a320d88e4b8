//! JSON: a list of objects, or an object with such a list under `data`. All columns are read, because
//! JSON names its media and does not contain them.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::bail;
use serde_json::Value;

use super::{Each, Part};
use crate::cmd::data::row::{Cell, Row};

pub fn read(path: &Path, part: Part<'_>, each: Each<'_>) -> anyhow::Result<()> {
    let content: Value = serde_json::from_reader(BufReader::new(File::open(path)?))?;
    let rows = match content {
        Value::Array(rows) => rows,
        Value::Object(mut object) => match object.remove("data") {
            Some(Value::Array(rows)) => rows,
            _ => bail!("expected a list of questions, or one under \"data\""),
        },
        _ => bail!("expected a list of questions"),
    };
    for (number, row) in rows.into_iter().enumerate() {
        if !part.has_row(number) {
            continue;
        }
        match cell(row) {
            Cell::Group(row) => each(number, row)?,
            _ => bail!("row {number}: expected an object"),
        }
    }
    Ok(())
}

fn cell(value: Value) -> Cell {
    match value {
        Value::Null => Cell::Null,
        Value::String(text) => Cell::Text(text),
        Value::Array(values) => Cell::List(values.into_iter().map(cell).collect()),
        Value::Object(values) => {
            let values = values.into_iter();
            Cell::Group(Row(values
                .map(|(name, value)| (name, cell(value)))
                .collect()))
        }
        number_or_bool => Cell::Text(number_or_bool.to_string()),
    }
}
