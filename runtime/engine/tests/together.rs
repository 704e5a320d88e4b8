//! Answers that are decoded together are bitwise those that are decoded alone with quantized weights,
//! on every instruction set of this machine.

mod support;

use std::ops::ControlFlow;

use edge_lmm::timing::{self, Recording};
use edge_lmm::{
    Answer, Cpu, Device, Engine, Generation, Media, Message, Request, Role, Sampling, Session,
    Speculation, Token, user_message,
};
use edge_lmm_models::preprocess::RgbImage;

use support::{engine, go_on, on_every_isa};

#[test]
fn every_instruction_set_decodes_together_exactly() {
    on_every_isa("answers_stay_the_same");
}

/// Returns the tokens, with the log-probabilities of the most likely ones, and the text.
fn outcome(tokens: Vec<Token>, generation: Generation<'_, Cpu>) -> (Vec<Token>, String) {
    let (Answer { text, .. }, _) = generation.finish().expect("an answer");
    (tokens, text)
}

fn alone(engine: &Engine<Cpu>, request: &Request<'_>) -> (Vec<Token>, String) {
    let mut session = engine.session();
    let generation = session.generate(request, Vec::new(), go_on);
    let mut generation = generation.expect("a prompt");
    let tokens = generation.by_ref().map(|token| token.expect("a token"));
    let tokens = tokens.collect();
    outcome(tokens, generation)
}

fn together(engine: &Engine<Cpu>, requests: &[Request<'_>]) -> Vec<(Vec<Token>, String)> {
    let mut sessions: Vec<Session<Cpu>> = requests.iter().map(|_| engine.session()).collect();
    let generations = sessions.iter_mut().zip(requests);
    let generations = generations.map(|(session, request)| {
        let generation = session.generate(request, Vec::new(), go_on);
        generation.expect("a prompt")
    });
    let mut generations: Vec<_> = generations.collect();
    let mut tokens = vec![Vec::new(); requests.len()];
    loop {
        let next = Generation::next_together(&mut generations);
        if next.iter().all(Option::is_none) {
            break;
        }
        for (tokens, token) in tokens.iter_mut().zip(next) {
            tokens.extend(token.map(|token| token.expect("a token")));
        }
    }
    let all = tokens.into_iter().zip(generations);
    all.map(|(tokens, generation)| outcome(tokens, generation))
        .collect()
}

/// Prompts and answers of different lengths, with and without an image, sampling, stop strings and
/// speculation, in steps of up to nine conversations.
#[test]
#[ignore = "is run by every_instruction_set_decodes_together_exactly"]
fn answers_stay_the_same() {
    let engine = engine();
    let pixels = (0..56 * 56 * 3).map(|i| (i * 7 % 251) as u8).collect();
    let media = [Media::image(
        RgbImage::new(56, 56, pixels).expect("an image"),
    )];
    let messages: Vec<[Message; 1]> = (0..9)
        .map(|i| match i % 3 {
            0 => [user_message(&media, "what is this?")],
            n => [Message::text(Role::User, "list the shapes. ".repeat(n * i))],
        })
        .collect();
    let stop = ["e".to_owned()];
    let request = |i: usize| Request {
        media: if i.is_multiple_of(3) { &media } else { &[] },
        max_tokens: 1 + 5 * i,
        ignore_eos: i % 4 != 1,
        logprobs: i.is_multiple_of(2).then_some(3),
        stop: if i == 5 { &stop } else { &[] },
        speculation: match i {
            7 => Speculation::Fixed(3),
            _ => Speculation::Off,
        },
        sampling: Sampling {
            temperature: if i % 3 == 2 { 0.8 } else { 0.0 },
            seed: i as u64,
            ..Sampling::default()
        },
        ..Request::new(&messages[i])
    };
    let requests: Vec<Request<'_>> = (0..messages.len()).map(request).collect();
    let expected: Vec<_> = requests
        .iter()
        .map(|request| alone(&engine, request))
        .collect();
    for range in [0..1, 1..3, 3..7, 0..9] {
        let found = together(&engine, &requests[range.clone()]);
        assert_eq!(found, expected[range.clone()], "{range:?}");
    }
}

/// A common step is one call of the stage `decode`, and every answer measures it.
#[test]
fn the_steps_of_answers_are_common() {
    let engine = engine();
    let messages =
        ["what is this?", "list the shapes."].map(|text| [Message::text(Role::User, text)]);
    let requests = messages.each_ref().map(|messages| Request {
        max_tokens: 6,
        ignore_eos: true,
        timing: true,
        ..Request::new(messages)
    });
    let mut sessions = [engine.session(), engine.session()];
    let generations = sessions.iter_mut().zip(&requests);
    let generations = generations.map(|(session, request)| {
        let generation = session.generate(request, Vec::new(), go_on);
        generation.expect("a prompt")
    });
    let mut generations: Vec<_> = generations.collect();
    let mut recording = Recording::new(Device::Cpu);
    recording.run(|| {
        for _ in 0..6 {
            let tokens = Generation::next_together(&mut generations);
            assert!(tokens.iter().all(|token| matches!(token, Some(Ok(_)))));
        }
        assert!(matches!(
            Generation::next_together(&mut generations)[..],
            [None, None]
        ));
    });
    let timing = recording.finish();
    assert_eq!(timing.stage("decode").map(|stage| stage.calls), Some(5));
    for generation in generations {
        let (answer, _) = generation.finish().expect("an answer");
        let decode = answer.timing.stage("decode");
        assert_eq!(decode.map(|stage| stage.calls), Some(5));
    }
    // The sessions continue where the answers ended.
    let lens = sessions.each_ref().map(Session::len);
    let prompts = requests.each_ref().map(|request| {
        let mut session = engine.session();
        session
            .prefill(request, go_on)
            .expect("a prompt")
            .prompt_tokens
    });
    assert_eq!(lens, prompts.map(|tokens| tokens + 5));
}

/// Requests that one session has begun, each with drafts of its own, give the answers that they give
/// alone, and their conversations are kept.
#[test]
fn a_session_answers_several_requests() {
    let engine = engine();
    let messages: Vec<[Message; 1]> = (1..=4)
        .map(|i| {
            let text = format!("{}{i}", "list the shapes. ".repeat(8 * i));
            [Message::text(Role::User, text)]
        })
        .collect();
    let modes = ["auto", "3", "off", "7"].map(|mode| mode.parse::<Speculation>().expect("a mode"));
    let request = |i: usize, speculation| Request {
        max_tokens: 15 + 5 * i,
        ignore_eos: true,
        logprobs: Some(2),
        speculation,
        ..Request::new(&messages[i])
    };
    let mut session = engine.session();
    session.keep_conversations(4, usize::MAX);
    let mut running = Vec::new();
    let mut tokens = vec![Vec::new(); messages.len()];
    let mut step = |running: &mut Vec<Generation<'static, Cpu>>| {
        let next = Generation::next_together(running.iter_mut());
        for (tokens, token) in tokens.iter_mut().zip(next) {
            tokens.extend(token.map(|token| token.expect("a token")));
        }
    };
    for (i, speculation) in modes.into_iter().enumerate() {
        let begun = session.begin(&request(i, speculation), Vec::new(), go_on);
        running.push(begun.expect("a prompt"));
        // The first answer is alone at the beginning, and drafts.
        for _ in 0..4 {
            step(&mut running);
        }
    }
    while !running.iter().all(Generation::has_ended) {
        step(&mut running);
    }
    assert!(session.is_empty());
    for (i, (tokens, generation)) in tokens.into_iter().zip(running).enumerate() {
        let expected = alone(&engine, &request(i, Speculation::Off));
        assert_eq!(outcome(tokens, generation), expected);
    }
    for (i, messages) in messages.iter().enumerate() {
        let more = Message::text(Role::Assistant, "a");
        let messages = [messages[0].clone(), more];
        let prefilled = session.prefill(&Request::new(&messages), go_on);
        let reused = prefilled.expect("a prompt").reused_tokens;
        assert!(reused > 16 * (i + 1), "{i}: {reused}");
    }
}

