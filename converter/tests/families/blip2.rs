//! BLIP-2: the reused state of a conversation, and the number of images of a prompt.

use edge_lmm::{Media, Request};
use edge_lmm_models::prompt::Message;

use crate::common::{F32, ask, data, engine, goldens};

/// Returns the answers to all questions about one image, and how many tokens of each prompt were
/// reused from the state.
fn questions_in_a_row(checkpoint: &str, forget: bool) -> Vec<(Vec<u32>, usize)> {
    let folder = data().join(checkpoint);
    let mut engine = engine(&folder, None, &F32);
    let mut goldens = goldens(&folder.join("goldens"));
    // Longest first: a state too small for a longer prompt is not kept.
    goldens.sort_by_key(|golden| std::cmp::Reverse(golden.question.len()));
    let image = &goldens[0].media;
    goldens
        .iter()
        .map(|golden| {
            if forget {
                engine.forget();
            }
            let answer = engine
                .answer(&request(image, &ask(image, &golden.question)), |_| {
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

/// A decoder continues after the image; an encoder must process the whole prompt again.
#[test]
fn what_is_kept_changes_no_answer() {
    for (checkpoint, keeps) in [("blip2-odd", true), ("blip2-t5-odd", false)] {
        let kept = questions_in_a_row(checkpoint, false);
        let fresh = questions_in_a_row(checkpoint, true);
        for ((kept, reused), (fresh, _)) in kept.iter().zip(&fresh).skip(1) {
            assert_eq!(kept, fresh, "{checkpoint}");
            // At least the seven tokens of the image.
            assert_eq!(*reused >= 7, keeps, "{checkpoint}: {reused} reused");
        }
    }
}

/// Without an image the language model answers alone; a second image is rejected.
#[test]
fn number_of_images() {
    let folder = data().join("blip2-t5-odd");
    let mut engine = engine(&folder, None, &F32);
    let image = goldens(&folder.join("goldens"))[0].media[0].clone();
    let messages = ask(&[], "How many?");
    let answer = engine
        .answer(&request(&[], &messages), |_| {
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((answer.visual_tokens, answer.tokens.len()), (0, 12));
    let two = [image.clone(), image];
    let error = engine
        .answer(&request(&two, &ask(&two, "How many?")), |_| {
            std::ops::ControlFlow::Continue(())
        })
        .unwrap_err();
    assert!(error.to_string().contains("at most one"), "{error}");
}
