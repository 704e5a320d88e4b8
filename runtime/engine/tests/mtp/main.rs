//! Drafts of models with recurrent layers: by the layer that predicts further tokens, and by look-up.
//! Answers stay bitwise those without drafts.

#[path = "../support/logprobs.rs"]
mod logprobs;
mod memory;
mod model;
#[path = "../support/record.rs"]
mod record;
#[path = "../support/mod.rs"]
#[allow(dead_code)] // every test file uses its own part
mod support;

use edge_lmm::{
    Cpu, FinishReason, Media, Message, OutputRows, Record, Request, Role, Session, Speculation,
    SpeculationCounts, TokenLogprobs, user_message,
};
use edge_lmm_kernels::Format;
use edge_lmm_models::preprocess::RgbImage;

use model::Model;
use support::{go_on, on_every_isa};

const SETTINGS: [&str; 6] = ["1", "2", "3", "7", "15", "auto"];

/// An answer with the scores of all of its tokens and of two further ones.
#[derive(PartialEq)]
struct Outcome {
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
    let request = Request {
        speculation,
        ..request.clone()
    };
    let (answer, logprobs) = logprobs::answer(session, &request);
    // The last token of an answer is part of the state if it was drafted.
    let held = session.len() - answer.prompt_tokens;
    let further = [&answer.tokens[held..], &[30, 31]].concat();
    let next = session.step(&further, OutputRows::All).expect("scores");
    let outcome = Outcome {
        tokens: answer.tokens,
        finish_reason: answer.finish_reason,
        logprobs,
        next: [next.row(next.rows() - 2), next.last()].concat(),
    };
    (outcome, answer.speculation.unwrap_or_default())
}

/// Compares answers with drafts to the one without. Returns the sums of all counts.
fn compare(session: &mut Session<Cpu>, request: &Request<'_>) -> SpeculationCounts {
    session.forget();
    let (expected, none) = outcome(session, request, Speculation::Off);
    assert_eq!(none, SpeculationCounts::default());
    let mut sum = SpeculationCounts::default();
    for setting in SETTINGS {
        session.forget();
        let speculation = setting.parse().expect("a setting");
        let (found, counts) = outcome(session, request, speculation);
        assert_eq!(found.tokens, expected.tokens, "{setting}");
        assert!(found == expected, "{setting}: other scores");
        assert_eq!(
            counts.steps,
            expected.tokens.len() - 1 - counts.accepted,
            "{setting}"
        );
        sum.steps += counts.steps;
        sum.drafted += counts.drafted;
        sum.accepted += counts.accepted;
    }
    sum
}

fn long_request<'a>(messages: &'a [Message], media: &'a [Media]) -> Request<'a> {
    Request {
        media,
        max_tokens: 60,
        ignore_eos: true,
        ..Request::new(messages)
    }
}

fn question() -> [Message; 1] {
    [Message::text(Role::User, "list the shapes.")]
}

#[test]
fn every_instruction_set_verifies_exactly() {
    on_every_isa("drafts_of_the_layer_change_no_answer");
    on_every_isa("look_up_changes_no_answer");
}

#[test]
#[ignore = "is run by every_instruction_set_verifies_exactly"]
fn drafts_of_the_layer_change_no_answer() {
    for format in [Format::Q4, Format::Q8, Format::F32] {
        let mut session = Model {
            format,
            ..Model::QWEN
        }
        .engine()
        .session();
        let messages = question();
        let counts = compare(&mut session, &long_request(&messages, &[]));
        assert_partly_right(counts);
    }
}

/// Checks that many drafted tokens are right and many are wrong.
fn assert_partly_right(counts: SpeculationCounts) {
    println!("{counts:?}");
    let SpeculationCounts {
        drafted, accepted, ..
    } = counts;
    assert!(
        accepted > 40 && drafted > accepted + 40,
        "{accepted} of {drafted}"
    );
}

#[test]
#[ignore = "is run by every_instruction_set_verifies_exactly"]
fn look_up_changes_no_answer() {
    for name in ["qwen35-odd", "lfm2vl-odd"] {
        let model = Model {
            name,
            cycle: 12,
            format: Format::Q8,
            without_mtp: true,
        };
        let mut session = model.engine().session();
        let messages = question();
        let counts = compare(&mut session, &long_request(&messages, &[]));
        assert_partly_right(counts);
    }
}

