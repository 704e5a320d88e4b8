//! Control tokens, which take effect only if the template writes them.
//!
//! A message may contain the text of a control token, such as `<|im_end|>`. [`Disguise`] replaces
//! the first and last characters of such texts in every message before rendering, so that
//! [`ControlTokens::find`] sees only the tokens of the template. [`LiteralTokenizer`] then encodes
//! the prompt with a tokenizer in which each control token has a different, private text.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::error::ModelError;
use crate::guard;

/// Private-use characters (planes 15 and 16), which ordinary text does not contain.
const PRIVATE: std::ops::RangeInclusive<char> = '\u{F0000}'..='\u{10FFFD}';

/// The added tokens of a tokenizer that control the model.
#[derive(Debug, Clone)]
pub(crate) struct ControlTokens {
    tokens: Vec<ControlToken>,
    finder: AhoCorasick,
    /// Id for unknown characters; any text may produce it.
    unknown: Option<u32>,
}

#[derive(Debug, Clone)]
struct ControlToken {
    id: u32,
    content: String,
    single_word: bool,
}

/// A control token found in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub id: u32,
    /// Byte range.
    pub range: Range<usize>,
}

impl Found {
    /// Returns `true` if one of the byte positions `places`, in ascending order, lies in the token.
    pub fn holds_any(&self, places: &[usize]) -> bool {
        let next = places.partition_point(|&place| place < self.range.start);
        places
            .get(next)
            .is_some_and(|&place| place < self.range.end)
    }
}

impl ControlTokens {
    /// Collects the control tokens of `tokenizer`: those marked as special, those that look like a
    /// tag, and those found in `skeleton`, a rendered template. Other added tokens are words.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn new(tokenizer: &Tokenizer, skeleton: &str) -> Result<Self, ModelError> {
        let written: BTreeSet<u32> = encode(tokenizer, skeleton, false)?.into_iter().collect();
        let mut tokens: Vec<ControlToken> = tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(id, token)| {
                !token.content.trim().is_empty()
                    && (token.special || written.contains(id) || is_tag(&token.content))
            })
            .map(|(id, token)| ControlToken {
                id,
                content: token.content,
                single_word: token.single_word,
            })
            .collect();
        tokens.sort_unstable_by_key(|token| token.id);
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|token| &token.content))
            .map_err(|error| ModelError::Tokenizer(error.to_string()))?;
        let unknown = encode(tokenizer, &PRIVATE.end().to_string(), false)?
            .into_iter()
            .find(|id| tokens.iter().any(|token| token.id == *id));
        Ok(Self {
            tokens,
            finder,
            unknown,
        })
    }

    /// Finds the control tokens in `text`, in order.
    pub fn find(&self, text: &str) -> Vec<Found> {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        self.finder
            .find_iter(text)
            .filter(|found| {
                let alone = !text[..found.start()].ends_with(is_word)
                    && !text[found.end()..].starts_with(is_word);
                alone || !self.tokens[found.pattern().as_usize()].single_word
            })
            .map(|found| Found {
                id: self.tokens[found.pattern().as_usize()].id,
                range: found.range(),
            })
            .collect()
    }

    /// Returns `true` if `ids` contain no control token more often than `written`. A normalizer or
    /// the tokenizer's model can produce one from other text.
    pub fn none_beyond(&self, ids: &[u32], written: &[Found]) -> bool {
        let mut left: HashMap<u32, usize> = self.tokens.iter().map(|token| (token.id, 0)).collect();
        for found in written {
            *left.entry(found.id).or_default() += 1;
        }
        ids.iter()
            .filter(|&&id| Some(id) != self.unknown)
            .all(|id| match left.get_mut(id) {
                Some(0) => false,
                Some(count) => {
                    *count -= 1;
                    true
                }
                None => true,
            })
    }

    /// Returns the first and last characters of the control tokens and of `others`.
    fn edges<'a>(&'a self, others: impl Iterator<Item = &'a str>) -> BTreeSet<char> {
        let contents = self.tokens.iter().map(|token| token.content.as_str());
        contents
            .chain(others)
            .flat_map(|text| {
                let text = text.trim();
                [text.chars().next(), text.chars().next_back()]
            })
            .flatten()
            .collect()
    }
}

/// Returns `true` if an added token that is not marked as special looks like a tag.
fn is_tag(content: &str) -> bool {
    content.contains(['<', '>', '[', ']', '{', '}', '|', '｜', '＜', '＞'])
}

