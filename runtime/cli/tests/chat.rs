//! Conversations: nothing is computed twice, and no error ends one.

mod short_context;

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use edge_lmm::media::MediaData;
use edge_lmm::{
    AnySession, Content, Device, FinishReason, Media, Message, Record, Request, Role, media,
};
use serde_json::Value;

fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/demo")
        .join(name)
}

fn engine() -> AnySession {
    let record = Record::open(demo("qwen2vl-tiny.bpk")).expect("the demo's record opens");
    Device::Cpu.load(&record).expect("it loads").session()
}

/// Feeds lines to `edge-lmm chat --json`; the objects it prints.
fn chat(arguments: &[&str], lines: &[u8]) -> Vec<Value> {
    chat_with(&demo("qwen2vl-tiny.bpk"), arguments, lines)
}

fn chat_with(record: &Path, arguments: &[&str], lines: &[u8]) -> Vec<Value> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_edge-lmm"))
        .arg("chat")
        .arg(record)
        .arg("--json")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut input = child.stdin.take().expect("its input");
    input.write_all(lines).expect("the lines are taken");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// A second image: the first one mirrored.
fn mirrored(image: &Media) -> Media {
    let MediaData::Image(image) = image.data() else {
        panic!("{image:?} is no image");
    };
    let row = |y: usize| image.row(y).chunks_exact(3).rev().flatten().copied();
    let pixels: Vec<u8> = (0..image.height()).flat_map(row).collect();
    let mirrored = edge_lmm::RgbImage::new(image.width(), image.height(), pixels);
    Media::image(mirrored.expect("an image"))
}

fn user(media: usize, text: &str) -> Message {
    let shown = std::iter::repeat_n(Content::Media(media::MediaKind::Image), media);
    Message {
        role: Role::User,
        content: shown.chain([Content::Text(text.to_owned())]).collect(),
    }
}

/// Five turns with two images, the second shown in the third turn: every turn reuses all tokens of
/// the turn before that are in its prompt, and its text is that of the same turn from scratch.
#[test]
fn a_growing_conversation_computes_nothing_twice() {
    let first = Media::image(media::load_image(&demo("shapes.png")).expect("the image"));
    let images = [mirrored(&first), first];
    let (mut kept, mut fresh) = (engine(), engine());
    let (mut messages, mut shown) = (Vec::new(), Vec::new());
    let mut held = 0;
    for (turn, question) in [
        "how many shapes are there?",
        "list the shapes.",
        "list the shapes.",
        "is there a red circle?",
        "how many shapes are there?",
    ]
    .into_iter()
    .enumerate()
    {
        let new: &[Media] = match turn {
            0 => &images[..1],
            2 => &images[1..],
            _ => &[],
        };
        messages.push(user(new.len(), question));
        shown.extend_from_slice(new);
        let request = Request {
            media: &shown,
            max_tokens: 300,
            sampling: Default::default(),
            ..Request::new(&messages)
        };
        let answer = |engine: &mut AnySession| {
            let answer = engine.answer(&request, |_| ControlFlow::Continue(()));
            answer.expect("an answer")
        };
        fresh.forget();
        let (answer, scratch) = (answer(&mut kept), answer(&mut fresh));
        assert_eq!(answer.text, scratch.text, "turn {turn}");
        assert_eq!(scratch.reused_tokens, 0);
        assert_eq!(answer.reused_tokens, held, "turn {turn}");
        // The last token, which ends the answer, has not been through the model.
        assert_eq!(answer.finish_reason, FinishReason::Stop);
        held = answer.prompt_tokens + answer.tokens.len() - 1;
        messages.push(Message::text(Role::Assistant, answer.text));
    }
    assert!(held > 100, "the cache has grown beyond its first size");
}

#[test]
fn every_turn_reports_what_it_reused() {
    let image = demo("shapes.png");
    let image = image.to_str().expect("a readable path");
    let lines = b"how many shapes are there?\nlist the shapes.\n";
    let turns = chat(&["--image", image], lines);
    assert_eq!(turns[0]["text"], "two");
    assert_eq!(turns[0]["reused_tokens"], 0);
    assert_eq!(turns[0]["finish_reason"], "stop");
    assert!(turns[0]["first_token_ms"].as_f64() > Some(0.0));
    let prompt = turns[0]["prompt_tokens"].as_u64().expect("a number");
    assert_eq!(turns[1]["reused_tokens"], prompt + 1);
}

