//! Checkpoints in the layouts of `transformers` 4.46 to 5 give the answers of the reference.
//!
//! `data/layouts` holds the test checkpoints as each version saves them; `save_layouts.py` in that
//! folder creates them. Phi-3.5-Vision has no class in `transformers`, so its layouts are generated
//! here.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use common::check::check_sample;
use common::manifest::Manifest;
use common::{F32, Golden, ask, convert, data, engine, goldens};
use edge_lmm::Request;
use edge_lmm::media::MediaData;
use edge_lmm_models::media::MediaOptions;
use edge_lmm_models::prompt::Message;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

fn layouts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/layouts")
}

fn copy(from: &Path, to: &Path, keep: impl Fn(&str) -> bool) {
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_str().expect("UTF-8");
        if path.is_file() && keep(name) {
            std::fs::copy(&path, to.join(name)).expect("a copy");
        }
    }
}

/// Assembles the weights of a checkpoint with the other files of `layout`. Uses the checkpoint's
/// own tokenizer.json if the layout has none: then they are equal.
fn assemble(checkpoint: &str, layout: &Path) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let own = ["model.safetensors", "tokenizer.json"];
    copy(&data().join(checkpoint), folder.path(), |name| {
        own.contains(&name)
    });
    copy(layout, folder.path(), |_| true);
    folder
}

/// Copies a checkpoint so that it can be modified.
fn copy_of(checkpoint: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&data().join(checkpoint), folder.path(), |_| true);
    folder
}

fn read(folder: &Path, name: &str) -> Value {
    let text = std::fs::read_to_string(folder.join(name)).expect(name);
    serde_json::from_str(&text).expect(name)
}

fn write(folder: &Path, name: &str, value: &Value) {
    std::fs::write(folder.join(name), value.to_string()).expect(name);
}

/// Checks the first sample and the first one with another kind of media.
fn check(checkpoint: &str, folder: &Path) {
    let manifest = Manifest::named(checkpoint);
    let mut goldens = manifest.goldens();
    for golden in &mut goldens {
        // The reference's spectrograms are padded.
        golden.tensors.retain(|key, _| !key.starts_with("mel_"));
    }
    let first = goldens[0].media.len();
    let other = goldens.iter().find(|golden| golden.media.len() != first);
    let mut engine = engine(folder, None, &F32);
    for golden in goldens.first().into_iter().chain(other) {
        check_sample(&mut engine, &manifest, golden, &MediaOptions::default());
    }
}

/// Checks every saved layout of every checkpoint; the manifest has their number.
#[test]
fn all_versions() {
    let versions: Vec<PathBuf> = std::fs::read_dir(layouts())
        .expect("layouts")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    for manifest in Manifest::of_the_hub() {
        let name = &manifest.name;
        let saved = versions.iter().map(|version| version.join(name));
        let saved: Vec<PathBuf> = saved.filter(|layout| layout.is_dir()).collect();
        assert_eq!(saved.len(), manifest.layouts, "{name}");
        for layout in saved {
            println!("{}", layout.display());
            check(name, assemble(name, &layout).path());
        }
    }
}

/// Applies the changes of version 5 to the files of Phi-3.5-Vision: sections of
/// `processor_config.json`, `dtype`, `rope_parameters`.
#[test]
fn phi3_vision() {
    for checkpoint in ["phi35v-tiny", "phi35v-odd"] {
        let folder = copy_of(checkpoint);
        let mut config = read(folder.path(), "config.json");
        let members = config.as_object_mut().expect("an object");
        let mut rope = members.remove("rope_scaling").expect("rope_scaling");
        rope["rope_type"] = rope["type"].take();
        rope["rope_theta"] = members.remove("rope_theta").expect("rope_theta");
        rope["original_max_position_embeddings"] =
            members["original_max_position_embeddings"].clone();
        members.insert("rope_parameters".into(), rope);
        let dtype = members.remove("torch_dtype").expect("torch_dtype");
        members.insert("dtype".into(), dtype);
        write(folder.path(), "config.json", &config);
        into_sections(folder.path(), "image_processor");
        check(checkpoint, folder.path());
    }
}

