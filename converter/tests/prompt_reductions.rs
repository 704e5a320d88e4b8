//! Choices of visual tokens that depend on the prompt: by the question, and by positions.

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use common::{F32, ask, data, engine};
use edge_lmm::{Cpu, Event, Media, MediaOptions, Prefilled, Request, Session};
use edge_lmm_models::prompt::{Message, Role};
use edge_lmm_models::reduce::anchors::ranking;
use edge_lmm_ops::probe::{self, Captured};

/// Id of the tokens that stand for an image.
const IMAGE_TOKEN: f32 = 471.0;

fn scenes() -> Session<Cpu> {
    engine(&data().join("qwen2vl-scenes"), None, &F32)
}

fn image(name: &str) -> Media {
    let path = data().join("scenes/images").join(name);
    Media::image(edge_lmm::media::load_image(&path).expect("an image"))
}

fn reduced(chain: &str) -> MediaOptions {
    MediaOptions {
        reductions: chain.parse().expect("a chain of methods"),
        ..MediaOptions::default()
    }
}

/// Takes a conversation in; returns the number of media that were prepared for the encoder, too.
fn prefill(
    session: &mut Session<Cpu>,
    messages: &[Message],
    media: &[Media],
    chain: &str,
) -> (Prefilled, usize) {
    let request = Request {
        media,
        options: reduced(chain),
        ..Request::new(messages)
    };
    let mut prepared = 0;
    let prefilled = session.prefill(&request, |event| {
        if let Event::Prepared { media, .. } = event {
            prepared += media.len();
        }
        ControlFlow::Continue(())
    });
    (prefilled.expect("a prefill"), prepared)
}

/// A further turn keeps the tokens of the first question; another question gets its own, from the
/// encoder output that is known.
#[test]
fn a_conversation_keeps_the_tokens_of_its_first_question() {
    let mut session = scenes();
    let media = [image("scene_017.png")];
    for chain in [
        "question:0.25",
        "diverse:0.5,question:0.5",
        "diverse:0.25,anchors",
    ] {
        session.forget();
        let first = ask(&media, "what number is next to the diamond?");
        let (prefilled, prepared) = prefill(&mut session, &first, &media, chain);
        assert_eq!((prefilled.reused_tokens, prepared), (0, 1), "{chain}");
        assert_eq!(prefilled.visual_tokens, 22, "{chain}");

        let mut second = first.clone();
        second.push(Message::text(Role::Assistant, "42"));
        second.push(Message::text(Role::User, "what color is the diamond?"));
        let (continued, prepared) = prefill(&mut session, &second, &media, chain);
        assert_eq!(prepared, 0, "{chain}");
        assert!(
            continued.reused_tokens > prefilled.prompt_tokens - 8,
            "{chain}"
        );

        let other = ask(&media, "list the shapes.");
        let (changed, prepared) = prefill(&mut session, &other, &media, chain);
        assert_eq!((changed.visual_tokens, prepared), (22, 0), "{chain}");
        // Without the question, the same tokens stand for the image.
        let has_image = changed.reused_tokens > 22;
        assert_eq!(has_image, !chain.contains("question"), "{chain}");
        session.forget();
        let (anew, _) = prefill(&mut session, &other, &media, chain);
        assert_eq!(anew.logits, changed.logits, "{chain}");
    }
}

/// Captures the prompt of a question about an image.
fn captured(session: &mut Session<Cpu>, chain: &str) -> BTreeMap<String, Captured> {
    let media = [image("scene_017.png")];
    let messages = ask(&media, "what number is next to the diamond?");
    session.forget();
    probe::start();
    prefill(session, &messages, &media, chain);
    probe::finish()
}

