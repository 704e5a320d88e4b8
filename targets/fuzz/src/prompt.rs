//! Fuzz targets for tokenizers, chat templates and prompts.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use edge_lmm_models::media::MediaKind;
use edge_lmm_models::prompt::{Content, Message, Role, TextProcessor, TextStream};
use serde_json::{Value, json};
use tokenizers::{NormalizedString, Normalizer, Tokenizer};

use crate::mutate::{Form, SEPARATOR, parts};
use crate::{Target, data, errors};

const TEXTS: [&str; 5] = [
    "What colour is the circle?",
    " two  blanks\n\nand <|im_end|> 1234",
    "naïve 日本語 🦀 e\u{301}",
    "",
    "'type' \"text\" <s></s> \u{2581}\u{10fffd}\u{f0000}",
];

/// Any `tokenizer.json`, and after the separator a text to encode.
pub const TOKENIZER_JSON: Target = Target {
    name: "tokenizer_json",
    form: Form::Json(&[
        b"\0",
        b"<|im_end|>",
        b" ",
        b"\n",
        b"\xe2\x96\x81",
        b"\xf0\x9f\xa6\x80",
        b"\xcc\x81",
    ]),
    seeds: || {
        let kinds = ["BPE", "WordPiece", "WordLevel", "Unigram"].map(small_tokenizer);
        let seed = |tokenizer: &Value, text: &str| joined(&[&tokenizer.to_string(), text]);
        kinds
            .iter()
            .flat_map(|kind| TEXTS.map(|text| seed(kind, text)))
            .collect()
    },
    run: |input| {
        let [json, text] = parts(input);
        let text = String::from_utf8_lossy(text);
        let template = "{{ messages[0].content }}".to_owned();
        let processor = match TextProcessor::new(&String::from_utf8_lossy(json), Some(template)) {
            Ok(processor) => processor,
            Err(error) => return errors::check(&error),
        };
        assert!(processor.longest_token() > 0);
        let rendered = match processor.render(&[user(&text)], "", |_| String::new()) {
            Ok(rendered) => rendered,
            Err(error) => return errors::check(&error),
        };
        for ids in [
            processor.encode(&rendered),
            processor.encode_whole(&rendered),
        ] {
            match ids {
                Ok(ids) => check_ids(&processor, &ids),
                Err(error) => errors::check(&error),
            }
        }
    },
};

/// Checks that ids can be decoded, at once and one by one.
fn check_ids(processor: &TextProcessor, ids: &[u32]) {
    let largest = processor.largest_id();
    assert!(ids.iter().all(|&id| Some(id) <= largest), "{ids:?}");
    if let Err(error) = processor.decode(ids) {
        errors::check(&error);
    }
    let mut stream = TextStream::default();
    for &id in ids.iter().take(64) {
        if let Err(error) = stream.push(processor, id) {
            return errors::check(&error);
        }
    }
    if let Err(error) = stream.finish(processor) {
        errors::check(&error);
    }
}

/// Builds a tokenizer of a kind that has most other components.
fn small_tokenizer(kind: &str) -> Value {
    let token = |id: u32, content: &str, special: bool| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": special,
        })
    };
    let words = [
        "<unk>",
        "<|im_end|>",
        "a",
        "e",
        "t",
        "at",
        "\u{2581}",
        "##t",
        "\u{120}",
        "c",
        "<0x0A>",
    ];
    let vocab: Value = match kind {
        "Unigram" => words.iter().map(|word| json!([word, -1.5])).collect(),
        _ => words
            .iter()
            .enumerate()
            .map(|(id, word)| ((*word).to_owned(), json!(id)))
            .collect(),
    };
    let mut model = json!({"type": kind, "vocab": vocab, "unk_token": "<unk>"});
    let (normalizer, pre, decoder) = match kind {
        "BPE" => {
            model["merges"] = json!([["a", "t"]]);
            model["byte_fallback"] = json!(true);
            (
                json!({"type": "NFC"}),
                json!({"type": "Sequence", "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": "\\p{N}|\\s+(?!\\S)|\\s+"},
                     "behavior": "Isolated", "invert": false},
                    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
                ]}),
                json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
            )
        }
        "WordPiece" => {
            model["continuing_subword_prefix"] = json!("##");
            model["max_input_chars_per_word"] = json!(100);
            (
                json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                    "strip_accents": null, "lowercase": true}),
                json!({"type": "BertPreTokenizer"}),
                json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            )
        }
        "Unigram" => {
            model["unk_id"] = json!(0);
            model["byte_fallback"] = json!(false);
            model
                .as_object_mut()
                .expect("an object")
                .remove("unk_token");
            (
                json!({"type": "Sequence", "normalizers": [
                    {"type": "Prepend", "prepend": "\u{2581}"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
                ]}),
                json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": true}),
                json!({"type": "Sequence", "decoders": [
                    {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
                    {"type": "ByteFallback"}, {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
                ]}),
            )
        }
        _ => (
            json!({"type": "Lowercase"}),
            json!({"type": "Whitespace"}),
            json!({"type": "BPEDecoder", "suffix": "t"}),
        ),
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [token(0, "<unk>", true), token(1, "<|im_end|>", true), token(11, "two", false)],
        "normalizer": normalizer, "pre_tokenizer": pre, "decoder": decoder,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<unk>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<unk>": {"id": "<unk>", "ids": [0], "tokens": ["<unk>"]}}},
        "model": model,
    })
}

