//! Report of an experiment: plain data from which text, CSV, JSON and pages are made.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::environment::Environment;

/// Value of [`ExperimentReport::format`].
pub const FORMAT: &str = "edge-lmm experiment";
/// Version of the fields of a report that this program writes.
pub const VERSION: u32 = 1;

/// Results of an experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExperimentReport {
    /// Always [`FORMAT`].
    #[cfg_attr(test, schemars(extend("const" = FORMAT)))]
    pub format: String,
    /// [`VERSION`] of the program that wrote the report.
    #[cfg_attr(test, schemars(extend("const" = VERSION)))]
    pub version: u32,
    /// Name of the experiment, as on the command line.
    pub experiment: String,
    /// Question that the experiment answers.
    pub question: String,
    /// Environment of each shard; one for an experiment that ran on one machine.
    pub environments: Vec<Environment>,
    /// Models, options and sample counts.
    pub parameters: BTreeMap<String, Value>,
    /// Results by setting.
    pub table: Table,
    /// Charts of the same results.
    pub charts: Vec<Chart>,
    /// Conclusions, computed from the results: one sentence or two each.
    pub notes: Vec<String>,
    /// Measurements that failed.
    pub failures: Vec<Failure>,
}

/// A table: every row has as many cells as there are columns.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Table {
    /// Columns from left to right.
    pub columns: Vec<Column>,
    /// Rows from top to bottom.
    pub rows: Vec<Vec<Cell>>,
}

/// A column of a [`Table`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Column {
    /// Heading.
    pub name: String,
    /// Unit of the numbers, such as `ms` or `%`; empty for text and counts.
    pub unit: String,
    /// Decimal places with which numbers are shown.
    pub decimals: usize,
}

/// A cell of a [`Table`]: text, a number in the unit of its column, or nothing (`null` in JSON).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Cell {
    /// A finite number.
    Number(f64),
    /// Text.
    Text(String),
    /// There is no value.
    Empty,
}

/// A chart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Chart {
    /// Title.
    pub title: String,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// Values.
    pub data: ChartData,
}

/// An axis of a [`Chart`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Axis {
    /// Label without the unit.
    pub label: String,
    /// Unit; may be empty.
    pub unit: String,
}

/// Values of a [`Chart`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ChartData {
    /// A line with a marker at each point for each series.
    Lines(Vec<Line>),
    /// A bar of each series for each category.
    Bars {
        /// Names of the groups of bars, along the horizontal axis.
        categories: Vec<String>,
        /// Series of bars.
        series: Vec<Bars>,
        /// Bars of a category are stacked on each other; otherwise they stand side by side.
        stacked: bool,
    },
}

/// A series of points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Line {
    /// Name in the legend.
    pub name: String,
    /// Points in the order in which they are connected.
    pub points: Vec<(f64, f64)>,
}

/// A series of bars.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Bars {
    /// Name in the legend.
    pub name: String,
    /// Height of the bar of each category; `None` (`null`) where there is no value.
    pub values: Vec<Option<f64>>,
}

/// A measurement that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Failure {
    /// The model.
    pub model: String,
    /// Value of the varied quantity, as text.
    pub setting: String,
    /// Question or repeat.
    pub sample: String,
    /// Message with its causes, in one line.
    pub error: String,
}

impl Table {
    /// Creates a table without rows from names, units and decimal places.
    pub fn new(columns: &[(&str, &str, usize)]) -> Self {
        let column = |&(name, unit, decimals): &(&str, &str, usize)| Column {
            name: name.to_owned(),
            unit: unit.to_owned(),
            decimals,
        };
        Self {
            columns: columns.iter().map(column).collect(),
            rows: Vec::new(),
        }
    }
}

impl Column {
    /// Returns the heading with the unit.
    pub fn heading(&self) -> String {
        match self.unit.as_str() {
            "" => self.name.clone(),
            unit => format!("{} {unit}", self.name),
        }
    }
}

impl Cell {
    /// Formats the cell for a column of a table; an empty cell is a dash.
    pub fn text(&self, column: &Column) -> String {
        match self {
            Self::Number(value) => format!("{value:.*}", column.decimals),
            Self::Text(text) => text.clone(),
            Self::Empty => "-".to_owned(),
        }
    }
}

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        match value.is_finite() {
            true => Self::Number(value),
            false => Self::Empty,
        }
    }
}

impl From<Option<f64>> for Cell {
    fn from(value: Option<f64>) -> Self {
        value.map_or(Self::Empty, Self::from)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl Axis {
    /// Creates an axis.
    pub fn new(label: &str, unit: &str) -> Self {
        Self {
            label: label.to_owned(),
            unit: unit.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_survive_json() {
        let cells = vec![
            Cell::from("none"),
            Cell::from(1.5),
            Cell::from(None),
            Cell::from(f64::NAN),
        ];
        let json = serde_json::to_string(&cells).unwrap();
        assert_eq!(json, r#"["none",1.5,null,null]"#);
        let back: Vec<Cell> = serde_json::from_str(&json).unwrap();
        assert_eq!(back, cells);
    }

    #[test]
    fn numbers_have_the_decimals_of_their_column() {
        let table = Table::new(&[("vision", "ms", 1), ("tokens", "", 0)]);
        let texts = [Cell::from(12.34), Cell::from(256.0)];
        let texts: Vec<String> = table
            .columns
            .iter()
            .zip(&texts)
            .map(|(column, cell)| cell.text(column))
            .collect();
        assert_eq!(texts, ["12.3", "256"]);
        assert_eq!(table.columns[0].heading(), "vision ms");
    }
}
