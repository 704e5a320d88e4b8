//! Qwen2-VL (Wang et al. 2024, <https://arxiv.org/abs/2409.12191>): a vision transformer at the
//! picture's own resolution with 2-D rotary embeddings, a merger that makes one token of 2x2
//! patches, and a Qwen2 decoder whose rotary embeddings know time, height and width (M-RoPE).
//! The reference is `modeling_qwen2_vl.py` of `transformers`.
//!
//! ```text
//! edge-lmm-convert Qwen2-VL-2B-Instruct -o qwen2-vl-2b.bpk
//! edge-lmm run qwen2-vl-2b.bpk --image cat.jpg --prompt "What is this?"
//! ```

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use edge_lmm_ops::{Activation, Columns, Heads, KernelBackend, Mask, attention, probe, stage};
use serde::Deserialize;
use serde_json::Value;

use crate::decoder::{Decoder, DecoderConfig, DecoderNames, RotaryKind};
use crate::error::ModelError;
use crate::family::{FamilyInfo, ModelFiles};
use crate::layers::{LayerNorm, Linear};
use crate::model::{
    LanguageModel, MediaInput, MediaKind, MediaOptions, Model, Position, Prompt, Span,
};
use crate::preprocess::RgbImage;
use crate::preprocess::qwen2_vl::{Patches, PreprocessConfig};
use crate::prompt::{Message, TextProcessor};
use crate::rotary::{RotaryTable, inverse_frequencies};
use crate::weights::{Part, Scope, Weights};

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "qwen2_vl",
    title: "Qwen2-VL",
};

/// The template of the published checkpoints, for those that come without one.
const DEFAULT_TEMPLATE: &str = "{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}\
<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n\
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Base of the vision tower's rotary frequencies; the reference has it in its code.
const VISION_ROPE_THETA: f64 = 10_000.0;
/// Epsilon of the vision tower's norms; likewise.
const VISION_NORM_EPS: f64 = 1e-6;

#[derive(Debug, Clone, Deserialize)]
struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    #[serde(default = "default_context")]
    max_position_embeddings: usize,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    #[serde(default = "default_theta")]
    rope_theta: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    rope_scaling: RopeScaling,
    vision_config: VisionConfig,
    image_token_id: u32,
    video_token_id: u32,
}

fn default_context() -> usize {
    32_768
}

fn default_eps() -> f64 {
    1e-6
}

fn default_theta() -> f64 {
    1e6
}

#[derive(Debug, Clone, Deserialize)]
struct RopeScaling {
    mrope_section: Vec<usize>,
}

#[derive(Debug, Clone, Deserialize)]
struct VisionConfig {
    depth: usize,
    embed_dim: usize,
    hidden_size: usize,
    num_heads: usize,
    #[serde(default = "default_mlp_ratio")]
    mlp_ratio: f64,
    #[serde(default = "default_channels", alias = "in_chans")]
    in_channels: usize,
    #[serde(default = "default_patch")]
    patch_size: usize,
    #[serde(default = "default_two")]
    spatial_merge_size: usize,
    #[serde(default = "default_two")]
    temporal_patch_size: usize,
}

fn default_mlp_ratio() -> f64 {
    4.0
}

fn default_channels() -> usize {
    3
}

fn default_patch() -> usize {
    14
}

fn default_two() -> usize {
    2
}

impl Config {
    fn parse(config: &Value) -> Result<Self, ModelError> {
        // Newer files keep the language model's fields in a section of their own.
        let mut flat = config.clone();
        if let (Some(Value::Object(text)), Value::Object(flat)) =
            (config.get("text_config"), &mut flat)
        {
            for (key, value) in text {
                flat.insert(key.clone(), value.clone());
            }
        }
        let config: Self = serde_json::from_value(flat)
            .map_err(|error| ModelError::config(format!("config.json: {error}")))?;
        config.vision_config.check(config.hidden_size)?;
        Ok(config)
    }