/// Any template, and after separators a system message, a question, an answer and another question.
pub const CHAT_TEMPLATE: Target = Target {
    name: "chat_template",
    form: Form::Words(&[
        b"{{",
        b"}}",
        b"{%",
        b"%}",
        b"{#",
        b"#}",
        b"{%-",
        b"-%}",
        b"for ",
        b" in ",
        b"endfor",
        b"if ",
        b"elif ",
        b"else",
        b"endif",
        b"set ",
        b"macro ",
        b"endmacro",
        b"call",
        b"filter ",
        b"endfilter",
        b"loop.index0",
        b"loop.last",
        b"messages",
        b"message['content']",
        b"message.role",
        b"add_generation_prompt",
        b"bos_token",
        b"namespace(",
        b"range(",
        b"raise_exception(",
        b"|tojson",
        b"|trim",
        b"|length",
        b"|join",
        b"|replace(",
        b".split(",
        b".strip()",
        b"[-1]",
        b"[1:]",
        b"[::-1]",
        b" ~ ",
        b" + ",
        b" * ",
        b" ** ",
        b" is defined",
        b" is string",
        b"not ",
        b"'user'",
        b"'image'",
        b"recursive",
        b"loop(",
        b"999999999",
        b"raw",
        b"endraw",
        b"break",
        b"continue",
        b"\0",
        b"<|im_end|>",
        b"|batch(",
        b"|indent(",
        b"|sort",
        b"|unique",
        b"|list",
        b"|format",
        b"%s",
        b"with ",
        b"endwith",
        b"do ",
        b"autoescape ",
        b"generation",
        b"endgeneration",
    ]),
    seeds: || {
        let mut seeds = vec![
            joined(&[
                "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}",
                "s",
                "q",
                "a",
                "q",
            ]),
            joined(&[
                "{% macro f(x) %}{{ x ~ x }}{% endmacro %}{% set n = namespace(i=0) %}{% for m in messages recursive %}{% set n.i = n.i + 1 %}{{ f(m['content']) }}{{ n.i }}{% endfor %}",
                "",
                "q",
            ]),
            joined(&[
                "{{ messages | tojson }}{{ range(3) | list }}{{ messages[-1].content.split('</think>')[-1] }}",
                "s",
                "q </think> r",
                "a",
                "q",
            ]),
            joined(&[
                "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{% for m in messages %}{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% else %}<image>{% endif %}{% endfor %}{% endfor %}",
                "",
                "q",
            ]),
        ];
        for name in [
            "llama3-odd",
            "llava-odd",
            "phi3-odd",
            "qwen25vl-odd",
            "qwen2audio-odd",
        ] {
            if let Some(template) = own_template(name) {
                seeds.push(joined(&[&template, "be brief", TEXTS[1], "yes", TEXTS[2]]));
            }
        }
        seeds
    },
    run: |input| {
        let [template, texts] = parts(input);
        let texts: [&[u8]; 4] = parts(texts);
        let texts = texts.map(String::from_utf8_lossy);
        static TOKENIZER: OnceLock<String> = OnceLock::new();
        let tokenizer = TOKENIZER.get_or_init(|| {
            let mut tokenizer = small_tokenizer("BPE");
            // Its patterns would take longer to compile than most templates to render.
            for part in ["normalizer", "pre_tokenizer", "decoder", "post_processor"] {
                tokenizer[part] = Value::Null;
            }
            tokenizer.to_string()
        });
        let template = String::from_utf8_lossy(template).into_owned();
        let processor = match TextProcessor::new(tokenizer, Some(template)) {
            Ok(processor) => processor,
            Err(error) => return errors::check(&error),
        };
        let rendered = processor.render(&conversation(&texts), "", |_| "<image>".to_owned());
        match rendered.and_then(|rendered| processor.encode(&rendered)) {
            Ok(ids) => check_ids(&processor, &ids[..ids.len().min(4096)]),
            Err(error) => errors::check(&error),
        }
    },
};