/// A record without the weights of the layer, such as one of an older program, has the same answers.
#[test]
fn records_without_the_layer_are_read() {
    let older = Model {
        without_mtp: true,
        ..Model::QWEN
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("older.bpk");
    older.write(&path);
    let record = Record::open(&path).expect("the record opens");
    assert!(record.tensors().all(|(name, _)| !name.contains("mtp")));
    let (messages, [mut older, mut newer]) = (question(), [older, Model::QWEN].map(session));
    let request = long_request(&messages, &[]);
    let [(found, counts), (expected, drafts)] =
        [&mut older, &mut newer].map(|session| outcome(session, &request, Speculation::Fixed(3)));
    assert!(found == expected);
    assert!(
        counts.drafted < 10 && drafts.drafted > 30,
        "{counts:?} {drafts:?}"
    );
}

fn session(model: Model) -> Session<Cpu> {
    model.engine().session()
}

fn image() -> Media {
    let pixels = (0..3 * 64 * 48).map(|i| (i * 7 % 251) as u8).collect();
    Media::image(RgbImage::new(64, 48, pixels).expect("an image"))
}

#[test]
fn images_are_part_of_the_text_that_the_layer_follows() {
    let mut session = session(Model::QWEN);
    let media = [image()];
    let messages = [user_message(&media, "what is this?")];
    let counts = compare(&mut session, &long_request(&messages, &media));
    assert_partly_right(counts);
}

/// The seed picks the same tokens whatever is drafted.
#[test]
fn sampled_answers_stay_the_same() {
    let mut session = session(Model::QWEN);
    let messages = question();
    for seed in 0..4 {
        let mut request = long_request(&messages, &[]);
        request.sampling.temperature = 0.7;
        request.sampling.seed = seed;
        let counts = compare(&mut session, &request);
        assert!(counts.accepted > 20, "{counts:?}");
    }
}

/// A constraint excludes some of the drafted tokens.
#[test]
#[cfg(feature = "constraints")]
fn constrained_answers_stay_the_same() {
    let mut session = session(Model::QWEN);
    let (messages, media) = (question(), []);
    let constraint = edge_lmm::Constraint::Regex("[^e]{60}".to_owned());
    let request = Request {
        constraint: Some(&constraint),
        ..long_request(&messages, &media)
    };
    let counts = compare(&mut session, &request);
    assert!(counts.accepted > 0, "{counts:?}");
}

/// Turns with and without drafts follow each other, in one session and in a copy of it. The layer sees
/// the tokens from the first turn with drafts on.
#[test]
fn turns_and_copies_of_a_conversation_stay_the_same() {
    let mut session = session(Model::QWEN);
    let text = "list the shapes. a red circle follows two blue squares. and then?";
    let mut expected: Option<Vec<u32>> = None;
    for settings in [["off"; 3], ["3", "off", "3"], ["off", "3", "3"], ["3"; 3]] {
        session.forget();
        let mut copy = session.fork().expect("a copy");
        // One token of an answer is never part of the state, so that the next text continues it.
        for (setting, (end, max_tokens)) in
            settings
                .into_iter()
                .zip([(16, 1), (55, 1), (text.len(), 40)])
        {
            let messages = [Message::text(Role::User, &text[..end])];
            let request = Request {
                raw: true,
                speculation: setting.parse().expect("a setting"),
                max_tokens,
                ..long_request(&messages, &[])
            };
            let answer = session.answer(&request, go_on).expect("an answer");
            let again = copy.answer(&request, go_on).expect("an answer");
            assert_eq!(again.tokens, answer.tokens, "{settings:?}");
            assert_eq!(again.speculation, answer.speculation, "{settings:?}");
            assert_eq!(answer.reused_tokens > 0, end > 16, "{settings:?}");
            if end == text.len() {
                let expected = expected.get_or_insert_with(|| answer.tokens.clone());
                assert_eq!(&answer.tokens, expected, "{settings:?}");
                let accepted = answer.speculation.map(|counts| counts.accepted);
                assert!(accepted.is_none_or(|accepted| accepted > 5), "{settings:?}");
            }
            copy = session.fork().expect("a copy");
        }
    }
}

/// An answer that is dropped within a draft leaves a state that holds tokens of the answer only.
#[test]
fn a_dropped_answer_leaves_no_drafts() {
    let mut session = session(Model::QWEN);
    let messages = question();
    let request = Request {
        speculation: Speculation::Fixed(7),
        ..long_request(&messages, &[])
    };
    let prompt = {
        session.prefill(&request, go_on).expect("a prompt");
        session.len()
    };
    for count in 1..25 {
        session.forget();
        let generation = session.generate(&request, Vec::new(), go_on);
        let ids: Vec<u32> = generation
            .expect("a prompt")
            .take(count)
            .map(|token| token.expect("a token").id)
            .collect();
        let held = session.len() - prompt;
        assert!((count - 1..=count).contains(&held), "{held} of {count}");
        let found = session.step(&[30], OutputRows::Last).expect("scores");
        session.forget();
        session.prefill(&request, go_on).expect("a prompt");
        let tokens = [&ids[..held], &[30]].concat();
        let expected = session.step(&tokens, OutputRows::Last).expect("scores");
        assert_eq!(found, expected, "{count} tokens");
    }
}

#[test]
fn answers_end_where_the_context_is_full() {
    let mut session = session(Model::QWEN);
    let messages = [Message::text(Role::User, "a red circle ".repeat(300))];
    let request = Request {
        max_tokens: 500,
        ..long_request(&messages, &[])
    };
    session.forget();
    let mut answer = |speculation| {
        session.forget();
        let request = Request {
            speculation,
            ..request.clone()
        };
        session.answer(&request, go_on).expect("an answer")
    };
    let expected = answer(Speculation::Off);
    let found = answer(Speculation::Fixed(7));
    assert_eq!(found.tokens, expected.tokens);
    assert_eq!(found.finish_reason, FinishReason::Context);
    assert!(found.speculation.expect("counts").accepted > 0);
}

/// The layer that drafts is a module of the decode stage.
#[test]
fn drafting_is_timed() {
    let mut session = session(Model::QWEN);
    let messages = question();
    let request = Request {
        speculation: Speculation::Fixed(2),
        timing: true,
        ..long_request(&messages, &[])
    };
    let answer = session.answer(&request, go_on).expect("an answer");
    let mut stages = answer.timing.stages().iter();
    let drafts = stages.find(|stage| stage.name == "draft");
    let drafts = drafts.expect("a module");
    let steps = answer.speculation.expect("counts").steps;
    assert!(
        (1..=steps).contains(&drafts.calls),
        "{} calls",
        drafts.calls
    );
    assert_eq!(drafts.stage, "decode");
}
