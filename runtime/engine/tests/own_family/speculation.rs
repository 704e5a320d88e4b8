//! Answers with speculation are those without it.

use edge_lmm::{OutputRows, Speculation, SpeculationCounts, TokenLogprobs};

use super::*;

/// An answer with the scores of all of its tokens, the counts of its drafts, and the scores of a
/// further question.
#[derive(Debug, PartialEq)]
struct Outcome {
    text: String,
    tokens: Vec<u32>,
    finish_reason: FinishReason,
    logprobs: Vec<TokenLogprobs>,
    next: Vec<f32>,
}

fn outcome(
    session: &mut Session<Cpu>,
    request: &Request<'_>,
    speculation: Speculation,
) -> (Outcome, SpeculationCounts) {
    session.forget();
    let request = Request {
        speculation,
        ..request.clone()
    };
    let (answer, logprobs) = logprobs::answer(session, &request);
    let mut messages = request.messages.to_vec();
    messages.push(Message::text(Role::Assistant, answer.text.clone()));
    messages.push(Message::text(Role::User, "this is"));
    let further = Request {
        messages: &messages,
        ..request.clone()
    };
    let next = session
        .prefill(&further, go_on)
        .map(|next| next.logits.last().to_vec());
    let counts = answer.speculation.unwrap_or_default();
    let outcome = Outcome {
        text: answer.text,
        tokens: answer.tokens,
        finish_reason: answer.finish_reason,
        logprobs,
        next: next.unwrap_or_default(),
    };
    (outcome, counts)
}

/// Compares the answers to a request with drafts of any length to the one without drafts. Returns
/// the accepted tokens of all answers.
fn compare(session: &mut Session<Cpu>, request: &Request<'_>) -> usize {
    let (expected, none) = outcome(session, request, Speculation::Off);
    assert_eq!(none, SpeculationCounts::default());
    let mut accepted = 0;
    let fixed = [1, 2, 3, 5, 7, 15].map(Speculation::Fixed);
    for speculation in fixed.into_iter().chain([Speculation::Auto]) {
        let (found, counts) = outcome(session, request, speculation);
        assert_eq!(found, expected, "{speculation:?}");
        assert!(counts.accepted <= counts.drafted, "{counts:?}");
        let steps = expected.tokens.len() - 1 - counts.accepted;
        assert!((steps..=steps + 1).contains(&counts.steps), "{counts:?}");
        accepted += counts.accepted;
    }
    accepted
}

fn long_request(messages: &[Message]) -> Request<'_> {
    Request {
        max_tokens: 60,
        ignore_eos: true,
        ..Request::new(messages)
    }
}

#[test]
fn greedy_answers_stay_bitwise_the_same() {
    let mut session = session(|_, _| {});
    let (text, shown) = (ask(0, "what is this what is"), ask(1, "what is this"));
    assert!(compare(&mut session, &long_request(&text)) > 0);
    let media = [image()];
    let with_image = Request {
        media: &media,
        ..long_request(&shown)
    };
    assert!(compare(&mut session, &with_image) > 0);
    for max_tokens in 1..6 {
        compare(
            &mut session,
            &Request {
                max_tokens,
                ..long_request(&text)
            },
        );
    }
}

/// The sampler sees the same scores in the same order, so that the same seed gives the same tokens:
/// the distribution of the answers does not change either.
#[test]
fn sampled_answers_stay_the_same_for_every_seed() {
    let mut session = session(|_, _| {});
    let messages = ask(0, "what is this what is");
    let mut accepted = 0;
    for seed in 0..30 {
        let sampling = edge_lmm::Sampling {
            temperature: 0.7,
            top_k: 6,
            seed,
            frequency_penalty: 0.05,
            repetition_penalty: Some(1.02),
            ..Default::default()
        };
        let request = Request {
            sampling,
            max_tokens: 40,
            ignore_eos: seed % 2 == 0,
            ..Request::new(&messages)
        };
        accepted += compare(&mut session, &request);
    }
    assert!(accepted > 100, "{accepted}");
}

#[test]
fn stop_strings_end_answers_at_the_same_place() {
    let mut session = session(|_, _| {});
    let messages = ask(0, "what is this what is");
    let request = long_request(&messages);
    let whole = session.answer(&request, go_on).expect("an answer").text;
    for start in [3, whole.len() / 3, whole.len() / 2] {
        let stop = [whole[start..start + 9].to_owned()];
        let request = Request {
            stop: &stop,
            ..request.clone()
        };
        compare(&mut session, &request);
    }
}

