//! From a conversation to tokens and from tokens to text: chat template and tokenizer.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, context};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::error::ModelError;
use crate::model::MediaKind;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The person who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name that chat templates use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// A piece of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The next medium of the conversation.
    Media(MediaKind),
    /// Text.
    Text(String),
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order.
    pub content: Vec<Content>,
}

impl Message {
    /// A message of text alone.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            content: vec![Content::Text(text.into())],
        }
    }

    fn to_value(&self) -> Value {
        let content: Vec<Value> = self
            .content
            .iter()
            .map(|content| match content {
                Content::Media(kind) => json!({ "type": kind.as_str() }),
                Content::Text(text) => json!({ "type": "text", "text": text }),
            })
            .collect();
        json!({ "role": self.role.as_str(), "content": content })
    }

    /// The message with its media written out as `placeholder` says, for templates that know
    /// only text.
    fn to_flat_value(&self, placeholder: impl Fn(MediaKind) -> String) -> Value {
        let content: String = self
            .content
            .iter()
            .map(|content| match content {
                Content::Media(kind) => placeholder(*kind),
                Content::Text(text) => text.clone(),
            })
            .collect();
        json!({ "role": self.role.as_str(), "content": content })
    }
}

/// The text side of a model.
#[derive(Debug, Clone)]
pub struct TextProcessor {
    tokenizer: Tokenizer,
    template: Option<String>,
    edges: EdgeTokens,
}

/// Texts of the tokens that begin and end a sequence, which templates may ask for.
#[derive(Debug, Clone, Default)]
struct EdgeTokens {
    begin: Option<String>,
    end: Option<String>,
}

impl TextProcessor {
    /// From the text of `tokenizer.json` and a chat template in Jinja.
    ///
    /// # Errors
    /// If the tokenizer cannot be read.
    pub fn new(tokenizer: &str, template: Option<String>) -> Result<Self, ModelError> {
        let tokenizer = tokenizer
            .parse::<Tokenizer>()
            .map_err(|error| ModelError::Tokenizer(error.to_string()))?;
        Ok(Self {
            tokenizer,
            template: template.map(|template| without_training_marks(&template)),
            edges: EdgeTokens::default(),
        })
    }

    /// The same with the tokens that `config.json` lets a sequence begin and end with, for
    /// templates that write `bos_token` or `eos_token`.
    #[must_use]
    pub fn with_config(mut self, config: &Value) -> Self {
        let token = |key: &str| {
            let text = config.get("text_config").unwrap_or(&Value::Null);
            let value = config.get(key).filter(|value| !value.is_null());
            let id = match value.or_else(|| text.get(key))? {
                Value::Array(ids) => ids.first()?.as_u64()?,
                id => id.as_u64()?,
            };
            self.tokenizer.id_to_token(u32::try_from(id).ok()?)
        };
        self.edges = EdgeTokens {
            begin: token("bos_token_id"),
            end: token("eos_token_id"),
        };
        self
    }

    /// Whether the checkpoint has a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// The id of a token by its text.
    ///
    /// # Errors
    /// If there is no such token.
    pub fn id(&self, token: &str) -> Result<u32, ModelError> {
        self.tokenizer
            .token_to_id(token)
            .ok_or_else(|| ModelError::Tokenizer(format!("there is no token {token:?}")))
    }

    /// The largest id, if there are tokens at all.
    pub fn largest_id(&self) -> Option<u32> {
        self.tokenizer.get_vocab(true).into_values().max()
    }

