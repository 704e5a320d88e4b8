//! Conversion of test checkpoints and golden values.

#![allow(dead_code)] // every test file uses its own part

pub mod check;
pub mod damage;
pub mod manifest;
pub mod samples;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edge_lmm::{Cpu, Engine, Media, Record, Session, media};
use edge_lmm_convert::source::Checkpoint;
use edge_lmm_convert::{ConvertError, Options, Plan, write_record};
use edge_lmm_models::media::{FrameTimes, MediaKind};
use edge_lmm_models::preprocess::RgbImage;
use edge_lmm_models::prompt::{Content, Message, Role};
use edge_lmm_ops::{Format, KernelBackend};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

/// Returns the folder of test data.
pub fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/data")
}

/// Options that store all parts in f32.
pub const F32: Options = Options {
    text: Format::F32,
    vision: Format::F32,
    audio: Format::F32,
    head: None,
    weights: BTreeMap::new(),
};

/// A record in its own temporary folder.
pub struct Converted {
    _folder: TempDir,
    pub path: PathBuf,
}

/// Converts a checkpoint.
pub fn convert(
    source: &Path,
    mmproj: Option<&Path>,
    options: &Options,
) -> Result<Converted, ConvertError> {
    convert_checkpoint(Checkpoint::open(source, mmproj)?, options)
}

/// Converts an open checkpoint.
pub fn convert_checkpoint(
    checkpoint: Checkpoint,
    options: &Options,
) -> Result<Converted, ConvertError> {
    let plan = Plan::new(&checkpoint, options)?;
    write(&plan, checkpoint)
}

fn write(plan: &Plan, checkpoint: Checkpoint) -> Result<Converted, ConvertError> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.bpk");
    write_record(plan, Arc::new(checkpoint), &path, |_, _| {})?;
    Ok(Converted {
        _folder: folder,
        path,
    })
}

/// Converts and loads a checkpoint.
pub fn engine(source: &Path, mmproj: Option<&Path>, options: &Options) -> Session<Cpu> {
    engine_of(
        Checkpoint::open(source, mmproj).expect("a checkpoint"),
        options,
    )
}

/// Converts and loads an open checkpoint.
pub fn engine_of(checkpoint: Checkpoint, options: &Options) -> Session<Cpu> {
    engine_on(checkpoint, options)
}

/// Converts an open checkpoint and loads it on a device of any kind.
pub fn engine_on<B: KernelBackend>(checkpoint: Checkpoint, options: &Options) -> Session<B> {
    let plan = Plan::new(&checkpoint, options).expect("a plan");
    engine_from(&plan, checkpoint)
}

/// Writes the record of a plan and loads it.
pub fn engine_from<B: KernelBackend>(plan: &Plan, checkpoint: Checkpoint) -> Session<B> {
    let converted = write(plan, checkpoint).expect("the checkpoint converts");
    let record = Record::open(&converted.path).expect("the record opens");
    record.verify().expect("the record's checksums are right");
    let engine = Engine::load(&record, Default::default()).expect("the model loads");
    engine.session()
}

