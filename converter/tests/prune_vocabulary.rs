//! A vocabulary pruned to a corpus: the same tokens and answers for its texts, a smaller record.

mod common;

use common::manifest::Manifest;
use common::{F32, ask, data, engine_from, engine_of};
use edge_lmm::manifest::Manifest as Questions;
use edge_lmm::{Cpu, Media, Request, Session};
use edge_lmm_convert::calibration::Samples;
use edge_lmm_convert::prune::prune_vocabulary;
use edge_lmm_convert::source::Checkpoint;
use edge_lmm_convert::{Plan, Pruning};
use tokenizers::Tokenizer;

fn corpus() -> Samples {
    Samples::read(&[data().join("questions/manifest.csv")]).expect("a corpus")
}

fn pruned(manifest: &Manifest) -> (Checkpoint, Plan, [usize; 2]) {
    let mut checkpoint = manifest.open();
    let mut pruning = Pruning::none(&checkpoint);
    let sizes = prune_vocabulary(&mut checkpoint, &mut pruning, &corpus()).expect(&manifest.name);
    let plan = Plan::pruned(&checkpoint, &F32, pruning).expect(&manifest.name);
    (checkpoint, plan, sizes.into())
}

fn tokens(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let encoded = tokenizer.encode(text, true).expect("tokens");
    encoded.get_tokens().to_vec()
}

fn round_trip(tokenizer: &Tokenizer, text: &str) -> String {
    let encoded = tokenizer.encode(text, false).expect("tokens");
    tokenizer.decode(encoded.get_ids(), false).expect("a text")
}

/// All kinds of tokenizers, from both kinds of files.
#[test]
fn texts_of_the_corpus_keep_their_tokens() {
    let questions = Questions::open(&data().join("questions/manifest.csv")).expect("questions");
    for manifest in Manifest::all() {
        let name = &manifest.name;
        let whole = manifest.open();
        let (checkpoint, plan, [before, after]) = pruned(&manifest);
        assert!(after < before, "{name}: {after} of {before}");
        let parse = |checkpoint: &Checkpoint| checkpoint.tokenizer.parse::<Tokenizer>();
        let (old, new) = (parse(&whole).expect(name), parse(&checkpoint).expect(name));
        assert_eq!(new.get_vocab(true).len(), after, "{name}");
        for question in &questions.questions {
            for text in [&question.question, &question.answer] {
                assert_eq!(tokens(&new, text), tokens(&old, text), "{name}: {text}");
            }
        }
        let other = "Unrelated words, 12.5 % \u{fffd} größer\n\n\tends";
        assert_eq!(round_trip(&new, other), round_trip(&old, other), "{name}");
        let rows = |plan: &Plan| {
            let weights = plan.weights.iter().filter(|w| w.spec.is_vocabulary());
            weights.map(|w| w.spec.rows()).collect::<Vec<_>>()
        };
        let of_whole = Plan::new(&whole, &F32).expect(name);
        assert_eq!(rows(&plan), vec![after; rows(&of_whole).len()], "{name}");
        assert!(!rows(&plan).is_empty(), "{name}");
    }
}

/// Answers the first question about each kind of medium that the model takes.
fn answers(session: &mut Session<Cpu>) -> Vec<String> {
    let questions = Questions::open(&data().join("questions/manifest.csv")).expect("questions");
    let mut answers = Vec::new();
    for question in questions.questions.iter().step_by(5) {
        let path = questions.media_path(question).expect("a medium");
        let media = [Media::open(path).expect("a medium")];
        let messages = ask(&media, &question.question);
        let request = Request {
            media: &media,
            max_tokens: 16,
            sampling: Default::default(),
            ..Request::new(&messages)
        };
        session.forget();
        let answer = session.answer(&request, |_| std::ops::ControlFlow::Continue(()));
        answers.extend(answer.ok().map(|answer| answer.text));
    }
    answers
}

#[test]
fn trained_models_give_the_same_answers() {
    for name in [
        "qwen2vl-tiny",
        "llava-tiny",
        "blip2-tiny",
        "qwen2audio-tiny",
    ] {
        let manifest = Manifest::named(name);
        let expected = answers(&mut engine_of(manifest.open(), &F32));
        assert!(expected.len() > 1, "{name}: {expected:?}");
        let (checkpoint, plan, _) = pruned(&manifest);
        assert_eq!(
            answers(&mut engine_from(&plan, checkpoint)),
            expected,
            "{name}"
        );
    }
}
