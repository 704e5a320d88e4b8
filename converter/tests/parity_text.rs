//! Comparison of every stage of the text-only language models with the reference implementation.

mod common;

use common::check::check_family;
use common::{F32, data, engine};
use edge_lmm::Request;
use edge_lmm_models::prompt::{Message, Role};

fn check(name: &str) {
    let folder = data().join(name);
    check_family(&folder, None, &folder.join("goldens"), 3);
}

fn check_gguf(name: &str) {
    let goldens = data().join(name).join("goldens");
    let file = data().join(format!("{name}-gguf/{name}-f16.gguf"));
    check_family(&file, None, &goldens, 3);
}

/// No template, linear RoPE scaling, a head size that is not width / heads.
#[test]
fn llama() {
    check("llama-odd");
}

#[test]
fn llama_from_gguf() {
    check_gguf("llama-odd");
}

/// A byte-level tokenizer, a template that adds BOS itself, RoPE wavelengths in every range of the
/// scaling.
#[test]
fn llama_3() {
    check("llama3-odd");
}

#[test]
fn llama_3_from_gguf() {
    check_gguf("llama3-odd");
}

#[test]
fn qwen2() {
    check("qwen2-odd");
}

#[test]
fn qwen2_from_gguf() {
    check_gguf("qwen2-odd");
}

/// Partial rotation with LongRoPE; one sequence becomes long during generation, one is long from
/// the start.
#[test]
fn phi3() {
    check("phi3-odd");
}

#[test]
fn phi3_from_gguf() {
    check_gguf("phi3-odd");
}

/// Cache entries of a short sequence must not be used for a long one, nor the other way round.
#[test]
fn what_is_kept_fits_the_length() {
    let mut engine = engine(&data().join("phi3-odd"), None, &F32);
    let beginning = "Then the first circle follows the other one";
    let long =
        format!("{beginning}, and so on, and on, and on. What is next, and then? {beginning}?");
    let mut tokens = |questions: &[&str]| {
        engine.forget();
        let mut last = (Vec::new(), 0);
        for question in questions {
            let messages = [Message::text(Role::User, *question)];
            let request = Request {
                max_tokens: 4,
                ignore_eos: true,
                sampling: Default::default(),
                ..Request::new(&messages)
            };
            let answer = engine
                .answer(&request, |_| std::ops::ControlFlow::Continue(()))
                .expect("an answer");
            last = (answer.tokens, answer.reused_tokens);
        }
        last
    };
    let (fresh, _) = tokens(&[beginning]);
    // Below the limit the common prefix is reused, beyond it is not.
    let (kept, reused) = tokens(&[beginning, beginning]);
    assert_eq!(kept, fresh);
    assert!(reused > 10, "{reused} reused");
    let (after_long, reused) = tokens(&[&long, beginning]);
    assert_eq!((after_long, reused), (fresh, 0));
    let (fresh, _) = tokens(&[&long]);
    let (after_short, reused) = tokens(&[beginning, &long]);
    assert_eq!((after_short, reused), (fresh, 0));
}