#[test]
fn no_error_ends_a_conversation() {
    let folder = tempfile::tempdir().expect("a folder");
    let wide = folder.path().join("wide.png");
    image::RgbImage::new(402, 2).save(&wide).expect("an image");
    let long = "7".repeat(40_000);
    let lines = [
        b"how many shapes are there?\n" as &[u8],
        b"/media absent.png\n",
        format!("/media {}\nand here?\n", wide.display()).as_bytes(),
        b"not UTF-8: \xff\xfe\n",
        b"/nonsense\n",
        long.as_bytes(),
        b"\n\n/help\nhow many shapes are there?\n",
    ]
    .concat();
    let image = demo("shapes.png");
    let image = image.to_str().expect("a readable path");
    let turns = chat(&["--image", image, "--max-tokens", "8"], &lines);
    let errors: Vec<&str> = turns
        .iter()
        .filter_map(|turn| turn["error"].as_str())
        .collect();
    for (error, word) in errors.iter().zip([
        "absent.png",
        "aspect ratio",
        "UTF-8",
        "unknown command \"/nonsense\"",
        "tokens",
    ]) {
        assert!(error.contains(word), "no {word:?} in {error:?}");
    }
    assert_eq!(errors.len(), 5);
    let answers: Vec<&Value> = turns
        .iter()
        .filter(|turn| turn["error"].is_null())
        .collect();
    assert_eq!(answers.len(), 2);
    assert!(answers[1]["reused_tokens"].as_u64() > Some(0));
}

#[test]
fn turns_are_removed_repeated_and_saved() {
    let folder = tempfile::tempdir().expect("a folder");
    let talk = folder.path().join("talk.txt");
    let lines = format!(
        "/undo\n/retry\n/stats\n/drop turn\n\
         /image {image}\nhow many shapes are there?\n/retry\n/stats\n/save {talk}\n/save {talk}\n\
         how many shapes are there?\n/drop media\n/drop media\n/drop turn\n/undo\n/undo\n\
         /audio {image}\n/video absent.mp4\n",
        image = demo("shapes.png").display(),
        talk = talk.display()
    );
    let turns = chat(&[], lines.as_bytes());
    let said: Vec<&str> = turns
        .iter()
        .filter_map(|turn| turn["text"].as_str().or(turn["error"].as_str()))
        .collect();
    let expected = [
        "no question to remove",
        "no question to answer again",
        "no answer yet",
        "nothing to remove",
        "two",
        "two",
        "exists",
        // Any answer.
        "",
        // The media are removed once; then the first turn, and the second one is undone.
        "nothing to remove",
        "no question to remove",
        "shapes.png",
        "absent.mp4",
    ];
    assert_eq!(said.len(), expected.len(), "{said:?}");
    for (said, word) in said.iter().zip(expected) {
        assert!(said.contains(word), "no {word:?} in {said:?}");
    }
    let talk = std::fs::read_to_string(talk).expect("a transcript");
    let turn = "user: [image] how many shapes are there?\n\nassistant: two\n\n";
    assert_eq!(talk, turn);
}

/// A conversation that has outgrown the context goes on after its oldest turn was removed.
#[test]
fn turns_are_dropped_when_the_context_is_full() {
    let folder = tempfile::tempdir().expect("a folder");
    let record = short_context::record(folder.path());
    let question = "7".repeat(short_context::CONTEXT / 2);
    let lines = format!("{question}\n{question}\n/drop turn\n{question}\n");
    let turns = chat_with(&record, &["--max-tokens", "2"], lines.as_bytes());
    let errors: Vec<&str> = turns.iter().filter_map(|t| t["error"].as_str()).collect();
    assert_eq!((turns.len(), errors.len()), (3, 1), "{turns:?}");
    assert!(
        errors[0].contains("/drop turn and /drop media make room"),
        "{errors:?}"
    );
}

/// An answer can be stopped between tokens, and a conversation goes on after that.
#[test]
fn a_canceled_answer_keeps_its_text() {
    let mut engine = engine();
    let messages = [user(0, "hello")];
    let request = Request {
        max_tokens: 1000,
        ignore_eos: true,
        sampling: Default::default(),
        ..Request::new(&messages)
    };
    let mut events = 0;
    let answer = engine.answer(&request, |event| {
        events += usize::from(matches!(
            event,
            edge_lmm::Event::Progress {
                stage: "decode",
                ..
            }
        ));
        match events {
            0..5 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    });
    let answer = answer.expect("an answer");
    assert_eq!(answer.finish_reason, FinishReason::Canceled);
    assert_eq!(answer.tokens.len(), 5);
}

/// Canceled while the image is encoded, nothing of the request stays behind.
#[test]
fn a_canceled_encoder_gives_no_answer() {
    let image = Media::image(media::load_image(&demo("shapes.png")).expect("the image"));
    let mut engine = engine();
    let messages = [user(1, "how many shapes are there?")];
    let request = Request {
        media: &[image],
        max_tokens: 8,
        sampling: Default::default(),
        ..Request::new(&messages)
    };
    for stage in ["vision", "prefill"] {
        let mut stopped = false;
        let canceled = engine.answer(&request, |event| match event {
            edge_lmm::Event::Progress {
                stage: s, done: 1, ..
            } if s == stage => {
                stopped = true;
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        });
        assert!(stopped, "{stage}");
        let error = canceled.expect_err("it was canceled").to_string();
        assert_eq!(error, "canceled");
    }
    let answer = engine.answer(&request, |_| ControlFlow::Continue(()));
    assert_eq!(answer.expect("an answer").text, "two");
}
