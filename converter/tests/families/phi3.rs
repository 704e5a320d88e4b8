//! Phi-3: short and long sequences, which have different rotary embeddings.

use edge_lmm::Request;
use edge_lmm_models::prompt::{Message, Role};

use crate::common::{F32, data, engine};

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
