//! Chat template and tokenizer of a checkpoint.

use std::sync::OnceLock;

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::error::ModelError;
use crate::guard;
use crate::layout::Layout;
use crate::media::MediaKind;
use crate::prompt::assembly::medium_text;
use crate::prompt::chat_template::{ChatTemplate, EdgeTokens, Forms, Parsed};
use crate::prompt::control_tokens::{ControlTokens, Disguise, LiteralTokenizer, encode, is_dense};
use crate::prompt::message::{Conversation, Message};
use crate::prompt::token_bytes::TokenBytes;
use crate::prompt::tokenizer_limits;
use crate::prompt::tools::{Tool, ToolSyntax};

/// A rendered conversation that distinguishes template text from message text.
#[derive(Debug, Clone)]
pub struct Rendered {
    /// The text; characters of messages that could be part of a control token are replaced.
    text: String,
    parse_special: bool,
    /// The text is no template's: the tokens of the post-processor belong to it.
    raw: bool,
    disguise: Disguise,
}

impl Rendered {
    /// Splits the text by `split`, which does not see control tokens in messages.
    pub(crate) fn split(&self, split: impl Fn(&str) -> Vec<&str>) -> Vec<Self> {
        let part = |text: &str| Self {
            text: text.to_owned(),
            parse_special: self.parse_special,
            raw: self.raw,
            disguise: self.disguise.clone(),
        };
        split(&self.text).into_iter().map(part).collect()
    }

    /// Returns the text as a reader sees it.
    #[cfg(test)]
    pub(crate) fn plain(&self) -> String {
        self.disguise.take_off(&self.text).0
    }

    /// Replaces each `mark` of the template by the text of a medium: its text pieces, and
    /// `placeholder` for each run. A mark in a message stays as it is, unless its control tokens
    /// take effect.
    ///
    /// # Errors
    /// If the number of marks differs from that of the media.
    pub fn with_media(
        &self,
        mark: &str,
        media: &[&Layout],
        placeholder: &str,
    ) -> Result<Self, ModelError> {
        let found = self.text.matches(mark).count();
        if found != media.len() {
            return Err(ModelError::Placeholders {
                found,
                expected: media.len(),
            });
        }
        let mut media = media.iter();
        let mut text = String::with_capacity(self.text.len());
        for part in self.text.split_inclusive(mark) {
            match (part.strip_suffix(mark), media.len()) {
                (Some(before), 1..) => {
                    text.push_str(before);
                    let layouts = media.next();
                    text.extend(layouts.map(|layout| medium_text(layout, placeholder)));
                }
                _ => text.push_str(part),
            }
        }
        Ok(Self {
            text,
            parse_special: self.parse_special,
            raw: self.raw,
            disguise: self.disguise.clone(),
        })
    }
}

/// The tokenizer and chat template of a model.
#[derive(Debug)]
pub struct TextProcessor {
    tokenizer: Tokenizer,
    /// The text of `tokenizer.json`, if the library cannot write it back.
    source: Option<String>,
    template: Option<ChatTemplate>,
    edges: EdgeTokens,
    prepared: OnceLock<Prepared>,
    literal: OnceLock<LiteralTokenizer>,
    bytes: OnceLock<TokenBytes>,
}

/// Properties of the template, found when the first prompt is rendered.
#[derive(Debug)]
struct Prepared {
    forms: Forms,
    control: ControlTokens,
    tools: ToolSyntax,
}

