//! Tokenizers rebuilt from GGUF vocabularies give the ids of the originals.

mod source_support;

use edge_lmm_convert::source::{Checkpoint, SourceError};
use proptest::prelude::*;
use serde_json::Value;
use source_support::{GgufBuilder, TEXTS, data, model, tiny_gguf};
use tokenizers::Tokenizer;

fn parse(checkpoint: &Checkpoint) -> Tokenizer {
    checkpoint.tokenizer.parse().unwrap()
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, true).unwrap().get_ids().to_vec()
}

fn assert_same(rebuilt: &Tokenizer, reference: &Tokenizer, text: &str) {
    let (a, b) = (ids(rebuilt, text), ids(reference, text));
    assert_eq!(a, b, "{text:?}");
    for skip_special in [true, false] {
        let decode = |tokenizer: &Tokenizer| tokenizer.decode(&b, skip_special).unwrap();
        assert_eq!(decode(rebuilt), decode(reference), "{text:?}");
    }
}

const CHAT: &str = "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>what is it?<|im_end|>\n";

#[test]
fn qwen2_ids_equal_the_hub_form() {
    for (gguf, hub) in [
        (tiny_gguf().unwrap(), "qwen2vl-tiny"),
        (
            Checkpoint::open(
                &model("qwen2vl-odd-gguf/qwen2vl-odd-f16.gguf"),
                Some(&model("qwen2vl-odd-gguf/mmproj-qwen2vl-odd-f16.gguf")),
            )
            .unwrap(),
            "qwen2vl-odd",
        ),
    ] {
        let reference = Tokenizer::from_file(model(hub).join("tokenizer.json")).unwrap();
        let rebuilt = parse(&gguf);
        for text in TEXTS.iter().copied().chain([CHAT]) {
            assert_same(&rebuilt, &reference, text);
        }
        for (token, id) in reference.get_vocab(true) {
            assert_eq!(rebuilt.token_to_id(&token), Some(id), "{token:?}");
        }
    }
}

proptest! {
    #[test]
    fn qwen2_ids_equal_the_hub_form_on_any_text(text in any::<String>()) {
        use std::sync::LazyLock;
        static PAIR: LazyLock<(Tokenizer, Tokenizer)> = LazyLock::new(|| {
            let path = model("qwen2vl-tiny/tokenizer.json");
            (parse(&tiny_gguf().unwrap()), Tokenizer::from_file(path).unwrap())
        });
        prop_assert_eq!(ids(&PAIR.0, &text), ids(&PAIR.1, &text));
    }
}

/// The expected ids are those of the sentencepiece library, on text for Llama's vocabularies.
#[test]
fn sentencepiece_ids_equal_the_library() {
    let checkpoint = Checkpoint::open(
        &data("llava-mini/llava-mini-f16.gguf"),
        Some(&data("llava-mini/mmproj-llava-mini-f16.gguf")),
    )
    .unwrap();
    let tokenizer = parse(&checkpoint);
    let cases: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(data("llava-mini/tokens.json")).unwrap())
            .unwrap();
    assert!(cases.len() > 15);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(ids(&tokenizer, text), expected, "{text:?}");
    }
    assert_eq!(tokenizer.token_to_id("<image>"), Some(420));
    assert!(ids(&tokenizer, "USER: <image>\nwhat?").contains(&420));
    // Ids that only pad the embedding are not tokens.
    assert_eq!(tokenizer.id_to_token(422), None);
}