/// Messages of a conversation with a known template and tokenizer: control tokens must be exactly
/// those of the template, and the text must survive.
pub const CONTROL_TOKENS: Target = Target {
    name: "control_tokens",
    form: Form::Words(&[
        b"<|im_start|>",
        b"<|im_end|>",
        b"<|endoftext|>",
        b"<|",
        b"|>",
        b"<s>",
        b"</s>",
        b"<unk>",
        b"<pad>",
        b"<image>",
        b"<|user|>",
        b"<|assistant|>",
        b"<|end|>",
        b"<|eot_id|>",
        b"<|begin_of_text|>",
        b"<|AUDIO|>",
        b"<|image_pad|>",
        b"<|vision_start|>",
        b"<0x0A>",
        b"<",
        b">",
        b" ",
        b"\n",
        b"\0",
        b"\xf4\x8f\xbf\xbd",
        b"\xf3\xb0\x80\x80",
        b"\xf3\xb0\x80\x81",
        b"\xe2\x96\x81",
        b"\xef\xbc\x9c",
        b"\xc4\xa0",
        b"\xcc\x81",
        b"\xe2\x80\x8b",
        b"\xef\xbb\xbf",
    ]),
    seeds: || {
        let seed = |kind: usize, text: &str| [&[kind as u8], text.as_bytes()].concat();
        let kinds = 0..2 * PROMPT_CHECKPOINTS.len();
        kinds
            .flat_map(|kind| [TEXTS[0], TEXTS[1], TEXTS[4]].map(|text| seed(kind, text)))
            .collect()
    },
    run: |input| {
        let Some((&kind, text)) = input.split_first() else {
            return;
        };
        static KNOWN: OnceLock<Vec<Known>> = OnceLock::new();
        let known = KNOWN.get_or_init(|| {
            let own = PROMPT_CHECKPOINTS.map(|name| Known::new(name, own_template(name)));
            let plain = PROMPT_CHECKPOINTS.map(|name| Known::new(name, None));
            own.into_iter().chain(plain).collect()
        });
        known[usize::from(kind) % known.len()].check(&String::from_utf8_lossy(text));
    },
};

/// Checkpoints with all kinds of tokenizers.
const PROMPT_CHECKPOINTS: [&str; 8] = [
    "blip2-odd",
    "blip2-t5-odd",
    "llama-odd",
    "llama3-odd",
    "llava-odd",
    "phi3-odd",
    "qwen2audio-odd",
    "qwen2vl-odd",
];

/// Tokens at the end of a prompt that are streamed.
const STREAMED: usize = 24;

/// Tokenizer and template of a checkpoint.
struct Known {
    name: &'static str,
    tokenizer: Tokenizer,
    processor: TextProcessor,
    control: BTreeSet<u32>,
    /// Control tokens of the template around a plain word.
    expected: Vec<u32>,
    /// `true` if the template shows a single text unchanged.
    is_plain: bool,
}

