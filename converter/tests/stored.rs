//! Reuse of stored results and of kept conversations, with every test checkpoint: all scores and
//! answers are bitwise those of computing anew.

mod common;

use std::ops::ControlFlow;
use std::path::Path;

use common::manifest::Manifest;
use common::{Converted, F32, Golden, ask, convert_checkpoint};
use edge_lmm::output::Output;
use edge_lmm::store::DEFAULT_LIMIT;
use edge_lmm::{Answer, Cpu, Engine, Message, Record, Request, ReusedFrom, Role, Session, Store};
use edge_lmm_convert::Options;
use libtest_mimic::{Arguments, Trial};

/// Loads the model like another process, with or without a cache folder.
fn session(record: &Path, folder: Option<&Path>) -> Session<Cpu> {
    let record = Record::open(record).expect("the record opens");
    let engine = Engine::load(&record, Default::default()).expect("the model loads");
    if let Some(folder) = folder {
        engine.use_store(Store::open(folder, DEFAULT_LIMIT).expect("a folder"));
    }
    engine.session()
}

/// A question about the media of a golden.
struct Question<'a> {
    golden: &'a Golden,
    messages: Vec<Message>,
}

impl<'a> Question<'a> {
    fn new(golden: &'a Golden, text: &str) -> Self {
        Self {
            golden,
            messages: ask(&golden.media, text),
        }
    }

    fn request(&self) -> Request<'_> {
        Request {
            media: &self.golden.media,
            max_tokens: 6,
            ignore_eos: true,
            timing: true,
            ..Request::new(&self.messages)
        }
    }

    fn answer(&self, session: &mut Session<Cpu>) -> Answer {
        let answer = session.answer(&self.request(), |_| ControlFlow::Continue(()));
        answer.expect("an answer")
    }

    fn scores(&self, session: &mut Session<Cpu>) -> Vec<f32> {
        let prefilled = session.prefill(&self.request(), |_| ControlFlow::Continue(()));
        prefilled.expect("a prompt").logits.last().to_vec()
    }
}

fn encodes(answer: &Answer) -> bool {
    ["vision", "audio"]
        .into_iter()
        .any(|stage| answer.timing.stage(stage).is_some())
}

/// A second process with the same folder, and a second question in a third one.
fn check_folder(record: &Path, golden: &Golden) {
    let folder = tempfile::tempdir().expect("a folder");
    let first = Question::new(golden, &golden.question);
    // Not shorter: prompts of different length may be computed differently (LongRoPE).
    let longer = format!("{} and what else?", golden.question);
    let second = Question::new(golden, &longer);
    let with = || session(record, Some(folder.path()));
    let anew = |question: &Question<'_>| {
        let mut session = session(record, None);
        let scores = question.scores(&mut session);
        session.forget();
        (scores, question.answer(&mut session))
    };
    let (scores, expected) = anew(&first);
    let stored = first.answer(&mut with());
    assert_eq!(stored.tokens, expected.tokens);
    assert_eq!((stored.reused_tokens, encodes(&stored)), (0, true));
    let answer = first.answer(&mut with());
    assert_eq!(answer.tokens, expected.tokens);
    assert!(!encodes(&answer) && answer.timing.stage("cache").is_some());
    assert_eq!(first.scores(&mut with()), scores);
    // The state of an encoder-decoder is not stored.
    let keeps = session(record, None).can_be_saved();
    let (scores, expected) = anew(&second);
    let answer = second.answer(&mut with());
    assert_eq!(answer.tokens, expected.tokens);
    assert!(!encodes(&answer));
    assert_eq!(second.scores(&mut with()), scores);
    if keeps {
        assert_eq!(answer.reused_from, Some(ReusedFrom::Disk));
        assert!(answer.reused_tokens >= answer.visual_tokens);
    } else {
        assert_eq!((answer.reused_from, answer.reused_tokens), (None, 0));
    }
}

fn record_family(record: &Path) -> String {
    let record = Record::open(record).expect("the record opens");
    let family = &record.info().files.config["model_type"];
    family.as_str().expect("a family").to_owned()
}