/// Encodes `text` and recognizes added tokens in it. With `whole`, the post-processor adds its
/// tokens.
///
/// # Errors
/// If the tokenizer fails.
pub(crate) fn encode(
    tokenizer: &Tokenizer,
    text: &str,
    whole: bool,
) -> Result<Vec<u32>, ModelError> {
    guard::catch(|| tokenizer.encode_fast(text, whole))
        .and_then(|encoding| encoding.map_err(|error| error.to_string()))
        .map(|encoding| encoding.get_ids().to_vec())
        .map_err(ModelError::Tokenizer)
}

/// A substitution of single characters for those at the edges of control tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Disguise {
    /// Substitute and original.
    pairs: Vec<(char, char)>,
}

impl Disguise {
    /// Creates a substitution for `texts`, with substitutes that none of them contains. `marks` are
    /// additional texts that only the template may write. The result is empty if no text contains a
    /// character to replace.
    ///
    /// # Errors
    /// If the texts contain all private-use characters.
    pub fn new<'a>(
        control: &'a ControlTokens,
        marks: impl Iterator<Item = &'a str>,
        texts: &[&str],
    ) -> Result<Self, ModelError> {
        let used: BTreeSet<char> = texts.iter().flat_map(|text| text.chars()).collect();
        let mut free = PRIVATE.filter(|c| !used.contains(c));
        let originals = control.edges(marks);
        let pairs = originals.intersection(&used).map(|&original| {
            let stand_in = free.next().ok_or_else(|| {
                ModelError::Prompt("the text contains all private-use characters".to_owned())
            })?;
            Ok((stand_in, original))
        });
        pairs.collect::<Result<_, _>>().map(|pairs| Self { pairs })
    }

    /// Returns `true` if the substitution changes nothing.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Replaces characters of `text` by their substitutes.
    pub fn put_on(&self, text: &str) -> String {
        let disguised = |c: char| self.pairs.iter().find(|pair| pair.1 == c);
        text.chars()
            .map(|c| disguised(c).map_or(c, |pair| pair.0))
            .collect()
    }

    /// Restores the original characters. Returns the text and the byte positions of the restored
    /// characters.
    pub fn take_off(&self, text: &str) -> (String, Vec<usize>) {
        let (mut plain, mut places) = (String::with_capacity(text.len()), Vec::new());
        for c in text.chars() {
            match self.pairs.iter().find(|pair| pair.0 == c) {
                Some(&(_, original)) => {
                    places.push(plain.len());
                    plain.push(original);
                }
                None => plain.push(c),
            }
        }
        (plain, places)
    }
}

/// A tokenizer whose control tokens have private texts that no message contains.
#[derive(Debug)]
pub(crate) struct LiteralTokenizer {
    tokenizer: Tokenizer,
    /// First and last character of the private texts.
    sentinel: char,
    /// Ids of this tokenizer and of the original.
    ids: HashMap<u32, u32>,
}