    fn decoder(&self) -> Result<DecoderConfig, ModelError> {
        let sections: [usize; 3] =
            self.rope_scaling
                .mrope_section
                .clone()
                .try_into()
                .map_err(|found| {
                    ModelError::config(format!("mrope_section is {found:?}, expected three sizes"))
                })?;
        let heads = self.num_attention_heads;
        Ok(DecoderConfig {
            hidden_size: self.hidden_size,
            layers: self.num_hidden_layers,
            heads,
            kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim: self.head_dim.unwrap_or(self.hidden_size / heads.max(1)),
            intermediate_size: self.intermediate_size,
            vocabulary: self.vocab_size,
            rms_norm_eps: self.rms_norm_eps,
            rope_theta: self.rope_theta,
            rotary: RotaryKind::Sections(sections),
            qkv_bias: true,
            tied: self.tie_word_embeddings,
            context_length: self.max_position_embeddings,
        })
    }
}

impl VisionConfig {
    fn check(&self, text_width: usize) -> Result<(), ModelError> {
        let sizes = [
            ("depth", self.depth, 1 << 10),
            ("embed_dim", self.embed_dim, 1 << 16),
            ("num_heads", self.num_heads, 1 << 10),
            ("in_channels", self.in_channels, 1 << 6),
            ("patch_size", self.patch_size, 1 << 8),
            ("spatial_merge_size", self.spatial_merge_size, 1 << 4),
            ("temporal_patch_size", self.temporal_patch_size, 1 << 4),
        ];
        for (name, size, limit) in sizes {
            if size == 0 || size > limit {
                return Err(ModelError::config(format!(
                    "vision_config.{name} is {size}, expected 1 to {limit}"
                )));
            }
        }
        if !self.embed_dim.is_multiple_of(4 * self.num_heads) {
            return Err(ModelError::config(format!(
                "vision_config: width {} is not {} heads of a multiple of 4 elements, \
                 as two-dimensional rotary embeddings need",
                self.embed_dim, self.num_heads
            )));
        }
        if !(self.mlp_ratio > 0.0 && self.mlp_ratio <= 64.0) {
            return Err(ModelError::config(format!(
                "vision_config.mlp_ratio is {}, expected up to 64",
                self.mlp_ratio
            )));
        }
        if self.hidden_size != text_width {
            return Err(ModelError::config(format!(
                "the merger gives {} elements (vision_config.hidden_size), \
                 the language model takes {text_width} (hidden_size)",
                self.hidden_size
            )));
        }
        Ok(())
    }

    fn patch_width(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    fn mlp_width(&self) -> usize {
        // As Python's int(): towards zero.
        (self.embed_dim as f64 * self.mlp_ratio) as usize
    }

    fn heads(&self) -> Heads {
        Heads {
            heads: self.num_heads,
            kv_heads: self.num_heads,
            head_dim: self.embed_dim / self.num_heads,
        }
    }
}

/// The model.
#[derive(Module, Debug)]
pub struct Qwen2Vl<B: KernelBackend> {
    vision: VisionTransformer<B>,
    projector: Merger<B>,
    text: Decoder<B>,
    #[module(skip)]
    preprocess: PreprocessConfig,
    #[module(skip)]
    tokens: MediaTokens,
}

#[derive(Debug, Clone, Copy)]
struct MediaTokens {
    image: u32,
    video: u32,
    merge: usize,
}

impl<B: KernelBackend> Qwen2Vl<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If the configuration makes no model or a weight is missing.
    pub fn init(files: &ModelFiles, weights: &Weights<'_, B>) -> Result<Self, ModelError> {
        let config = Config::parse(&files.config)?;
        let vision = &config.vision_config;
        let preprocess = PreprocessConfig::parse(files.preprocessor.as_ref())?;
        if (
            preprocess.patch_size,
            preprocess.merge_size,
            preprocess.temporal_patch_size,
        ) != (
            vision.patch_size,
            vision.spatial_merge_size,
            vision.temporal_patch_size,
        ) {
            return Err(ModelError::config(format!(
                "preprocessor_config.json cuts patches of {} pixels, {} frames, merged by {}; \
                 the model was made for {}, {}, {}",
                preprocess.patch_size,
                preprocess.temporal_patch_size,
                preprocess.merge_size,
                vision.patch_size,
                vision.temporal_patch_size,
                vision.spatial_merge_size
            )));
        }
        let root = weights.root(Part::Vision);
        let names = DecoderNames {
            model: "model",
            head: "lm_head",
        };
        Ok(Self {
            vision: VisionTransformer::init(vision, &root.child("vision", "visual"))?,
            projector: Merger::init(
                vision,
                &root
                    .part(Part::Projector)
                    .child("projector", "visual.merger"),
            )?,
            text: Decoder::init(config.decoder()?, names, &root)?,
            preprocess,
            tokens: MediaTokens {
                image: config.image_token_id,
                video: config.video_token_id,
                merge: vision.spatial_merge_size,
            },
        })
    }