    /// Token ids of `text`; special tokens in it are recognised, none are added.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.tokenizer
            .encode(text, false)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| ModelError::Tokenizer(error.to_string()))
    }

    /// As [`Self::encode`], but with the tokens that the tokenizer puts around a text (usually one
    /// that begins it), unless the text brings them itself.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode_whole(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encode = |text: &str, whole: bool| {
            self.tokenizer
                .encode(text, whole)
                .map(|encoding| encoding.get_ids().to_vec())
                .map_err(|error| ModelError::Tokenizer(error.to_string()))
        };
        let edges = encode("", true)?;
        let bare = encode(text, false)?;
        match edges.first() {
            Some(first) if bare.first() != Some(first) => encode(text, true),
            _ => Ok(bare),
        }
    }

    /// The text of `ids`, without special tokens.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.tokenizer
            .decode(ids, true)
            .map_err(|error| ModelError::Tokenizer(error.to_string()))
    }

    /// Renders the conversation, ending where the assistant is to speak.
    ///
    /// `fallback` is used where the checkpoint has no template; `placeholder` is the text of a
    /// medium. A template that knows no media (often so in GGUF files) gets them as text.
    ///
    /// # Errors
    /// If the template cannot be rendered.
    pub fn render(
        &self,
        messages: &[Message],
        fallback: &str,
        placeholder: impl Fn(MediaKind) -> String + Copy,
    ) -> Result<String, ModelError> {
        let template = self.template.as_deref().unwrap_or(fallback);
        let wanted: Vec<String> = messages
            .iter()
            .flat_map(|message| &message.content)
            .filter_map(|content| match content {
                Content::Media(kind) => Some(placeholder(*kind)),
                Content::Text(_) => None,
            })
            .collect();
        let structured = self.fill(template, messages.iter().map(Message::to_value).collect());
        match structured {
            Ok(text) if holds_all(&text, &wanted) && holds_text(&text, messages) => Ok(text),
            first => {
                let flat = messages
                    .iter()
                    .map(|m| m.to_flat_value(placeholder))
                    .collect();
                let second = self.fill(template, flat);
                // The first error says more about a template that fails both ways.
                second
                    .map_err(|error| ModelError::Template(first.err().unwrap_or(error).to_string()))
            }
        }
    }

    fn fill(&self, template: &str, messages: Vec<Value>) -> Result<String, Error> {
        let mut environment = Environment::new();
        // As transformers sets Jinja up.
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build()?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<String, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        // A hostile template must not run forever.
        environment.set_fuel(Some(10_000_000));
        environment.render_str(
            template,
            context! {
                messages => minijinja::Value::from(Serde(&messages)),
                add_generation_prompt => true,
                bos_token => self.edges.begin.as_deref().unwrap_or_default(),
                eos_token => self.edges.end.as_deref().unwrap_or_default(),
            },
        )
    }
}

fn holds_all(text: &str, wanted: &[String]) -> bool {
    let mut rest = text;
    wanted.iter().all(|part| match rest.find(part.as_str()) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

/// A template that prints the content list as a whole escapes or quotes its text.
fn holds_text(text: &str, messages: &[Message]) -> bool {
    !text.contains("\"type\"")
        && !text.contains("'type'")
        && messages
            .iter()
            .flat_map(|m| &m.content)
            .all(|content| match content {
                Content::Text(part) => text.contains(part.trim()),
                Content::Media(_) => true,
            })
}

/// Leaves out `{% generation %}` and `{% endgeneration %}`, with which transformers marks what a
/// model is trained to say; they print nothing. Where such a tag trims blanks around it, or ends
/// its line, which Jinja then leaves out, a comment that does the same takes its place.
fn without_training_marks(template: &str) -> String {
    let mut cleaned = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else {
            break;
        };
        let end = start + len + 2;
        let inner = &rest[start + 2..end - 2];
        let word = inner.trim_matches(['-', '+']).trim();
        if matches!(word, "generation" | "endgeneration") {
            cleaned.push_str(&rest[..start]);
            cleaned.push_str(&format!(
                "{{#{}{}#}}",
                trim_mark(inner.chars().next()),
                trim_mark(inner.chars().last())
            ));
        } else {
            cleaned.push_str(&rest[..end]);
        }
        rest = &rest[end..];
    }
    cleaned + rest
}

fn trim_mark(edge: Option<char>) -> &'static str {
    match edge {
        Some('-') => "-",
        Some('+') => "+",
        _ => " ",
    }
}

/// Turns a growing run of tokens into text, never splitting a character.
///
/// A token may end inside a UTF-8 character, and a tokenizer may put a space between words only
/// when it sees both; so a window of tokens is decoded again, and what is new in it is given out
/// once it is whole.
#[derive(Debug, Clone, Default)]
pub struct TextStream {
    ids: Vec<u32>,
    window: usize,
    given: usize,
}

impl TextStream {
    /// Takes a token; the text that is complete now.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn push(&mut self, text: &TextProcessor, id: u32) -> Result<String, ModelError> {
        self.ids.push(id);
        let decoded = text.decode(&self.ids[self.window..])?;
        if decoded.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        let before = text.decode(&self.ids[self.window..self.given])?;
        let new = decoded.get(before.len()..).unwrap_or_default().to_owned();
        self.window = self.given;
        self.given = self.ids.len();
        Ok(new)
    }

    /// The end of the run: what was held back, incomplete characters replaced.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn finish(self, text: &TextProcessor) -> Result<String, ModelError> {
        let decoded = text.decode(&self.ids[self.window..])?;
        let before = text.decode(&self.ids[self.window..self.given])?;
        Ok(decoded.get(before.len()..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_for_training_print_nothing() {
        let template = "a {% generation %}b{% if x %}c{% endif %} {%- endgeneration -%} d";
        assert_eq!(
            without_training_marks(template),
            "a {#  #}b{% if x %}c{% endif %} {#--#} d"
        );
        assert_eq!(without_training_marks("{% generation"), "{% generation");
    }
}