impl TextProcessor {
    /// Creates a processor from `json`, the text of `tokenizer.json`, and a chat template in Jinja.
    /// Stored truncation and padding are ignored.
    ///
    /// # Errors
    /// If the tokenizer or the template is invalid or exceeds a limit.
    pub fn new(json: &str, template: Option<String>) -> Result<Self, ModelError> {
        let mut tokenizer = guard::on_large_stack(|| json.parse::<Tokenizer>())
            .and_then(|parsed| parsed.map_err(|error| error.to_string()))
            .map_err(ModelError::Tokenizer)?;
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| ModelError::Tokenizer(error.to_string()))?;
        tokenizer_limits::check(&tokenizer).map_err(ModelError::Tokenizer)?;
        let template = template.map(|template| ChatTemplate::new(&template));
        Ok(Self {
            source: (!is_dense(&tokenizer)).then(|| json.to_owned()),
            tokenizer,
            template: template.transpose()?,
            edges: EdgeTokens::default(),
            prepared: OnceLock::new(),
            literal: OnceLock::new(),
            bytes: OnceLock::new(),
        })
    }

    /// Adds the BOS and EOS tokens of `config.json` for templates that use `bos_token` or
    /// `eos_token`.
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

    /// Returns `true` if the checkpoint has a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Returns the id of a token by its text.
    ///
    /// # Errors
    /// If there is no such token.
    pub fn id(&self, token: &str) -> Result<u32, ModelError> {
        self.tokenizer
            .token_to_id(token)
            .ok_or_else(|| ModelError::Tokenizer(format!("there is no token {token:?}")))
    }

    /// Returns the largest id, or `None` for an empty vocabulary.
    pub fn largest_id(&self) -> Option<u32> {
        self.tokenizer.get_vocab(true).into_values().max()
    }

    /// Returns `true` if both tokenizers give the same ids to the same tokens.
    pub fn has_same_tokens(&self, other: &Self) -> bool {
        self.tokenizer.get_vocab(true) == other.tokenizer.get_vocab(true)
    }

    /// Returns the length of the longest token in bytes, at least 1.
    pub fn longest_token(&self) -> usize {
        let vocabulary = self.tokenizer.get_vocab(true);
        vocabulary.keys().map(String::len).max().unwrap_or(1).max(1)
    }

    /// Encodes a prompt. Control tokens are recognized only where the template wrote them. A raw
    /// prompt is encoded as by [`Self::encode_whole`].
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode(&self, prompt: &Rendered) -> Result<Vec<u32>, ModelError> {
        match prompt.raw {
            true => self.encode_whole(prompt),
            false => self.encode_as(prompt, |encode| encode(false)),
        }
    }

    /// Encodes text that is not part of a prompt, without the tokens of the post-processor.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        encode(&self.tokenizer, text, false)
    }

    /// Encodes like [`Self::encode`], but adds the tokens of the post-processor (usually BOS),
    /// unless the template writes them itself.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode_whole(&self, prompt: &Rendered) -> Result<Vec<u32>, ModelError> {
        let edges = encode(&self.tokenizer, "", true)?;
        self.encode_as(prompt, |encode| {
            let bare = encode(false)?;
            match edges.first() {
                Some(first) if bare.first() != Some(first) => encode(true),
                _ => Ok(bare),
            }
        })
    }

    /// Encodes a prompt with the appropriate tokenizer. `with` receives its encoding function and
    /// chooses whether to add the tokens of the post-processor.
    fn encode_as(
        &self,
        prompt: &Rendered,
        with: impl Fn(&dyn Fn(bool) -> Result<Vec<u32>, ModelError>) -> Result<Vec<u32>, ModelError>,
    ) -> Result<Vec<u32>, ModelError> {
        let (text, places) = prompt.disguise.take_off(&prompt.text);
        let plain = |whole| encode(&self.tokenizer, &text, whole);
        let Some(prepared) = self.prepared.get().filter(|_| !prompt.parse_special) else {
            return with(&plain);
        };
        let control = &prepared.control;
        let found = control.find(&text);
        if !found.iter().any(|found| found.holds_any(&places)) {
            let bare = plain(false)?;
            if control.none_beyond(&bare, &found) {
                return with(&|whole| match whole {
                    true => plain(true),
                    false => Ok(bare.clone()),
                });
            }
        }
        let written = control.find(&prompt.text);
        let literal = |tokenizer: &LiteralTokenizer| {
            with(&|whole| tokenizer.encode(&prompt.text, &prompt.disguise, &written, whole))
        };
        match self.literal.get() {
            Some(tokenizer) if tokenizer.takes(&text) => literal(tokenizer),
            _ => {
                let tokenizer = {
                    let source = self.source.as_deref();
                    LiteralTokenizer::new(&self.tokenizer, source, control, &text)?
                };
                let ids = literal(&tokenizer);
                // Keeps the first one. A text rarely contains its sentinel.
                let _ = self.literal.set(tokenizer);
                ids
            }
        }
    }

    /// Decodes `ids` without special tokens.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        guard::catch(|| self.tokenizer.decode(ids, true))
            .and_then(|text| text.map_err(|error| error.to_string()))
            .map_err(ModelError::Tokenizer)
    }

    /// Returns the bytes that a token adds to the text: for an added token its name, for an id
    /// without a token nothing. A token may end inside a UTF-8 character.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.tokenizer.id_to_token(id) else {
            return Vec::new();
        };
        let added = self.tokenizer.get_added_vocabulary();
        if added.get_vocab().contains_key(&token) {
            return token.into_bytes();
        }
        let rules = self.bytes.get_or_init(|| TokenBytes::new(&self.tokenizer));
        rules.of(&token)
    }

    /// Returns `true` if [`Self::decode`] skips the token.
    pub fn is_special(&self, id: u32) -> bool {
        let token = self.tokenizer.id_to_token(id);
        let added = self.tokenizer.get_added_vocabulary();
        token.is_some_and(|token| added.is_special_token(&token))
    }

    /// Renders the conversation, ending with the start of the assistant's turn.
    ///
    /// `fallback` is used if the checkpoint has no template; `placeholder` returns the text of an
    /// image, video or audio clip. A template without support for media (common in GGUF files)
    /// receives them as text. The text of the messages does not influence this choice.
    ///
    /// # Errors
    /// If the template cannot be rendered.
    pub fn render<'a>(
        &self,
        conversation: impl Into<Conversation<'a>>,
        fallback: &str,
        placeholder: impl Fn(MediaKind) -> String + Copy + Send + Sync,
    ) -> Result<Rendered, ModelError> {
        let made;
        let template = match &self.template {
            Some(template) => template,
            None => {
                made = ChatTemplate::new(fallback)?;
                &made
            }
        };
        let conversation = conversation.into();
        template.open(|parsed| self.render_with(parsed, conversation, placeholder))
    }

    /// As [`Self::render`], with the parsed template.
    fn render_with(
        &self,
        template: &Parsed,
        conversation: Conversation<'_>,
        placeholder: impl Fn(MediaKind) -> String + Copy,
    ) -> Result<Rendered, ModelError> {
        let Conversation {
            messages,
            tools,
            parse_special,
            raw,
        } = conversation;
        let prepared = self.prepare(template, placeholder)?;
        let fill = |messages: &[Message], tools: &[Tool]| {
            if raw {
                return Ok(messages.iter().map(|m| m.flat(placeholder)).collect());
            }
            self.fill(template, prepared, (messages, tools), placeholder)
        };
        let text = fill(messages, tools)?;
        let plain = |text| Rendered {
            text,
            parse_special,
            raw,
            disguise: Disguise::default(),
        };
        if parse_special {
            return Ok(plain(text));
        }
        let control = &prepared.control;
        let kinds = [MediaKind::Image, MediaKind::Video, MediaKind::Audio];
        let marks = kinds.map(placeholder);
        let disguise = Disguise::new(
            control,
            marks.iter().map(String::as_str),
            &texts(messages, tools),
        )?;
        if disguise.is_empty() {
            return Ok(plain(text));
        }
        let disguised: Vec<Message> = messages
            .iter()
            .map(|message| message.with_texts(|text| disguise.put_on(text)))
            .collect();
        let tools: Vec<Tool> = tools
            .iter()
            .map(|tool| tool.with_texts(|text| disguise.put_on(text)))
            .collect();
        let marked = fill(&disguised, &tools)?;
        let ids =
            |text: &str| -> Vec<u32> { control.find(text).iter().map(|found| found.id).collect() };
        // A template may search messages, for example to drop the reasoning of earlier answers. The
        // substitution must not change that, unless a control token would take effect.
        if disguise.take_off(&marked).0 != text && ids(&text) == ids(&marked) {
            return Ok(plain(text));
        }
        Ok(Rendered {
            text: marked,
            parse_special,
            raw,
            disguise,
        })
    }

    /// Probes the template once.
    fn prepare(
        &self,
        template: &Parsed,
        placeholder: impl Fn(MediaKind) -> String + Copy,
    ) -> Result<&Prepared, ModelError> {
        if let Some(prepared) = self.prepared.get() {
            return Ok(prepared);
        }
        let forms = Forms::probe(
            |values| template.fill(values, &[], &self.edges),
            placeholder,
        );
        let control = ControlTokens::new(&self.tokenizer, &forms.skeleton)?;
        let tools = ToolSyntax::probe(|messages, tools| {
            let values = forms.values(messages, placeholder);
            let tools: Vec<Value> = tools.iter().map(Tool::value).collect();
            template.fill(&values, &tools, &self.edges)
        });
        Ok(self.prepared.get_or_init(|| Prepared {
            forms,
            control,
            tools,
        }))
    }

    /// Fills the template, which may know no functions.
    fn fill(
        &self,
        template: &Parsed,
        prepared: &Prepared,
        (messages, tools): (&[Message], &[Tool]),
        placeholder: impl Fn(MediaKind) -> String + Copy,
    ) -> Result<String, ModelError> {
        let (forms, syntax) = (&prepared.forms, &prepared.tools);
        if !syntax.in_template {
            let converted = syntax.as_text(messages, tools);
            let values = forms.values(&converted, placeholder);
            return template.fill(&values, &[], &self.edges);
        }
        let values = forms.values(messages, placeholder);
        let tools: Vec<Value> = tools.iter().map(Tool::value).collect();
        template.fill(&values, &tools, &self.edges)
    }

    /// Returns the form in which the model writes calls of functions, once a prompt has been
    /// rendered.
    pub fn tool_syntax(&self) -> Option<&ToolSyntax> {
        self.prepared.get().map(|prepared| &prepared.tools)
    }
}

