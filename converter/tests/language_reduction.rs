//! Reduction of the tokens of media inside the language model: against PyTorch, and in sessions.

mod common;

use std::ops::ControlFlow;
use std::sync::{LazyLock, Mutex};

use common::manifest::Manifest;
use common::{F32, ask, data, engine, engine_of, read_tensors, relative};
use edge_lmm::{
    Cpu, EngineError, Event, Logits, Media, MediaOptions, OutputRows, Prefilled, Request, Session,
};
use edge_lmm_convert::Options;
use edge_lmm_models::ModelError;
use edge_lmm_models::prompt::{Content, Message, Role};
use edge_lmm_models::reduce::{LanguageReduction, Reduction, Reductions, Share};
use edge_lmm_ops::probe;
use serde_json::Value;

/// Id of the tokens that stand for an image.
const IMAGE_TOKEN: f32 = 471.0;

static HALF: LazyLock<LanguageReduction> = LazyLock::new(|| LanguageReduction {
    layer: 1,
    share: share(0.5),
});

fn share(share: f64) -> Share {
    Share::new(share).expect("a share")
}

/// Returns options with a reduction inside the language model.
fn reduced(reduction: impl Into<Option<LanguageReduction>>) -> MediaOptions {
    let methods = reduction.into().map(Reduction::Language);
    MediaOptions {
        reductions: Reductions::new(methods.into_iter().collect()).expect("a chain"),
        ..MediaOptions::default()
    }
}

