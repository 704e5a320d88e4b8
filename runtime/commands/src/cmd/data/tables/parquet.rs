//! Parquet, without Arrow: rows are read one by one.

use std::any::Any;
use std::cell::Cell as Flag;
use std::fs::File;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Once;

use anyhow::{Context, anyhow};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;

use super::{Each, Part};
use crate::cmd::data::row::{Cell, Row};

pub fn read(path: &Path, part: Part<'_>, each: Each<'_>) -> anyhow::Result<()> {
    let file = File::open(path)?;
    guarded(|| read_file(file, part, each))
}

fn read_file(file: File, part: Part<'_>, each: Each<'_>) -> anyhow::Result<()> {
    let reader = SerializedFileReader::new(file)?;
    let schema = reader.metadata().file_metadata().schema();
    let (columns, skipped): (Vec<_>, Vec<_>) = schema
        .get_fields()
        .iter()
        .cloned()
        .partition(|column| part.has_column(column.name()));
    let projection = Type::group_type_builder(schema.name())
        .with_fields(columns)
        .build()?;
    let mut first: usize = 0;
    for index in 0..reader.num_row_groups() {
        let group = reader.get_row_group(index)?;
        let rows = usize::try_from(group.metadata().num_rows())
            .ok()
            .and_then(|rows| Some(first..first.checked_add(rows)?))
            .context("the file announces an impossible number of rows")?;
        first = rows.end;
        let is_wanted = match part {
            Part::Rows(wanted) => wanted.range(rows.clone()).next().is_some(),
            Part::Without(_) => true,
        };
        if !is_wanted {
            continue;
        }
        for (number, row) in rows.zip(group.get_row_iter(Some(projection.clone()))?) {
            let row = row?;
            if part.has_row(number) {
                let mut row = columns_of(row);
                let skipped = skipped.iter().map(|column| column.name().to_owned());
                row.0.extend(skipped.map(|name| (name, Cell::Null)));
                each(number, row)?;
            }
        }
    }
    Ok(())
}

fn columns_of(row: parquet::record::Row) -> Row {
    let columns = row.into_columns().into_iter();
    Row(columns.map(|(name, field)| (name, cell(field))).collect())
}

fn cell(field: Field) -> Cell {
    match field {
        Field::Null | Field::MapInternal(_) => Cell::Null,
        Field::Str(text) => Cell::Text(text),
        Field::Bytes(bytes) => Cell::Bytes(bytes.data().to_vec()),
        Field::Group(row) => Cell::Group(columns_of(row)),
        Field::ListInternal(list) => {
            let elements = list.elements().iter().cloned();
            Cell::List(elements.map(cell).collect())
        }
        number => Cell::Text(number.to_string()),
    }
}

thread_local! {
    static GUARDED: Flag<bool> = const { Flag::new(false) };
}

/// Runs the reader, which may panic on files whose header does not match their content. Such a panic
/// becomes an error.
fn guarded<T>(read: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if GUARDED.get() {
                log::debug!("the Parquet reader panicked: {info}");
            } else {
                report(info);
            }
        }));
    });
    GUARDED.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(read));
    GUARDED.set(false);
    result.unwrap_or_else(|payload| {
        let reason = message(payload.as_ref());
        Err(anyhow!(
            "the file is damaged: its header does not match its content ({reason})"
        ))
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    text.unwrap_or_default().replace('\n', " ")
}
