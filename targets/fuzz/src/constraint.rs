//! Fuzz target for the constraints of requests.

use std::cell::RefCell;
use std::ops::ControlFlow;

use edge_lmm::{
    Constraint, Cpu, Engine, EngineError, FinishReason, Message, Record, Request, Role, Sampling,
    Session, demo, one_line,
};
use serde::de::IgnoredAny;
use serde_json::json;

use crate::mutate::{Form, parts};
use crate::{Target, errors};

/// A JSON schema, a regular expression and a grammar, each of which constrains an answer.
pub const CONSTRAINT: Target = Target {
    name: "constraint",
    form: Form::Json(&[
        b"start: ",
        b"\n",
        b"%json {",
        b"%regex {",
        b"%ignore ",
        b"%llguidance {",
        b"{1000000000}",
        b"{0,500}",
        b"[^a]",
        b"(?i)",
        b"(?=",
        b"\\p{L}",
        b".*",
        b"|",
        b"(",
        b")",
        b"\"a\"",
        b"/a+/",
        b"<|im_end|>",
        b"\xff",
    ]),
    seeds,
    run: |input| {
        let [schema, regex, grammar] = parts(input).map(String::from_utf8_lossy);
        if !schema.is_empty() {
            match Constraint::json_schema(&schema) {
                Ok(constraint) => follow(&constraint),
                Err(error) => errors::check_line(&one_line(&error)),
            }
        }
        if !regex.is_empty() {
            follow(&Constraint::Regex(regex.into_owned()));
        }
        if !grammar.is_empty() {
            follow(&Constraint::Grammar(grammar.into_owned()));
        }
    },
};

thread_local! {
    static SESSION: RefCell<Session<Cpu>> = RefCell::new({
        let record = Record::from_static(demo::RECORD, "the demo").expect("a record");
        let engine = Engine::load(&record, Default::default()).expect("it loads");
        engine.session()
    });
}

/// Generates the first tokens of an answer. An answer that ends by itself has the form.
fn follow(constraint: &Constraint) {
    let messages = [Message::text(Role::User, "a")];
    let request = Request {
        constraint: Some(constraint),
        max_tokens: 12,
        sampling: Sampling {
            temperature: 1.0,
            ..Sampling::default()
        },
        ..Request::new(&messages)
    };
    let answer =
        SESSION.with_borrow_mut(|session| session.answer(&request, |_| ControlFlow::Continue(())));
    match answer {
        Ok(answer) if answer.finish_reason == FinishReason::Stop => {
            if let Constraint::JsonSchema(_) = constraint {
                // The value is not computed: a schema may permit numbers beyond those of f64.
                let json = serde_json::from_str::<IgnoredAny>(&answer.text);
                json.unwrap_or_else(|error| panic!("{error}: {:?}", answer.text));
            }
        }
        Ok(_) => {}
        Err(error @ EngineError::Constraint(_)) => errors::check_line(&one_line(&error)),
        Err(error) => panic!("no error of the constraint: {error}"),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let shapes = json!({ "type": "object", "properties": {
            "shape": { "enum": ["circle", "square", null, 7] },
            "count": { "type": "integer", "minimum": 0, "exclusiveMaximum": 99 } },
        "required": ["shape"], "additionalProperties": false });
    let strings = json!({ "type": ["string", "null"], "minLength": 1, "maxLength": 5,
        "pattern": "^[a-c]{1,3}(-[0-9]{2})?$", "format": "date" });
    let lists = json!({ "type": "array", "prefixItems": [{ "type": "boolean" }], "minItems": 1,
        "items": { "anyOf": [{ "const": 3.5 }, { "type": "number", "multipleOf": 0.5 }] }, "maxItems": 4 });
    let linked = json!({ "$defs": { "a": { "type": "object", "properties": { "next": { "$ref": "#/$defs/a" } } } },
        "allOf": [{ "$ref": "#/$defs/a" }, { "minProperties": 1, "patternProperties": { "^n": {} } }],
        "oneOf": [{ "required": ["next"] }] });
    let schemas = [shapes, strings, lists, linked].map(|schema| schema.to_string());
    let regexes = [
        "[0-9]{1,3}(red|blue) ?",
        "(a*)*(b*)*c",
        "\\w+[äöü]{2}(.|\\n)*",
    ];
    let grammars = [
        "start: \"move\" \" \" DIRECTION (\" \" STEPS)? | \"stop\"\nDIRECTION: \"left\" | \"right\"\n\
         STEPS: /[1-9][0-9]?/\n",
        "start: shape (\",\" shape)*\nshape: SIZE \" \" %json { \"enum\": [\"circle\"] }\nSIZE: /[0-9]{1,2}/\n",
        "start: a a a\na: b | b b\nb: \"x\" | \"x\" b | \"\"\n",
    ];
    let schemas = schemas.into_iter();
    let regexes = regexes.map(|regex| format!("\0{regex}"));
    let grammars = grammars.map(|grammar| format!("\0\0{grammar}"));
    let texts = schemas.chain(regexes).chain(grammars);
    texts.map(String::into_bytes).collect()
}
