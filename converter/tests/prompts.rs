//! Message content never changes how a prompt is built, in any family; and the effects of
//! `generation_config.json`.

mod common;

use std::fs;
use std::path::Path;

use common::manifest::Manifest;
use common::{F32, ask, data, engine, sound};
use edge_lmm::sampler::Sampling;
use edge_lmm::{Cpu, Media, Request, Session, media};
use edge_lmm_models::prompt::{Message, Role};
use edge_lmm_ops::probe;
use serde_json::{Value, json};

/// The prompt's ids.
fn prompt(engine: &mut Session<Cpu>, messages: &[Message], media: &[Media]) -> Vec<u32> {
    engine.forget();
    probe::start();
    let answer = engine.answer(&request(messages, media, 1), |_| {
        std::ops::ControlFlow::Continue(())
    });
    let found = probe::finish();
    answer.unwrap_or_else(|error| panic!("{messages:?}: {error}"));
    found["input_ids"]
        .values
        .iter()
        .map(|&id| id as u32)
        .collect()
}

fn request<'a>(messages: &'a [Message], media: &'a [Media], max_tokens: usize) -> Request<'a> {
    Request {
        media,
        options: Default::default(),
        max_tokens,
        ignore_eos: true,
        sampling: Default::default(),
        ..Request::new(messages)
    }
}

/// Returns ids and texts of the added tokens.
fn added_tokens(checkpoint: &Path) -> Vec<(u32, String)> {
    let text = fs::read_to_string(checkpoint.join("tokenizer.json")).expect("a tokenizer");
    let json: Value = serde_json::from_str(&text).expect("JSON");
    let added = json["added_tokens"].as_array().expect("added tokens");
    let token = |token: &Value| {
        let id = token["id"].as_u64().expect("an id") as u32;
        (id, token["content"].as_str().expect("a text").to_owned())
    };
    added.iter().map(token).collect()
}

/// Compares prompts that contain attacks with an ordinary question, in user, system and assistant
/// turns.
fn check(name: &str, media: &[Media], extra: &[&str]) {
    let checkpoint = data().join(name);
    let added = added_tokens(&checkpoint);
    let mut engine = engine(&checkpoint, None, &F32);
    let mut control = |messages: &[Message]| -> Vec<u32> {
        let ids = prompt(&mut engine, messages, media).into_iter();
        // Some tokenizers use `<unk>` for unknown characters, and have added tokens for line breaks.
        let is_text = |text: &str| text == "<unk>" || text.trim().is_empty();
        let is_control = |id: &u32| added.iter().any(|(own, text)| own == id && !is_text(text));
        ids.filter(is_control).collect()
    };
    let conversation = |system: &str, question: &str, answer: &str| {
        let mut messages = vec![Message::text(Role::System, system)];
        messages.extend(ask(media, question));
        messages.push(Message::text(Role::Assistant, answer));
        messages.push(Message::text(Role::User, question));
        messages
    };
    let alone = control(&ask(media, "word"));
    let in_turns = control(&conversation("word", "word", "word"));
    let all: String = added.iter().map(|(_, text)| text.as_str()).collect();
    let mut attacks = vec![
        all,
        "what is the 'type' of {\"type\": \"text\"}?".to_owned(),
        "[{'type': 'image'}, {'type': 'text', 'text': 'x'}]".to_owned(),
        "{{ messages }} {% raw %} {# #}".to_owned(),
        "\u{F0000}\u{10FFFD}1\u{10FFFD}".to_owned(),
        "\n \n".to_owned(),
    ];
    attacks.extend(extra.iter().map(|&text| text.to_owned()));
    for attack in &attacks {
        assert_eq!(control(&ask(media, attack)), alone, "{name}: {attack:?}");
    }
    for attack in [&attacks[0], &attacks[1]] {
        let messages = conversation(attack, attack, attack);
        assert_eq!(control(&messages), in_turns, "{name}: {attack:?} in turns");
    }
}

fn image() -> Media {
    let path = data().join("questions/images/color_000.png");
    Media::image(media::load_image(&path).expect("an image"))
}

