//! Videos that are prepared and encoded in pieces give what they give as a whole.

mod common;

use std::ops::ControlFlow;
use std::path::Path;

use common::manifest::Manifest;
use common::{F32, ask, engine_of, relative};
use edge_lmm::media::{FrameSelection, MediaKind, Source};
use edge_lmm::{
    Cpu, EngineError, Event, Media, MediaOptions, ModelError, Recording, Request, Session,
};
use edge_lmm_convert::Options;
use edge_lmm_models::preprocess::RgbImage;
use edge_lmm_ops::{Format, probe};

/// Nine frames, so that the last slice in time is filled up. A slice has more than half of the
/// patches of a piece.
fn video() -> Media {
    let frame = |time: usize| {
        let pixel = |i: usize| ((i * (7 + time) + i / 331 * 13) % 251) as u8;
        RgbImage::new(252, 252, (0..252 * 252 * 3).map(pixel).collect()).expect("a frame")
    };
    Media::video((0..9).map(frame).collect(), 2.0)
}

fn request<'a>(
    messages: &'a [edge_lmm::Message],
    media: &'a [Media],
    methods: &str,
) -> Request<'a> {
    Request {
        media,
        options: MediaOptions {
            image_tokens: Some((81, 81)),
            reductions: match methods {
                "" => Default::default(),
                methods => methods.parse().expect("a chain"),
            },
            ..MediaOptions::default()
        },
        max_tokens: 8,
        ..Request::new(messages)
    }
}

/// Scores after the prompt, its length, and the progress of the encoder.
fn prefill(session: &mut Session<Cpu>, methods: &str) -> (Vec<f32>, usize, (usize, usize)) {
    let media = [video()];
    let messages = ask(&media, "what is this?");
    let mut progress = (0, 0);
    let on_event = |event: Event<'_>| {
        if let Event::Progress {
            stage: "vision",
            total,
            ..
        } = event
        {
            progress = (progress.0 + 1, total);
        }
        ControlFlow::Continue(())
    };
    session.forget();
    let request = request(&messages, &media, methods);
    let found = session.prefill(&request, on_event).expect("a prompt");
    (found.logits.last().to_vec(), found.prompt_tokens, progress)
}

/// Runs with a capture, for which the encoder takes the whole video, even if it was encoded before.
fn whole<T>(run: impl FnOnce() -> T) -> T {
    probe::start();
    let result = run();
    probe::finish();
    result
}

fn session(name: &str, options: &Options) -> Session<Cpu> {
    engine_of(Manifest::named(name).open(), options)
}

#[test]
fn pieces_give_the_same_scores_as_the_whole() {
    let quantized = Options {
        text: Format::Q4,
        vision: Format::Q4,
        ..F32
    };
    for name in ["qwen2vl-tiny", "qwen25vl-tiny", "qwen35-odd", "qwen3vl-odd"] {
        // Attention adds up blocks of keys that begin elsewhere; with quantized weights, a
        // difference in the last place may round an activation to another step.
        for (options, tolerance) in [(&F32, 1e-5), (&quantized, 1e-2)] {
            let mut session = session(name, options);
            for methods in [
                "",
                "merge:0.5",
                "attention:0.4",
                "diverse:0.3,random:0.5",
                "still",
            ] {
                let pieces = prefill(&mut session, methods);
                let whole = whole(|| prefill(&mut session, methods));
                let error = relative(&pieces.0, &whole.0);
                println!("{name} {methods}: {error:.1e}");
                assert!(error < tolerance, "{name} {methods}: {error}");
                assert_eq!(pieces.1, whole.1, "{name} {methods}");
                let passes = match methods {
                    "still" => 1,
                    _ => 5,
                };
                assert_eq!(pieces.2.1, passes * whole.2.1, "{name} {methods}");
            }
        }
    }
}

#[test]
fn the_next_piece_is_prepared_meanwhile() {
    let mut session = session("qwen2vl-tiny", &F32);
    let mut recording = Recording::new(edge_lmm::Device::Cpu);
    recording.run(|| prefill(&mut session, ""));
    let timing = recording.finish();
    let preprocess = timing.stage("preprocess").expect("a stage");
    assert_eq!(preprocess.helper_spans.len(), 5);
    assert!(preprocess.hidden <= preprocess.time);
    assert_eq!(timing.stage("vision").expect("a stage").calls, 5);
    assert_eq!(timing.hidden(), preprocess.hidden);
}

