//! Reduction of visual tokens before, within and after the encoder: against PyTorch, and its effect
//! on every family.

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use common::manifest::Manifest;
use common::{F32, ask, data, engine, engine_of, read_tensors, relative};
use edge_lmm::{Answer, Cpu, EngineError, Event, Media, MediaOptions, Request, Session};
use edge_lmm_models::ModelError;
use edge_lmm_models::preprocess::RgbImage;
use edge_lmm_models::reduce::sampling::seed_of;
use edge_lmm_models::reduce::{ReductionStep, Reductions};
use edge_lmm_ops::probe::{self, Captured};
use serde_json::Value;

/// Id of the tokens that stand for an image.
const IMAGE_TOKEN: f32 = 471.0;

fn chain(text: &str) -> Reductions {
    text.parse().expect("a chain of methods")
}

fn reduced(text: &str) -> MediaOptions {
    MediaOptions {
        reductions: chain(text),
        ..MediaOptions::default()
    }
}

fn go_on(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Answers a question; returns the answer and the captured tensors.
fn answer(
    session: &mut Session<Cpu>,
    media: &[Media],
    question: &str,
    options: &MediaOptions,
) -> Result<(Answer, BTreeMap<String, Captured>), EngineError> {
    let messages = ask(media, question);
    let request = Request {
        media,
        options: options.clone(),
        max_tokens: 16,
        ..Request::new(&messages)
    };
    session.forget();
    probe::start();
    let answer = session.answer(&request, go_on);
    let found = probe::finish();
    answer.map(|answer| (answer, found))
}

/// Returns the units of an image that stand in the prompt, from their positions.
fn units(found: &BTreeMap<String, Captured>, columns: usize) -> Vec<usize> {
    let ids = &found["input_ids"].values;
    let positions = &found["position_ids"].values;
    let first = ids
        .iter()
        .position(|&id| id == IMAGE_TOKEN)
        .expect("a token");
    let tokens = (first..ids.len()).take_while(|&token| ids[token] == IMAGE_TOKEN);
    let axis = |axis: usize, token: usize| positions[axis * ids.len() + token] as usize;
    // Text before the image ends one position before its first row and column.
    let base = axis(0, first - 1) + 1;
    tokens
        .map(|token| (axis(1, token) - base) * columns + axis(2, token) - base)
        .collect()
}

/// The units that stay are those of the reference implementation, and so are features, scores and
/// answers. The tolerance is that of the parity of stages.
#[test]
fn the_reference_keeps_the_same_units() {
    let folder = data().join("goldens/qwen2vl-scenes");
    let index = std::fs::read_to_string(folder.join("index.json")).expect("index.json");
    let index: Value = serde_json::from_str(&index).expect("JSON");
    let tolerance = Manifest::named("qwen2vl-tiny")
        .tolerance("stage")
        .expect("a tolerance");
    let mut session = engine(&data().join("qwen2vl-scenes"), None, &F32);
    let mut compared = 0;
    for sample in index["samples"].as_array().expect("samples") {
        let text = |key: &str| sample[key].as_str().expect("text").to_owned();
        let methods = match text("method").as_str() {
            "all" => Reductions::default(),
            "random" => chain("random:0.5"),
            "divprune" => chain("diverse:0.5"),
            "attention" => chain("attention:0.5"),
            "duplicate" => chain("duplicates:50%"),
            _ => continue,
        };
        let (name, path) = (text("file"), text("media"));
        let options = MediaOptions {
            reductions: methods,
            seed: seed_of(&path),
            ..MediaOptions::default()
        };
        let media = [Media::image(image(&path))];
        let golden = read_tensors(&folder.join(&name));
        let (answer, found) =
            answer(&mut session, &media, &text("question"), &options).expect("an answer");

        let grid = &golden["grid_thw"].1;
        let kept: Vec<usize> = match golden.get("keep") {
            Some((_, kept)) => kept.iter().map(|&unit| unit as usize).collect(),
            None => (0..grid.iter().product::<f32>() as usize / 4).collect(),
        };
        assert_eq!(units(&found, grid[2] as usize / 2), kept, "{name}");
        let tensor = |stage: &str| {
            let expected = &golden[match stage {
                "features" => "projector_out",
                other => other,
            }]
            .1;
            let own = &found[stage].values[..expected.len()];
            let error = relative(own, expected);
            println!("{name}: {stage} {error:.1e}");
            assert!(error <= tolerance, "{name}: {stage} differs by {error}");
        };
        tensor("features");
        tensor("logits_first");
        let greedy: Vec<u32> = golden["greedy"].1.iter().map(|&id| id as u32).collect();
        assert_eq!(answer.tokens, greedy, "{name}");
        assert_eq!(answer.visual_tokens, kept.len(), "{name}");
        compared += 1;
    }
    assert_eq!(compared, 10);
}

/// Merging within the tower leaves the units of an implementation in double precision, with the same
/// features. The images have noisy backgrounds: between equal units, rounding would decide.
#[test]
fn merging_equals_double_precision() {
    let folder = data().join("goldens/qwen2vl-scenes");
    let tolerance = Manifest::named("qwen2vl-tiny")
        .tolerance("stage")
        .expect("a tolerance");
    let mut session = engine(&data().join("qwen2vl-scenes"), None, &F32);
    for name in ["scene_029", "scene_035"] {
        let golden = read_tensors(&folder.join(format!("merge_{name}.safetensors")));
        let media = [Media::image(image(&format!("images/{name}.png")))];
        let (_, found) =
            answer(&mut session, &media, "what?", &reduced("merge:0.5")).expect("an answer");
        let columns = golden["grid_thw"].1[2] as usize / 2;
        let kept: Vec<usize> = golden["keep"].1.iter().map(|&unit| unit as usize).collect();
        assert_eq!(units(&found, columns), kept, "{name}");
        let error = relative(&found["features"].values, &golden["features"].1);
        println!("{name}: features {error:.1e}");
        assert!(error <= tolerance, "{name}: features differ by {error}");
    }
}

/// On images with flat backgrounds merging leaves other units than PyTorch did, all of them equal to
/// those, and the same answers.
#[test]
fn merging_gives_the_answers_of_the_reference() {
    let folder = data().join("goldens/qwen2vl-scenes");
    let mut session = engine(&data().join("qwen2vl-scenes"), None, &F32);
    for (sample, path, question, left) in [
        (0, "images/scene_007.png", "list the shapes.", 32),
        (
            1,
            "images/scene_017.png",
            "what number is next to the diamond?",
            44,
        ),
    ] {
        let golden = read_tensors(&folder.join(format!("tome_{sample}.safetensors")));
        let media = [Media::image(image(path))];
        let (answer, _) =
            answer(&mut session, &media, question, &reduced("merge:0.5")).expect("an answer");
        let greedy: Vec<u32> = golden["greedy"].1.iter().map(|&id| id as u32).collect();
        assert_eq!(
            (answer.tokens, answer.visual_tokens),
            (greedy, left),
            "{path}"
        );
    }
}

fn image(path: &str) -> RgbImage {
    edge_lmm::media::load_image(&data().join("scenes").join(path)).expect("an image")
}

/// An image of which three quarters have one color.
fn mostly_flat() -> Media {
    let mut noise = noise(1);
    noise[..3 * SIDE * SIDE * 3 / 4].fill(90);
    Media::image(RgbImage::new(SIDE, SIDE, noise).expect("an image"))
}

const SIDE: usize = 168;

/// Random samples of a square image.
fn noise(mut state: u32) -> Vec<u8> {
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(SIDE * SIDE * 3).collect()
}

/// The checkpoints whose encoders take images.
fn with_images() -> Vec<Manifest> {
    let names = [
        "blip2-tiny",
        "llava-tiny",
        "phi35v-tiny",
        "qwen25vl-tiny",
        "qwen2vl-tiny",
    ];
    let odd = [
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
    ];
    names.into_iter().chain(odd).map(Manifest::named).collect()
}

/// Every method leaves fewer tokens or units in every family, says how many, and does nothing if all
/// are to be kept.
#[test]
fn every_family_is_reduced() {
    for manifest in with_images() {
        let name = &manifest.name;
        let mut session = engine_of(manifest.open(), &F32);
        let media = [mostly_flat()];
        let mut ask =
            |options: &MediaOptions| answer(&mut session, &media, "what?", options).expect(name);
        let (whole, all) = ask(&MediaOptions::default());
        assert_eq!(whole.reductions, []);
        let queries = name.starts_with("blip2");
        for method in [
            "duplicates",
            "merge:0.5",
            "diverse:0.5",
            "question:0.25",
            "random:0.25",
            "stride:0.25",
        ] {
            let (part, found) = ask(&reduced(method));
            let [ReductionStep { tokens, .. }] = part.reductions[..] else {
                panic!("{name}: {method}: {:?}", part.reductions);
            };
            let encoder = method.starts_with("duplicates") || method.starts_with("merge");
            // The Q-Former has as many tokens as queries, and tokens stand between the units of
            // Phi-3.5-Vision.
            match (encoder, queries) {
                (true, true) => assert_eq!(part.visual_tokens, whole.visual_tokens),
                (true, false) => assert!(
                    part.visual_tokens < whole.visual_tokens,
                    "{name}: {method} {:?}",
                    part.reductions
                ),
                (false, _) => assert_eq!(part.visual_tokens, tokens, "{name}: {method}"),
            }
            assert_ne!(
                found["logits_first"], all["logits_first"],
                "{name}: {method}"
            );
        }
        let methods = "merge:1,diverse:1,question:1,random:1,stride:1";
        let (same, found) = ask(&reduced(methods));
        assert_eq!(same.reductions.len(), 5, "{name}");
        assert_eq!(
            found["logits_first"], all["logits_first"],
            "{name}: {methods}"
        );
        assert_eq!(same.tokens, whole.tokens, "{name}");
        let noise = reduced("duplicates:0,merge:0.5:50%,diverse:0.5");
        let (chained, _) = ask(&noise);
        let left: Vec<usize> = chained.reductions.iter().map(|step| step.tokens).collect();
        assert!(left[0] > left[1], "{name}: {left:?}");
    }
}

/// Attention is reported by all towers, but not by the Q-Former, whose tokens are not the tower's.
#[test]
fn attention_chooses_tokens_where_the_encoder_reports_it() {
    for manifest in with_images() {
        let name = &manifest.name;
        let mut session = engine_of(manifest.open(), &F32);
        let media = [mostly_flat()];
        let answer = answer(&mut session, &media, "what?", &reduced("attention:0.5"));
        match (name.starts_with("blip2"), answer) {
            (true, Err(error)) => assert!(
                matches!(error, EngineError::Model(ModelError::NoAttention)),
                "{error}"
            ),
            (false, Ok((answer, _))) => assert_eq!(answer.reductions.len(), 1),
            (_, other) => panic!("{name}: {other:?}"),
        }
    }
}

/// Anchors are positions of rotary embeddings, which the language models of BLIP-2 do not have.
#[test]
fn anchors_are_protected_in_models_with_rotary_embeddings() {
    for manifest in with_images() {
        let name = &manifest.name;
        let mut session = engine_of(manifest.open(), &F32);
        let media = [mostly_flat()];
        let options = reduced("stride:0.25,anchors:0.5");
        let answer = answer(&mut session, &media, "what?", &options);
        match (name.starts_with("blip2"), answer) {
            (true, Err(EngineError::Model(ModelError::NoRotary))) => {}
            (false, Ok((answer, _))) => {
                assert_eq!(answer.reductions[0].tokens, answer.visual_tokens, "{name}");
            }
            (_, other) => panic!("{name}: {other:?}"),
        }
    }
}

/// An image without equal neighbors is computed as without the method, bit by bit.
#[test]
fn images_without_duplicates_are_not_changed() {
    let image = RgbImage::new(SIDE, SIDE, noise(7)).expect("an image");
    let media = [Media::image(image)];
    for manifest in with_images() {
        let mut session = engine_of(manifest.open(), &F32);
        let mut logits = |options: &MediaOptions| {
            let (_, mut found) = answer(&mut session, &media, "what?", options).expect("an answer");
            found.remove("logits_first").expect("scores")
        };
        let whole = logits(&MediaOptions::default());
        assert_eq!(
            logits(&reduced("duplicates,still")),
            whole,
            "{}",
            manifest.name
        );
    }
}

/// Units of a video that do not change from slice to slice are encoded once.
#[test]
fn still_units_of_a_video_are_encoded_once() {
    for name in ["qwen2vl-tiny", "qwen25vl-tiny"] {
        let mut session = engine_of(Manifest::named(name).open(), &F32);
        let still = image("images/scene_007.png");
        let mut moved = still.pixels().to_vec();
        moved[..3].fill(0);
        let moved = RgbImage::new(still.width(), still.height(), moved).expect("an image");
        let frames = [&still, &still, &still, &still, &moved, &moved];
        let media = [Media::video(frames.map(RgbImage::clone).to_vec(), 2.0)];
        let mut ask = |options: &MediaOptions| {
            answer(&mut session, &media, "what?", options)
                .expect(name)
                .0
        };
        let whole = ask(&MediaOptions::default()).visual_tokens;
        let part = ask(&reduced("still"));
        // One slice in full, and the unit at the corner with the three beside it once more.
        assert_eq!(part.visual_tokens, whole / 3 + 4, "{name}");
        assert_eq!(part.reductions[0].tokens, part.visual_tokens);
        // Merging works slice by slice.
        let merged = ask(&reduced("merge:0.5"));
        assert_eq!(merged.visual_tokens, whole / 2, "{name}");
    }
}

/// The result does not depend on the number of threads.
#[test]
fn threads_do_not_change_the_choice() {
    let mut session = engine(&data().join("qwen2vl-scenes"), None, &F32);
    let media = [Media::image(image("images/scene_017.png"))];
    let options = reduced("duplicates,merge:0.5,attention:0.75,diverse:0.75,question:0.5,anchors");
    let mut logits = |threads: usize| {
        edge_lmm::set_threads(threads.try_into().expect("a number"));
        let (_, mut found) = answer(&mut session, &media, "what?", &options).expect("an answer");
        found.remove("logits_first").expect("scores")
    };
    let one = logits(1);
    assert_eq!(logits(2), one);
    assert_eq!(logits(5), one);
}