/// The positions of the image's tokens, and the index of the first one.
fn positions(found: &BTreeMap<String, Captured>) -> (Vec<[u32; 3]>, usize) {
    let (ids, values) = (&found["input_ids"].values, &found["position_ids"].values);
    let position = |token: usize| [0, 1, 2].map(|axis| values[axis * ids.len() + token] as u32);
    let of_image: Vec<usize> = (0..ids.len()).filter(|&i| ids[i] == IMAGE_TOKEN).collect();
    (
        of_image.iter().map(|&token| position(token)).collect(),
        of_image[0],
    )
}

/// The mean cosine and sine of rotary angles with base 100, heads of 32 and sections of 2, 6 and 8
/// frequencies, as the configuration says.
fn means(position: &[u32; 3]) -> [f32; 2] {
    let axis = |i: usize| match i {
        0..2 => 0,
        2..8 => 1,
        _ => 2,
    };
    let angle = |i: usize| f64::from(position[axis(i)]) / 100f64.powf(i as f64 / 16.0);
    let mean = |part: fn(f64) -> f64| (0..16).map(|i| part(angle(i))).sum::<f64>() / 16.0;
    [mean(f64::cos) as f32, mean(f64::sin) as f32]
}

/// The best anchors are among the tokens that every method keeps, and their number is that of the
/// ratio.
#[test]
fn anchors_are_kept_by_every_method() {
    let mut session = scenes();
    let (all, first) = positions(&captured(&mut session, "diverse:1"));
    let ranked = ranking(&all.iter().map(means).collect::<Vec<_>>());
    for method in ["diverse", "attention", "question", "random", "stride"] {
        let chain = format!("{method}:0.25,anchors:0.5");
        let (kept, _) = positions(&captured(&mut session, &chain));
        assert_eq!((all.len(), kept.len()), (88, 22), "{chain}");
        assert!(
            ranked[..11].iter().all(|&token| kept.contains(&all[token])),
            "{chain}"
        );
        let without = format!("{method}:0.25");
        assert_ne!(
            positions(&captured(&mut session, &without)).0,
            kept,
            "{chain}"
        );
    }
    // Every method of a chain protects the best ones of its number.
    let (kept, _) = positions(&captured(
        &mut session,
        "random:0.5,diverse:0.25,anchors:100%",
    ));
    let mut best: Vec<[u32; 3]> = ranked[..11].iter().map(|&token| all[token]).collect();
    best.sort_unstable_by_key(|position| (position[1], position[2]));
    assert_eq!(kept, best);
    let found = captured(&mut session, "language:1:0.25,anchors:0.5");
    let dropped = &found["language_dropped"].values;
    assert_eq!(dropped.len(), 66);
    let is_dropped = |&token: &usize| dropped.contains(&((first + token) as f32));
    assert!(!ranked[..11].iter().any(is_dropped));
}

/// With a ratio of 1, nothing is chosen, protected or not.
#[test]
fn a_ratio_of_one_changes_no_bit() {
    let mut session = scenes();
    let mut logits = |chain: &str| {
        let mut found = captured(&mut session, chain);
        found.remove("logits_first").expect("scores")
    };
    let whole = logits("stride:1");
    for chain in [
        "question:1",
        "diverse:1,anchors",
        "question:1,language:1:1,anchors:0.9",
    ] {
        assert_eq!(logits(chain), whole, "{chain}");
    }
}

/// The choice after the projector reports its own progress, so that the one of the encoder does not
/// begin again.
#[test]
fn progress_of_a_choice_is_not_that_of_the_encoder() {
    let mut session = scenes();
    let media = [image("scene_017.png")];
    let messages = ask(&media, "list the shapes.");
    let request = Request {
        media: &media,
        options: reduced("diverse:0.5,question:0.5"),
        ..Request::new(&messages)
    };
    let mut seen: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
    let answer = session.prefill(&request, |event| {
        if let Event::Progress { stage, done, total } = event {
            seen.entry(stage).or_default().push((done, total));
        }
        ControlFlow::Continue(())
    });
    answer.expect("a prefill");
    let vision = &seen["vision"];
    assert!(
        vision
            .windows(2)
            .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 == pair[1].1)
    );
    assert!(seen["projector"].len() > 2);
}