impl Known {
    /// Creates the processor. Without a template, uses one that writes every control token around
    /// the text.
    fn new(name: &'static str, template: Option<String>) -> Self {
        let json = data::json(&format!("models/tests/data/{name}/tokenizer.json"));
        let special: Vec<&Value> = json["added_tokens"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|token| token["special"] == true)
            .collect();
        let is_plain = template.is_none();
        let template = template.unwrap_or_else(|| {
            let all: String = special
                .iter()
                .filter_map(|token| token["content"].as_str())
                .collect();
            format!("{{% for m in messages %}}{all}\n{{{{ m.content }}}}{all} and {{% endfor %}}")
        });
        let tokenizer: Tokenizer = json.to_string().parse().expect("a tokenizer");
        // Any text may contain the unknown token.
        let unknown = tokenizer.encode("\u{10fffd}", false).expect("ids");
        let ids = special.iter().filter_map(|token| token["id"].as_u64());
        let control = ids
            .map(|id| id as u32)
            .filter(|id| !unknown.get_ids().contains(id))
            .collect();
        let processor = TextProcessor::new(&json.to_string(), Some(template));
        let mut known = Self {
            name,
            tokenizer,
            processor: processor.expect("a tokenizer"),
            control,
            expected: Vec::new(),
            is_plain,
        };
        known.expected = known.steering(&known.ids("word"));
        known
    }

    fn ids(&self, text: &str) -> Vec<u32> {
        let placeholder = |_: MediaKind| "<image>".to_owned();
        let rendered = self.processor.render(&[user(text)], "", placeholder);
        self.processor
            .encode(&rendered.expect("a prompt"))
            .expect("ids")
    }

    fn steering(&self, ids: &[u32]) -> Vec<u32> {
        ids.iter()
            .copied()
            .filter(|id| self.control.contains(id))
            .collect()
    }

    fn check(&self, text: &str) {
        let ids = self.ids(text);
        assert_eq!(
            self.steering(&ids),
            self.expected,
            "{}: {text:?}",
            self.name
        );
        let shown = self.processor.decode(&ids).expect("text");
        // Streaming takes longer than all the rest, and looks at a few tokens at a time.
        let end = &ids[ids.len().saturating_sub(STREAMED)..];
        let mut stream = TextStream::default();
        let pushed = end
            .iter()
            .map(|&id| stream.push(&self.processor, id).expect("text"));
        let mut streamed: String = pushed.collect();
        streamed += &stream.finish(&self.processor).expect("text");
        let at_once = self.processor.decode(end).expect("text");
        assert_eq!(streamed, at_once, "{}: {text:?}", self.name);
        if self.is_plain && self.is_kept(text) {
            assert!(
                shown.contains(text.trim()),
                "{}: {text:?} in {shown:?}",
                self.name
            );
        }
    }

    /// Returns `true` if the tokenizer preserves a text: it does not normalize it and has tokens
    /// for it. SentencePiece writes spaces as U+2581; T5 and Phi-3 drop spaces next to control
    /// tokens.
    fn is_kept(&self, text: &str) -> bool {
        match self.name {
            "blip2-t5-odd" => false,
            "llama-odd" | "llava-odd" | "phi3-odd" => !text.contains('\u{2581}'),
            _ => {
                let mut normalized = NormalizedString::from(text);
                if let Some(normalizer) = self.tokenizer.get_normalizer() {
                    normalizer.normalize(&mut normalized).expect("text");
                }
                normalized.get() == text
            }
        }
    }
}

/// Reads the chat template of a checkpoint.
fn own_template(name: &str) -> Option<String> {
    let config = data::json(&format!("models/tests/data/{name}/tokenizer_config.json"));
    config["chat_template"].as_str().map(str::to_owned)
}

fn user(text: &str) -> Message {
    Message::text(Role::User, text)
}

/// Builds a conversation: a system message, a question with an image, an answer and another
/// question. Empty ones are omitted except for the first question.
fn conversation(texts: &[impl AsRef<str>; 4]) -> Vec<Message> {
    let roles = [Role::System, Role::User, Role::Assistant, Role::User];
    let mut messages = Vec::new();
    for (at, (text, role)) in texts.iter().zip(roles).enumerate() {
        if at == 1 {
            messages.push(Message {
                role,
                content: vec![
                    Content::Media(MediaKind::Image),
                    Content::Text(text.as_ref().to_owned()),
                ],
            });
        } else if !text.as_ref().is_empty() {
            messages.push(Message::text(role, text.as_ref()));
        }
    }
    messages
}

/// Joins texts as the parts of an input.
fn joined(texts: &[&str]) -> Vec<u8> {
    let texts: Vec<&[u8]> = texts.iter().map(|text| text.as_bytes()).collect();
    texts.join(&SEPARATOR)
}
