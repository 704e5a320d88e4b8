//! Constraints on the text of an answer: a JSON schema, a regular expression or a grammar.
//!
//! Before each token is picked, the tokens that would break the constraint are excluded, and an
//! end-of-sequence token is excluded until the text is complete. An answer that ends by itself
//! ([`FinishReason::Stop`](crate::FinishReason::Stop)) therefore satisfies the constraint, unless a
//! stop string ended it. One that ends for another reason is the beginning of such a text.
//!
//! The parser is that of [llguidance](https://docs.rs/llguidance). It requires the feature
//! `constraints`; without it, requests with a constraint are rejected.

#[cfg(feature = "constraints")]
mod compile;
#[cfg(all(test, feature = "constraints"))]
mod cost;
#[cfg(feature = "constraints")]
mod limits;
#[cfg(feature = "constraints")]
mod matching;
#[cfg(feature = "constraints")]
mod vocabulary;

#[cfg(not(feature = "constraints"))]
mod absent;

use serde_json::Value;
#[cfg(any(feature = "constraints", feature = "http"))]
use serde_json::json;

#[cfg(not(feature = "constraints"))]
pub(crate) use absent::{Compiler, Matching};
#[cfg(feature = "constraints")]
pub(crate) use compile::Compiler;
#[cfg(feature = "constraints")]
pub(crate) use matching::Matching;

/// Whitespace between the tokens of JSON: a blank, or a line break with an indentation. A model
/// that is not confident repeats unlimited whitespace without end.
#[cfg(any(feature = "constraints", feature = "http"))]
const WHITESPACE: &str = r" |\n {0,12}";

/// The form that the text of an answer must have.
///
/// ```
/// use edge_lmm::{Constraint, Request, Message, Role};
///
/// let schema = r#"{"type": "object", "properties": {"count": {"type": "integer"}},
///     "required": ["count"], "additionalProperties": false}"#;
/// let constraint = Constraint::json_schema(schema)?;
/// let messages = [Message::text(Role::User, "How many shapes are there? Answer in JSON.")];
/// let request = Request {
///     constraint: Some(&constraint),
///     ..Request::new(&messages)
/// };
/// # let _ = request;
/// # Ok::<(), edge_lmm::ConstraintError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Constraint {
    /// A JSON value that a [JSON schema](https://json-schema.org) accepts.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// A text that a regular expression matches as a whole, in the syntax of the crate
    /// [regex](https://docs.rs/regex/latest/regex/#syntax).
    Regex(String),
    /// A text that a grammar accepts, in the
    /// [variant of Lark](https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md) of
    /// llguidance; its first rule is `start`.
    Grammar(String),
}

impl Constraint {
    /// Parses a JSON schema.
    ///
    /// # Errors
    /// If `text` is not JSON.
    pub fn json_schema(text: &str) -> Result<Self, ConstraintError> {
        match serde_json::from_str(text) {
            Ok(schema) => Ok(Self::JsonSchema(schema)),
            Err(error) => Err(ConstraintError::Invalid {
                kind: "JSON schema",
                reason: format!("it is not JSON: {error}"),
            }),
        }
    }

    /// Returns the name of the kind, for messages.
    #[cfg(feature = "constraints")]
    fn kind(&self) -> &'static str {
        match self {
            Self::JsonSchema(_) | Self::JsonObject => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Grammar(_) => "grammar",
        }
    }
}

/// Error of a constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// The constraint cannot be parsed, contradicts itself, uses a keyword that is not supported,
    /// or exceeds a limit.
    #[error("invalid {kind}: {reason}")]
    Invalid {
        /// The kind of constraint, such as a JSON schema.
        kind: &'static str,
        /// The reason, on one line.
        reason: String,
    },
    /// Continuing a text exceeded a limit.
    #[error(
        "the {kind} is too complex to continue after {tokens} tokens: {reason}; simplify it (fewer \
         alternatives, shorter repetitions)"
    )]
    TooComplex {
        /// The kind of constraint, such as a JSON schema.
        kind: &'static str,
        /// Tokens of the answer so far.
        tokens: usize,
        /// The limit.
        reason: String,
    },
    /// No token of the vocabulary continues the text.
    #[error(
        "no token of the model continues the answer after {tokens} tokens as the {kind} requires: \
         the vocabulary lacks characters that it names"
    )]
    Stuck {
        /// The constraint.
        kind: &'static str,
        /// Tokens of the answer so far.
        tokens: usize,
    },
    /// The text of a token depends on its neighbors in a way that the constraint cannot follow.
    #[error("constraints are not supported with the decoder of this model's tokenizer")]
    Tokenizer,
    /// The model has no end-of-sequence token.
    #[error(
        "constraints require an end-of-sequence token, but config.json and \
         generation_config.json of the model name none"
    )]
    NoEndToken,
    /// The library was built without the feature.
    #[error("constraints are not part of this build: rebuild it with the feature \"constraints\"")]
    NotBuilt,
}

/// Returns a schema with the parser's option for [`WHITESPACE`], unless it sets its options itself.
#[cfg(any(feature = "constraints", feature = "http"))]
pub(crate) fn with_whitespace(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        schema => schema.clone(),
    };
    if let Some(keywords) = schema.as_object_mut() {
        let options = || json!({ "whitespace_pattern": WHITESPACE });
        keywords.entry("x-guidance").or_insert_with(options);
    }
    schema
}
