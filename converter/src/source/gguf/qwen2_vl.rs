//! Qwen2-VL: architecture `qwen2vl` with the projector `qwen2vl_merger`.
//!
//! Names and layout of the result: `Qwen/Qwen2-VL-2B-Instruct` on the hub.

use serde_json::{Map as Object, Value as Json, json};

use super::super::error::{Result, malformed};
use super::Configs;
use super::assembly::{Assembly, Tensors};
use super::header::Header;
use super::text::{Kind, Names, TextModel, rope_scaling};
use super::vision::{self, VisionTower};
use super::vocabulary::Vocabulary;

/// Frames per patch embedding, stored as one convolution each.
pub(super) const FRAMES: usize = 2;
/// Color channels.
pub(super) const CHANNELS: usize = 3;

/// Reads tensors, config and preprocessor config.
pub(super) fn read(
    text: &mut Assembly<'_, '_>,
    vision: &mut Assembly<'_, '_>,
    vocabulary: &Vocabulary<'_>,
    out: &mut Tensors,
) -> Result<Configs> {
    let model = TextModel::read(text, "qwen2vl", Kind::Qwen2)?;
    model.tensors(text, Names::TOP, out)?;
    let tower = VisionTower::read(vision)?;
    let merge = tower.merge_size(vision, "mm.0.weight")?;
    tower_tensors(vision, &tower, out)?;
    tower.norm(vision, ("visual.merger.ln_q", "v.post_ln"), out)?;
    merger_tensors(vision, &tower, (merge, model.hidden), out)?;
    let kind = ("Qwen2VLForConditionalGeneration", "qwen2_vl");
    let mut config = text_config(kind, text.header, vocabulary, &model)?;
    let mut vision_config = vision_config(&tower, merge, model.hidden);
    // The config on the hub omits properties that all of these models share.
    let activation = vision::activation(vision.header)?;
    if activation != "quick_gelu" {
        vision_config["hidden_act"] = json!(activation);
    }
    config.insert("vision_config".into(), vision_config);
    let processor = "Qwen2VLProcessor";
    let preprocessor = preprocessor_config(vision.header, &tower, merge, processor)?;
    Ok(Configs {
        config: config.into(),
        preprocessor: Some(preprocessor),
        video_preprocessor: None,
    })
}

/// Returns the config without that of the tower, for a class and model type.
pub(super) fn text_config(
    (class, model_type): (&str, &str),
    header: &Header<'_>,
    vocabulary: &Vocabulary<'_>,
    model: &TextModel,
) -> Result<Object<String, Json>> {
    let mut config = Object::new();
    config.insert("architectures".into(), json!([class]));
    config.insert("model_type".into(), json!(model_type));
    for (key, token) in [
        ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"),
        ("vision_token_id", "<|vision_pad|>"),
        ("image_token_id", "<|image_pad|>"),
        ("video_token_id", "<|video_pad|>"),
    ] {
        config.insert(key.into(), json!(vocabulary.need(token)?));
    }
    config.append(&mut model.config(vocabulary));
    config.insert("rope_scaling".into(), rope_sections(header, "qwen2vl")?);
    Ok(config)
}

/// Adds the embedding of patches of several frames.
pub(super) fn patch_embedding(
    vision: &mut Assembly<'_, '_>,
    tower: &VisionTower,
    out: &mut Tensors,
) -> Result<()> {
    let frames = [
        "v.patch_embd.weight".to_owned(),
        "v.patch_embd.weight.1".to_owned(),
    ];
    vision.over_time(
        out,
        ("visual.patch_embed.proj.weight".into(), &frames),
        [tower.width, CHANNELS, tower.patch, tower.patch],
    )
}

fn tower_tensors(
    vision: &mut Assembly<'_, '_>,
    tower: &VisionTower,
    out: &mut Tensors,
) -> Result<()> {
    let width = tower.width;
    patch_embedding(vision, tower, out)?;
    for layer in 0..tower.layers {
        let to = |rest: &str| format!("visual.blocks.{layer}.{rest}");
        let block = format!("visual.blocks.{layer}");
        fused_attention(vision, tower, (&block, layer), out)?;
        let output = to("attn.proj");
        tower.linear(vision, layer, (&output, "attn_out"), [width, width], out)?;
        let mlp = (&*to("mlp.fc1"), &*to("mlp.fc2"));
        tower.feed_forward(vision, layer, mlp, out)?;
        for norm in ["1", "2"] {
            let from = format!("v.blk.{layer}.ln{norm}");
            tower.norm(vision, (&to(&format!("norm{norm}")), &from), out)?;
        }
    }
    Ok(())
}

