//! Options that constrain the text of an answer.

use clap::Args;
use edge_lmm::Constraint;

#[cfg(feature = "constraints")]
pub use with_constraints::ConstraintOptions;

/// Builds without the feature `constraints` have no such options.
#[cfg(not(feature = "constraints"))]
#[derive(Debug, Clone, Args)]
pub struct ConstraintOptions {}

#[cfg(not(feature = "constraints"))]
impl ConstraintOptions {
    /// Returns no constraint.
    ///
    /// # Errors
    /// Never.
    pub fn read(&self) -> anyhow::Result<Option<Constraint>> {
        Ok(None)
    }
}

#[cfg(feature = "constraints")]
mod with_constraints {
    use std::fs;
    use std::path::{Path, PathBuf};

    use anyhow::Context;

    use super::{Args, Constraint};

    /// Options that constrain the text of an answer; at most one of them is given.
    #[derive(Debug, Clone, Args)]
    #[group(multiple = false)]
    pub struct ConstraintOptions {
        /// Answer with a JSON value that the JSON schema in this file accepts
        ///
        /// Tokens that would break the schema are never picked. Ask for JSON in the prompt as well:
        /// the schema decides the form, the prompt what the values mean. An answer that reaches
        /// --max-tokens is incomplete; its finish_reason is length.
        /// Example: {"type": "object", "properties": {"count": {"type": "integer"}}, "required":
        /// ["count"], "additionalProperties": false}
        #[arg(long, value_name = "FILE")]
        json_schema: Option<PathBuf>,
        /// Answer with a JSON object of any form
        #[arg(long)]
        json_object: bool,
        /// Answer with a text that this regular expression matches as a whole, such as 'yes|no' or
        /// '[0-9]{1,3}'
        #[arg(long, value_name = "REGEX")]
        regex: Option<String>,
        /// Answer with a text that the grammar in this file accepts, in Lark's notation, such as
        /// start: "left" | "right"
        #[arg(long, value_name = "FILE")]
        grammar: Option<PathBuf>,
    }

    impl ConstraintOptions {
        /// Reads the constraint, if there is one.
        ///
        /// # Errors
        /// If the file cannot be read, or a schema is not JSON.
        pub fn read(&self) -> anyhow::Result<Option<Constraint>> {
            if let Some(path) = &self.json_schema {
                let schema = Constraint::json_schema(&text(path)?);
                return Ok(Some(schema.with_context(|| path.display().to_string())?));
            }
            if let Some(path) = &self.grammar {
                return Ok(Some(Constraint::Grammar(text(path)?)));
            }
            let object = self.json_object.then_some(Constraint::JsonObject);
            Ok(object.or_else(|| self.regex.clone().map(Constraint::Regex)))
        }
    }

    fn text(path: &Path) -> anyhow::Result<String> {
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    }
}