/// A recurrent state cannot be truncated: it is restored, and the accepted tokens are computed with
/// the next ones.
#[test]
fn recurrent_states_are_restored() {
    let mut files = files();
    files.config["convolves"] = json!(true);
    let mut session = engine_of(files, |_, _| {}).session();
    let messages = ask(0, "what is this what is");
    assert!(compare(&mut session, &long_request(&messages)) > 0);
}

#[test]
fn drafts_do_not_cross_the_border_of_long_sequences() {
    let mut files = files();
    files.config["border"] = json!(30);
    let mut session = engine_of(files, |_, _| {}).session();
    let messages = ask(0, "what is this what is");
    assert!(compare(&mut session, &long_request(&messages)) > 0);
}

#[test]
fn answers_end_where_the_context_is_full() {
    let mut session = session(|_, _| {});
    let prompt = "what is this a pixel ".repeat(99);
    let messages = ask(0, &prompt);
    let request = Request {
        max_tokens: 500,
        ..long_request(&messages)
    };
    assert!(compare(&mut session, &request) > 0);
    let (full, _) = outcome(&mut session, &request, Speculation::Fixed(7));
    assert_eq!(full.finish_reason, FinishReason::Context);
}

/// An answer that is dropped within a draft leaves a state that holds tokens of the answer only.
#[test]
fn a_dropped_answer_leaves_no_drafts() {
    let mut session = session(|_, _| {});
    let messages = ask(0, "what is this what is");
    let request = Request {
        speculation: Speculation::Fixed(7),
        ..long_request(&messages)
    };
    for count in 1..25 {
        session.forget();
        let generation = session.generate(&request, Vec::new(), go_on);
        let generation = generation.expect("a prompt");
        let ids: Vec<u32> = generation
            .take(count)
            .map(|token| token.expect("a token").id)
            .collect();
        let held = session.len() - 5;
        assert!((count - 1..=count).contains(&held), "{held} of {count}");
        let found = session.step(&[3], OutputRows::Last).expect("scores");
        session.forget();
        session.prefill(&request, go_on).expect("a prompt");
        let tokens = [&ids[..held], &[3]].concat();
        let expected = session.step(&tokens, OutputRows::Last).expect("scores");
        assert_eq!(found, expected, "{count} tokens");
    }
}

/// A draft model changes the number of steps only.
#[test]
fn a_draft_model_proposes_tokens() {
    let messages = ask(1, "a pixel end");
    let media = [image()];
    let request = Request {
        media: &media,
        max_tokens: 30,
        ignore_eos: true,
        ..Request::new(&messages)
    };
    let halved = |spec: &WeightSpec, values: &mut Vec<f32>| {
        if spec.name.contains("down") {
            values.iter_mut().for_each(|value| *value *= 0.5);
        }
    };
    for same in [true, false] {
        let engine = engine(|_, _| {});
        let draft = match same {
            true => self::engine(|_, _| {}),
            false => self::engine(halved),
        };
        engine.use_draft(draft).expect("the same tokenizer");
        let mut session = engine.session();
        compare(&mut session, &request);
        let (_, counts) = outcome(&mut session, &request, Speculation::Fixed(3));
        assert!(counts.drafted > 20, "{counts:?}");
    }
}

/// Without media, a draft model with the same weights is always right.
#[test]
fn a_draft_model_follows_the_conversation() {
    let engine = engine(|_, _| {});
    engine.use_draft(self::engine(|_, _| {})).expect("a draft");
    let mut session = engine.session();
    let messages = ask(0, "pixel");
    let request = Request {
        max_tokens: 1 + 4 * 3,
        ignore_eos: true,
        speculation: Speculation::Fixed(3),
        ..Request::new(&messages)
    };
    // The words so far give no draft: no two of them are repeated.
    let answer = session.answer(&request, go_on).expect("an answer");
    let counts = answer.speculation.expect("speculation");
    assert!(counts.steps <= 5 && counts.accepted >= 8, "{counts:?}");
}

#[test]
fn draft_models_that_do_not_suit_are_refused() {
    let engine = engine(|_, _| {});
    let mut recurrent = files();
    recurrent.config["convolves"] = json!(true);
    let error = engine
        .use_draft(engine_of(recurrent, |_, _| {}))
        .unwrap_err();
    assert!(error.to_string().contains("recurrent"), "{error}");
    let demo = Record::from_static(edge_lmm::demo::RECORD, "the demo").expect("a record");
    let demo = Engine::<Cpu>::load(&demo, Default::default()).expect("a model");
    let error = engine.use_draft(demo).unwrap_err();
    assert!(error.to_string().contains("tokenizer"), "{error}");
}