impl LiteralTokenizer {
    /// Rewrites `tokenizer` for texts without the sentinel, a character that `text` does not
    /// contain. `source` is the JSON of a tokenizer that is not [`is_dense`].
    ///
    /// # Errors
    /// If the tokenizer cannot be rewritten, or `text` contains all private-use characters.
    pub fn new(
        tokenizer: &Tokenizer,
        source: Option<&str>,
        control: &ControlTokens,
        text: &str,
    ) -> Result<Self, ModelError> {
        let failed = ModelError::ControlTokens;
        let used: BTreeSet<char> = text.chars().collect();
        let sentinel = PRIVATE.rev().find(|c| !used.contains(c));
        let sentinel = sentinel
            .ok_or_else(|| failed("the text contains all private-use characters".into()))?;
        let json = match source {
            Some(source) => serde_json::from_str(source),
            None => serde_json::to_value(tokenizer),
        };
        let mut json: Value = json.map_err(|error| failed(error.to_string()))?;
        for setting in ["truncation", "padding"] {
            json[setting] = Value::Null;
        }
        rename(&mut json, &control.names(sentinel));
        let renamed = guard::catch(|| json.to_string().parse::<Tokenizer>())
            .and_then(|parsed| parsed.map_err(|error| error.to_string()))
            .map_err(failed)?;
        let ids = control
            .tokens
            .iter()
            .map(|token| Some((renamed.token_to_id(&private(sentinel, token.id))?, token.id)))
            .collect::<Option<HashMap<u32, u32>>>();
        let ids = ids.ok_or_else(|| failed("the rewritten tokenizer lacks a token".into()))?;
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            let is_word = !control.tokens.iter().any(|control| control.id == id);
            if is_word && renamed.token_to_id(&token.content) != Some(id) {
                return Err(failed(format!(
                    "the id of token {:?} changed",
                    token.content
                )));
            }
        }
        Ok(Self {
            tokenizer: renamed,
            sentinel,
            ids,
        })
    }

    /// Returns `true` if `text` can be encoded.
    pub fn takes(&self, text: &str) -> bool {
        !text.contains(self.sentinel)
    }

    /// Encodes like [`encode`] a disguised text whose control tokens are `written`.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode(
        &self,
        text: &str,
        disguise: &Disguise,
        written: &[Found],
        whole: bool,
    ) -> Result<Vec<u32>, ModelError> {
        let mut renamed = String::with_capacity(text.len());
        let mut at = 0;
        for found in written {
            renamed.push_str(&disguise.take_off(&text[at..found.range.start]).0);
            renamed.push_str(&private(self.sentinel, found.id));
            at = found.range.end;
        }
        renamed.push_str(&disguise.take_off(&text[at..]).0);
        let ids = encode(&self.tokenizer, &renamed, whole)?;
        let original = |id| self.ids.get(&id).copied().unwrap_or(id);
        Ok(ids.into_iter().map(original).collect())
    }
}

impl ControlTokens {
    /// Returns the private text of every token by its content.
    fn names(&self, sentinel: char) -> HashMap<&str, String> {
        let name = |token: &ControlToken| private(sentinel, token.id);
        self.tokens
            .iter()
            .map(|token| (token.content.as_str(), name(token)))
            .collect()
    }
}

/// Returns `true` if the ids of the tokenizer's model are consecutive from 0 and unique. For other
/// models the library omits tokens when it writes JSON, and prints a warning to standard output.
pub(crate) fn is_dense(tokenizer: &Tokenizer) -> bool {
    let vocabulary = tokenizer.get_vocab(false);
    let mut seen = vec![false; vocabulary.len()];
    vocabulary.into_values().all(|id| {
        let seen = seen.get_mut(id as usize);
        seen.is_some_and(|seen| !std::mem::replace(seen, true))
    })
}

fn private(sentinel: char, id: u32) -> String {
    format!("{sentinel}{id}{sentinel}")
}

