//! Answers to a question set, compared row by row with those of the reference implementation.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::manifest::Manifest;
use common::{F32, ask, data, engine_of, sound};
use edge_lmm::manifest::Manifest as Questions;
use edge_lmm::media::{self, FrameSelection, MediaKind};
use edge_lmm::{Cpu, Media, Request, Session};
use edge_lmm_convert::Options;
use libtest_mimic::{Arguments, Trial};

fn open(path: &Path) -> Media {
    match media::kind(path).expect("a medium") {
        MediaKind::Video => {
            let video = media::load_video(path, FrameSelection::All).expect("a video");
            video.into()
        }
        MediaKind::Audio => sound(path),
        MediaKind::Image => Media::image(media::load_image(path).expect("an image")),
    }
}

/// Reads the answers of the reference by question.
fn reference(file: &str) -> BTreeMap<String, String> {
    let mut reader = csv::Reader::from_path(data().join(file)).expect("reference answers");
    let rows = reader.deserialize::<(String, String)>();
    rows.collect::<Result<_, _>>().expect("id,predicted")
}

/// Answers to the questions that the reference answers.
fn answers(engine: &mut Session<Cpu>, file: &str) -> Vec<(String, String, bool)> {
    let manifest = Questions::open(&data().join("questions/manifest.csv")).expect("questions");
    let reference = reference(file);
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
        let right = question.score(&answer, None) == 1.0;
        answers.push((question.id.clone(), answer.trim().to_owned(), right));
    }
    answers
}

fn an_f32_record_answers_like_the_reference(manifest: &Manifest, file: &str) {
    let mut engine = engine_of(manifest.open(), &F32);
    let reference = reference(file);
    let answers = answers(&mut engine, file);
    assert!(!answers.is_empty());
    assert_eq!(answers.len(), reference.len());
    for (id, answer, _) in &answers {
        assert_eq!(answer, reference[id].trim(), "{id}");
    }
}

fn a_default_record_loses_at_most_two_points_and_gguf_gives_the_same() {
    let right = |answers: &[(String, String, bool)]| answers.iter().filter(|a| a.2).count();
    let manifest = Manifest::named("qwen2vl-tiny");
    let file = manifest.questions.as_deref().expect("a question set");
    let options = Options::default();
    let float = answers(&mut engine_of(manifest.open(), &F32), file);
    let default = answers(&mut engine_of(manifest.open(), &options), file);
    let lost = right(&float) as f64 - right(&default) as f64;
    assert!(
        100.0 * lost / float.len() as f64 <= 2.0,
        "{lost} of {}",
        float.len()
    );

    let gguf = Manifest::named("qwen2vl-tiny-gguf");
    let from_gguf = answers(&mut engine_of(gguf.open(), &options), file);
    assert_eq!(from_gguf, default);
}

fn trial(name: String, run: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        run();
        Ok(())
    })
}

fn main() {
    let name = "a_default_record_loses_at_most_two_points_and_gguf_gives_the_same".to_owned();
    let loss = a_default_record_loses_at_most_two_points_and_gguf_gives_the_same;
    let mut trials = vec![trial(name, loss)];
    for manifest in Manifest::all() {
        if let Some(file) = manifest.questions.clone() {
            trials.push(trial(manifest.name.clone(), move || {
                an_f32_record_answers_like_the_reference(&manifest, &file);
            }));
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
