//! SmolVLM, SmolVLM2 and Idefics3: architecture `llama` with the projector `idefics3`.
//!
//! Names and layout of the result: `HuggingFaceTB/SmolVLM2-500M-Video-Instruct` on the hub. The files
//! do not say which of these models they hold; only SmolVLM2 is trained on videos.

use serde_json::json;

use super::super::error::Result;
use super::Configs;
use super::assembly::{Assembly, Tensors};
use super::siglip::Siglip;
use super::text::{self, Kind, Names, TextModel};
use super::vocabulary::Vocabulary;

const TEXT_NAMES: Names = Names {
    model: "model.text_model",
    head: "lm_head",
};

/// Reads tensors, config and preprocessor config.
pub(super) fn read(
    text: &mut Assembly<'_, '_>,
    vision: &mut Assembly<'_, '_>,
    vocabulary: &Vocabulary<'_>,
    out: &mut Tensors,
) -> Result<Configs> {
    let model = TextModel::read(text, "llama", Kind::Llama)?;
    model.tensors(text, TEXT_NAMES, out)?;
    let siglip = Siglip::read(vision)?;
    siglip.tensors(vision, "model.vision_model", out)?;
    const CONNECTOR: &str = "mm.model.fc.weight";
    let merge = siglip.tower.merge_size(vision, CONNECTOR)?;
    let inputs = siglip.tower.width * merge * merge;
    let connector = "model.connector.modality_projection.proj.weight".to_owned();
    vision.whole(out, (connector, CONNECTOR), &[model.hidden, inputs])?;
    let mut text_config = model.config(vocabulary);
    text_config.insert("model_type".into(), json!("llama"));
    if let Some(scaling) = text::rope_scaling(text.header, "llama")? {
        text_config.insert("rope_scaling".into(), scaling);
    }
    let config = json!({
        "architectures": ["SmolVLMForConditionalGeneration"],
        "model_type": "smolvlm",
        "image_token_id": vocabulary.need("<image>")?,
        "scale_factor": merge,
        "tie_word_embeddings": text_config["tie_word_embeddings"],
        "text_config": text_config,
        "vision_config": siglip.config("smolvlm_vision"),
    });
    let header = vision.header;
    let mut preprocessor = json!({
        "image_processor_type": "SmolVLMImageProcessor",
        "processor_class": "SmolVLMProcessor",
        "image_mean": super::channel_values(header, "clip.vision.image_mean")?,
        "image_std": super::channel_values(header, "clip.vision.image_std")?,
        "do_image_splitting": true,
        "max_image_size": {"longest_edge": siglip.image},
        "resample": 1,
    });
    // The first files do not say it; the default is that of the published models.
    if let Some(longest) = header.size("clip.vision.preproc_image_size")? {
        preprocessor["size"] = json!({"longest_edge": longest});
    }
    Ok(Configs {
        config,
        preprocessor: Some(preprocessor),
        video_preprocessor: None,
    })
}
