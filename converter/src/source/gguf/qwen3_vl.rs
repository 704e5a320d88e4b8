//! Qwen3-VL: architecture `qwen3vl` with the projector `qwen3vl_merger`.
//!
//! Names and layout of the result: `Qwen/Qwen3-VL-2B-Instruct` on the hub. Qwen3.5 has the same tower
//! without features for deeper layers.

use serde_json::{Value as Json, json};

use super::super::error::{Result, malformed};
use super::Configs;
use super::assembly::{Assembly, Tensors};
use super::header::Header;
use super::qwen2_vl::{CHANNELS, FRAMES, fused_attention, rope_sections};
use super::text::{Kind, Names, TextModel};
use super::vision::VisionTower;
use super::vocabulary::Vocabulary;

const TEXT_NAMES: Names = Names {
    model: "model.language_model",
    head: "lm_head",
};

/// Smallest and largest number of pixels of an image and of all frames of a video in the hub's
/// checkpoints.
const PIXELS: [(usize, usize); 2] = [(65_536, 16_777_216), (4096, 25_165_824)];

/// Reads tensors, config and preprocessor configs.
pub(super) fn read(
    text: &mut Assembly<'_, '_>,
    vision: &mut Assembly<'_, '_>,
    vocabulary: &Vocabulary<'_>,
    out: &mut Tensors,
) -> Result<Configs> {
    let model = TextModel::read(text, "qwen3vl", Kind::Qwen3)?;
    model.tensors(text, TEXT_NAMES, out)?;
    let inner = inner_blocks(text.header, vision.header)?;
    let tower = read_tower(vision, ("qwen3_vl", model.hidden), &inner, out)?;
    let mut text_config = model.config(vocabulary);
    text_config.insert("model_type".into(), json!("qwen3_vl_text"));
    let rope = rope_sections(text.header, "qwen3vl")?;
    text_config.insert("rope_scaling".into(), rope);
    let names = ("Qwen3VLForConditionalGeneration", "qwen3_vl");
    tower.configs(names, vocabulary, text_config.into())
}

/// Configurations of a tower and of the processors of its inputs.
pub(super) struct TowerConfigs {
    vision: Json,
    preprocessor: Json,
    video_preprocessor: Json,
}

impl TowerConfigs {
    /// Returns the configurations of the model with a class and a model type.
    pub(super) fn configs(
        self,
        (class, model_type): (&str, &str),
        vocabulary: &Vocabulary<'_>,
        text: Json,
    ) -> Result<Configs> {
        let config = json!({
            "architectures": [class],
            "model_type": model_type,
            "vision_start_token_id": vocabulary.need("<|vision_start|>")?,
            "vision_end_token_id": vocabulary.need("<|vision_end|>")?,
            "image_token_id": vocabulary.need("<|image_pad|>")?,
            "video_token_id": vocabulary.need("<|video_pad|>")?,
            "tie_word_embeddings": text["tie_word_embeddings"],
            "text_config": text,
            "vision_config": self.vision,
        });
        Ok(Configs {
            config,
            preprocessor: Some(self.preprocessor),
            video_preprocessor: Some(self.video_preprocessor),
        })
    }
}

/// Reads the tower of a model with a model type and a width. The features of the blocks `inner` go
/// into the first layers of the language model.
pub(super) fn read_tower(
    vision: &mut Assembly<'_, '_>,
    (model_type, hidden): (&str, usize),
    inner: &[usize],
    out: &mut Tensors,
) -> Result<TowerConfigs> {
    let tower = VisionTower::read(vision)?;
    let merge = tower.merge_size(vision, "mm.0.weight")?;
    tower_tensors(vision, &tower, out)?;
    let sizes = [tower.width, merge, hidden];
    let merger = ("model.visual.merger", ["v.post_ln", "mm.0", "mm.2"]);
    merger_tensors(vision, merger, sizes, false, out)?;
    for (number, block) in inner.iter().enumerate() {
        let to = format!("model.visual.deepstack_merger_list.{number}");
        let from = ["norm", "fc1", "fc2"].map(|name| format!("v.deepstack.{block}.{name}"));
        let from = from.each_ref().map(String::as_str);
        merger_tensors(vision, (&to, from), sizes, true, out)?;
    }
    let header = vision.header;
    let [image, video] = PIXELS;
    let given = |key: &str, default| Ok(header.size(key)?.unwrap_or(default));
    let image = (
        given("clip.vision.image_min_pixels", image.0)?,
        given("clip.vision.image_max_pixels", image.1)?,
    );
    Ok(TowerConfigs {
        vision: json!({
            "model_type": model_type,
            "depth": tower.layers,
            "hidden_size": tower.width,
            "out_hidden_size": hidden,
            "intermediate_size": tower.feed_forward,
            "num_heads": tower.heads,
            "in_channels": CHANNELS,
            "patch_size": tower.patch,
            "spatial_merge_size": merge,
            "temporal_patch_size": FRAMES,
            "num_position_embeddings": vision.shape("v.position_embd.weight")?.first(),
            "deepstack_visual_indexes": inner,
        }),
        preprocessor: preprocessor(header, &tower, merge, image)?,
        video_preprocessor: preprocessor(header, &tower, merge, video)?,
    })
}

