//! Tokens that other files add to a vocabulary.
//!
//! `added_tokens_decoder` of `tokenizer_config.json` lists them with their ids; older checkpoints
//! have `added_tokens.json` and `special_tokens_map.json` instead. Special tokens may also be
//! given by their text alone. The reference is `PreTrainedTokenizerBase._from_pretrained` and
//! `PreTrainedTokenizerFast.__init__` of `transformers`.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::error::{Result, malformed};
use super::file::SourceFile;
use super::json::read_json;
use super::tokenizer_json::AddedToken;

/// Keys of one special token each.
const SPECIAL: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// Keys of several special tokens.
const SPECIAL_LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// Tokens that the files add, whether or not the vocabulary has them.
#[derive(Debug, Default)]
pub(super) struct Additions {
    /// Tokens with given ids, sorted by id.
    pub(super) numbered: Vec<AddedToken>,
    /// Texts of the special tokens with their flags.
    named: Vec<(String, Value)>,
}

impl Additions {
    /// Reads the files of a checkpoint.
    ///
    /// # Errors
    /// If a token has no content or no id.
    pub(super) fn read(
        directory: &Path,
        tokenizer_config: Option<&Value>,
        files: &mut Vec<SourceFile>,
    ) -> Result<Self> {
        let config = tokenizer_config.unwrap_or(&Value::Null);
        let mut additions = Self::default();
        if let Some(Value::Object(decoder)) = config.get("added_tokens_decoder") {
            let file = directory.join("tokenizer_config.json");
            for (id, token) in decoder {
                let content = token.get("content").and_then(Value::as_str);
                let (Ok(id), Some(content)) = (id.parse(), content) else {
                    return Err(malformed(
                        file.display().to_string(),
                        format!("the added token {id}: {token}"),
                        "an integer id with a content",
                    ));
                };
                let special = token.get("special") == Some(&Value::Bool(true));
                let token = AddedToken::with_flags(id, content, token, special);
                additions.numbered.push(token);
            }
            additions.name_special_tokens(config);
        } else {
            let map = read_json(&directory.join("special_tokens_map.json"), files)?;
            additions.name_special_tokens(&map.unwrap_or_default());
            additions.name_special_tokens(config);
            additions.read_older_file(directory, files)?;
        }
        additions.numbered.sort_by_key(|token| token.id);
        additions.numbered.dedup_by_key(|token| token.id);
        Ok(additions)
    }

    /// Reads `added_tokens.json`, which maps contents to ids.
    fn read_older_file(&mut self, directory: &Path, files: &mut Vec<SourceFile>) -> Result<()> {
        let path = directory.join("added_tokens.json");
        let tokens = read_json(&path, files)?.unwrap_or_default();
        for (content, id) in tokens.as_object().into_iter().flatten() {
            let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let number = number.ok_or_else(|| {
                malformed(
                    path.display().to_string(),
                    format!("the id {id} of {content:?}"),
                    "an unsigned 32-bit integer",
                )
            })?;
            let special = self.named.iter().any(|(named, _)| named == content);
            let token = AddedToken::with_flags(number, content, &Value::Null, special);
            self.numbered.push(token);
        }
        Ok(())
    }

    /// Records the special tokens of `section` that are not yet recorded.
    fn name_special_tokens(&mut self, section: &Value) {
        let single = SPECIAL.iter().filter_map(|key| section.get(key));
        let several = SPECIAL_LISTS.iter().filter_map(|key| section.get(key));
        let several = several.flat_map(|list| match list {
            Value::Array(tokens) => tokens.iter().collect(),
            Value::Object(tokens) => tokens.values().collect(),
            _ => Vec::new(),
        });
        for token in single.chain(several) {
            if let Some(content) = special_text(token)
                && self.named.iter().all(|(named, _)| named != content)
            {
                self.named.push((content.to_owned(), token.clone()));
            }
        }
    }