/// Builds a GGUF file from the vocabulary of a byte-level `tokenizer.json`.
fn from_hub(name: &str, pre: &str) -> GgufBuilder {
    let text = std::fs::read_to_string(model(name).join("tokenizer.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let reference: Tokenizer = text.parse().unwrap();
    let added: Vec<&str> = json["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["content"].as_str().unwrap())
        .collect();
    let count = reference.get_vocab_size(true) as u32;
    let tokens: Vec<String> = (0..count)
        .map(|id| reference.id_to_token(id).unwrap())
        .collect();
    let kinds: Vec<i32> = tokens
        .iter()
        .map(|t| if added.contains(&&**t) { 3 } else { 1 })
        .collect();
    let merges: Vec<String> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| match merge {
            Value::String(pair) => pair.clone(),
            pair => format!(
                "{} {}",
                pair[0].as_str().unwrap(),
                pair[1].as_str().unwrap()
            ),
        })
        .collect();
    GgufBuilder::new()
        .small_model(tokens.len())
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", pre)
        .texts("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .texts("tokenizer.ggml.merges", &merges)
}

fn open(builder: &GgufBuilder) -> Result<Checkpoint, SourceError> {
    let folder = tempfile::tempdir().unwrap();
    Checkpoint::open(&builder.write(folder.path(), "built.gguf"), None)
}

/// OPT's tokenizer: the pre-tokenizer of GPT-2, `</s>` prepended.
#[test]
fn gpt2_ids_equal_the_hub_form() {
    let builder = from_hub("blip2-tiny", "gpt-2")
        .u32("tokenizer.ggml.bos_token_id", 2)
        .flag("tokenizer.ggml.add_bos_token", true);
    let rebuilt = parse(&open(&builder).unwrap());
    let reference = Tokenizer::from_file(model("blip2-tiny/tokenizer.json")).unwrap();
    for text in TEXTS.iter().copied().chain(["<image>Question: what?</s>"]) {
        assert_same(&rebuilt, &reference, text);
    }
}

/// Builds a vocabulary of single bytes, digits up to four and a few pieces, to show where text is
/// split.
fn digits(pre: Option<&str>) -> Result<Tokenizer, SourceError> {
    let pieces = ["12", "123", "1234", "ab", "abc", "!!", "<|end|>"].map(String::from);
    let bytes = "!abc1234 \u{120}"
        .chars()
        .filter(|c| *c != ' ')
        .map(String::from);
    let tokens: Vec<String> = bytes.chain(pieces).collect();
    let kinds: Vec<i32> = tokens
        .iter()
        .map(|t| if t == "<|end|>" { 3 } else { 1 })
        .collect();
    let merges = ["1 2", "12 3", "123 4", "a b", "! !"].map(String::from);
    let builder = GgufBuilder::new()
        .small_model(tokens.len())
        .text("tokenizer.ggml.model", "gpt2")
        .texts("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .texts("tokenizer.ggml.merges", &merges)
        .u32("tokenizer.ggml.eos_token_id", tokens.len() as u32 - 1);
    let builder = match pre {
        Some(pre) => builder.text("tokenizer.ggml.pre", pre),
        None => builder,
    };
    open(&builder).map(|checkpoint| parse(&checkpoint))
}

#[test]
fn text_is_cut_as_the_file_says() {
    let pieces = |pre: Option<&str>, text: &str| -> Vec<String> {
        let encoding = digits(pre).unwrap().encode(text, true).unwrap();
        encoding.get_tokens().to_vec()
    };
    // Qwen2 splits digits one by one, Llama 3 in threes, GPT-2 not at all; llama.cpp's default
    // splits in threes too.
    assert_eq!(pieces(Some("qwen2"), "1234"), ["1", "2", "3", "4"]);
    assert_eq!(pieces(Some("llama-bpe"), "1234"), ["123", "4"]);
    assert_eq!(pieces(Some("gpt-2"), "1234"), ["1234"]);
    assert_eq!(pieces(Some("default"), "1234"), ["123", "4"]);
    assert_eq!(pieces(None, "1234"), ["123", "4"]);
    // Only Llama 3 uses a piece that is a token as a whole, without merges.
    assert_eq!(pieces(Some("llama-bpe"), "abc"), ["abc"]);
    assert_eq!(pieces(Some("smaug-bpe"), "abc"), ["ab", "c"]);
    assert_eq!(pieces(Some("qwen2"), "abc"), ["ab", "c"]);
    // The default splits punctuation from the space before it.
    assert_eq!(pieces(Some("gpt-2"), "a !!"), ["a", "\u{120}", "!!"]);
    assert_eq!(pieces(Some("default"), "a !!"), ["a", "\u{120}", "!!"]);
    assert_eq!(pieces(Some("qwen2"), "a<|end|>b"), ["a", "<|end|>", "b"]);
}

#[test]
fn unknown_ways_of_cutting_are_refused() {
    let message = digits(Some("gpt-4o")).unwrap_err().to_string();
    for part in ["built.gguf", "tokenizer.ggml.pre", "gpt-4o", "qwen2"] {
        assert!(message.contains(part), "{message}");
    }
}

fn refused(change: impl Fn(GgufBuilder) -> GgufBuilder) -> String {
    let tokens = ["a", "b", "ab"].map(String::from);
    let builder = GgufBuilder::new()
        .small_model(3)
        .texts("tokenizer.ggml.tokens", &tokens);
    match open(&change(builder)) {
        Ok(_) => panic!("this must not open"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn vocabularies_that_contradict_themselves_are_refused() {
    let gpt2 = |b: GgufBuilder| {
        b.text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", "gpt-2")
    };
    let llama = |b: GgufBuilder| b.text("tokenizer.ggml.model", "llama");
    let merges = |b: GgufBuilder, merge: &str| b.texts("tokenizer.ggml.merges", &[merge.into()]);
    let cases = [
        (refused(|b| b), "tokenizer.ggml.model"),
        (refused(|b| b.text("tokenizer.ggml.model", "bert")), "bert"),
        (
            refused(|b| gpt2(b).i32s("tokenizer.ggml.token_type", &[1, 1])),
            "2 entries",
        ),
        (
            refused(|b| gpt2(b).i32s("tokenizer.ggml.token_type", &[1, 1, 9])),
            "token type 9",
        ),
        (
            refused(|b| gpt2(b).f32s("tokenizer.ggml.token_type", &[1.0])),
            "tokenizer.ggml.token_type",
        ),
        (refused(|b| merges(gpt2(b), "ab")), "the merge"),
        (refused(|b| merges(gpt2(b), "a c")), "does not load"),
        (
            refused(|b| llama(b).f32s("tokenizer.ggml.scores", &[1.0])),
            "1 scores",
        ),
        (
            refused(|b| llama(b).f32s("tokenizer.ggml.scores", &[f32::NAN; 3])),
            "tokenizer.ggml.scores",
        ),
        (
            refused(|b| gpt2(b).u32("tokenizer.ggml.eos_token_id", 3)),
            "tokenizer.ggml.eos_token_id 3",
        ),
        (
            refused(|b| gpt2(b).text("tokenizer.ggml.eos_token_id", "a")),
            "tokenizer.ggml.eos_token_id, text",
        ),
    ];
    for (message, part) in cases {
        assert!(
            message.contains(part) && message.contains("built.gguf"),
            "{message:?} does not say {part:?}"
        );
    }
}