/// Returns the inner blocks whose features go into the first layers of the language model.
fn inner_blocks(text: &Header<'_>, vision: &Header<'_>) -> Result<Vec<usize>> {
    const COUNT: &str = "qwen3vl.n_deepstack_layers";
    let inner = vision.true_indices("clip.vision.is_deepstack_layers")?;
    let inner = inner.unwrap_or_default();
    match text.size(COUNT)? {
        Some(count) if count != inner.len() => Err(malformed(
            &vision.file,
            format!("features of {} inner blocks", inner.len()),
            format!("{count}, as {COUNT} of {} says", text.file),
        )),
        _ => Ok(inner),
    }
}

fn tower_tensors(
    vision: &mut Assembly<'_, '_>,
    tower: &VisionTower,
    out: &mut Tensors,
) -> Result<()> {
    let (width, patch) = (tower.width, tower.patch);
    let top = |rest: &str| format!("model.visual.{rest}");
    let frames = ["v.patch_embd.weight", "v.patch_embd.weight.1"].map(str::to_owned);
    let patches = (top("patch_embed.proj.weight"), &frames[..]);
    vision.over_time(out, patches, [width, CHANNELS, patch, patch])?;
    let bias = (top("patch_embed.proj.bias"), "v.patch_embd.bias");
    vision.whole(out, bias, &[width])?;
    let positions = vision.shape("v.position_embd.weight")?.to_vec();
    let names = (top("pos_embed.weight"), "v.position_embd.weight");
    let rows = positions.first().copied().unwrap_or(0);
    vision.whole(out, names, &[rows, width])?;
    for layer in 0..tower.layers {
        let block = top(&format!("blocks.{layer}"));
        fused_attention(vision, tower, (&block, layer), out)?;
        let names = (&*format!("{block}.attn.proj"), "attn_out");
        tower.linear(vision, layer, names, [width, width], out)?;
        let mlp = ["linear_fc1", "linear_fc2"].map(|name| format!("{block}.mlp.{name}"));
        tower.feed_forward(vision, layer, (&mlp[0], &mlp[1]), out)?;
        for norm in ["1", "2"] {
            let from = format!("v.blk.{layer}.ln{norm}");
            tower.norm(vision, (&format!("{block}.norm{norm}"), &from), out)?;
        }
    }
    Ok(())
}

/// Adds the norm and the two linear layers of a merger. `joined` is `true` if the norm is that of the
/// joined patches.
fn merger_tensors(
    vision: &mut Assembly<'_, '_>,
    (to, [norm, first, second]): (&str, [&str; 3]),
    [width, merge, hidden]: [usize; 3],
    joined: bool,
    out: &mut Tensors,
) -> Result<()> {
    let inner = width * merge * merge;
    let normed = if joined { inner } else { width };
    for part in ["weight", "bias"] {
        let matrix = |outputs| match part {
            "weight" => vec![outputs, inner],
            _ => vec![outputs],
        };
        for (name, from, shape) in [
            ("norm", norm, vec![normed]),
            ("linear_fc1", first, matrix(inner)),
            ("linear_fc2", second, matrix(hidden)),
        ] {
            let names = (format!("{to}.{name}.{part}"), &*format!("{from}.{part}"));
            vision.whole(out, names, &shape)?;
        }
    }
    Ok(())
}

fn preprocessor(
    header: &Header<'_>,
    tower: &VisionTower,
    merge: usize,
    (shortest, longest): (usize, usize),
) -> Result<Json> {
    Ok(json!({
        "size": {"shortest_edge": shortest, "longest_edge": longest},
        "patch_size": tower.patch,
        "temporal_patch_size": FRAMES,
        "merge_size": merge,
        "image_mean": super::channel_values(header, "clip.vision.image_mean")?,
        "image_std": super::channel_values(header, "clip.vision.image_std")?,
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
    }))
}