    /// Returns the numbered tokens and the special tokens that `vocabulary` contains.
    pub(super) fn known(&self, vocabulary: &[(&str, u32)]) -> Vec<AddedToken> {
        let mut tokens = self.numbered.clone();
        for (content, flags) in &self.named {
            let listed = tokens.iter().any(|token| token.content == *content);
            let known = vocabulary.iter().find(|(token, _)| token == content);
            if let (false, Some(&(_, id))) = (listed, known) {
                tokens.push(AddedToken::with_flags(id, content, flags, true));
            }
        }
        tokens.sort_by_key(|token| token.id);
        tokens
    }

    /// Adds the tokens to the text of a `tokenizer.json`, as the reference does when it loads one.
    /// Flags of the other files take precedence, ids of `tokenizer.json` take precedence, and new
    /// tokens get the next free ids. `room` is the number of embeddings of the model.
    ///
    /// # Errors
    /// If the text is not a valid tokenizer.
    pub(super) fn extend(&self, tokenizer: String, room: Option<u64>) -> Result<String> {
        let file = "tokenizer.json";
        let mut json: Value = serde_json::from_str(&tokenizer)
            .map_err(|e| malformed(file, format!("invalid json: {e}"), "a tokenizer"))?;
        let mut list = TokenList::new(&json);
        let before = list.tokens.clone();
        for token in &self.numbered {
            list.set(token, room);
        }
        for (content, flags) in &self.named {
            if !list
                .tokens
                .iter()
                .any(|known| known["content"] == **content)
            {
                let id = list.ids.get(content).copied().unwrap_or(list.next);
                list.set(&AddedToken::with_flags(id, content, flags, true), room);
            }
        }
        if list.tokens == before {
            return Ok(tokenizer);
        }
        list.tokens.sort_by_key(|token| token["id"].as_u64());
        json["added_tokens"] = list.tokens.into();
        Ok(json.to_string())
    }
}

/// The `added_tokens` of a `tokenizer.json` under construction.
struct TokenList {
    tokens: Vec<Value>,
    /// Ids of all tokens by content.
    ids: HashMap<String, u32>,
    /// The first free id.
    next: u32,
}

impl TokenList {
    fn new(tokenizer: &Value) -> Self {
        let number = |id: &Value| u32::try_from(id.as_u64()?).ok();
        let mut ids: HashMap<String, u32> = match &tokenizer["model"]["vocab"] {
            Value::Object(vocab) => vocab
                .iter()
                .filter_map(|(token, id)| Some((token.clone(), number(id)?)))
                .collect(),
            // Unigram models list tokens with scores.
            Value::Array(vocab) => (vocab.iter().zip(0..))
                .filter_map(|(entry, id)| Some((entry.get(0)?.as_str()?.to_owned(), id)))
                .collect(),
            _ => HashMap::new(),
        };
        let tokens = tokenizer["added_tokens"].as_array().cloned();
        let tokens = tokens.unwrap_or_default();
        ids.extend(tokens.iter().filter_map(|token| {
            let content = token["content"].as_str()?.to_owned();
            Some((content, number(&token["id"])?))
        }));
        let next = ids.values().max().map_or(0, |largest| largest + 1);
        Self { tokens, ids, next }
    }

    /// Adds a token, or sets the flags of an existing one.
    fn set(&mut self, token: &AddedToken, room: Option<u64>) {
        let known = self.ids.get(&token.content).copied();
        let id = known.unwrap_or(self.next);
        if id != token.id {
            log::warn!(
                "{:?} is token {} in tokenizer_config.json; using {id}, its id in \
                 tokenizer.json or the next free one",
                token.content,
                token.id
            );
        }
        if known.is_none() && room.is_some_and(|room| u64::from(id) >= room) {
            log::warn!(
                "the token {:?} is not in the vocabulary, and the model has no spare embedding; \
                 ignoring it",
                token.content
            );
            return;
        }
        let json = AddedToken {
            id,
            ..token.clone()
        }
        .json();
        match self
            .tokens
            .iter_mut()
            .find(|known| known["content"] == *token.content)
        {
            Some(known) => *known = json,
            None => self.tokens.push(json),
        }
        self.ids.insert(token.content.clone(), id);
        self.next = self.next.max(id + 1);
    }
}

/// Returns the text of a special token, given as a string or as an object with a content.
pub(super) fn special_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}