/// Renames tokens throughout a tokenizer's JSON and removes the merges that would produce them.
fn rename(tokenizer: &mut Value, names: &HashMap<&str, String>) {
    let renamed = |value: &mut Value| {
        if let Some(name) = value.as_str().and_then(|text| names.get(text)) {
            *value = json!(name);
        }
    };
    for token in tokenizer["added_tokens"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        if token["content"]
            .as_str()
            .is_some_and(|text| names.contains_key(text))
        {
            renamed(&mut token["content"]);
            token["normalized"] = json!(false);
            token["single_word"] = json!(false);
        }
    }
    let model = &mut tokenizer["model"];
    if let Some(unknown) = model.get_mut("unk_token") {
        renamed(unknown);
    }
    match model.get_mut("vocab") {
        // Format: [[token, score], ...]
        Some(Value::Array(pieces)) => {
            for piece in pieces {
                if let Some(text) = piece.get_mut(0) {
                    renamed(text);
                }
            }
        }
        Some(Value::Object(vocab)) => {
            *vocab = std::mem::take(vocab)
                .into_iter()
                .map(|(text, id)| (names.get(&*text).cloned().unwrap_or(text), id))
                .collect();
        }
        _ => {}
    }
    if let Some(merges) = model.get_mut("merges").and_then(Value::as_array_mut) {
        merges.retain(|merge| match merge {
            Value::Array(pair) => {
                let parts: Vec<&str> = pair.iter().filter_map(Value::as_str).collect();
                let touched = |text: &&str| names.contains_key(*text);
                !parts.iter().any(touched) && !names.contains_key(&*parts.concat())
            }
            // Format of older versions of the library.
            Value::String(pair) => pair.split_once(' ').is_none_or(|(left, right)| {
                let pair = format!("{left}{right}");
                ![left, right, &pair]
                    .iter()
                    .any(|text| names.contains_key(*text))
            }),
            _ => true,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::media::MediaKind;
    use crate::prompt::{Conversation, Message, Role, TextProcessor};

    /// All kinds of tokenizers among the test checkpoints.
    const CHECKPOINTS: [&str; 10] = [
        "blip2-tiny",
        "blip2-t5-odd",
        "llama-odd",
        "llama3-odd",
        "llava-odd",
        "llava-tiny",
        "phi3-odd",
        "phi35v-tiny",
        "qwen2audio-tiny",
        "qwen2vl-tiny",
    ];

    fn json(name: &str) -> Value {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let text = std::fs::read_to_string(data.join(name).join("tokenizer.json"));
        serde_json::from_str(&text.expect("a tokenizer")).expect("JSON")
    }

    fn tokenizer(json: &Value) -> Tokenizer {
        json.to_string().parse().expect("a tokenizer")
    }

    /// Builds a template that writes every added token around the content.
    fn template(json: &Value) -> String {
        let added = json["added_tokens"].as_array().expect("added tokens");
        let all: String = added.iter().filter_map(|t| t["content"].as_str()).collect();
        format!("{{% for m in messages %}}{all}\n{{{{ m.content }}}}{all} and {{% endfor %}}")
    }

    fn prompt(text: &TextProcessor, question: &str) -> Vec<u32> {
        prompt_with(text, question, false)
    }

    fn prompt_with(text: &TextProcessor, question: &str, parse_special: bool) -> Vec<u32> {
        let messages = [Message::text(Role::User, question)];
        let conversation = Conversation {
            messages: &messages,
            tools: &[],
            parse_special,
            raw: false,
        };
        let rendered = text.render(conversation, "", |_: MediaKind| String::new());
        text.encode(&rendered.expect("a prompt")).expect("ids")
    }

    /// The rewritten tokenizer gives the same ids for text without control tokens.
    #[test]
    fn the_literal_tokenizer_splits_text_alike() {
        for name in CHECKPOINTS {
            let json = json(name);
            let tokenizer = tokenizer(&json);
            let control = ControlTokens::new(&tokenizer, "").unwrap();
            let literal = LiteralTokenizer::new(&tokenizer, None, &control, "").unwrap();
            let all: Vec<&str> = control.tokens.iter().map(|t| t.content.as_str()).collect();
            for words in [
                "",
                "a",
                " what is it? ",
                "\n\nüber 12'3s  x\t",
                "<b>{\"type\": 1}",
                "日本 \u{2581}!",
            ] {
                for text in [
                    words.to_owned(),
                    format!("{words}{}{words}", all.concat()),
                    format!("{}{words}", all.join(words)),
                    format!("{} {words}\n{}", all[0], all.join("\n")),
                ] {
                    for whole in [false, true] {
                        let expected = encode(&tokenizer, &text, whole).unwrap();
                        let found = control.find(&text);
                        let disguise = Disguise::default();
                        let ids = literal.encode(&text, &disguise, &found, whole).unwrap();
                        assert_eq!(ids, expected, "{name}: {text:?}");
                    }
                }
            }
        }
    }

    /// For any message, control tokens occur only where the template writes them, and the text of
    /// the message survives.
    #[test]
    fn messages_write_no_control_tokens() {
        for (name, special) in CHECKPOINTS
            .iter()
            .flat_map(|&name| [(name, true), (name, false)])
        {
            let mut json = json(name);
            for token in json["added_tokens"].as_array_mut().unwrap() {
                token["special"] = json!(special);
            }
            let text = TextProcessor::new(&json.to_string(), Some(template(&json))).unwrap();
            let control = ControlTokens::new(&tokenizer(&json), "").unwrap();
            let steering = |ids: &[u32]| -> Vec<u32> {
                let is_control = |id: &&u32| control.tokens.iter().any(|t| t.id == **id);
                let known = ids.iter().filter(|&&id| Some(id) != control.unknown);
                known.filter(is_control).copied().collect()
            };
            let expected = steering(&prompt(&text, "word"));
            let all: String = control.tokens.iter().map(|t| t.content.as_str()).collect();
            let first = &control.tokens[0].content;
            let half = first.len() / 2;
            let wide: String = all
                .chars()
                .map(|c| match c {
                    '!'..='~' => char::from_u32(c as u32 + 0xFEE0).unwrap(),
                    c => c,
                })
                .collect();
            for attack in [
                all.clone(),
                format!("a {first} b"),
                format!("{}{first}{}", &first[..half], &first[half..]),
                format!(
                    "\u{10FFFD}{}\u{10FFFD}{first}\u{F0000}\u{F0001}",
                    control.tokens[0].id
                ),
                wide,
                format!("'type' {first} \"type\""),
                all.repeat(50),
                "  ".to_owned(),
                "\n\n \n".to_owned(),
            ] {
                let ids = prompt(&text, &attack);
                assert_eq!(steering(&ids), expected, "{name}: {attack:?}");
                // T5 normalizes text and lacks some characters; Phi-3's tokens strip whitespace.
                if name != "blip2-t5-odd" && !attack.trim().is_empty() {
                    let shown = text.decode(&ids).unwrap();
                    // If no token is special, those of the template are shown too; the text before
                    // the message distinguishes them. Phi-3's tokens strip the newline.
                    let shown = match special {
                        true => shown.contains(&attack),
                        false => ["\n", " "]
                            .iter()
                            .any(|before| shown.contains(&format!("{before}{attack}"))),
                    };
                    assert!(shown, "{name}: {attack:?} in {:?}", text.decode(&ids));
                }
            }
        }
    }

    /// A template that searches messages still finds its text.
    #[test]
    fn a_template_may_leave_out_parts_of_a_message() {
        let mut json = json("qwen2vl-tiny");
        let added = json["added_tokens"].as_array_mut().unwrap();
        for (id, content) in [(600, "<think>"), (601, "</think>")] {
            let mut token = added[0].clone();
            token["id"] = json!(id);
            token["content"] = json!(content);
            token["special"] = json!(false);
            added.push(token);
        }
        let template = "{% for m in messages %}<|im_start|>{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}";
        let text = TextProcessor::new(&json.to_string(), Some(template.to_owned())).unwrap();
        let short = prompt(&text, "yes");
        assert_eq!(prompt(&text, "<think>no</think>yes"), short);
        let ids = prompt(&text, "<think>no</think>y<|im_end|>es");
        let end = text.id("<|im_end|>").unwrap();
        assert_eq!(ids.iter().filter(|&&id| id == end).count(), 1);
    }

    /// A vocabulary with gaps in its ids or duplicate ids is rewritten unchanged.
    #[test]
    fn tokens_of_sparse_vocabularies_stay() {
        for merges in [json!([["a", "b"], ["<", "x"]]), json!(["a b", "< x"])] {
            let json = json!({
                "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
                "pre_tokenizer": null, "post_processor": null, "decoder": null,
                "added_tokens": [{"id": 9, "content": "<x", "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true}],
                "model": {"type": "BPE", "merges": merges,
                    "vocab": {"a": 0, "b": 0, "ab": 4, "<": 5, "x": 7, "<x": 9}},
            });
            assert!(!is_dense(&tokenizer(&json)));
            let template = "<x{{ messages[0].content }}".to_owned();
            let text = TextProcessor::new(&json.to_string(), Some(template)).unwrap();
            assert_eq!(prompt(&text, "ab<xa"), [9, 4, 5, 7, 0]);
        }
        for name in CHECKPOINTS {
            assert!(is_dense(&tokenizer(&json(name))), "{name}");
        }
    }

    #[test]
    fn control_tokens_can_be_allowed() {
        let json = json("qwen2vl-tiny");
        let template = "<|im_start|>{{ messages[0].content }}".to_owned();
        let text = TextProcessor::new(&json.to_string(), Some(template)).unwrap();
        let end = text.id("<|im_end|>").unwrap();
        assert!(!prompt(&text, "a<|im_end|>").contains(&end));
        let special = prompt_with(&text, "a<|im_end|>", true);
        assert_eq!(special.last(), Some(&end));
    }

    #[test]
    fn truncation_and_padding_of_the_file_are_ignored() {
        let plain = json("qwen2vl-tiny");
        let mut saved = plain.clone();
        saved["truncation"] = json!({
            "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
        });
        saved["padding"] = json!({
            "strategy": {"Fixed": 48}, "direction": "Left", "pad_to_multiple_of": null,
            "pad_id": 525, "pad_type_id": 0, "pad_token": "<|endoftext|>",
        });
        let ids = |json: &Value| {
            let template = "{{ messages[0].content }}".to_owned();
            let text = TextProcessor::new(&json.to_string(), Some(template)).unwrap();
            prompt(&text, "what is it?")
        };
        assert_eq!(ids(&saved), ids(&plain));
    }
}
