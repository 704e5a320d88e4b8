//! Qwen2.5-VL: architecture `qwen2vl` with the projector `qwen2.5vl_merger`.
//!
//! Names and layout of the result: `Qwen/Qwen2.5-VL-3B-Instruct` on the hub.

use serde_json::{Value as Json, json};

use super::super::error::{Result, SourceError, malformed};
use super::Configs;
use super::assembly::{Assembly, Tensors};
use super::header::Header;
use super::qwen2_vl::{
    CHANNELS, FRAMES, fused_attention, merger_tensors, patch_embedding, preprocessor_config,
    text_config,
};
use super::text::{Kind, Names, TextModel};
use super::vision::{self, VisionTower};
use super::vocabulary::Vocabulary;

/// Side of the windows of attention in pixels, if the file does not say it.
const WINDOW: usize = 112;
/// Time steps per second of a video in the published checkpoints; files do not say it.
const STEPS_PER_SECOND: usize = 2;

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
    let norm = ("visual.merger.ln_q.weight".to_owned(), "v.post_ln.weight");
    vision.whole(out, norm, &[tower.width])?;
    merger_tensors(vision, &tower, (merge, model.hidden), out)?;
    let kind = ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl");
    let mut config = text_config(kind, text.header, vocabulary, &model)?;
    let vision_config = vision_config(vision.header, &tower, (merge, model.hidden))?;
    config.insert("vision_config".into(), vision_config);
    let processor = "Qwen2_5_VLProcessor";
    let preprocessor = preprocessor_config(vision.header, &tower, merge, processor)?;
    Ok(Configs {
        config: config.into(),
        preprocessor: Some(preprocessor),
        video_preprocessor: None,
    })
}

fn tower_tensors(
    vision: &mut Assembly<'_, '_>,
    tower: &VisionTower,
    out: &mut Tensors,
) -> Result<()> {
    let width = tower.width;
    patch_embedding(vision, tower, out)?;
    for layer in 0..tower.layers {
        let block = format!("visual.blocks.{layer}");
        let to = |rest: &str| format!("{block}.{rest}");
        fused_attention(vision, tower, (&block, layer), out)?;
        tower.linear(
            vision,
            layer,
            (&to("attn.proj"), "attn_out"),
            [width; 2],
            out,
        )?;
        let gate = to("mlp.gate_proj");
        let sizes = [tower.feed_forward, width];
        tower.linear(vision, layer, (&gate, "ffn_gate"), sizes, out)?;
        let mlp = (&*to("mlp.up_proj"), &*to("mlp.down_proj"));
        tower.feed_forward(vision, layer, mlp, out)?;
        for norm in ["1", "2"] {
            let from = format!("v.blk.{layer}.ln{norm}.weight");
            let to = to(&format!("norm{norm}.weight"));
            vision.whole(out, (to, &from), &[width])?;
        }
    }
    Ok(())
}

fn vision_config(
    header: &Header<'_>,
    tower: &VisionTower,
    (merge, hidden): (usize, usize),
) -> Result<Json> {
    let activation = vision::activation(header)?;
    if activation != "silu" {
        return Err(SourceError::Unsupported {
            file: header.file.clone(),
            what: "the activation of the vision tower".into(),
            found: activation.into(),
            supported: "silu".into(),
        });
    }
    Ok(json!({
        "depth": tower.layers,
        "hidden_act": activation,
        "hidden_size": tower.width,
        "intermediate_size": tower.feed_forward,
        "num_heads": tower.heads,
        "in_chans": CHANNELS,
        "out_hidden_size": hidden,
        "patch_size": tower.patch,
        "spatial_merge_size": merge,
        "spatial_patch_size": tower.patch,
        "temporal_patch_size": FRAMES,
        "window_size": header.size("clip.vision.window_size")?.unwrap_or(WINDOW),
        "fullatt_block_indexes": full_attention(header, tower.layers)?,
        "tokens_per_second": STEPS_PER_SECOND,
    }))
}

/// Returns the blocks without windows: the last of every `n_wa_pattern` ones.
fn full_attention(header: &Header<'_>, layers: usize) -> Result<Vec<usize>> {
    const KEY: &str = "clip.vision.n_wa_pattern";
    let period = header.need_size(KEY)?;
    if period > layers {
        return Err(malformed(
            &header.file,
            format!("{KEY} {period} for {layers} blocks"),
            "at least one block without windows",
        ));
    }
    Ok((0..layers)
        .filter(|layer| (layer + 1) % period == 0)
        .collect())
}
