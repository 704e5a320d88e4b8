//! Conversion of GGUF files to the normal form of a Hugging Face checkpoint.
//!
//! [`Header`] checks a file as a whole. Its tensors are then renamed, reassembled where llama.cpp
//! split them, and described by a config as on the hub. Each kind of model has its own file here.

mod assembly;
pub(super) mod blocks;
mod element;
mod gemma3;
mod header;
mod idefics3;
mod lfm2_vl;
mod llava;
mod metadata;
mod parts;
mod qwen2_5_vl;
mod qwen2_vl;
mod qwen3_5;
mod qwen3_vl;
mod siglip;
mod text;
mod unsupported;
mod value;
mod vision;
mod vocabulary;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value as Json;

pub use element::Element;
pub use header::{Header, TensorEntry};
pub use value::{Numbers, Scalar, Value};

use super::error::{Result, SourceError, malformed};
use super::{Checkpoint, tokenizer_files};
use assembly::{Assembly, Tensors};
use parts::Part;
use vocabulary::Vocabulary;

/// Supported models, for messages.
const SUPPORTED: &str = "qwen2vl with the projector qwen2vl_merger or qwen2.5vl_merger, qwen3vl and \
                         qwen35 with qwen3vl_merger, llama with mlp or idefics3, gemma3 with gemma3, \
                         lfm2 with lfm2, and llama, qwen2, qwen3, phi3, gemma3 without one";

/// Configuration files of a model in the layout of the hub.
struct Configs {
    config: Json,
    preprocessor: Option<Json>,
    video_preprocessor: Option<Json>,
}

/// Returns `true` if a file starts like a GGUF file.
pub(super) fn is_gguf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"GGUF")
}

/// Opens a language model and, for a multimodal model, its vision tower. Each may be any part of a
/// split file.
pub(super) fn open(path: &Path, mmproj: Option<&Path>) -> Result<Checkpoint> {
    let parts = parts::open(path)?;
    let header = parts::header(&parts)?;
    let arch = architecture(&header)?;
    let mut vocabulary = Vocabulary::read(&header)?;
    let mut text = Assembly::new(&header, &parts);
    let mut tensors = Tensors::new();
    let mut files: Vec<_> = parts.iter().map(Part::source).collect();
    let configs = match mmproj {
        None => Configs {
            config: read_text(&mut text, arch, &vocabulary, &mut tensors)?,
            preprocessor: None,
            video_preprocessor: None,
        },
        Some(mmproj) => {
            let parts = parts::open(mmproj)?;
            files.extend(parts.iter().map(Part::source));
            let header = parts::header(&parts)?;
            let mut vision = Assembly::new(&header, &parts);
            let configs = read_multimodal(
                (&mut text, arch),
                &mut vision,
                &mut vocabulary,
                &mut tensors,
            )?;
            vision.finish("vision")?;
            configs
        }
    };
    text.finish(arch)?;
    let tokenizer = vocabulary.tokenizer()?;
    tokenizer_files::check(&tokenizer, &configs.config, &path.display().to_string())?;
    Ok(Checkpoint {
        config: configs.config,
        generation_config: Some(vocabulary.generation_config()?),
        preprocessor_config: configs.preprocessor,
        video_preprocessor_config: configs.video_preprocessor,
        tokenizer,
        chat_template: header.text("tokenizer.chat_template")?.map(str::to_owned),
        files,
        tensors,
        adapted: BTreeSet::new(),
    })
}

/// Returns `general.architecture` of a file that contains a complete language model.
fn architecture<'a>(header: &Header<'a>) -> Result<&'a str> {
    unsupported::check_type(header)?;
    let arch = header.need_text("general.architecture")?;
    if arch == "clip" || header.text("general.type")? == Some("mmproj") {
        return Err(malformed(
            &header.file,
            "a vision tower (an mmproj file)",
            "a language model; name the language model as the source and this file with --mmproj",
        ));
    }
    unsupported::check_text(header, arch)?;
    Ok(arch)
}