fn go_on(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Returns an image of the goldens, of 64 or 88 tokens.
fn image(name: &str) -> Media {
    let path = data().join("scenes/images").join(name);
    Media::image(edge_lmm::media::load_image(&path).expect("an image"))
}

/// Returns a session without a conversation; all share the weights.
fn scenes() -> Session<Cpu> {
    static FIRST: LazyLock<Mutex<Session<Cpu>>> = LazyLock::new(|| {
        let session = engine(&data().join("qwen2vl-scenes"), None, &Options::default());
        Mutex::new(session)
    });
    let first = FIRST.lock().expect("no fork panics");
    first.fork().expect("memory")
}

fn prefill_of(
    session: &mut Session<Cpu>,
    media: &[Media],
    messages: &[Message],
    reduction: Option<LanguageReduction>,
) -> Result<Prefilled, EngineError> {
    let request = Request {
        media,
        options: reduced(reduction),
        ..Request::new(messages)
    };
    session.prefill(&request, go_on)
}

/// Takes in a question about one image.
fn prefill(
    session: &mut Session<Cpu>,
    question: &str,
    reduction: Option<LanguageReduction>,
) -> Prefilled {
    let media = [image("scene_007.png")];
    let messages = ask(&media, question);
    prefill_of(session, &media, &messages, reduction).expect("a prompt")
}

/// Appends an answer and another question.
fn next_turn(messages: &mut Vec<Message>, answer: &str, images: usize, question: &str) {
    let images = std::iter::repeat_n(
        Content::Media(edge_lmm_models::media::MediaKind::Image),
        images,
    );
    messages.push(Message::text(Role::Assistant, answer));
    messages.push(Message {
        role: Role::User,
        content: images.chain([Content::Text(question.to_owned())]).collect(),
    });
}

/// The tokens that stay are those of the reference implementation, and so are scores and answers. The
/// tolerance is the one that is promised for f32 records.
#[test]
fn the_reference_keeps_the_same_tokens() {
    let folder = data().join("goldens/qwen2vl-scenes");
    let index = std::fs::read_to_string(folder.join("index.json")).expect("index.json");
    let index: Value = serde_json::from_str(&index).expect("JSON");
    let mut session = engine(&data().join("qwen2vl-scenes"), None, &F32);
    let mut compared = 0;
    for sample in index["samples"].as_array().expect("samples") {
        let text = |key: &str| sample[key].as_str().expect("text").to_owned();
        let method = text("method");
        let Some(layer) = method.strip_prefix("fastv_k") else {
            continue;
        };
        let name = text("file");
        let golden = read_tensors(&folder.join(&name));
        let media = [image(text("media").trim_start_matches("images/"))];
        let messages = ask(&media, &text("question"));
        let request = Request {
            media: &media,
            options: reduced(LanguageReduction {
                layer: layer.parse().expect("a number"),
                share: share(index["ratio"].as_f64().expect("a ratio")),
            }),
            max_tokens: 16,
            ..Request::new(&messages)
        };
        session.forget();
        probe::start();
        let answer = session.answer(&request, go_on).expect("an answer");
        let found = probe::finish();

        let ids = &found["input_ids"].values;
        let is_image = |id: &f32| *id == IMAGE_TOKEN;
        let first = ids.iter().position(is_image).expect("an image");
        let tokens = ids.iter().filter(|id| is_image(id)).count();
        let dropped = &found["language_dropped"].values;
        let dropped: Vec<usize> = dropped.iter().map(|&at| at as usize - first).collect();
        let expected: Vec<usize> = golden["keep"].1.iter().map(|&at| at as usize).collect();
        let kept: Vec<usize> = (0..tokens).filter(|at| !dropped.contains(at)).collect();
        assert_eq!(kept, expected, "{name}");
        assert_eq!(answer.visual_tokens, tokens);
        assert_eq!(answer.language_tokens, Some(expected.len()));

        let logits = &found["logits_first"].values[..golden["logits_first"].1.len()];
        let error = relative(logits, &golden["logits_first"].1);
        println!("{name}: scores {error:.1e}");
        assert!(error <= 1e-3, "{name}: scores differ by {error}");
        let greedy: Vec<u32> = golden["greedy"].1.iter().map(|&id| id as u32).collect();
        assert_eq!(answer.tokens, greedy, "{name}");
        assert_eq!(answer.text.trim(), text("text"), "{name}");
        compared += 1;
    }
    assert_eq!(compared, 4);
}

/// After a reduction, scores of several tokens are bitwise those of single steps; a fork and a
/// restored snapshot go on alike, and generated tokens can be taken back.
#[test]
fn a_reduced_state_is_continued_like_any_other() {
    for options in [F32, Options::default()] {
        let mut session = engine(&data().join("qwen2vl-scenes"), None, &options);
        let prompt = prefill(&mut session, "list the shapes.", Some(*HALF));
        assert_eq!(
            (prompt.visual_tokens, prompt.language_tokens),
            (64, Some(32))
        );
        let start = session.snapshot().expect("memory");
        let ids: Vec<u32> = (0..20).map(|i| 300 + 7 * i).collect();
        let mut step = |ids: &[u32], output| session.step(ids, output).expect("scores");
        let single: Vec<Logits> = ids
            .iter()
            .map(|&id| step(&[id], OutputRows::Last))
            .collect();
        for count in [1, 2, 3, 5, 8, 20] {
            session.restore(&start).expect("memory");
            let rows = session.step(&ids[..count], OutputRows::All);
            let rows = rows.expect("scores");
            for (row, single) in single[..count].iter().enumerate() {
                assert_eq!(rows.row(row), single.last(), "row {row} of {count}");
            }
        }
        let len = session.len();
        let mut fork = session.fork().expect("memory");
        session.truncate(len - 19).expect("generated tokens");
        let again = session.step(&ids[1..], OutputRows::Last).expect("scores");
        assert_eq!(again.last(), single[19].last());
        fork.truncate(len - 20).expect("generated tokens");
        let again = fork.step(&ids[..1], OutputRows::Last).expect("scores");
        assert_eq!(again.last(), single[0].last());
    }
}

#[test]
fn a_reduced_prompt_cannot_be_cut() {
    let mut session = scenes();
    let prompt = prefill(&mut session, "list the shapes.", Some(*HALF));
    let error = session.truncate(prompt.prompt_tokens - 1).unwrap_err();
    assert!(
        matches!(
            error,
            EngineError::Model(ModelError::CannotTruncateReduced { .. })
        ),
        "{error}"
    );
    assert_eq!(session.len(), prompt.prompt_tokens);
    session.truncate(0).expect("nothing is left");
    // Nor is it reused in part: the tokens that stay depend on the question.
    for question in ["list the shapes.", "what number is next to the diamond?"] {
        let mut fresh = scenes();
        let again = prefill(&mut session, question, Some(*HALF));
        assert_eq!(again.reused_tokens, 0);
        assert_eq!(
            again.logits,
            prefill(&mut fresh, question, Some(*HALF)).logits
        );
    }
}

/// A second turn continues the state: it is bitwise the step of its own tokens. Its image is reduced
/// alone.
#[test]
fn a_second_turn_keeps_the_first_selection() {
    let mut session = scenes();
    let media = [image("scene_007.png"), image("scene_017.png")];
    let mut messages = ask(&media[..1], "list the shapes.");
    let first = prefill_of(&mut session, &media[..1], &messages, Some(*HALF)).expect("a prompt");
    let mut stepped = session.fork().expect("memory");

    next_turn(
        &mut messages,
        "blue star",
        0,
        "what number is next to the diamond?",
    );
    // A capture shows the whole prompt, so nothing is reused for it.
    probe::start();
    prefill_of(&mut scenes(), &media[..1], &messages, Some(*HALF)).expect("a prompt");
    let ids = &probe::finish()["input_ids"].values;
    let second = prefill_of(&mut session, &media[..1], &messages, Some(*HALF)).expect("a prompt");
    assert_eq!(second.reused_tokens, first.prompt_tokens);
    assert_eq!(second.language_tokens, Some(32));
    let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
    let new = &ids[first.prompt_tokens..];
    let expected = stepped.step(new, OutputRows::Last).expect("scores");
    assert_eq!(second.logits, expected);

    next_turn(&mut messages, "44", 1, "list the shapes.");
    let third = prefill_of(&mut session, &media, &messages, Some(*HALF)).expect("a prompt");
    assert_eq!(third.reused_tokens, second.prompt_tokens);
    assert_eq!(third.visual_tokens, 64 + 88);
    assert_eq!(third.language_tokens, Some(32 + 44));
    let error = session.truncate(second.prompt_tokens).unwrap_err();
    assert!(error.to_string().contains("go back"), "{error}");
    let mut fresh = scenes();
    let whole = prefill_of(&mut fresh, &media, &messages, Some(*HALF)).expect("a prompt");
    assert_eq!(whole.language_tokens, Some(76));
}

/// A conversation that was taken in with other parameters is computed anew, as in a new session.
#[test]
fn other_parameters_start_anew() {
    let quarter = LanguageReduction {
        share: share(0.25),
        ..*HALF
    };
    let deeper = LanguageReduction { layer: 2, ..*HALF };
    let media = [image("scene_007.png")];
    let first = ask(&media, "list the shapes.");
    let mut second = first.clone();
    next_turn(
        &mut second,
        "blue star",
        0,
        "what number is next to the diamond?",
    );
    let all = [None, Some(*HALF), Some(quarter), Some(deeper)];
    for (before, after) in all.iter().flat_map(|a| all.iter().map(move |b| (*a, *b))) {
        let (mut session, mut fresh) = (scenes(), scenes());
        prefill_of(&mut session, &media, &first, before).expect("a prompt");
        let found = prefill_of(&mut session, &media, &second, after).expect("a prompt");
        if before == after {
            assert!(found.reused_tokens > 64);
            continue;
        }
        assert_eq!(found.reused_tokens, 0, "{before:?} {after:?}");
        let expected = prefill_of(&mut fresh, &media, &second, after).expect("a prompt");
        assert_eq!(found.logits, expected.logits, "{before:?} {after:?}");
        assert_eq!(found.language_tokens, expected.language_tokens);
    }
    // Text alone is the same with all parameters.
    let mut session = scenes();
    let mut messages = vec![Message::text(Role::User, "list the shapes.")];
    let text = prefill_of(&mut session, &[], &messages, None).expect("a prompt");
    next_turn(&mut messages, "blue star", 1, "list the shapes.");
    let found = prefill_of(&mut session, &media, &messages, Some(*HALF)).expect("a prompt");
    assert_eq!(found.reused_tokens, text.prompt_tokens);
    let expected = prefill_of(&mut scenes(), &media, &messages, Some(*HALF)).expect("a prompt");
    assert_eq!(found.logits, expected.logits);
}

/// A canceled request leaves the tokens that were in the state before, wherever it stops.
#[test]
fn a_canceled_reduction_leaves_the_state_before() {
    let mut session = scenes();
    let media = [image("scene_007.png")];
    let mut messages = vec![Message::text(Role::User, "list the shapes.")];
    let before = prefill_of(&mut session, &[], &messages, None).expect("a prompt");
    next_turn(&mut messages, "blue star", 1, "list the shapes.");
    let request = Request {
        media: &media,
        options: reduced(LanguageReduction { layer: 2, ..*HALF }),
        ..Request::new(&messages)
    };
    let expected = scenes().prefill(&request, go_on).expect("a prompt").logits;
    let mut steps = 0;
    for stop in 0.. {
        let mut seen = Vec::new();
        let outcome = session.prefill(&request, |event| match event {
            Event::Progress {
                stage: "prefill",
                done,
                total,
            } => {
                seen.push((done, total));
                match done == stop {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            }
            _ => ControlFlow::Continue(()),
        });
        let all: Vec<_> = (0..seen.len()).map(|done| (done, 4)).collect();
        assert_eq!(seen, all);
        match outcome {
            Ok(prompt) => {
                assert_eq!(prompt.logits, expected);
                assert_eq!(prompt.reused_tokens, before.prompt_tokens);
                break;
            }
            Err(EngineError::Model(ModelError::Canceled)) => steps += 1,
            Err(error) => panic!("{error}"),
        }
        assert_eq!(session.len(), before.prompt_tokens);
    }
    assert_eq!(steps, 4);
}

/// Every decoder-only model with media takes the reduction; with a ratio of 1, scores are bitwise those
/// without it. Encoder-decoders refuse it before their encoders run.
#[test]
fn every_decoder_reduces_its_media() {
    let (mut reduced, mut refused) = (0, 0);
    for manifest in Manifest::of_the_hub() {
        let golden = manifest.goldens().remove(0);
        if golden.media.is_empty() {
            continue;
        }
        let mut session = engine_of(manifest.open(), &F32);
        let messages = ask(&golden.media, &golden.question);
        let ask = |session: &mut Session<Cpu>, reduction| {
            prefill_of(session, &golden.media, &messages, reduction)
        };
        let all = LanguageReduction {
            layer: 1,
            share: share(1.0),
        };
        let outcome = ask(&mut session, Some(all));
        // An encoder-decoder, and models whose layers have a state.
        let refuses = ["blip2-t5", "lfm2vl", "qwen35"];
        if refuses.iter().any(|name| manifest.name.starts_with(name)) {
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains("decoder-only"), "{error}");
            assert!(session.is_empty());
            refused += 1;
            continue;
        }
        let whole = outcome.expect(&manifest.name);
        assert_eq!(whole.language_tokens, Some(whole.visual_tokens));
        let plain = ask(&mut session, None).expect("a prompt");
        assert_eq!(
            (plain.logits, plain.language_tokens),
            (whole.logits.clone(), None)
        );
        let half = ask(&mut session, Some(*HALF)).expect("a prompt");
        let kept = whole.visual_tokens.div_ceil(2);
        assert_eq!(half.language_tokens, Some(kept), "{}", manifest.name);
        assert_eq!(session.len(), half.prompt_tokens);
        if kept < whole.visual_tokens {
            assert_ne!(half.logits, whole.logits, "{}", manifest.name);
        }
        reduced += 1;
    }
    assert!(reduced >= 8 && refused >= 2, "{reduced} and {refused}");
}

#[test]
fn layers_out_of_range_are_refused() {
    let mut session = scenes();
    let media = [image("scene_007.png")];
    let messages = ask(&media, "list the shapes.");
    for (layer, ratio, part) in [
        (0, 0.5, "found layer 0, expected 1 to 3"),
        (4, 0.5, "found layer 4, expected 1 to 3"),
        (4, 1.0, "found layer 4"),
    ] {
        let share = share(ratio);
        let reduction = Some(LanguageReduction { layer, share });
        let error = prefill_of(&mut session, &media, &messages, reduction).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert!(session.is_empty());
    }
    let smallest = LanguageReduction {
        layer: 3,
        share: share(1e-9),
    };
    let prompt = prefill_of(&mut session, &media, &messages, Some(smallest)).expect("a prompt");
    assert_eq!(prompt.language_tokens, Some(1));
}