    fn medium(&self, kind: MediaKind, patches: Patches) -> MediaInput {
        let [t, h, w] = patches.grid;
        let count = t * h * w;
        MediaInput {
            kind,
            shape: vec![count, patches.pixel_values.len() / count.max(1)],
            values: patches.pixel_values,
            grid: patches.grid,
            tokens: count / (self.tokens.merge * self.tokens.merge),
        }
    }
}

impl<B: KernelBackend> Model<B> for Qwen2Vl<B> {
    fn language(&self) -> &dyn LanguageModel<B> {
        &self.text
    }

    fn image(&self, image: &RgbImage, options: &MediaOptions) -> Result<MediaInput, ModelError> {
        let config = self.preprocess.with_tokens(options.image_tokens);
        Ok(self.medium(MediaKind::Image, config.image(image)?))
    }

    fn video(
        &self,
        frames: &[RgbImage],
        _frames_per_second: f32,
        options: &MediaOptions,
    ) -> Result<MediaInput, ModelError> {
        let config = self.preprocess.with_tokens(options.image_tokens);
        Ok(self.medium(MediaKind::Video, config.video(frames)?))
    }

    fn prompt(
        &self,
        text: &TextProcessor,
        messages: &[Message],
        media: &[MediaInput],
    ) -> Result<Prompt, ModelError> {
        let placeholder = |kind| {
            let pad = match kind {
                MediaKind::Video => "video_pad",
                _ => "image_pad",
            };
            format!("<|vision_start|><|{pad}|><|vision_end|>")
        };
        let rendered = text.render(messages, DEFAULT_TEMPLATE, placeholder)?;
        let ids = text.encode(&rendered)?;
        let is_pad = |id: u32| id == self.tokens.image || id == self.tokens.video;
        let (ids, spans) = expand_placeholders(&ids, is_pad, media)?;
        let positions = multimodal_positions(ids.len(), &spans, media, self.tokens.merge);
        Ok(Prompt {
            ids,
            spans,
            positions,
        })
    }

    fn encode(&self, medium: &MediaInput) -> Tensor<B, 2> {
        let device = self.text.embed(&[0]).device();
        let features = {
            let _stage = stage::top("vision");
            let _scope = stage::scope(format_args!("vision"));
            let shape = [medium.shape[0], medium.shape[1]];
            let pixels = Tensor::from_data(TensorData::new(medium.values.clone(), shape), &device);
            self.vision.forward(pixels, medium.grid)
        };
        probe::capture("vision_out", &features);
        let _stage = stage::top("projector");
        let out = self.projector.forward(features);
        probe::capture("projector_out", &out);
        out
    }
}

/// Replaces every single placeholder of a tokenized prompt by as many as its medium has tokens.
pub(crate) fn expand_placeholders(
    ids: &[u32],
    is_placeholder: impl Fn(u32) -> bool,
    media: &[MediaInput],
) -> Result<(Vec<u32>, Vec<Span>), ModelError> {
    let found = ids.iter().filter(|&&id| is_placeholder(id)).count();
    if found != media.len() {
        return Err(ModelError::Prompt(format!(
            "found {found} places for pictures and videos, expected {}; \
             does the question itself contain placeholder tokens?",
            media.len()
        )));
    }
    let (mut expanded, mut spans) = (Vec::with_capacity(ids.len()), Vec::new());
    for &id in ids {
        if is_placeholder(id) {
            let medium = spans.len();
            spans.push(Span {
                start: expanded.len(),
                len: media[medium].tokens,
                medium,
            });
            expanded.extend(std::iter::repeat_n(id, media[medium].tokens));
        } else {
            expanded.push(id);
        }
    }
    Ok((expanded, spans))
}