/// Adds query, key and value of a block as one projection; they are stored separately or, by newer
/// converters, fused.
pub(super) fn fused_attention(
    vision: &mut Assembly<'_, '_>,
    tower: &VisionTower,
    (block, layer): (&str, usize),
    out: &mut Tensors,
) -> Result<()> {
    let width = tower.width;
    for (part, shape) in [("weight", vec![width, width]), ("bias", vec![width])] {
        let to = format!("{block}.attn.qkv.{part}");
        let fused = format!("v.blk.{layer}.attn_qkv.{part}");
        if vision.has(&fused) {
            let mut shape = shape;
            shape[0] *= 3;
            vision.whole(out, (to, &fused), &shape)?;
        } else {
            let parts = ["q", "k", "v"].map(|letter| format!("v.blk.{layer}.attn_{letter}.{part}"));
            vision.stacked(out, (to, &parts), &shape)?;
        }
    }
    Ok(())
}

/// Adds the two linear layers that make a token of a square of patches.
pub(super) fn merger_tensors(
    vision: &mut Assembly<'_, '_>,
    tower: &VisionTower,
    (merge, hidden): (usize, usize),
    out: &mut Tensors,
) -> Result<()> {
    let inner = tower.width * merge * merge;
    for (number, outputs) in [("0", inner), ("2", hidden)] {
        for (part, shape) in [("weight", &[outputs, inner][..]), ("bias", &[outputs])] {
            let to = format!("visual.merger.mlp.{number}.{part}");
            vision.whole(out, (to, &format!("mm.{number}.{part}")), shape)?;
        }
    }
    Ok(())
}

fn vision_config(tower: &VisionTower, merge: usize, hidden: usize) -> Json {
    let ratio = if tower.feed_forward.is_multiple_of(tower.width) {
        json!(tower.feed_forward / tower.width)
    } else {
        json!(tower.feed_forward as f64 / tower.width as f64)
    };
    json!({
        "depth": tower.layers,
        "embed_dim": tower.width,
        "mlp_ratio": ratio,
        "num_heads": tower.heads,
        "in_chans": CHANNELS,
        "hidden_size": hidden,
        "patch_size": tower.patch,
        "spatial_merge_size": merge,
        "spatial_patch_size": tower.patch,
        "temporal_patch_size": FRAMES,
    })
}

/// Returns the three sections of M-RoPE with the scaling of positions. GGUF stores four numbers,
/// the last of which is 0.
pub(super) fn rope_sections(header: &Header<'_>, arch: &str) -> Result<Json> {
    let key = format!("{arch}.rope.dimension_sections");
    match header.integers(&key)?.as_deref() {
        Some(&[t, h, w] | &[t, h, w, 0]) if t >= 0 && h >= 0 && w >= 0 => {
            let scaling = rope_scaling(header, arch)?;
            let mut scaling = scaling.unwrap_or_else(|| json!({"type": "mrope"}));
            scaling["mrope_section"] = json!([t, h, w]);
            Ok(scaling)
        }
        other => Err(malformed(
            &header.file,
            format!("{key} {other:?}"),
            "the sizes of the three sections of M-RoPE, and a 0",
        )),
    }
}

/// Returns the preprocessor config of the hub's checkpoint. If the file has no pixel limits, the
/// hub's apply: 4 and 16384 visual tokens.
pub(super) fn preprocessor_config(
    header: &Header<'_>,
    tower: &VisionTower,
    merge: usize,
    processor: &str,
) -> Result<Json> {
    let token = (tower.patch * merge).saturating_pow(2);
    let pixels = |key: &str, tokens: usize| -> Result<usize> {
        Ok(header.size(key)?.unwrap_or(token.saturating_mul(tokens)))
    };
    Ok(json!({
        "min_pixels": pixels("clip.vision.image_min_pixels", 4)?,
        "max_pixels": pixels("clip.vision.image_max_pixels", 16_384)?,
        "patch_size": tower.patch,
        "temporal_patch_size": FRAMES,
        "merge_size": merge,
        "image_mean": super::channel_values(header, "clip.vision.image_mean")?,
        "image_std": super::channel_values(header, "clip.vision.image_std")?,
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": processor,
    }))
}
