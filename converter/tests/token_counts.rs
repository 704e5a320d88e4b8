//! Tokens and times that are known before a model runs, against the run itself, in every family.

mod common;

use std::ops::ControlFlow;
use std::time::Duration;

use common::manifest::Manifest;
use common::{F32, ask, convert_checkpoint};
use edge_lmm::tokens::TokenCounter;
use edge_lmm::{Engine, Media, MediaOptions, Record, Request, Session};
use edge_lmm_models::preprocess::RgbImage;

const SIDE: usize = 168;

/// An image of which three quarters have one color.
fn image(mut state: u32) -> RgbImage {
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let mut pixels: Vec<u8> = std::iter::repeat_with(next).take(SIDE * SIDE * 3).collect();
    pixels[..3 * SIDE * SIDE * 3 / 4].fill(90);
    RgbImage::new(SIDE, SIDE, pixels).expect("an image")
}

fn record(name: &str) -> Record {
    let converted = convert_checkpoint(Manifest::named(name).open(), &F32).expect("it converts");
    // The record stays mapped after its file is removed.
    Record::open(&converted.path).expect("the record opens")
}

/// Compares the counts of media under a chain with those of an answer.
fn compare(
    counter: &TokenCounter,
    session: &mut Session<edge_lmm::Cpu>,
    media: &[Media],
    chain: &str,
    name: &str,
) {
    let options = MediaOptions {
        reductions: match chain {
            "" => Default::default(),
            chain => chain.parse().expect("a chain"),
        },
        ..MediaOptions::default()
    };
    let messages = ask(media, "what?");
    let counts = media.iter().map(|medium| counter.count(medium, &options));
    let counts: Vec<_> = counts.collect::<Result<_, _>>().expect(name);
    let prompt = counter.prompt(&counts, &messages).expect(name);
    let request = Request {
        media,
        options,
        max_tokens: 1,
        ..Request::new(&messages)
    };
    session.forget();
    let answer = session.answer(&request, |_| ControlFlow::Continue(()));
    let answer = answer.expect(name);
    let tokens: usize = counts.iter().map(|count| count.tokens()).sum();
    assert_eq!(tokens, answer.visual_tokens, "{name}: {chain}");
    assert_eq!(prompt.tokens, answer.prompt_tokens, "{name}: {chain}");
    assert_eq!(prompt.steps, answer.reductions, "{name}: {chain}");
}

const CHAINS: [&str; 5] = [
    "",
    "duplicates",
    "merge:0.5",
    "merge:0.25,diverse:0.5",
    "duplicates:50%,merge:0.5:50%,stride:0.3",
];

#[test]
fn counts_of_images_are_those_of_a_run() {
    for name in [
        "blip2-tiny",
        "llava-tiny",
        "phi35v-tiny",
        "qwen25vl-tiny",
        "qwen2vl-tiny",
        "blip2-t5-odd",
        "gemma3-odd",
        "llava-odd",
        "phi35v-odd",
        "qwen25omni-odd",
        "qwen25vl-odd",
        "qwen2vl-odd",
        "qwen35-odd",
        "qwen3vl-odd",
        "smolvlm2-odd",
    ] {
        let record = record(name);
        let counter = TokenCounter::new(&record).expect(name);
        let engine = Engine::load(&record, Default::default()).expect(name);
        let media = [Media::image(image(1))];
        for chain in CHAINS {
            compare(&counter, &mut engine.session(), &media, chain, name);
        }
        let costs = engine.measure_costs().expect(name);
        assert!(
            costs.is_valid() && costs.vision.is_some(),
            "{name}: {costs:?}"
        );
        assert!(costs.prefill.ms(64.0, 4096.0) > 0.0, "{name}: {costs:?}");

        // The strongest chain that a time limit can choose works, and is counted as it runs.
        engine.use_costs(costs);
        let messages = ask(&media, "what?");
        let request = Request {
            media: &media,
            options: MediaOptions {
                first_token_budget: Some(Duration::from_nanos(1)),
                ..MediaOptions::default()
            },
            max_tokens: 1,
            ..Request::new(&messages)
        };
        let answer = engine
            .session()
            .answer(&request, |_| ControlFlow::Continue(()));
        let answer = answer.expect(name);
        assert!(
            answer.estimated_first_token > Some(Duration::ZERO),
            "{name}"
        );
        let base = MediaOptions::default();
        let mut counts = [counter.count(&media[0], &base).expect(name)];
        counter
            .choose(&mut counts, &messages, &costs, 1e-6)
            .expect(name);
        // The windows of these towers run out of pairs.
        let windows = if name.starts_with("qwen25") { 4 } else { 0 };
        let difference = counts[0].tokens().abs_diff(answer.visual_tokens);
        assert!(difference <= windows, "{name}: {difference}");
    }
}

#[test]
fn counts_of_videos_and_sounds_are_those_of_a_run() {
    for name in [
        "qwen2vl-tiny",
        "qwen25vl-tiny",
        "qwen35-odd",
        "qwen3vl-odd",
        "smolvlm2-odd",
    ] {
        let record = record(name);
        let counter = TokenCounter::new(&record).expect(name);
        let engine = Engine::load(&record, Default::default()).expect(name);
        let frames = [1, 1, 1, 2, 2, 3].map(image).to_vec();
        let media = [Media::video(frames, 2.0)];
        for chain in CHAINS.into_iter().chain(["still,diverse:0.5"]) {
            compare(&counter, &mut engine.session(), &media, chain, name);
        }
    }
    let name = "qwen2audio-tiny";
    let record = record(name);
    let counter = TokenCounter::new(&record).expect(name);
    let engine = Engine::load(&record, Default::default()).expect(name);
    let media = [Media::audio(vec![0.1; 16_000], 16_000)];
    for chain in ["", "diverse:0.5"] {
        compare(&counter, &mut engine.session(), &media, chain, name);
    }
    let costs = engine.measure_costs().expect(name);
    assert!(costs.is_valid() && costs.vision.is_none(), "{costs:?}");
    assert!(costs.audio.is_some());
}

/// A limit needs measured times.
#[test]
fn a_limit_without_times_is_an_error() {
    let record = record("qwen2vl-tiny");
    let engine = Engine::<edge_lmm::Cpu>::load(&record, Default::default()).expect("an engine");
    let messages = ask(&[], "what?");
    let request = Request {
        options: MediaOptions {
            first_token_budget: Some(Duration::from_millis(1)),
            ..MediaOptions::default()
        },
        ..Request::new(&messages)
    };
    let answer = engine
        .session()
        .answer(&request, |_| ControlFlow::Continue(()));
    let error = answer.expect_err("no times").to_string();
    assert!(error.contains("measure them"), "{error}");
}