/// The thread that prepares ends with the request.
#[test]
fn a_canceled_encoder_ends() {
    let mut session = session("qwen2vl-tiny", &F32);
    let media = [video()];
    let messages = ask(&media, "what is this?");
    let request = request(&messages, &media, "");
    let mut steps = 0;
    let canceled = session.prefill(&request, |event| {
        steps += usize::from(matches!(event, Event::Progress { .. }));
        match steps {
            0..15 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    });
    let canceled = canceled.map(|_| ()).unwrap_err();
    assert!(
        matches!(canceled, EngineError::Model(ModelError::Canceled)),
        "{canceled}"
    );
    // Nothing of the canceled request is left.
    let again = prefill(&mut session, "");
    let whole = whole(|| prefill(&mut session, ""));
    assert!(relative(&again.0, &whole.0) < 1e-5);
}

/// A Y4M file of nine gray frames.
fn y4m() -> Vec<u8> {
    let mut content = b"YUV4MPEG2 W252 H252 F2:1 Cmono\n".to_vec();
    for time in 0..9 {
        content.extend(b"FRAME\n");
        content
            .extend((0..252 * 252).map(|i: usize| ((i * (7 + time) + i / 331 * 13) % 251) as u8));
    }
    content
}

/// A GIF of four frames, the last of which begins with codes that its dictionary does not have.
fn damaged_gif() -> Vec<u8> {
    const LAST_FRAME: usize = 4447;
    let path = "../runtime/engine/tests/media/data/images/gif_moving.gif";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let mut content = std::fs::read(path).expect("a file");
    // After the size of codes and the length of the block.
    content[LAST_FRAME + 2..][..40].fill(0xff);
    content
}

fn source(content: &[u8]) -> Source {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    std::io::Write::write_all(&mut file, content).expect("a file");
    Source::file(file.path()).expect("a file")
}

fn scores(session: &mut Session<Cpu>, medium: Media) -> Result<Vec<f32>, EngineError> {
    let media = [medium];
    let messages = ask(&media, "what is this?");
    let request = request(&messages, &media, "");
    let found = session.prefill(&request, |_| ControlFlow::Continue(()))?;
    Ok(found.logits.last().to_vec())
}

#[test]
fn a_video_is_encoded_while_it_is_decoded() {
    let source = source(&y4m());
    let read = || Media::read(&source, MediaKind::Video, FrameSelection::All).expect("a video");
    let decode = || Media::decode(&source, FrameSelection::All).expect("a video");
    let expected = scores(&mut session("qwen2vl-tiny", &F32), read()).expect("scores");

    let mut session = session("qwen2vl-tiny", &F32);
    let timed = |session: &mut Session<Cpu>, medium: &dyn Fn() -> Media| {
        let mut recording = Recording::new(edge_lmm::Device::Cpu);
        let scores = recording.run(|| scores(session, medium()));
        (scores.expect("scores"), recording.finish())
    };
    let (found, timing) = timed(&mut session, &decode);
    assert_eq!(found, expected);
    let media = timing.stage("media").expect("a stage");
    assert_eq!(media.helper_spans.len(), 9);
    assert!(media.hidden <= media.time, "{media:?}");
    assert_eq!(timing.stage("vision").expect("a stage").calls, 5);

    // The encoder output was stored under the hash of the frames.
    let (found, timing) = timed(&mut session, &read);
    assert_eq!(found, expected);
    assert!(timing.stage("vision").is_none());
}

#[test]
fn damage_that_is_found_late_changes_nothing() {
    let gif = source(&damaged_gif());
    let read = Media::read(&gif, MediaKind::Video, FrameSelection::All);
    let expected = read.expect_err("an error").to_string();
    let good = source(&y4m());
    let good = || Media::decode(&good, FrameSelection::Uniform(6)).expect("a video");

    let mut session = session("qwen2vl-tiny", &F32);
    let before = scores(&mut session, good()).expect("scores");
    let damaged = Media::decode(&gif, FrameSelection::All).expect("the first frames are fine");
    for _ in 0..2 {
        let error = scores(&mut session, damaged.clone()).expect_err("an error");
        assert!(matches!(error, EngineError::Media(_)), "{error:?}");
        assert_eq!(error.to_string(), expected);
    }
    assert_eq!(scores(&mut session, good()).expect("scores"), before);
}