/// Moves `preprocessor_config.json` into a section of `processor_config.json`.
fn into_sections(folder: &Path, section: &str) {
    let file = folder.join("preprocessor_config.json");
    let processor = read(folder, "preprocessor_config.json");
    std::fs::remove_file(file).expect("the file goes");
    write(
        folder,
        "processor_config.json",
        &json!({ section: processor }),
    );
}

/// Trainers save parameters under their names in memory: those of `transformers` 5, and for Gemma 3
/// also those of 4.52 to 4.57.
#[test]
fn nested_names_of_weights() {
    let renamed: [(&str, &[(&str, &str)]); 6] = [
        (
            "qwen2vl-tiny",
            &[
                ("model.", "model.language_model."),
                ("visual.", "model.visual."),
            ],
        ),
        (
            "llava-tiny",
            &[
                ("language_model.model.", "model.language_model."),
                ("language_model.lm_head.", "lm_head."),
                ("vision_tower.vision_model.", "model.vision_tower."),
                ("multi_modal_projector.", "model.multi_modal_projector."),
            ],
        ),
        (
            "qwen2audio-tiny",
            &[
                ("language_model.model.", "model.language_model."),
                ("language_model.lm_head.", "lm_head."),
                ("audio_tower.", "model.audio_tower."),
                ("multi_modal_projector.", "model.multi_modal_projector."),
            ],
        ),
        (
            "gemma3-odd",
            &[
                ("language_model.model.", "model.language_model."),
                ("vision_tower.", "model.vision_tower."),
                ("multi_modal_projector.", "model.multi_modal_projector."),
            ],
        ),
        (
            "gemma3-odd",
            &[
                ("language_model.model.", "model.language_model."),
                ("vision_tower.vision_model.", "model.vision_tower."),
                ("multi_modal_projector.", "model.multi_modal_projector."),
            ],
        ),
        (
            "lfm2vl-odd",
            &[("model.vision_tower.vision_model.", "model.vision_tower.")],
        ),
    ];
    for (checkpoint, prefixes) in renamed {
        let folder = copy_of(checkpoint);
        let path = folder.path().join("model.safetensors");
        let bytes = std::fs::read(&path).expect("weights");
        let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
        let tensors = tensors.tensors().into_iter().map(|(name, tensor)| {
            let mut newer = prefixes.iter().filter_map(|(old, new)| {
                let rest = name.strip_prefix(old)?;
                Some(format!("{new}{rest}"))
            });
            (newer.next().unwrap_or(name), tensor)
        });
        safetensors::serialize_to_file(tensors, None, &path).expect("weights");
        check(checkpoint, folder.path());
    }
}

/// The configuration of the video processor applies only to videos. Frames of 112x112 pixels,
/// limited to 3136 pixels, are 4x4 patches; images keep their own limits.
#[test]
fn videos_have_limits_of_their_own() {
    let manifest = Manifest::named("qwen2vl-tiny");
    let goldens = manifest.goldens();
    let frames = |golden: &Golden| match golden.media.first()?.data() {
        MediaData::Video { frames, .. } => Some(frames.len()),
        _ => None,
    };
    let image = &goldens[0];
    let video = goldens.iter().find(|golden| frames(golden).is_some());
    let video = video.expect("a sample with a video");
    let limits = json!({"shortest_edge": 3136, "longest_edge": 3136});
    let spellings = [
        json!({"video_processor_type": "Qwen2VLVideoProcessor", "size": limits}),
        json!({"min_pixels": 3136, "max_pixels": 3136, "size": null}),
    ];
    for (i, processor) in spellings.iter().enumerate() {
        let folder = copy_of("qwen2vl-tiny");
        match i {
            0 => write(folder.path(), "video_preprocessor_config.json", processor),
            _ => write(
                folder.path(),
                "processor_config.json",
                &json!({"video_processor": processor, "image_processor": null}),
            ),
        }
        let mut engine = engine(folder.path(), None, &F32);
        engine.forget();
        let answer = engine.answer(&request(&ask(&video.media, &video.question), video), |_| {
            std::ops::ControlFlow::Continue(())
        });
        let tokens = answer.expect("an answer").visual_tokens;
        assert_eq!(
            Some(tokens),
            frames(video).map(|count| count.div_ceil(2) * 4)
        );
        check_sample(&mut engine, &manifest, image, &MediaOptions::default());
    }
}

