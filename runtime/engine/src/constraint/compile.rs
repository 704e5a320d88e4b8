//! Compilation of constraints for the vocabulary of a model.

use std::sync::Arc;
use std::thread;

use edge_lmm_models::prompt::TextProcessor;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Matcher, ParserFactory};
use serde_json::json;

use super::limits;
use super::matching::Matching;
use super::vocabulary::Vocabulary;
use super::{Constraint, ConstraintError, with_whitespace};

/// Sets of tokens that are allowed together inside JSON strings. Each costs memory for a trie of
/// its tokens, and saves a walk over them for each token of an answer.
const SLICES: [&str; 2] = [r#"[^"\\\x00-\x1F\x7F]{1,10}"#, r#"[^"\\\x00-\x1F\x7F]+"#];
/// Limits of a state of the parser. The fuels bound the time: about 20 ms for the compilation of
/// the lexer and 15 ms for a mask on a workstation; the states bound the memory, with about 1.5 KiB
/// each.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2000,
    initial_lexer_fuel: 1_000_000,
    step_lexer_fuel: 200_000,
    step_max_items: 50_000,
    max_lexer_states: 50_000,
    max_grammar_size: 200_000,
    precompute_large_lexemes: true,
    verbose_errors: false,
};
/// Stack for compilation, which recurses over nested rules and groups.
const STACK: usize = 256 << 20;
/// Longest message of the parser in characters.
const MAX_MESSAGE: usize = 300;

/// The compiler of constraints for one model.
pub(crate) struct Compiler {
    factory: ParserFactory,
    vocabulary: Arc<Vocabulary>,
}

impl Compiler {
    /// Builds the tries of a tokenizer, which takes some tenths of a second for large vocabularies.
    ///
    /// # Errors
    /// If the tokenizer does not allow constraints.
    pub fn new(text: &TextProcessor, end_tokens: &[u32]) -> Result<Self, ConstraintError> {
        let vocabulary = Arc::new(Vocabulary::new(text, end_tokens)?);
        let slices = SLICES.map(str::to_owned);
        let capabilities = InferenceCapabilities::default();
        let mut factory = ParserFactory::new(&vocabulary.texts, capabilities, &slices)
            .map_err(|_| ConstraintError::Tokenizer)?;
        factory.quiet();
        *factory.limits_mut() = LIMITS;
        Ok(Self {
            factory,
            vocabulary,
        })
    }

    /// Compiles a constraint.
    ///
    /// # Errors
    /// If the constraint is invalid or exceeds a limit.
    pub fn compile(&self, constraint: &Constraint) -> Result<Matching, ConstraintError> {
        let kind = constraint.kind();
        let invalid = |reason| ConstraintError::Invalid { kind, reason };
        let compiled = on_large_stack(|| {
            limits::check(constraint)?;
            let parser = self.factory.create_parser(grammar(constraint));
            parser.map_err(|error| one_line(&format!("{error:#}")))
        });
        let parser = compiled.map_err(|error| invalid(error.to_string()))?;
        let mut parser = parser.map_err(invalid)?;
        for warning in parser.grammar_warnings() {
            log::warn!("{kind}: {}", one_line(&warning));
        }
        let matcher = Matcher::new(Ok(parser));
        Ok(Matching::new(matcher, kind, self.vocabulary.clone()))
    }
}

/// Converts a constraint to the parser's form.
fn grammar(constraint: &Constraint) -> TopLevelGrammar {
    match constraint {
        Constraint::JsonSchema(schema) => {
            TopLevelGrammar::from_json_schema(with_whitespace(schema))
        }
        Constraint::JsonObject => {
            TopLevelGrammar::from_json_schema(with_whitespace(&json!({ "type": "object" })))
        }
        Constraint::Regex(pattern) => TopLevelGrammar::from_regex(pattern),
        Constraint::Grammar(text) => TopLevelGrammar::from_lark(text.clone()),
    }
}

/// Runs `work` on a thread with a large stack.
fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(STACK);
        let running = thread.spawn_scoped(scope, work)?;
        let result = running.join();
        Ok(result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Joins the lines of a message of the parser, without backtraces and quotes of the source.
pub(super) fn one_line(message: &str) -> String {
    let is_quote = |line: &str| {
        let number = line.split_once('|').map(|(number, _)| number.trim());
        line == "^" || number.is_some_and(|number| number.parse::<usize>().is_ok())
    };
    let lines = message
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("<backtrace>"))
        .filter(|line| !line.is_empty() && *line != "<non-verbose/>" && !is_quote(line));
    let joined = lines.collect::<Vec<_>>().join(" ");
    let shown: String = joined.chars().take(MAX_MESSAGE).collect();
    shown.replace(|c: char| c.is_control(), " ")
}