/// Returns all texts of messages and functions.
fn texts<'a>(messages: &'a [Message], tools: &'a [Tool]) -> Vec<&'a str> {
    let mut texts = Vec::new();
    for content in messages.iter().flat_map(|message| &message.content) {
        content.visit_texts(&mut |text| texts.push(text));
    }
    for tool in tools {
        tool.visit_texts(&mut |text| texts.push(text));
    }
    texts
}

/// A streaming decoder that never splits a character.
///
/// A token may end inside a UTF-8 character, and some tokenizers put a space between words only
/// when they decode both. A window of tokens is therefore decoded repeatedly, and new text is
/// returned once it is complete.
#[derive(Debug, Clone, Default)]
pub struct TextStream {
    ids: Vec<u32>,
    window: usize,
    given: usize,
}

impl TextStream {
    /// Adds a token and returns the text that is now complete.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn push(&mut self, text: &TextProcessor, id: u32) -> Result<String, ModelError> {
        // At the start of the window, a special token would hide that the next word follows
        // another.
        if text.is_special(id) {
            return Ok(String::new());
        }
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

    /// Returns the remaining text, with incomplete characters replaced.
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
    use std::path::Path;

    use super::*;

    /// Streaming gives the same text as `decode`, also around special tokens, which are skipped.
    #[test]
    fn streams_keep_blanks_after_special_tokens() {
        for (name, special) in [
            ("blip2-t5-odd", "</s>"),
            ("llama-odd", "</s>"),
            ("qwen2-odd", "<|im_end|>"),
        ] {
            let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
            let json = std::fs::read_to_string(data.join(name).join("tokenizer.json"));
            let text = TextProcessor::new(&json.expect(name), None).expect(name);
            let words = encode(&text.tokenizer, "a red circle", false).expect(name);
            let end = text.id(special).expect(name);
            let ids = [&words[..], &[end, end], &words, &[end]].concat();
            let mut stream = TextStream::default();
            let mut given = String::new();
            for &id in &ids {
                given += &stream.push(&text, id).expect(name);
            }
            given += &stream.finish(&text).expect(name);
            assert_eq!(given, text.decode(&ids).expect(name), "{name}");
        }
    }
}
