//! Configurations of the processors that prepare media for a model.
//!
//! In `transformers` 4 each is a file: `preprocessor_config.json` for images or audio and, since
//! 4.52, `video_preprocessor_config.json` for videos. Version 5 keeps them as sections of
//! `processor_config.json`, which take precedence where both exist, as in the reference
//! (`get_image_processor_dict`, `get_video_processor_dict`, `get_feature_extractor_dict`).

use std::path::Path;

use serde_json::Value;

use super::error::{Result, SourceError, malformed};
use super::file::SourceFile;
use super::json::read_json;

/// Names of the section for images or audio.
const MAIN_SECTIONS: [&str; 3] = ["image_processor", "feature_extractor", "audio_processor"];

/// Keys of `config.json` that describe an encoder.
const ENCODERS: [&str; 3] = ["vision_config", "audio_config", "img_processor"];

/// The processor configurations of a checkpoint.
#[derive(Debug)]
pub(super) struct Processors {
    /// For images or audio.
    pub(super) main: Option<Value>,
    /// For videos, if different.
    pub(super) video: Option<Value>,
}

impl Processors {
    /// Reads the configurations of a checkpoint whose `config.json` is `config`.
    ///
    /// # Errors
    /// If the model has an encoder without a configuration. The defaults of the reference's classes
    /// differ from those of the published checkpoints.
    pub(super) fn read(
        directory: &Path,
        config: &Value,
        files: &mut Vec<SourceFile>,
    ) -> Result<Self> {
        let path = directory.join("processor_config.json");
        let sections = read_json(&path, files)?.unwrap_or_default();
        let section = |name: &str| match sections.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(section @ Value::Object(_)) => Ok(Some(section.clone())),
            Some(other) => Err(malformed(
                path.display().to_string(),
                format!("{name}: {other}"),
                "an object with the configuration of a processor",
            )),
        };
        // A model that sees and hears has several; their members differ.
        let mut main_section: Option<Value> = None;
        for name in MAIN_SECTIONS {
            main_section = joined(main_section, section(name)?);
        }
        let main_path = directory.join("preprocessor_config.json");
        let main_file = read_json(&main_path, files)?;
        let video_file = read_json(&directory.join("video_preprocessor_config.json"), files)?;
        // Older checkpoints use the image configuration for videos.
        let fallback = main_file.clone().filter(|_| main_section.is_some());
        let video = section("video_processor")?.or(video_file).or(fallback);
        let main = main_section.or(main_file);
        let has_encoder = ENCODERS
            .iter()
            .any(|name| config.get(name).is_some_and(|encoder| !encoder.is_null()));
        if main.is_none() && has_encoder {
            return Err(SourceError::MissingFile {
                path: main_path,
                needed_for: "neither it nor processor_config.json says how images or audio are \
                             prepared; download the whole checkpoint"
                    .into(),
            });
        }
        main.iter().for_each(warn_about_images);
        video.iter().for_each(warn_about_videos);
        Ok(Self { main, video })
    }
}

/// Adds the members of `second` that `first` does not have.
fn joined(first: Option<Value>, second: Option<Value>) -> Option<Value> {
    let (Some(Value::Object(mut members)), Some(Value::Object(more))) = (first.clone(), &second)
    else {
        return first.or(second);
    };
    for (key, value) in more {
        members.entry(key).or_insert_with(|| value.clone());
    }
    Some(Value::Object(members))
}

/// Warns about image settings that have no effect.
fn warn_about_images(processor: &Value) {
    let class = processor.get("image_processor_type");
    let class = class.and_then(Value::as_str).unwrap_or_default();
    if processor.get("do_convert_rgb") == Some(&Value::Bool(false)) {
        log::warn!("do_convert_rgb is false; ignoring it, images are always converted to RGB");
    }
    if is_on(processor, "do_pad") && !class.starts_with("LlavaImageProcessor") {
        log::warn!("do_pad is ignored; only LlavaImageProcessor pads images to a square");
    }
}

/// Warns about video settings that have no effect.
fn warn_about_videos(processor: &Value) {
    if is_on(processor, "do_sample_frames") {
        log::warn!(
            "do_sample_frames (fps, num_frames) of the video processor is ignored; \
             choose the number of frames when you run the model"
        );
    }
}

fn is_on(processor: &Value, step: &str) -> bool {
    processor.get(step) == Some(&Value::Bool(true))
}
