//! Reads the selected rows and columns of a weight from the tensors that it is stacked from, and
//! applies the folded factors.

use std::ops::Range;

use edge_lmm_models::weights::{Extent, RowSource};

use crate::planned_weight::PlannedWeight;
use crate::source::{Checkpoint, SourceError};

/// Appends rows of a weight to `out`. At most one additional row of a source is in memory.
///
/// # Errors
/// If a tensor cannot be read.
pub(crate) fn read_rows(
    checkpoint: &Checkpoint,
    weight: &PlannedWeight,
    rows: Range<usize>,
    out: &mut Vec<f32>,
) -> Result<(), SourceError> {
    let spec = &weight.spec;
    let before = out.len();
    let mut first = 0;
    for source in &spec.sources {
        let own = first..first + source.rows.len();
        let (start, end) = (rows.start.max(own.start), rows.end.min(own.end));
        if start < end {
            let places = start - first..end - first;
            match spec.transposed {
                true => read_transposed(checkpoint, source, &spec.columns, places, out)?,
                false => read_source(checkpoint, source, &spec.columns, places, out)?,
            }
        }
        first = own.end;
    }
    if spec.zero_centered {
        out[before..].iter_mut().for_each(|value| *value += 1.0);
    }
    let cols = spec.cols();
    weight.factors.apply(rows.start, cols, &mut out[before..]);
    Ok(())
}

fn read_source(
    checkpoint: &Checkpoint,
    source: &RowSource,
    columns: &Extent,
    places: Range<usize>,
    out: &mut Vec<f32>,
) -> Result<(), SourceError> {
    for run in source.rows.runs(places) {
        let Extent::Some { indices, .. } = columns else {
            checkpoint.read_rows(&source.tensor, run, out)?;
            continue;
        };
        let mut whole = Vec::with_capacity(columns.source_len());
        for row in run {
            whole.clear();
            checkpoint.read_rows(&source.tensor, row..row + 1, &mut whole)?;
            out.extend(indices.iter().map(|&column| whole[column as usize]));
        }
    }
    Ok(())
}

/// As [`read_source`], for rows that are columns of the source.
fn read_transposed(
    checkpoint: &Checkpoint,
    source: &RowSource,
    columns: &Extent,
    places: Range<usize>,
    out: &mut Vec<f32>,
) -> Result<(), SourceError> {
    for run in source.rows.runs(places) {
        let width = run.len();
        let read = checkpoint.read_columns(&source.tensor, run)?;
        for row in 0..width {
            let element = |column| read[columns.source_index(column) * width + row];
            out.extend((0..columns.len()).map(element));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::factors::Factors;

    #[test]
    fn factors_belong_to_rows_and_columns() {
        let mut factors = Factors::default();
        let mut values = [1.0; 4];
        factors.apply(1, 2, &mut values);
        assert_eq!(values, [1.0; 4]);
        factors.multiply_rows(&[1.0, 2.0, 3.0]);
        factors.multiply_columns(&[10.0, 100.0]);
        factors.multiply_rows(&[1.0, 1.0, 2.0]);
        factors.apply(1, 2, &mut values);
        assert_eq!(values, [20.0, 200.0, 60.0, 600.0]);
    }
}