/// A medium of the kind that the checkpoint takes.
fn medium(manifest: &Manifest) -> Option<Media> {
    let has = |stage: &str| manifest.stages.iter().any(|own| own == stage);
    match () {
        () if has("pixel_values") => Some(image()),
        () if has("projector_out") => Some(sound(&data().join("questions/audio/audio_000.wav"))),
        () => None,
    }
}

#[test]
fn messages_do_not_change_how_prompts_are_built() {
    for manifest in Manifest::all() {
        let Some(spellings) = &manifest.spellings else {
            continue;
        };
        let spellings: Vec<&str> = spellings.iter().map(String::as_str).collect();
        let media: Vec<Media> = medium(&manifest).into_iter().collect();
        check(&manifest.weights, &media, &spellings);
    }
}

/// Quoting a word changes no other token of the prompt.
#[test]
fn quoted_words_stay_in_the_prompt() {
    for (name, media) in [("llava-tiny", vec![]), ("qwen2vl-tiny", vec![image()])] {
        let mut engine = engine(&data().join(name), None, &F32);
        let quoted = prompt(&mut engine, &ask(&media, "is it 'type' here"), &media);
        let other = prompt(&mut engine, &ask(&media, "is it 'tipe' here"), &media);
        let shared = quoted
            .iter()
            .zip(&other)
            .take_while(|(a, b)| a == b)
            .count();
        assert!(
            shared + 30 > other.len(),
            "{name}: {shared} of {}",
            other.len()
        );
        assert!(quoted.len().abs_diff(other.len()) <= 4, "{name}");
    }
}

#[test]
fn control_tokens_take_effect_if_asked_for() {
    let mut engine = engine(&data().join("qwen2vl-tiny"), None, &F32);
    let messages = ask(&[], "<|image_pad|>");
    assert!(
        engine
            .answer(&request(&messages, &[], 1), |_| {
                std::ops::ControlFlow::Continue(())
            })
            .is_ok()
    );
    let special = Request {
        parse_special: true,
        ..request(&messages, &[], 1)
    };
    let error = engine.answer(&special, |_| std::ops::ControlFlow::Continue(()));
    let error = error
        .expect_err("a placeholder without an image")
        .to_string();
    assert!(error.contains("found 1 placeholder tokens"), "{error}");
}

/// Expected tokens of transformers 4.57.6 in f32 with this penalty.
#[test]
fn the_repetition_penalty_of_the_checkpoint_is_applied() {
    let folder = tempfile::tempdir().expect("a folder");
    for file in fs::read_dir(data().join("qwen2vl-tiny")).expect("a checkpoint") {
        let file = file.expect("a file").path();
        if file.is_file() {
            let name = file.file_name().expect("a name");
            fs::copy(&file, folder.path().join(name)).expect("a copy");
        }
    }
    let path = folder.path().join("generation_config.json");
    let text = fs::read_to_string(&path).expect("generation_config.json");
    let mut generation: Value = serde_json::from_str(&text).expect("JSON");
    generation["repetition_penalty"] = json!(4.0);
    fs::write(&path, generation.to_string()).expect("a file");
    let mut penalized = engine(folder.path(), None, &F32);
    let mut plain = engine(&data().join("qwen2vl-tiny"), None, &F32);
    let messages = [Message::text(Role::User, "hello")];
    let tokens = |engine: &mut Session<Cpu>, sampling: Sampling| {
        let request = Request {
            ignore_eos: false,
            sampling,
            ..request(&messages, &[], 12)
        };
        engine
            .answer(&request, |_| std::ops::ControlFlow::Continue(()))
            .expect("an answer")
            .tokens
    };
    let expected = [344, 279, 324, 316, 313, 356, 320, 289, 327, 325, 321, 326];
    assert_eq!(tokens(&mut penalized, Sampling::default()), expected);
    let ignored = Sampling {
        ignore_generation_config: true,
        ..Default::default()
    };
    let usual = tokens(&mut plain, Sampling::default());
    assert_eq!(tokens(&mut penalized, ignored), usual);
    let asked = Sampling {
        repetition_penalty: Some(4.0),
        ..Default::default()
    };
    assert_eq!(tokens(&mut plain, asked), expected);
}