/// A sample of a golden set.
pub struct Golden {
    pub name: String,
    /// The conversation, if it is more than the media and the question.
    conversation: Vec<Message>,
    pub question: String,
    pub text: Option<String>,
    pub greedy: Vec<u32>,
    pub media: Vec<Media>,
    /// Crops are added to the image.
    pub pan_and_scan: bool,
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Golden {
    /// Returns the conversation that asks the question.
    pub fn messages(&self) -> Vec<Message> {
        match self.conversation.is_empty() {
            true => ask(&self.media, &self.question),
            false => self.conversation.clone(),
        }
    }
}

/// Reads `index.json` and the files it names.
pub fn goldens(folder: &Path) -> Vec<Golden> {
    let text = std::fs::read_to_string(folder.join("index.json")).expect("index.json");
    let index: Value = serde_json::from_str(&text).expect("index.json is JSON");
    let samples = index["samples"].as_array().expect("samples");
    samples
        .iter()
        .map(|sample| golden(folder, sample))
        .collect()
}

fn golden(folder: &Path, sample: &Value) -> Golden {
    let files: Vec<PathBuf> = sample["media"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|file| folder.join(file.as_str().expect("a file name")))
        .collect();
    let is_sound = |path: &PathBuf| path.extension().is_some_and(|name| name == "wav");
    let (sounds, images): (Vec<PathBuf>, Vec<PathBuf>) = files.into_iter().partition(is_sound);
    let load = |path: &PathBuf| media::load_image(path).expect("an image");
    let images: Vec<RgbImage> = images.iter().map(load).collect();
    let kind = sample["kind"].as_str();
    let is_video = match kind {
        Some(kind) => kind.starts_with("video"),
        None => images.len() > 1,
    };
    let mut media: Vec<Media> = match is_video {
        true => vec![video(images, &sample["video"])],
        false => images.into_iter().map(Media::image).collect(),
    };
    media.extend(sounds.iter().map(|path| match kind {
        Some("video+sound") => sound(path).as_sound_track(),
        _ => sound(path),
    }));
    let id = &sample["id"];
    Golden {
        name: format!("{} sample {id}", folder.display()),
        conversation: conversation(sample),
        question: sample["question"].as_str().expect("question").to_owned(),
        text: sample["text"].as_str().map(str::to_owned),
        greedy: sample["greedy16"]
            .as_array()
            .expect("greedy16")
            .iter()
            .map(|id| id.as_u64().expect("an id") as u32)
            .collect(),
        media,
        pan_and_scan: sample["kind"] == "pan_and_scan",
        tensors: read_tensors(&folder.join(format!("sample_{id}.safetensors"))),
    }
}

/// Returns the frames of a video that the reference used, at its rate; by default all, at 2 per second.
fn video(frames: Vec<RgbImage>, about: &Value) -> Media {
    let rate = about["fps"].as_f64().unwrap_or(2.0);
    let used: Vec<usize> = match about["frames_used"].as_array() {
        Some(used) => (used.iter())
            .map(|index| index.as_u64().expect("an index") as usize)
            .collect(),
        None => (0..frames.len()).collect(),
    };
    let seconds = used.iter().map(|&index| index as f64 / rate);
    let times = FrameTimes {
        frames_per_second: (rate * used.len() as f64 / frames.len() as f64) as f32,
        seconds: Some(seconds.collect()),
    };
    Media::video(
        used.iter().map(|&index| frames[index].clone()).collect(),
        times,
    )
}

/// Returns the messages of a sample; none if it has only a question.
fn conversation(sample: &Value) -> Vec<Message> {
    let content = |part: &Value| match part["type"].as_str() {
        Some("image") => Content::Media(MediaKind::Image),
        Some("video") => Content::Media(MediaKind::Video),
        _ => Content::Text(part["text"].as_str().expect("a text").to_owned()),
    };
    let message = |message: &Value| Message {
        role: match message["role"].as_str() {
            Some("system") => Role::System,
            Some("assistant") => Role::Assistant,
            _ => Role::User,
        },
        content: message["content"]
            .as_array()
            .into_iter()
            .flatten()
            .map(content)
            .collect(),
    };
    sample["messages"]
        .as_array()
        .into_iter()
        .flatten()
        .map(message)
        .collect()
}

/// Reads an audio file.
pub fn sound(path: &Path) -> Media {
    let audio = media::load_audio(path).expect("a sound");
    Media::audio(audio.samples, audio.sample_rate)
}

/// Reads a file of tensors.
pub fn read_tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(path).expect("golden tensors");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let words = view
                .data()
                .chunks_exact(4)
                .map(|w| [w[0], w[1], w[2], w[3]]);
            let values = match view.dtype() {
                Dtype::F32 => words.map(f32::from_le_bytes).collect(),
                Dtype::I32 => words.map(|w| i32::from_le_bytes(w) as f32).collect(),
                other => panic!("{name} has type {other:?}"),
            };
            (name, (view.shape().to_vec(), values))
        })
        .collect()
}

/// Builds a user turn with media and a question.
pub fn ask(media: &[Media], question: &str) -> Vec<Message> {
    let mut content: Vec<Content> = media.iter().map(Media::content).collect();
    content.push(Content::Text(question.to_owned()));
    vec![Message {
        role: Role::User,
        content,
    }]
}

/// Returns the norm of the difference over the norm of `expected`.
pub fn relative(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let (mut difference, mut norm) = (0f64, 0f64);
    for (&f, &e) in found.iter().zip(expected) {
        difference += f64::from(f - e).powi(2);
        norm += f64::from(e).powi(2);
    }
    (difference / norm.max(f64::MIN_POSITIVE)).sqrt()
}
