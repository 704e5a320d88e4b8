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
use edge_lmm_ops::{
    Activation, Columns, Heads, KernelBackend, Mask, encoder_attention, probe, stage,
};
use serde::Deserialize;
use serde_json::Value;

use crate::config_file::{flattened, parse_config};
use crate::encoders::merger::{Merger, MergerConfig};
use crate::encoders::patch_grid::{check_rotary, patch_places, rotary_table};
use crate::error::ModelError;
use crate::families::qwen_vl_input::{MediaTokens, PatchSize, QwenVlInput};
use crate::family::{FamilyInfo, ModelFiles};
use crate::language::LanguageModel;
use crate::layers::{LayerNorm, Linear};
use crate::layout::Layout;
use crate::media::{MediaInput, MediaOptions};
use crate::model::{Encoded, Model};
use crate::monitor::Monitor;
use crate::preprocess::RgbImage;
use crate::prompt::{Conversation, Prompt, TextProcessor};
use crate::text::config::{TextKind, decoder_config};
use crate::text::decoder::{Decoder, DecoderConfig, DecoderNames};
use crate::text::rotary::RotaryTable;
use crate::weights::{Part, Scope, Weights};

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "qwen2_vl",
    title: "Qwen2-VL",
    parts: &[
        ("vision_config", &["qwen2_vl", "qwen2_vl_vision"]),
        ("text_config", &["qwen2_vl_text", "qwen2_vl", "qwen2"]),
    ],
};

/// Epsilon of the vision tower's norms; the reference has it in its code.
const VISION_NORM_EPS: f64 = 1e-6;

#[derive(Debug, Clone)]
struct Config {
    text: DecoderConfig,
    vision: VisionConfig,
    tokens: MediaTokens,
}

#[derive(Debug, Clone, Deserialize)]
struct Sections {
    #[serde(default)]
    vision_config: VisionConfig,
    #[serde(flatten)]
    tokens: MediaTokens,
}

/// The vision tower's part of `config.json`; the defaults are those of the reference's
/// `Qwen2VLVisionConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct VisionConfig {
    depth: usize,
    embed_dim: usize,
    hidden_size: usize,
    hidden_act: String,
    num_heads: usize,
    mlp_ratio: f64,
    in_channels: usize,
    patch_size: usize,
    spatial_merge_size: usize,
    temporal_patch_size: usize,
    rope_parameters: Value,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            depth: 32,
            embed_dim: 1280,
            hidden_size: 3584,
            hidden_act: "quick_gelu".to_owned(),
            num_heads: 16,
            mlp_ratio: 4.0,
            in_channels: 3,
            patch_size: 14,
            spatial_merge_size: 2,
            temporal_patch_size: 2,
            rope_parameters: Value::Null,
        }
    }
}

