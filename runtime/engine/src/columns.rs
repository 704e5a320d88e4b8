//! Tables as text.

/// Rows as a table in Markdown: the first row is the header, the first column is aligned to the
/// left, the others to the right.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let mut line = String::from("|");
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            line += &match column {
                0 => format!(" {cell:<width$} |"),
                _ => format!(" {cell:>width$} |"),
            };
        }
        line
    };
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    let rule = widths.map(|width| "-".repeat(width + 2));
    lines.insert(1.min(lines.len()), format!("|{}|", rule.join("|")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_aligned() {
        let rows = [["stage", "time"], ["load", "1.0 ms"]].map(|row| row.map(str::to_owned));
        let expected = "| stage |   time |\n|-------|--------|\n| load  | 1.0 ms |";
        assert_eq!(columns(&rows), expected);
    }
}
