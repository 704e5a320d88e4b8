//! Answers to a question set, compared row by row with those of the reference implementation.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{F32, ask, data, engine};
use edge_lmm::manifest::{Manifest, is_right};
use edge_lmm::media::{self, FrameSelection, MediaKind};
use edge_lmm::{Cpu, Media, Request, Session};
use edge_lmm_convert::Options;

fn open(path: &Path) -> Media {
    match media::kind(path).expect("a medium") {
        MediaKind::Video => {
            let video = media::load_video(path, FrameSelection::All).expect("a video");
            Media::video(video.frames, video.frames_per_second)
        }
        _ => Media::image(media::load_image(path).expect("a picture")),
    }
}

/// Reads the answers of the reference by question.
fn reference(name: &str) -> BTreeMap<String, String> {
    let path = data().join(format!("questions/reference_{name}.csv"));
    let mut reader = csv::Reader::from_path(path).expect("reference answers");
    let rows = reader.deserialize::<(String, String)>();
    rows.collect::<Result<_, _>>().expect("id,predicted")
}

/// Answers to the questions that the reference answers.
fn answers(engine: &mut Session<Cpu>, name: &str) -> Vec<(String, String, bool)> {
    let manifest = Manifest::open(&data().join("questions/manifest.csv")).expect("questions");
    let reference = reference(name);
    let own = |id: &str| reference.contains_key(id);
    let mut answers = Vec::new();
    for question in manifest.questions.iter().filter(|q| own(&q.id)) {
        let media: Vec<Media> = manifest
            .media_path(question)
            .iter()
            .map(|p| open(p))
            .collect();
        let messages = ask(&media, &question.question);
        let request = Request {
            media: &media,
            max_tokens: 16,
            sampling: Default::default(),
            ..Request::new(&messages)
        };
        engine.forget();
        let answer = engine
            .answer(&request, |_| std::ops::ControlFlow::Continue(()))
            .expect("an answer")
            .text;
        let right = is_right(&answer, &question.answer);
        answers.push((question.id.clone(), answer.trim().to_owned(), right));
    }
    answers
}

#[test]
fn an_f32_record_answers_like_the_reference() {
    let mut engine = engine(&data().join("qwen2vl-tiny"), None, &F32);
    let reference = reference("qwen2vl-tiny");
    let answers = answers(&mut engine, "qwen2vl-tiny");
    assert_eq!(answers.len(), 60);
    for (id, answer, _) in &answers {
        assert_eq!(answer, reference[id].trim(), "{id}");
    }
}

#[test]
fn a_default_record_loses_at_most_two_points_and_gguf_gives_the_same() {
    let right = |answers: &[(String, String, bool)]| answers.iter().filter(|a| a.2).count();
    let checkpoint = data().join("qwen2vl-tiny");
    let float = answers(&mut engine(&checkpoint, None, &F32), "qwen2vl-tiny");
    let options = Options::default();
    let default = answers(&mut engine(&checkpoint, None, &options), "qwen2vl-tiny");
    let lost = right(&float) as f64 - right(&default) as f64;
    assert!(
        100.0 * lost / float.len() as f64 <= 2.0,
        "{lost} of {}",
        float.len()
    );

    let gguf = data().join("qwen2vl-tiny-gguf");
    let mmproj = gguf.join("mmproj-qwen2vl-tiny-f16.gguf");
    let language = gguf.join("qwen2vl-tiny-f16.gguf");
    let from_gguf = answers(
        &mut engine(&language, Some(&mmproj), &options),
        "qwen2vl-tiny",
    );
    assert_eq!(from_gguf, default);
}