/// A request begins while another one is decoded between its layers.
#[test]
fn answers_go_on_while_a_request_begins() {
    let engine = engine();
    let pixels = (0..112 * 112 * 3).map(|i| (i * 7 % 251) as u8).collect();
    let media = [Media::image(
        RgbImage::new(112, 112, pixels).expect("an image"),
    )];
    let messages = [
        [Message::text(Role::User, "list the shapes.")],
        [user_message(&media, "what is this?")],
    ];
    let request = |i: usize| Request {
        media: &media[..i],
        max_tokens: 60,
        ignore_eos: true,
        timing: true,
        ..Request::new(&messages[i])
    };
    let mut session = engine.session();
    let first = session.begin(&request(0), Vec::new(), go_on);
    let mut first = first.expect("a prompt");
    let mut tokens = Vec::new();
    let second = session.begin(&request(1), Vec::new(), |_| {
        let next = timing::apart(|| Generation::next_together([&mut first]));
        let next = next.into_iter().flatten();
        tokens.extend(next.map(|token| token.expect("a token")));
        ControlFlow::Continue(())
    });
    assert!(tokens.len() > 5, "{}", tokens.len());
    let before = tokens.len();
    tokens.extend(first.by_ref().map(|token| token.expect("a token")));
    let mut second = second.expect("a prompt");
    let others = second.by_ref().map(|token| token.expect("a token"));
    let others = others.collect();
    for (i, (tokens, generation)) in [(tokens, first), (others, second)].into_iter().enumerate() {
        let (answer, _) = generation.finish().expect("an answer");
        assert_eq!((tokens, answer.text), alone(&engine, &request(i)), "{i}");
        let decode = answer.timing.stage("decode").map(|stage| stage.calls);
        assert_eq!(decode, Some(59), "{i}: {before} tokens meanwhile");
    }
}