/// M-RoPE positions (Wang et al. 2024, section 2.1; `get_rope_index` of the reference): text
/// counts on all axes alike; a medium's tokens get the text's next position plus their place in
/// time, height and width; text goes on after the largest position so far.
pub(crate) fn multimodal_positions(
    len: usize,
    spans: &[Span],
    media: &[MediaInput],
    merge: usize,
) -> Vec<Position> {
    let mut positions: Vec<Position> = Vec::with_capacity(len);
    let mut next = 0;
    let text = |positions: &mut Vec<Position>, next: &mut u32, until: usize| {
        while positions.len() < until {
            positions.push([*next; 3]);
            *next += 1;
        }
    };
    for span in spans {
        text(&mut positions, &mut next, span.start);
        let [t, h, w] = media[span.medium].grid.map(|n| n as u32);
        let (h, w) = (h / merge as u32, w / merge as u32);
        for i in 0..t {
            for j in 0..h {
                positions.extend((0..w).map(|k| [next + i, next + j, next + k]));
            }
        }
        next += t.max(h).max(w);
    }
    text(&mut positions, &mut next, len);
    positions
}

#[derive(Module, Debug)]
struct VisionTransformer<B: KernelBackend> {
    patch_embed: Linear<B>,
    blocks: Vec<VisionBlock<B>>,
    #[module(skip)]
    heads: Heads,
    #[module(skip)]
    merge: usize,
}

impl<B: KernelBackend> VisionTransformer<B> {
    fn init(config: &VisionConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let patch_embed = scope.linear(
            "patch_embed",
            &[("patch_embed.proj", config.embed_dim)],
            config.patch_width(),
            false,
        )?;
        let blocks = (0..config.depth)
            .map(|i| {
                let path = format!("blocks.{i}");
                VisionBlock::init(config, &scope.child(&path, &path))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            patch_embed,
            blocks,
            heads: config.heads(),
            merge: config.spatial_merge_size,
        })
    }

    /// # Shapes
    /// - pixels: `[patches, channels * frames * height * width]` in merge order,
    ///   output: `[patches, embed_dim]`
    fn forward(&self, pixels: Tensor<B, 2>, grid: [usize; 3]) -> Tensor<B, 2> {
        let table = self.rotary_table(grid, &pixels.device());
        // Every temporal slice attends to itself alone.
        let slice = grid[1] * grid[2];
        let segments: Vec<usize> = (0..=grid[0]).map(|t| t * slice).collect();
        let mut x = {
            let _stage = stage::module("patch_embed");
            self.patch_embed.forward(pixels)
        };
        probe::capture("patch_embed", &x);
        for (i, block) in self.blocks.iter().enumerate() {
            let _block = stage::scope(format_args!("blocks.{i}"));
            x = block.forward(x, &table, &segments, self.heads);
        }
        x
    }

    /// Half of the angles count rows, half columns; patches come in merge groups.
    fn rotary_table(&self, grid: [usize; 3], device: &B::Device) -> RotaryTable<B> {
        let half = self.heads.head_dim / 2;
        let frequencies = inverse_frequencies(VISION_ROPE_THETA, half);
        let places = patch_places(grid, self.merge);
        let angle = |token: usize, i: usize| {
            let (row, column) = places[token];
            match i.checked_sub(frequencies.len()) {
                None => row as f32 * frequencies[i],
                Some(i) => column as f32 * frequencies[i],
            }
        };
        RotaryTable::new(places.len(), half, 1.0, angle, device)
    }
}

/// Row and column of every patch, in the order in which they come: merge groups in raster order,
/// patches of a group in raster order, the same again for every temporal slice.
fn patch_places(grid: [usize; 3], merge: usize) -> Vec<(usize, usize)> {
    let [t, h, w] = grid;
    let mut places = Vec::with_capacity(t * h * w);
    for _ in 0..t {
        for (row, column) in (0..h / merge).flat_map(|r| (0..w / merge).map(move |c| (r, c))) {
            places.extend(
                (0..merge)
                    .flat_map(|i| (0..merge).map(move |j| (row * merge + i, column * merge + j))),
            );
        }
    }
    places
}

#[derive(Module, Debug)]
struct VisionBlock<B: KernelBackend> {
    attention_norm: LayerNorm<B>,
    qkv: Linear<B>,
    out: Linear<B>,
    mlp_norm: LayerNorm<B>,
    up: Linear<B>,
    down: Linear<B>,
}