/// A snapshot continues in another process as the conversation does.
fn check_snapshot(record: &Path, golden: &Golden) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let mut messages = ask(&golden.media, &golden.question);
    let mut kept = session(record, None);
    let request = |messages: &[Message], session: &mut Session<Cpu>| {
        let request = Request {
            media: &golden.media,
            max_tokens: 4,
            timing: true,
            ..Request::new(messages)
        };
        let answer = session.answer(&request, |_| ControlFlow::Continue(()));
        answer.expect("an answer")
    };
    let answer = request(&messages, &mut kept);
    let output = Output::private(&path, false).expect("a file");
    let saved = kept.save_snapshot(output, usize::MAX);
    if !kept.can_be_saved() {
        assert!(saved.is_err() && !path.exists());
        return;
    }
    saved.expect("it is saved");
    let mut other = session(record, None);
    assert_eq!(other.load_snapshot(&path).expect("a snapshot"), kept.len());
    messages.push(Message::text(Role::Assistant, answer.text));
    messages.push(Message::text(Role::User, "and what else?"));
    let (continued, expected) = (
        request(&messages, &mut other),
        request(&messages, &mut kept),
    );
    assert_eq!(continued.tokens, expected.tokens);
    assert_eq!(continued.reused_tokens, expected.reused_tokens);
    // A snapshot has no features, which LongRoPE needs if the conversation becomes long.
    let is_long_rope = record_family(record) == "phi3_v";
    assert_eq!(encodes(&continued), is_long_rope);
    let from = [&continued, &expected].map(|answer| answer.reused_from);
    assert_eq!(from, [Some(ReusedFrom::Disk), Some(ReusedFrom::Memory)]);
}

/// Conversations that take turns in one session answer as each on its own.
fn check_conversations(record: &Path, goldens: &[Golden]) {
    let mut shared = session(record, None);
    shared.keep_conversations(3, usize::MAX);
    let mut anew = session(record, None);
    for text in ["what is this?", "what is there?", "what is this?"] {
        for golden in goldens {
            let question = Question::new(golden, text);
            anew.forget();
            let expected = question.answer(&mut anew);
            let answer = question.answer(&mut shared);
            assert_eq!(answer.tokens, expected.tokens, "{} {text}", golden.name);
            let scores = question.scores(&mut shared);
            anew.forget();
            assert_eq!(scores, question.scores(&mut anew), "{} {text}", golden.name);
        }
    }
}

fn convert(manifest: &Manifest, options: &Options) -> Converted {
    convert_checkpoint(manifest.open(), options).expect("the checkpoint converts")
}

/// A snapshot is used by its own model only, and a folder serves several models.
fn check_other_model(manifest: &Manifest) {
    let folder = tempfile::tempdir().expect("a folder");
    let golden = manifest.goldens().remove(0);
    let question = Question::new(&golden, &golden.question);
    let path = folder.path().join("snapshot");
    for (i, options) in [Options::default(), F32].iter().enumerate() {
        let record = convert(manifest, options);
        let mut other = session(&record.path, Some(folder.path()));
        if i == 0 {
            question.answer(&mut other);
            let output = Output::private(&path, false).expect("a file");
            other.save_snapshot(output, 5).expect("it is saved");
            continue;
        }
        let error = other.load_snapshot(&path).expect_err("another model");
        assert!(error.to_string().contains("another model"), "{error}");
        let answer = question.answer(&mut other);
        let expected = question.answer(&mut session(&record.path, None));
        assert_eq!(answer.tokens, expected.tokens);
        assert_eq!((answer.reused_tokens, encodes(&answer)), (0, true));
    }
}

fn check(manifest: &Manifest) {
    let Converted { path, .. } = &convert(manifest, &Options::default());
    let goldens: Vec<Golden> = manifest.goldens().into_iter().take(3).collect();
    for golden in goldens.iter().filter(|golden| !golden.media.is_empty()) {
        check_folder(path, golden);
        check_snapshot(path, golden);
    }
    check_conversations(path, &goldens);
}

fn main() {
    let manifests = Manifest::all();
    let is_small = |manifest: &&Manifest| manifest.name == "qwen2vl-tiny";
    let one = manifests.iter().find(is_small).expect("it exists").clone();
    let one = Trial::test("other_model", move || {
        check_other_model(&one);
        Ok(())
    });
    let trials = manifests.into_iter().map(|manifest| {
        Trial::test(manifest.name.clone(), move || {
            check(&manifest);
            Ok(())
        })
    });
    let trials = trials.chain([one]).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
