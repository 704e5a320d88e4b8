//! Rows of tables, whatever their file format.

use anyhow::{Context, bail};

/// A value of a table. Numbers and booleans are texts.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    Null,
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Cell>),
    Group(Row),
}

/// The values of a row with the names of their columns.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row(pub Vec<(String, Cell)>);

impl Row {
    /// Returns the value of a column.
    pub fn cell(&self, column: &str) -> Option<&Cell> {
        let mut cells = self.0.iter();
        cells
            .find(|(name, _)| name == column)
            .map(|(_, cell)| cell)
            .filter(|cell| **cell != Cell::Null)
    }

    /// Returns `true` if the table has the column, whether or not the row has a value.
    pub fn has(&self, column: &str) -> bool {
        self.0.iter().any(|(name, _)| name == column)
    }

    /// Returns a text; `None` if the column is absent or empty, or has what pandas writes for that.
    ///
    /// # Errors
    /// If the value is not a text.
    pub fn optional(&self, column: &str) -> anyhow::Result<Option<&str>> {
        let Some(cell) = self.cell(column) else {
            return Ok(None);
        };
        let text = cell.text().with_context(|| format!("column {column}"))?;
        Ok(Some(text.trim()).filter(|text| !text.is_empty() && *text != "nan"))
    }

    /// Returns a text.
    ///
    /// # Errors
    /// If the column is absent or empty, or the value is not a text.
    pub fn text(&self, column: &str) -> anyhow::Result<&str> {
        self.optional(column)?.with_context(|| {
            let names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
            format!(
                "expected a text in column {column}, found none (columns: {})",
                names.join(", ")
            )
        })
    }

    /// Returns a list of texts; an absent column is an empty list.
    ///
    /// # Errors
    /// If the value is not a list of texts.
    pub fn list(&self, column: &str) -> anyhow::Result<Vec<String>> {
        let texts = match self.cell(column) {
            None => return Ok(Vec::new()),
            Some(Cell::List(cells)) => cells.iter().map(|cell| cell.text().map(str::to_owned)),
            Some(other) => bail!("expected a list in column {column}, found {}", other.kind()),
        };
        texts
            .collect::<anyhow::Result<_>>()
            .with_context(|| format!("column {column}"))
    }
}

impl Cell {
    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Text(_) => "a text",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "a list",
            Self::Group(_) => "a group of values",
        }
    }

    fn text(&self) -> anyhow::Result<&str> {
        match self {
            Self::Text(text) => Ok(text),
            // Writers without logical types.
            Self::Bytes(bytes) => std::str::from_utf8(bytes).context("the text is not UTF-8"),
            other => bail!("expected a text, found {}", other.kind()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_kind_that_is_asked_for() {
        let text = |text: &str| Cell::Text(text.to_owned());
        let row = Row(vec![
            ("question".to_owned(), text(" what? ")),
            ("hint".to_owned(), text("nan")),
            ("none".to_owned(), Cell::Null),
            ("answers".to_owned(), Cell::List(vec![text("a"), text("b")])),
        ]);
        assert_eq!(row.text("question").unwrap(), "what?");
        assert_eq!(row.optional("hint").unwrap(), None);
        assert_eq!(row.list("answers").unwrap(), ["a", "b"]);
        assert!(row.list("none").unwrap().is_empty());
        let error = row.text("hint").unwrap_err().to_string();
        assert!(
            error.contains("column hint") && error.contains("answers"),
            "{error}"
        );
        assert!(row.text("answers").is_err());
        assert!(row.list("question").is_err());
    }
}