fn read_text(
    text: &mut Assembly<'_, '_>,
    arch: &str,
    vocabulary: &Vocabulary<'_>,
    tensors: &mut Tensors,
) -> Result<Json> {
    match arch {
        "llama" | "qwen2" | "qwen3" | "phi3" | "gemma3" => {
            text::read(text, arch, vocabulary, tensors)
        }
        "qwen2vl" | "qwen3vl" | "qwen35" | "lfm2" => Err(malformed(
            &text.header.file,
            format!("only the language model of a {arch} model"),
            "its vision tower as well; name its mmproj-*.gguf file with --mmproj",
        )),
        other => Err(not_supported(&text.header.file, "architecture", other)),
    }
}

fn read_multimodal(
    (text, arch): (&mut Assembly<'_, '_>, &str),
    vision: &mut Assembly<'_, '_>,
    vocabulary: &mut Vocabulary<'_>,
    tensors: &mut Tensors,
) -> Result<Configs> {
    let file = &vision.header.file;
    unsupported::check_type(vision.header)?;
    let kind = vision.header.need_text("general.architecture")?;
    if kind != "clip" {
        return Err(malformed(
            file,
            format!("architecture {kind}"),
            "a vision tower (architecture clip) in the --mmproj file",
        ));
    }
    let projector = projector(vision.header)?;
    unsupported::check_vision(vision.header, projector)?;
    match (arch, projector) {
        ("qwen2vl", "qwen2vl_merger") => qwen2_vl::read(text, vision, vocabulary, tensors),
        ("qwen2vl", "qwen2.5vl_merger") => qwen2_5_vl::read(text, vision, vocabulary, tensors),
        ("qwen3vl", "qwen3vl_merger") => qwen3_vl::read(text, vision, vocabulary, tensors),
        ("qwen35", "qwen3vl_merger") => qwen3_5::read(text, vision, vocabulary, tensors),
        ("llama", "mlp") => llava::read(text, vision, vocabulary, tensors),
        ("llama", "idefics3") => idefics3::read(text, vision, vocabulary, tensors),
        ("gemma3", "gemma3") => gemma3::read(text, vision, vocabulary, tensors),
        ("lfm2", "lfm2") => lfm2_vl::read(text, vision, vocabulary, tensors),
        ("qwen2vl" | "qwen3vl" | "qwen35" | "llama" | "gemma3" | "lfm2", projector) => {
            Err(not_supported(file, "projector", projector))
        }
        (arch, projector) => {
            let found = format!("{arch} with the projector {projector}");
            Err(not_supported(&text.header.file, "architecture", &found))
        }
    }
}

/// Returns the kind of projector, which the first LLaVA files do not state.
fn projector<'a>(header: &Header<'a>) -> Result<&'a str> {
    for key in ["clip.projector_type", "clip.vision.projector_type"] {
        if let Some(projector) = header.text(key)? {
            return Ok(projector);
        }
    }
    match header.flag("clip.has_llava_projector")? {
        Some(true) => Ok("mlp"),
        _ => Err(malformed(
            &header.file,
            "no clip.projector_type",
            "the kind of projector; convert the model again with a current llama.cpp",
        )),
    }
}

fn not_supported(file: &str, what: &str, found: &str) -> SourceError {
    SourceError::Unsupported {
        file: file.into(),
        what: what.into(),
        found: found.into(),
        supported: SUPPORTED.into(),
    }
}

/// Reads one number per color channel.
fn channel_values(header: &Header<'_>, key: &str) -> Result<Vec<f64>> {
    let values = header.numbers(key)?.unwrap_or_default();
    if values.len() == 3 {
        return Ok(values);
    }
    Err(malformed(
        &header.file,
        format!("{} values in {key}", values.len()),
        "one for each of the three color channels",
    ))
}
