//! Sessions of every test checkpoint: scores of several tokens, several answers, snapshots and forks.

mod common;

use std::ops::ControlFlow;

use common::manifest::Manifest;
use common::{F32, Golden, ask, engine_of};
use edge_lmm::{Cpu, Generation, OutputRows, Request, Session, Token};
use edge_lmm_convert::Options;
use libtest_mimic::{Arguments, Trial};

/// Numbers of tokens that a step takes: all up to the longest draft, and one that the kernels for many
/// tokens take.
const COUNTS: [usize; 10] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 20];

/// The scores after each of some tokens are bitwise those of single steps, whatever the number of
/// tokens that are computed together. A fork and a restored snapshot go on alike.
fn check(manifest: &Manifest, options: &Options) {
    let mut session = engine_of(manifest.open(), options);
    let golden = manifest.goldens().remove(0);
    check_together(&session, &golden);
    let messages = ask(&golden.media, &golden.question);
    let request = Request {
        media: &golden.media,
        max_tokens: 1,
        ..Request::new(&messages)
    };
    let prefilled = session.prefill(&request, |_| ControlFlow::Continue(()));
    let prefilled = prefilled.expect("a prompt");
    let start = session.snapshot().expect("memory");
    let last = *COUNTS.last().expect("counts");
    let ids: Vec<u32> = golden.greedy.iter().copied().cycle().take(last).collect();
    let single: Vec<Vec<f32>> = ids
        .iter()
        .map(|&id| {
            let logits = session.step(&[id], OutputRows::Last).expect("scores");
            logits.last().to_vec()
        })
        .collect();
    assert_ne!(prefilled.logits.last(), single[0]);
    for count in COUNTS {
        session.restore(&start).expect("memory");
        let logits = session
            .step(&ids[..count], OutputRows::All)
            .expect("scores");
        assert_eq!(logits.rows(), count);
        for (row, expected) in single[..count].iter().enumerate() {
            assert_eq!(
                logits.row(row),
                expected,
                "{} row {row} of {count}",
                manifest.name
            );
        }
    }
    session.restore(&start).expect("memory");
    let mut fork = session.fork().expect("memory");
    let expected = greedy(&mut session);
    assert_eq!(greedy(&mut fork), expected);
    session.restore(&start).expect("memory");
    assert_eq!(greedy(&mut session), expected);
    // The fork has moved on; back at the beginning, it is the same again.
    let beginning = fork.len() - expected.len();
    if ["lfm2vl-odd", "qwen35-odd"].contains(&manifest.name.trim_end_matches("-gguf")) {
        // The recurrent layers have forgotten it.
        let error = fork.truncate(beginning).expect_err("recurrent layers");
        assert!(error.to_string().contains("recurrent"), "{error}");
        return;
    }
    fork.truncate(beginning).expect("no recurrent layers");
    assert_eq!(greedy(&mut fork), expected);
}

/// Answers of different lengths to different prompts are bitwise the same if they are decoded
/// together.
fn check_together(session: &Session<Cpu>, golden: &Golden) {
    let questions = (1..=3).map(|count| ask(&golden.media, &golden.question.repeat(count)));
    let questions: Vec<_> = questions.collect();
    let requests = questions.iter().enumerate().map(|(i, messages)| Request {
        media: &golden.media,
        max_tokens: 9 - 3 * i,
        ignore_eos: true,
        logprobs: Some(2),
        ..Request::new(messages)
    });
    let requests: Vec<_> = requests.collect();
    let mut sessions = [(); 3].map(|()| session.fork().expect("memory"));
    let mut generations: Vec<_> = sessions
        .iter_mut()
        .zip(&requests)
        .map(|(session, request)| {
            let generation = session.generate(request, Vec::new(), |_| ControlFlow::Continue(()));
            generation.expect("a prompt")
        })
        .collect();
    let mut found = vec![Vec::new(); requests.len()];
    for _ in 0..9 {
        let tokens = Generation::next_together(&mut generations);
        for (found, token) in found.iter_mut().zip(tokens) {
            found.extend(token.map(|token| token.expect("a token")));
        }
    }
    drop(generations);
    for (request, found) in requests.iter().zip(found) {
        let mut session = session.fork().expect("memory");
        let generation = session.generate(request, Vec::new(), |_| ControlFlow::Continue(()));
        let tokens = generation.expect("a prompt");
        let expected: Vec<Token> = tokens.map(|token| token.expect("a token")).collect();
        assert_eq!(expected.len(), request.max_tokens);
        assert_eq!(found, expected);
    }
}

/// Continues with a fixed token and then the best ones.
fn greedy(session: &mut Session<Cpu>) -> Vec<u32> {
    let mut ids = vec![1];
    for _ in 0..7 {
        let last = ids[ids.len() - 1];
        let logits = session.step(&[last], OutputRows::Last).expect("scores");
        let scores = logits.last();
        let best = (0..scores.len()).reduce(|a, b| if scores[b] > scores[a] { b } else { a });
        ids.push(best.expect("scores") as u32);
    }
    ids.pop();
    ids
}

fn main() {
    let trials = Manifest::all().into_iter().flat_map(|manifest| {
        [("f32", F32), ("quantized", Options::default())].map(|(name, options)| {
            let manifest = manifest.clone();
            Trial::test(format!("{}_{name}", manifest.name), move || {
                check(&manifest, &options);
                Ok(())
            })
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