impl Config {
    fn parse(config: &Value) -> Result<Self, ModelError> {
        let flat = flattened(config);
        let text = decoder_config(TextKind::QwenVl, &flat)?;
        let sections: Sections = parse_config(&flat)?;
        let vision = sections.vision_config;
        vision.check(text.hidden_size)?;
        Ok(Self {
            text,
            vision,
            tokens: sections.tokens,
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
        if self.hidden_act != "quick_gelu" {
            return Err(ModelError::config(format!(
                "vision_config.hidden_act is {:?}, expected \"quick_gelu\"",
                self.hidden_act
            )));
        }
        check_rotary(&self.rope_parameters)
    }

    fn patch_width(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    fn mlp_width(&self) -> usize {
        // As Python's int(): towards zero.
        (self.embed_dim as f64 * self.mlp_ratio) as usize
    }

    fn patch(&self) -> PatchSize {
        PatchSize {
            side: self.patch_size,
            frames: self.temporal_patch_size,
            merge: self.spatial_merge_size,
        }
    }

    fn merger(&self) -> MergerConfig {
        MergerConfig {
            patch_width: self.embed_dim,
            merge: self.spatial_merge_size,
            token_width: self.hidden_size,
        }
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
    projector: Merger<B, LayerNorm<B>>,
    text: Decoder<B>,
    #[module(skip)]
    input: QwenVlInput,
}

impl<B: KernelBackend> Qwen2Vl<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If the configuration makes no model or a weight is missing.
    pub fn init(files: &ModelFiles, weights: &Weights<'_, B>) -> Result<Self, ModelError> {
        let config = Config::parse(&files.config)?;
        let vision = &config.vision;
        let input = QwenVlInput::new(files, vision.patch(), config.tokens)?;
        let root = weights.root(Part::Vision);
        let names = DecoderNames {
            model: "model",
            head: "lm_head",
        };
        Ok(Self {
            vision: VisionTransformer::init(vision, &root.child("vision", "visual"))?,
            projector: Merger::init(
                vision.merger(),
                &root
                    .part(Part::Projector)
                    .child("projector", "visual.merger"),
                |scope, name, source, width| scope.layer_norm(name, source, width, VISION_NORM_EPS),
            )?,
            text: Decoder::init(config.text, names, &root)?,
            input,
        })
    }
}

impl<B: KernelBackend> Model<B> for Qwen2Vl<B> {
    fn language(&self) -> &dyn LanguageModel<B> {
        &self.text
    }

    fn resizes_images(&self) -> bool {
        true
    }

    fn image(&self, image: &RgbImage, options: &MediaOptions) -> Result<MediaInput, ModelError> {
        self.input.image(image, options)
    }

    fn video(
        &self,
        frames: &[RgbImage],
        _frames_per_second: f32,
        options: &MediaOptions,
    ) -> Result<MediaInput, ModelError> {
        self.input.video(frames, 1, options)
    }

    fn prompt(
        &self,
        text: &TextProcessor,
        conversation: Conversation<'_>,
        media: &[&Layout],
    ) -> Result<Prompt, ModelError> {
        self.input.prompt(text, conversation, media)
    }

    fn encode(
        &self,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<Encoded<B>, ModelError> {
        let device = self.text.embed(&[0]).device();
        let features = {
            let _stage = stage::top("vision");
            let _scope = stage::scope(format_args!("vision"));
            let shape = [medium.shape[0], medium.shape[1]];
            let pixels = Tensor::from_data(TensorData::new(medium.values.clone(), shape), &device);
            self.vision.forward(pixels, medium.grid, monitor)?
        };
        probe::capture("vision_out", &features);
        let _stage = stage::top("projector");
        let out = self.projector.forward(features);
        probe::capture("projector_out", &out);
        Ok(Encoded::new(medium, out))
    }
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
    fn forward(
        &self,
        pixels: Tensor<B, 2>,
        grid: [usize; 3],
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let places = patch_places(grid, self.merge);
        let table = rotary_table(&places, self.heads.head_dim, &pixels.device());
        // Every temporal slice attends to itself alone.
        let slice = grid[1] * grid[2];
        let segments: Vec<usize> = (0..=grid[0]).map(|t| t * slice).collect();
        let mut x = {
            let _stage = stage::module("patch_embed");
            self.patch_embed.forward(pixels)
        };
        probe::capture("patch_embed", &x);
        for (i, block) in self.blocks.iter().enumerate() {
            monitor.report(i, self.blocks.len())?;
            let _block = stage::scope(format_args!("blocks.{i}"));
            x = block.forward(x, &table, &segments, self.heads);
        }
        Ok(x)
    }
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
            let quantized = self.qkv.is_quantized();
            let attended =
                encoder_attention(qkv, k, v, heads, Mask::Segments(segments), scale, quantized);
            self.out.forward_residual(attended, x)
        };
        let _stage = stage::module("mlp");
        let normed = self.mlp_norm.forward(x.clone());
        self.up
            .feed_forward(normed, Activation::QuickGelu, &self.down, Some(x))
    }
}
