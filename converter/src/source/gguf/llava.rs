//! LLaVA-1.5: architecture `llama` with a CLIP tower and the projector `mlp`.
//!
//! Names and layout of the result: `llava-hf/llava-1.5-7b-hf` on the hub.

use serde_json::{Value as Json, json};

use super::super::error::{Result, SourceError, malformed};
use super::Configs;
use super::assembly::{Assembly, Tensors};
use super::header::Header;
use super::siglip;
use super::text::{self, Kind, Names, TextModel};
use super::vision::{self, VisionTower};
use super::vocabulary::Vocabulary;

const TOWER: &str = "vision_tower.vision_model";
/// Color channels.
const CHANNELS: usize = 3;

/// Reads tensors, config and preprocessor config.
pub(super) fn read(
    text: &mut Assembly<'_, '_>,
    vision: &mut Assembly<'_, '_>,
    vocabulary: &mut Vocabulary<'_>,
    out: &mut Tensors,
) -> Result<Configs> {
    let mut model = TextModel::read(text, "llama", Kind::Llama)?;
    // The original checkpoints have no such token; the checkpoint on the hub adds it in the same
    // way.
    let image_token = vocabulary.need_or_add("<image>");
    if vocabulary.placeholder.is_some() {
        model.make_room(image_token, vocabulary.unknown().unwrap_or(0));
    }
    model.tensors(text, Names::NESTED, out)?;
    let tower = VisionTower::read(vision)?;
    let image = vision.header.need_size("clip.vision.image_size")?;
    let positions = (image / tower.patch).saturating_pow(2);
    embedding_tensors(vision, &tower, positions, out)?;
    for layer in 0..tower.layers {
        siglip::block_tensors(vision, &tower, (TOWER, layer), out)?;
    }
    projector_tensors(vision, (tower.width, model.hidden), out)?;
    let mut text_config = model.config(vocabulary);
    text_config.insert("architectures".into(), json!(["LlamaForCausalLM"]));
    text_config.insert("model_type".into(), json!("llama"));
    if let Some(scaling) = text::rope_scaling(text.header, "llama")? {
        text_config.insert("rope_scaling".into(), scaling);
    }
    let mut config = json!({
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": image_token,
        "image_seq_length": positions,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": text_config["tie_word_embeddings"],
        "text_config": text_config,
        "vision_config": vision_config(vision.header, &tower, image)?,
        "vision_feature_layer": feature_layer(vision.header, tower.layers)?,
        "vision_feature_select_strategy": "default",
    });
    if let Some(id) = vocabulary.padding {
        config["pad_token_id"] = json!(id);
    }
    Ok(Configs {
        config,
        preprocessor: Some(preprocessor_config(vision.header, image)?),
        video_preprocessor: None,
    })
}

fn embedding_tensors(
    vision: &mut Assembly<'_, '_>,
    tower: &VisionTower,
    positions: usize,
    out: &mut Tensors,
) -> Result<()> {
    let (width, patch) = (tower.width, tower.patch);
    let to = |rest: &str| format!("{TOWER}.embeddings.{rest}");
    vision.whole(out, (to("class_embedding"), "v.class_embd"), &[width])?;
    vision.whole(
        out,
        (to("patch_embedding.weight"), "v.patch_embd.weight"),
        &[width, CHANNELS, patch, patch],
    )?;
    vision.whole(
        out,
        (to("position_embedding.weight"), "v.position_embd.weight"),
        &[positions.saturating_add(1), width],
    )?;
    // The typo is part of the published name.
    tower.norm(vision, (&format!("{TOWER}.pre_layrnorm"), "v.pre_ln"), out)?;
    // LLaVA takes its features before this norm, so converters drop it.
    if vision.has("v.post_ln.weight") {
        let to = format!("{TOWER}.post_layernorm");
        tower.norm(vision, (&to, "v.post_ln"), out)?;
    }
    Ok(())
}

fn projector_tensors(
    vision: &mut Assembly<'_, '_>,
    (width, hidden): (usize, usize),
    out: &mut Tensors,
) -> Result<()> {
    for (to, from, inputs) in [("linear_1", "mm.0", width), ("linear_2", "mm.2", hidden)] {
        for (part, shape) in [("weight", &[hidden, inputs][..]), ("bias", &[hidden])] {
            let to = format!("multi_modal_projector.{to}.{part}");
            vision.whole(out, (to, &format!("{from}.{part}")), shape)?;
        }
    }
    Ok(())
}

fn vision_config(header: &Header<'_>, tower: &VisionTower, image: usize) -> Result<Json> {
    let mut config = json!({
        "hidden_size": tower.width,
        "image_size": image,
        "intermediate_size": tower.feed_forward,
        "model_type": "clip_vision_model",
        "num_attention_heads": tower.heads,
        "num_hidden_layers": tower.layers,
        "patch_size": tower.patch,
        "hidden_act": vision::activation(header)?,
        "layer_norm_eps": header.need_number("clip.vision.attention.layer_norm_epsilon")?,
    });
    if let Some(dim) = header.size("clip.vision.projection_dim")? {
        config["projection_dim"] = json!(dim);
    }
    Ok(config)
}

/// Returns the layer whose output is used, counted from the end. LLaVA uses the second-to-last
/// layer and converters drop the last, so it is the last layer of the file unless the metadata says
/// otherwise.
///
/// llama.cpp drops one more layer (<https://github.com/ggml-org/llama.cpp/issues/25817>), so its
/// answers differ.
fn feature_layer(header: &Header<'_>, layers: usize) -> Result<i64> {
    const KEY: &str = "clip.vision.feature_layer";
    let last = layers as i64;
    match header.integers(KEY)?.as_deref() {
        None | Some([]) => Ok(-1),
        Some(&[layer]) if (1..=last).contains(&layer) => Ok(layer - last - 1),
        Some([layer]) => Err(malformed(
            &header.file,
            format!("{KEY} {layer}"),
            format!("a layer from 1 to {last}"),
        )),
        Some(several) => Err(SourceError::Unsupported {
            file: header.file.clone(),
            what: KEY.into(),
            found: format!("{several:?}"),
            supported: "a single layer".into(),
        }),
    }
}

/// Returns the preprocessor config of the hub's checkpoint; images are padded if the file says so.
fn preprocessor_config(header: &Header<'_>, image: usize) -> Result<Json> {
    const ASPECT_RATIO: &str = "clip.vision.image_aspect_ratio";
    let pads = match header.text(ASPECT_RATIO)? {
        None | Some("square") => false,
        Some("pad") => true,
        Some(other) => {
            return Err(SourceError::Unsupported {
                file: header.file.clone(),
                what: ASPECT_RATIO.into(),
                found: other.into(),
                supported: "square, pad".into(),
            });
        }
    };
    let mut config = json!({
        "crop_size": {"height": image, "width": image},
        "do_center_crop": true,
        "do_convert_rgb": true,
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": super::channel_values(header, "clip.vision.image_mean")?,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": super::channel_values(header, "clip.vision.image_std")?,
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 1.0 / 255.0,
        "size": {"shortest_edge": image},
    });
    if pads {
        config["do_pad"] = json!(true);
        config["image_processor_type"] = json!("LlavaImageProcessor");
    }
    Ok(config)
}
