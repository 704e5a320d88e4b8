//! Gemma 3 with images: architecture `gemma3` with the projector `gemma3`.
//!
//! Names and layout of the result: `google/gemma-3-4b-it` on the hub.

use serde_json::json;

use super::super::error::Result;
use super::Configs;
use super::assembly::{Assembly, Tensors};
use super::siglip::Siglip;
use super::text::{self, Kind, Names, TextModel};
use super::vocabulary::Vocabulary;

/// Patches per side of a square that becomes one token, if the file does not say it.
const MERGE: usize = 4;

/// Reads tensors, config and preprocessor config.
pub(super) fn read(
    text: &mut Assembly<'_, '_>,
    vision: &mut Assembly<'_, '_>,
    vocabulary: &Vocabulary<'_>,
    out: &mut Tensors,
) -> Result<Configs> {
    let model = TextModel::read(text, "gemma3", Kind::Gemma3)?;
    model.tensors(text, Names::NESTED, out)?;
    let siglip = Siglip::read(vision)?;
    siglip.tensors(vision, "vision_tower.vision_model", out)?;
    let (width, projector) = (siglip.tower.width, "multi_modal_projector");
    let norm = format!("{projector}.mm_soft_emb_norm.weight");
    vision.shifted(out, (norm, "mm.soft_emb_norm.weight"), width, -1.0)?;
    let linear = format!("{projector}.mm_input_projection_weight");
    let names = (linear, "mm.input_projection.weight");
    vision.whole(out, names, &[width, model.hidden])?;
    let mut text_config = model.config(vocabulary);
    text_config.insert("model_type".into(), json!("gemma3_text"));
    text::gemma3_fields(text.header, &model, &mut text_config)?;
    if let Some(scaling) = text::rope_scaling(text.header, "gemma3")? {
        text_config.insert("rope_scaling".into(), scaling);
    }
    let header = vision.header;
    let merge = header.size("clip.vision.projector.scale_factor")?;
    let tokens = (siglip.side() / merge.unwrap_or(MERGE).max(1)).saturating_pow(2);
    let config = json!({
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "boi_token_index": vocabulary.need("<start_of_image>")?,
        "eoi_token_index": vocabulary.need("<end_of_image>")?,
        "image_token_index": vocabulary.need("<image_soft_token>")?,
        "bos_token_id": text_config.get("bos_token_id"),
        "eos_token_id": text_config.get("eos_token_id"),
        "mm_tokens_per_image": tokens,
        "text_config": text_config,
        "vision_config": siglip.config("siglip_vision_model"),
    });
    let preprocessor = json!({
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "image_mean": super::channel_values(header, "clip.vision.image_mean")?,
        "image_std": super::channel_values(header, "clip.vision.image_std")?,
        "resample": 2,
        "size": {"height": siglip.image, "width": siglip.image},
    });
    Ok(Configs {
        config,
        preprocessor: Some(preprocessor),
        video_preprocessor: None,
    })
}