impl<B: KernelBackend> VisionBlock<B> {
    fn init(config: &VisionConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let (width, mlp) = (config.embed_dim, config.mlp_width());
        Ok(Self {
            attention_norm: scope.layer_norm("attention_norm", "norm1", width, VISION_NORM_EPS),
            qkv: scope.linear("qkv", &[("attn.qkv", 3 * width)], width, true)?,
            out: scope.linear("out", &[("attn.proj", width)], width, true)?,
            mlp_norm: scope.layer_norm("mlp_norm", "norm2", width, VISION_NORM_EPS),
            up: scope.linear("up", &[("mlp.fc1", mlp)], width, true)?,
            down: scope.linear("down", &[("mlp.fc2", width)], mlp, true)?,
        })
    }

    fn forward(
        &self,
        x: Tensor<B, 2>,
        table: &RotaryTable<B>,
        segments: &[usize],
        heads: Heads,
    ) -> Tensor<B, 2> {
        let x = {
            let _stage = stage::module("attention");
            let width = heads.heads * heads.head_dim;
            let qkv = self.qkv.forward(self.attention_norm.forward(x.clone()));
            let qkv = table.rotate(qkv, 0, 2 * heads.heads, heads.head_dim);
            let [k, v] = [1, 2].map(|i| Columns {
                tensor: qkv.clone(),
                column: i * width,
            });
            let scale = (heads.head_dim as f32).powf(-0.5);
            let attended = attention(qkv, k, v, heads, Mask::Segments(segments), None, scale);
            self.out.forward_residual(attended, x)
        };
        let _stage = stage::module("mlp");
        let up = self
            .up
            .forward_activated(self.mlp_norm.forward(x.clone()), Activation::QuickGelu);
        self.down.forward_residual(up, x)
    }
}

/// One token of `merge x merge` patches.
#[derive(Module, Debug)]
struct Merger<B: KernelBackend> {
    norm: LayerNorm<B>,
    up: Linear<B>,
    down: Linear<B>,
    #[module(skip)]
    group: usize,
}

impl<B: KernelBackend> Merger<B> {
    fn init(config: &VisionConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let group = config.spatial_merge_size * config.spatial_merge_size;
        let width = config.embed_dim * group;
        Ok(Self {
            norm: scope.layer_norm("norm", "ln_q", config.embed_dim, VISION_NORM_EPS),
            up: scope.linear("up", &[("mlp.0", width)], width, true)?,
            down: scope.linear("down", &[("mlp.2", config.hidden_size)], width, true)?,
            group,
        })
    }

    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let [patches, width] = x.dims();
        let x = self
            .norm
            .forward(x)
            .reshape([patches / self.group, width * self.group]);
        self.down
            .forward(self.up.forward_activated(x, Activation::Gelu))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn medium(grid: [usize; 3]) -> MediaInput {
        MediaInput {
            kind: MediaKind::Image,
            values: Vec::new(),
            shape: vec![0, 0],
            grid,
            tokens: grid.iter().product::<usize>() / 4,
        }
    }

    #[test]
    fn patches_come_in_merge_groups() {
        let places = patch_places([1, 2, 4], 2);
        assert_eq!(
            places,
            [
                (0, 0),
                (0, 1),
                (1, 0),
                (1, 1),
                (0, 2),
                (0, 3),
                (1, 2),
                (1, 3)
            ]
        );
    }

    /// Worked by hand from the paper's figure: text 0 1, a 2x3 picture from 2 on, text from 5.
    #[test]
    fn text_goes_on_after_the_largest_position() {
        let media = [medium([1, 4, 6])];
        let ids = [7, 7, 9, 8];
        let (ids, spans) = expand_placeholders(&ids, |id| id == 9, &media).unwrap();
        assert_eq!(ids, [7, 7, 9, 9, 9, 9, 9, 9, 8]);
        let positions = multimodal_positions(ids.len(), &spans, &media, 2);
        assert_eq!(positions[1], [1, 1, 1]);
        assert_eq!(positions[2], [2, 2, 2]);
        assert_eq!(positions[4], [2, 2, 4]);
        assert_eq!(positions[7], [2, 3, 4]);
        assert_eq!(positions[8], [5, 5, 5]);
    }

    #[test]
    fn every_medium_needs_its_place() {
        let media = [medium([1, 2, 2])];
        let error = expand_placeholders(&[1, 2], |id| id == 9, &media).unwrap_err();
        assert!(error.to_string().contains("found 0 places"), "{error}");
    }
}
