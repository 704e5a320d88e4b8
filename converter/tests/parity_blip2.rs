//! Every stage of BLIP-2 against the reference implementation's values.

mod common;

use common::check::check_family;
use common::{F32, ask, data, engine, goldens};
use edge_lmm::{Media, Request};
use edge_lmm_models::prompt::Message;

#[test]
fn trained() {
    let folder = data().join("goldens/blip2-tiny");
    check_family(&data().join("blip2-tiny"), None, &folder, 8);
}

/// An odd number of layers in the Q-Former, so that the last one looks at the picture; a grey
/// picture; a final norm with negative scales.
#[test]
fn of_other_dimensions() {
    let folder = data().join("blip2-odd");
    check_family(&folder, None, &folder.join("goldens"), 3);
}

/// Encoder and decoder of different depth, heads together wider than the residual stream,
/// distances beyond the last bucket.
#[test]
fn over_flan_t5() {
    let folder = data().join("blip2-t5-odd");
    check_family(&folder, None, &folder.join("goldens"), 3);
}

/// The answers to all samples' questions about one picture, and how many
/// tokens of each prompt were in the state already.
fn questions_in_a_row(checkpoint: &str, forget: bool) -> Vec<(Vec<u32>, usize)> {
    let folder = data().join(checkpoint);
    let mut engine = engine(&folder, None, &F32);
    let mut goldens = goldens(&folder.join("goldens"));
    // The longest first: what has no room in the state for a longer prompt is not kept.
    goldens.sort_by_key(|golden| std::cmp::Reverse(golden.question.len()));
    let picture = &goldens[0].media;
    goldens
        .iter()
        .map(|golden| {
            if forget {
                engine.forget();
            }
            let answer = engine
                .answer(&request(picture, &ask(picture, &golden.question)), |_| {
                    std::ops::ControlFlow::Continue(())
                })
                .expect("an answer");
            (answer.tokens, answer.reused_tokens)
        })
        .collect()
}

fn request<'a>(media: &'a [Media], messages: &'a [Message]) -> Request<'a> {
    Request {
        media,
        max_tokens: 12,
        ignore_eos: true,
        sampling: Default::default(),
        ..Request::new(messages)
    }
}

/// A decoder goes on behind the picture; an encoder has to see the whole prompt again.
#[test]
fn what_is_kept_changes_no_answer() {
    for (checkpoint, keeps) in [("blip2-odd", true), ("blip2-t5-odd", false)] {
        let kept = questions_in_a_row(checkpoint, false);
        let fresh = questions_in_a_row(checkpoint, true);
        for ((kept, reused), (fresh, _)) in kept.iter().zip(&fresh).skip(1) {
            assert_eq!(kept, fresh, "{checkpoint}");
            // The picture's seven tokens at least.
            assert_eq!(*reused >= 7, keeps, "{checkpoint}: {reused} reused");
        }
    }
}

/// Without a picture the language model answers alone; a second picture has no place.
#[test]
fn number_of_pictures() {
    let folder = data().join("blip2-t5-odd");
    let mut engine = engine(&folder, None, &F32);
    let picture = goldens(&folder.join("goldens"))[0].media[0].clone();
    let messages = ask(&[], "How many?");
    let answer = engine
        .answer(&request(&[], &messages), |_| {
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((answer.visual_tokens, answer.tokens.len()), (0, 12));
    let two = [picture.clone(), picture];
    let error = engine
        .answer(&request(&two, &ask(&two, "How many?")), |_| {
            std::ops::ControlFlow::Continue(())
        })
        .unwrap_err();
    assert!(error.to_string().contains("at most one"), "{error}");
}
