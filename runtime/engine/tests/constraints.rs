//! Answers of the demo's model with constraints. The model was not trained for them, so that only
//! the constraint gives an answer its form.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use edge_lmm::{
    Answer, AnySession, Constraint, ConstraintError, Device, EngineError, Event, FinishReason,
    Message, Record, Request, Role, Sampling, demo,
};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

fn session() -> AnySession {
    let record = Record::from_static(demo::RECORD, "the demo").expect("a record");
    Device::Cpu.load(&record).expect("an engine").session()
}

/// Returns a way to pick tokens that gives varied texts.
fn random(seed: u64) -> Sampling {
    Sampling {
        temperature: 1.0,
        seed,
        ..Sampling::default()
    }
}

/// Answers "list the shapes." with changes to the request.
fn answer(
    session: &mut AnySession,
    constraint: &Constraint,
    change: impl FnOnce(&mut Request<'_>),
) -> Result<Answer, EngineError> {
    let messages = [Message::text(Role::User, "list the shapes.")];
    let mut request = Request {
        constraint: Some(constraint),
        ..Request::new(&messages)
    };
    change(&mut request);
    session.answer(&request, |_| ControlFlow::Continue(()))
}

fn text(session: &mut AnySession, constraint: &Constraint, seed: u64) -> String {
    let answer = answer(session, constraint, |request| {
        request.sampling = random(seed)
    });
    let answer = answer.expect("an answer");
    assert_eq!(answer.finish_reason, FinishReason::Stop, "{}", answer.text);
    answer.text
}

fn error(session: &mut AnySession, constraint: &Constraint) -> String {
    let error = answer(session, constraint, |_| {}).expect_err("an error");
    let line = edge_lmm::one_line(&error);
    assert!(!line.contains('\n') && line.len() < 500, "{line}");
    line
}

/// Builds a random schema of limited depth and width, so that answers stay short.
fn schema(random: &mut ChaCha8Rng, depth: usize) -> Value {
    let leaf = depth == 0 || random.random_bool(0.4);
    match random.random_range(if leaf { 0..8 } else { 8..11 }) {
        0 => json!({ "type": "boolean" }),
        1 => json!({ "type": "null" }),
        2 => integer(random),
        3 => json!({ "type": "number", "minimum": -2.5, "exclusiveMaximum": 40 }),
        4 => {
            let min = random.random_range(0..4);
            let max = min + random.random_range(0..6);
            json!({ "type": "string", "minLength": min, "maxLength": max })
        }
        5 => json!({ "enum": ["red circle", "grün", 7, null, "a\"b", [1], {"k": false}] }),
        6 => {
            let values = [json!("blue"), json!("square"), json!(3.5)];
            json!({ "const": values.choose(random) })
        }
        7 => json!({ "type": "string", "pattern": "^[a-c]{1,3}(-[0-9]{2})?$" }),
        8 => object(random, depth),
        9 => {
            let min = random.random_range(0..2);
            let max = min + random.random_range(0..3);
            let items = schema(random, depth - 1);
            json!({ "type": "array", "items": items, "minItems": min, "maxItems": max })
        }
        _ => {
            let options: Vec<Value> = (0..2).map(|_| schema(random, depth - 1)).collect();
            json!({ "anyOf": options })
        }
    }
}

fn integer(random: &mut ChaCha8Rng) -> Value {
    let min = random.random_range(-200..200);
    let max = min + random.random_range(0..5000);
    json!({ "type": "integer", "minimum": min, "maximum": max })
}

fn object(random: &mut ChaCha8Rng, depth: usize) -> Value {
    let names = ["color", "count", "x y", "größe"];
    let mut properties = Map::new();
    let mut required = Vec::new();
    for name in names.iter().take(random.random_range(0..4)) {
        properties.insert((*name).to_owned(), schema(random, depth - 1));
        if random.random_bool(0.6) {
            required.push(*name);
        }
    }
    json!({ "type": "object", "properties": properties, "required": required,
        "additionalProperties": false })
}

/// Every answer that ends by itself is JSON that the schema accepts; the others are cut off by the
/// limit of tokens. `EDGE_LMM_SCHEMAS` sets the number of schemas.
#[test]
fn answers_follow_random_schemas() {
    let count = std::env::var("EDGE_LMM_SCHEMAS");
    let count = count.map_or(60, |count| count.parse().expect("a number"));
    let mut session = session();
    let mut ended = 0;
    for seed in 0..count {
        let schema = schema(&mut ChaCha8Rng::seed_from_u64(seed), 3);
        let constraint = Constraint::JsonSchema(schema.clone());
        let answer = answer(&mut session, &constraint, |request| {
            request.sampling = random(seed);
            request.max_tokens = 160;
        });
        let answer = answer.unwrap_or_else(|error| panic!("{schema}: {error}"));
        if answer.finish_reason == FinishReason::Length {
            assert_eq!(answer.tokens.len(), 160);
            continue;
        }
        assert_eq!(answer.finish_reason, FinishReason::Stop);
        ended += 1;
        let value: Value = serde_json::from_str(&answer.text)
            .unwrap_or_else(|error| panic!("{schema}: {error} in {:?}", answer.text));
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        assert!(validator.is_valid(&value), "{schema}: {value}");
    }
    println!("{ended} of {count} answers ended by themselves");
    assert!(ended * 10 > count * 9, "{ended} of {count} ended");
}

#[test]
fn answers_match_regular_expressions() {
    let mut session = session();
    for (pattern, expected) in [
        (
            "(red|blue) (circle|square)",
            r"^(red|blue) (circle|square)$",
        ),
        ("[0-9]{1,3}", "^[0-9]{1,3}$"),
        (" {2}x", "^ {2}x$"),
        ("[äöü]{2}", "^[äöü]{2}$"),
        (r"[0-9]{2}/\w", r"^[0-9]{2}/.$"),
    ] {
        let expected = json!({ "type": "string", "pattern": expected });
        let validator = jsonschema::validator_for(&expected).expect("a schema");
        for seed in 0..4 {
            let text = text(&mut session, &Constraint::Regex(pattern.to_owned()), seed);
            assert!(validator.is_valid(&json!(text)), "{pattern}: {text:?}");
        }
    }
}

#[test]
fn answers_follow_grammars() {
    let grammar = r#"
        start: shape ("," shape)*
        shape: SIZE " " %json { "enum": ["circle", "cross"] }
        SIZE: /[0-9]{1,2}/
    "#;
    let mut session = session();
    for seed in 0..4 {
        let text = text(&mut session, &Constraint::Grammar(grammar.to_owned()), seed);
        for shape in text.split(',') {
            let (size, name) = shape.split_once(' ').expect("two words");
            assert!(size.parse::<u8>().is_ok_and(|size| size < 100), "{text}");
            assert!(["\"circle\"", "\"cross\""].contains(&name), "{text}");
        }
    }
}

#[test]
fn objects_of_any_form() {
    let mut session = session();
    let greedy = answer(&mut session, &Constraint::JsonObject, |request| {
        request.max_tokens = 400;
    });
    let greedy = greedy.expect("an answer");
    if greedy.finish_reason == FinishReason::Stop {
        let value: Value = serde_json::from_str(&greedy.text).expect("JSON");
        assert!(value.is_object(), "{value}");
    }
    assert!(greedy.text.starts_with('{'), "{}", greedy.text);
}

/// Greedy answers, penalties, stop strings and log-probabilities work with a constraint.
#[test]
fn other_options_apply() {
    let mut session = session();
    let digits = Constraint::Regex("[0-9]{8}".to_owned());
    let plain = answer(&mut session, &digits, |_| {}).expect("an answer");
    assert_eq!(plain.text.len(), 8);
    assert_eq!(plain.finish_reason, FinishReason::Stop);
    let penalized = answer(&mut session, &digits, |request| {
        request.sampling.presence_penalty = 50.0;
    });
    let penalized = penalized.expect("an answer").text;
    let distinct: std::collections::BTreeSet<char> = penalized.chars().collect();
    assert_eq!(distinct.len(), 8, "{penalized}");
    let short = answer(&mut session, &digits, |request| request.max_tokens = 3);
    let short = short.expect("an answer");
    assert_eq!(short.finish_reason, FinishReason::Length);
    assert!(plain.text.starts_with(&short.text), "{}", short.text);
    let stop = [plain.text[4..5].to_owned()];
    let messages = [Message::text(Role::User, "list the shapes.")];
    let request = Request {
        constraint: Some(&digits),
        stop: &stop,
        logprobs: Some(2),
        ..Request::new(&messages)
    };
    let mut tokens = 0;
    let stopped = session.answer(&request, |event| {
        if let Event::Logprobs(token) = event {
            // The probabilities are those of the model: the picked token need not be likely.
            assert_eq!(token.top.len(), 2);
            assert!(token.token.logprob <= token.top[0].logprob);
            tokens += 1;
        }
        ControlFlow::Continue(())
    });
    let stopped = stopped.expect("an answer");
    let at = plain.text.find(&stop[0]).expect("the digit");
    assert_eq!(stopped.text, plain.text[..at]);
    assert_eq!(stopped.finish_reason, FinishReason::Stop);
    assert_eq!(tokens, stopped.tokens.len());
}

/// The end of the text ends the answer, also where the end-of-sequence token does not.
#[test]
fn a_complete_text_ends_the_answer() {
    let mut session = session();
    let word = Constraint::Regex("circle".to_owned());
    for ignore_eos in [false, true] {
        let answer = answer(&mut session, &word, |request| {
            request.ignore_eos = ignore_eos
        });
        let answer = answer.expect("an answer");
        assert_eq!(answer.text, "circle");
        assert_eq!(answer.finish_reason, FinishReason::Stop);
    }
    let exactly = answer(&mut session, &word, |_| {})
        .expect("an answer")
        .tokens
        .len();
    let full = answer(&mut session, &word, |request| request.max_tokens = exactly);
    assert_eq!(full.expect("an answer").finish_reason, FinishReason::Stop);
}

#[test]
fn mistakes_are_named() {
    let mut session = session();
    let schema = Constraint::JsonSchema;
    for (constraint, words) in [
        (
            schema(json!({ "type": "text" })),
            "invalid JSON schema: Invalid type: text",
        ),
        (schema(json!([1])), "schema must be an object or boolean"),
        (schema(json!({ "not": { "type": "string" } })), "not"),
        (
            schema(json!({ "type": "integer", "minimum": 3, "maximum": 2 })),
            "nsatisfiable",
        ),
        (schema(json!({ "$ref": "#/$defs/none" })), "none"),
        (
            schema(json!({ "$ref": "https://example.com/a.json" })),
            "example.com",
        ),
        (
            schema(json!({ "oneOf": [{ "minimum": 1 }, { "maximum": 5 }] })),
            "oneOf",
        ),
        (
            Constraint::Regex("(a".to_owned()),
            "invalid regular expression",
        ),
        (Constraint::Grammar("begin: \"a\"".to_owned()), "start"),
        (
            Constraint::Grammar("start: \"a".to_owned()),
            "invalid grammar: 1(10): lexer error",
        ),
        (
            Constraint::Grammar("start: <|im_end|>".to_owned()),
            "invalid grammar",
        ),
    ] {
        let error = error(&mut session, &constraint);
        assert!(error.contains(words), "{constraint:?}: {error}");
    }
    let error = Constraint::json_schema("{").expect_err("no JSON");
    assert!(matches!(error, ConstraintError::Invalid { .. }), "{error}");
}

/// Constraints that would take hours or gigabytes are rejected, or answered within a limit of time.
#[test]
fn hostile_constraints_are_bounded() {
    let nested = |depth: usize, open: &str, inner: &str, close: &str| {
        format!("{}{inner}{}", open.repeat(depth), close.repeat(depth))
    };
    let many = |count: usize| -> Value { (0..count).map(|i| json!(format!("word {i}"))).collect() };
    let chain: Map<String, Value> = (0..3000)
        .map(|i| {
            (
                format!("a{i}"),
                json!({ "$ref": format!("#/$defs/a{}", i + 1) }),
            )
        })
        .chain([("a3000".to_owned(), json!({ "type": "null" }))])
        .collect();
    let deep = nested(60, r#"{"items":"#, "{}", "}");
    let patterns = |count: usize| -> Map<String, Value> {
        (0..count)
            .map(|i| (format!("(a|b{i})*c.*{i}.*"), json!({})))
            .collect()
    };
    let schemas = [
        json!({ "enum": many(8000) }),
        json!({ "type": "string", "maxLength": 1_000_000_000_u64 }),
        json!({ "type": "string", "minLength": 100_000 }),
        json!({ "type": "array", "minItems": 1_000_000_000_u64 }),
        json!({ "type": "array", "minItems": 9_999, "items": { "type": "array", "minItems": 9_999 } }),
        json!({ "type": "string", "pattern": "((a{0,1000}){0,1000}){0,1000}$" }),
        json!({ "type": "string", "pattern": "(.*a.{100}b.*)|(.*b.{120}a.*)" }),
        json!({ "type": "number", "multipleOf": 0.000_123_457 }),
        json!({ "$defs": chain, "$ref": "#/$defs/a0" }),
        serde_json::from_str(&deep).expect("JSON"),
        json!({ "patternProperties": patterns(30) }),
        json!({ "patternProperties": patterns(3000) }),
        json!({ "allOf": vec![json!({ "anyOf": vec![json!({ "type": "string", "pattern": "a+" }); 12] }); 12] }),
        json!({ "properties": (0..1000).map(|i| (format!("p{i}"), json!({}))).collect::<Map<_, _>>() }),
        json!({ "type": "object", "minProperties": 5000 }),
    ];
    let regexes = [
        "(a*)*(b*)*c".to_owned(),
        "(.{0,500}){0,500}".to_owned(),
        "([a-z]+[0-9]+){1,1000}(x|y|z){1,1000}".to_owned(),
        nested(5000, "(", "a", ")"),
        "a|".repeat(7000),
    ];
    let rules: String = (0..1500).map(|i| format!("r{i}: r{}\n", i + 1)).collect();
    let grammars = [
        nested(16_000, "start: (", "\"a\"", ")").replace(")start: (", ")"),
        format!("start: {}", nested(16_000, "(", "\"a\"", ")")),
        format!("start: r0\n{rules}r1500: \"a\""),
        "start: start start | \"a\" | \"\"".to_owned(),
        "start: a{1000000000}\na: \"x\"".to_owned(),
        format!("start: X\nX: {}", nested(5000, "(", "\"a\"", ")+")),
        "start: a a a a a a a a\na: b | b b | b b b\nb: \"x\" | \"x\" b | b \"x\" | \"\""
            .to_owned(),
    ];
    let constraints = schemas
        .into_iter()
        .map(Constraint::JsonSchema)
        .chain(regexes.map(Constraint::Regex))
        .chain(grammars.map(Constraint::Grammar));
    let mut session = session();
    for constraint in constraints {
        let start = Instant::now();
        let result = answer(&mut session, &constraint, |request| request.max_tokens = 20);
        let time = start.elapsed();
        let shown: String = format!("{constraint:?}").chars().take(70).collect();
        let outcome = match &result {
            Ok(answer) => format!("{:?}", answer.text.chars().take(30).collect::<String>()),
            Err(error) => edge_lmm::one_line(error),
        };
        println!("{:5} ms {shown}: {outcome}", time.as_millis());
        assert!(time < Duration::from_secs(20), "{shown} took {time:?}");
        assert!(
            matches!(result, Ok(_) | Err(EngineError::Constraint(_))),
            "{shown}: {outcome}"
        );
        assert!(!outcome.contains("panic"), "{shown}: {outcome}");
    }
}