/// Builds the request of a sample.
fn request<'a>(messages: &'a [Message], golden: &'a Golden) -> Request<'a> {
    Request {
        media: &golden.media,
        max_tokens: 16,
        ignore_eos: true,
        sampling: Default::default(),
        ..Request::new(messages)
    }
}

fn error(folder: &Path) -> String {
    match convert(folder, None, &F32) {
        Ok(_) => "no error".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// The defaults of the reference's classes differ from those of the published files.
#[test]
fn a_missing_processor_is_named() {
    for checkpoint in [
        "qwen2vl-tiny",
        "llava-tiny",
        "blip2-tiny",
        "qwen2audio-tiny",
        "phi35v-tiny",
    ] {
        let folder = copy_of(checkpoint);
        std::fs::remove_file(folder.path().join("preprocessor_config.json")).expect("the file");
        let error = error(folder.path());
        assert!(
            error.contains("preprocessor_config.json is missing"),
            "{error}"
        );
        let file = json!({"image_processor": 5});
        write(folder.path(), "processor_config.json", &file);
        let error = self::error(folder.path());
        assert!(error.contains("image_processor: 5"), "{error}");
    }
}

/// Files of 4.52 to 4.55 repeat top-level values in `text_config`, some as null.
#[test]
fn nulls_do_not_override_the_top_level() {
    let folder = copy_of("qwen2vl-tiny");
    let mut config = read(folder.path(), "config.json");
    let mut text = config.clone();
    for (key, member) in text.as_object_mut().expect("an object") {
        if [
            "image_token_id",
            "video_token_id",
            "rope_theta",
            "vocab_size",
        ]
        .contains(&key.as_str())
        {
            *member = Value::Null;
        }
    }
    config["text_config"] = text;
    config["vision_config"]["in_channels"] = Value::Null;
    write(folder.path(), "config.json", &config);
    check("qwen2vl-tiny", folder.path());
}

/// Sections keep only values that differ from the defaults of their class, so for a tiny model
/// without sizes the error must concern a weight and not a missing value.
#[test]
fn sizes_may_be_left_out() {
    let sections: [(&str, &str, &[&str]); 4] = [
        ("qwen2vl-tiny", "vision_config", &["hidden_size"]),
        ("qwen25vl-tiny", "vision_config", &["out_hidden_size"]),
        ("llava-tiny", "text_config", &["model_type"]),
        ("qwen2audio-tiny", "audio_config", &["max_source_positions"]),
    ];
    for (checkpoint, section, kept) in sections {
        let folder = copy_of(checkpoint);
        let mut config = read(folder.path(), "config.json");
        let members = config[section].as_object_mut().expect("a section");
        members.retain(|key, _| kept.contains(&key.as_str()));
        write(folder.path(), "config.json", &config);
        let error = error(folder.path());
        assert!(error.contains("has shape"), "{checkpoint}: {error}");
    }
}

/// RoPE parameters in the layout of version 5 give the same answers as in the older one, with
/// partial rotation, with and without LongRoPE.
#[test]
fn partial_rotation_in_both_layouts() {
    let golden = &goldens(&data().join("phi3-odd/goldens"))[0];
    let answer = |folder: &Path| {
        let mut engine = engine(folder, None, &F32);
        let messages = ask(&golden.media, &golden.question);
        let answer = engine.answer(&request(&messages, golden), |_| {
            std::ops::ControlFlow::Continue(())
        });
        answer.expect("an answer").tokens
    };
    let mut answers = HashMap::new();
    for long in [true, false] {
        let folder = copy_of("phi3-odd");
        let mut config = read(folder.path(), "config.json");
        if !long {
            config["rope_scaling"] = Value::Null;
        }
        write(folder.path(), "config.json", &config);
        let older = answer(folder.path());
        let mut rope = config["rope_scaling"].take();
        if rope.is_null() {
            rope = json!({"rope_type": "default"});
        }
        for key in ["rope_theta", "partial_rotary_factor"] {
            rope[key] = config[key].take();
        }
        config["rope_parameters"] = rope;
        write(folder.path(), "config.json", &config);
        assert_eq!(answer(folder.path()), older);
        answers.insert(long, older);
    }
    assert_eq!(answers[&true], golden.greedy);
    assert_ne!(answers[&false], golden.greedy);
}
