//! The time of a mask with a vocabulary of the size of Qwen's.

use std::time::{Duration, Instant};

use edge_lmm_models::prompt::TextProcessor;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

use super::{Compiler, Constraint};
use crate::report::resident_bytes;

/// Tokens of the vocabulary besides the end-of-sequence token.
const TOKENS: usize = 152_000;

/// Builds a byte-level tokenizer: all bytes, and random words with the lengths and alphabets of a
/// multilingual vocabulary.
fn processor() -> (TextProcessor, u32) {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut vocabulary = Map::new();
    let mut add = |token: String| {
        let next = vocabulary.len();
        vocabulary.entry(token).or_insert(Value::from(next));
        vocabulary.len()
    };
    // As byte-level BPE writes bytes: printable ones as themselves, others from U+0100 on.
    let mut others = 0x100..;
    let characters: Vec<char> = (0..=u8::MAX)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
            _ => others.next().and_then(char::from_u32).expect("a character"),
        })
        .collect();
    for c in &characters {
        add(c.to_string());
    }
    let alphabets: [&[u8]; 4] = [
        b"etaoinshrdlucmfwypvbgkjqxz",
        b"ETAOINSHRDLUetaoinshrdlucm_",
        b"{}[]()<>\"'`:;,.=+-*/\\!?# \n\t",
        b"\xd0\xb0\xd1\x81\xe4\xb8\xad\xe6\x96\x87\xce\xb1",
    ];
    while {
        let alphabet = alphabets[[0, 0, 0, 0, 1, 1, 2, 3][random.random_range(0..8)]];
        let length = random.random_range(2..11);
        let blank = random.random_bool(0.4).then_some(b' ');
        let letters = (0..length).map(|_| {
            let likely: f64 = random.random::<f64>().powi(2);
            alphabet[(likely * alphabet.len() as f64) as usize]
        });
        let bytes: Vec<u8> = blank.into_iter().chain(letters).collect();
        add(bytes
            .iter()
            .map(|&byte| characters[byte as usize])
            .collect())
            < TOKENS
    } {}
    let end = vocabulary.len();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
            "use_regex": false },
        "added_tokens": [{ "id": end, "content": "<|im_end|>", "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": true }],
        "model": { "type": "BPE", "vocab": vocabulary, "merges": [] },
    });
    let text = TextProcessor::new(&json.to_string(), None).expect("a tokenizer");
    (text, end as u32)
}

/// Measures masks along random texts of several constraints:
/// `cargo test --release -p edge-lmm --features constraints --lib -- --ignored --nocapture mask_cost`.
#[test]
#[ignore = "a measurement"]
fn mask_cost() {
    let (text, end) = processor();
    let resident = || resident_bytes().unwrap_or_default() >> 20;
    let (before, start) = (resident(), Instant::now());
    let compiler = Compiler::new(&text, &[end]).expect("a compiler");
    println!(
        "{} tokens, tries built in {:?}, {} MiB",
        end + 1,
        start.elapsed(),
        resident().saturating_sub(before),
    );
    let person = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string" },
            "age": { "type": "integer", "minimum": 0, "maximum": 150 },
            "tags": { "type": "array", "items": { "type": "string", "maxLength": 40 } },
            "kind": { "enum": ["friend", "colleague", "other"] },
        },
        "required": ["name", "age", "tags", "kind"],
        "additionalProperties": false,
    });
    for (name, constraint) in [
        ("any JSON object", Constraint::JsonObject),
        ("JSON schema", Constraint::JsonSchema(person)),
        ("regex .*", Constraint::Regex("(.|\n)*".to_owned())),
        (
            "regex [a-z ]{1,200}",
            Constraint::Regex("[a-z ]{1,200}".to_owned()),
        ),
    ] {
        let start = Instant::now();
        let first = compiler.compile(&constraint).expect("a constraint");
        drop(first);
        let compiled = start.elapsed();
        let mut times = Vec::new();
        for seed in 0..8 {
            times.extend(walk(&compiler, &constraint, seed, end));
        }
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_micros();
        println!(
            "{name:20} compiled in {compiled:?}; {} masks: median {} us, p90 {} us, p99 {} us, \
             longest {} us",
            times.len(),
            at(0.5),
            at(0.9),
            at(0.99),
            at(1.0),
        );
        assert!(at(0.5) < 5000, "{name}");
    }
}

/// Times the masks of one random text.
fn walk(compiler: &Compiler, constraint: &Constraint, seed: u64, end: u32) -> Vec<Duration> {
    let mut matching = compiler.compile(constraint).expect("a constraint");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (mut tokens, mut times) = (Vec::new(), Vec::new());
    let scores: Vec<f32> = (0..=end).map(|_| random.random()).collect();
    while tokens.len() < 60 {
        let mut logits = scores.clone();
        logits.rotate_left(random.random_range(0..scores.len()));
        logits[end as usize] = 0.0;
        let start = Instant::now();
        matching.mask(&mut logits, &tokens).expect("a mask");
        times.push(start.elapsed());
        let best = (0..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1));
        tokens.push(best.map(|(id, _)| id).expect("a token"));
        if matching.is_complete(&tokens).expect("a state") {
            break;
        }
    }
    times
}
