//! Qwen2-VL (Wang et al. 2024, <https://arxiv.org/abs/2409.12191>): a vision transformer at the
//! image's own resolution with 2-D rotary embeddings, a merger that makes one token of 2x2
//! patches, and a Qwen2 decoder whose rotary embeddings know time, height and width (M-RoPE).
//! The reference is `modeling_qwen2_vl.py` of `transformers`.
//!
//! ```text
//! edge-lmm-convert Qwen2-VL-2B-Instruct -o qwen2-vl-2b.bpk
//! edge-lmm run qwen2-vl-2b.bpk --image cat.jpg --prompt "What is this?"
//! ```

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use edge_lmm_ops::{Activation, Heads, KernelBackend, probe, stage};
use serde::Deserialize;
use serde_json::Value;

use crate::encoders::block::{Block, BlockConfig, BlockNames, equal_heads};
use crate::encoders::merger::{Merger, MergerNames, MergerNorm};
use crate::encoders::patch_grid::{
    PatchConfig, UnitPatches, check_heads, check_rotary, check_token_width, rotary_table,
};
use crate::encoders::tower::{Scopes, Tower, TowerOutput};
use crate::error::ModelError;
use crate::families::qwen_vl_config::QwenVlConfig;
use crate::families::qwen_vl_input::{QwenVlInput, Variant, VideoTime};
use crate::family::{FamilyInfo, ModelFiles};
use crate::language::LanguageModel;
use crate::layers::{LayerNorm, Linear};
use crate::layout::Layout;
use crate::media::{FrameTimes, MediaInput, MediaOptions, VideoFrames, VideoPieces};
use crate::model::{Encoded, Model};
use crate::monitor::Monitor;
use crate::preprocess::RgbImage;
use crate::prompt::{Conversation, Prompt, TextProcessor};
use crate::reduce::EncoderSize;
use crate::sizes::{self, Section};
use crate::text::config::TextKind;
use crate::text::decoder::{Decoder, DecoderNames};
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

const BLOCK_NAMES: BlockNames = BlockNames {
    norms: ["norm1", "norm2"],
    qkv: &["attn.qkv"],
    out: "attn.proj",
    mlp: ["mlp.fc1", "mlp.fc2"],
};

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
    #[serde(flatten)]
    patches: PatchConfig,
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
            patches: PatchConfig::default(),
            rope_parameters: Value::Null,
        }
    }
}

impl VisionConfig {
    fn check(&self, text_width: usize) -> Result<(), ModelError> {
        let section = Section("vision_config");
        section.sizes(&[
            ("depth", self.depth, sizes::LAYERS),
            ("embed_dim", self.embed_dim, sizes::WIDTH),
            ("num_heads", self.num_heads, sizes::HEADS),
        ])?;
        self.patches.check(section)?;
        check_heads(self.embed_dim, self.num_heads)?;
        if !(self.mlp_ratio > 0.0 && self.mlp_ratio <= 64.0) {
            return Err(ModelError::config(format!(
                "vision_config.mlp_ratio is {}, expected up to 64",
                self.mlp_ratio
            )));
        }
        check_token_width("hidden_size", self.hidden_size, text_width)?;
        section.only("hidden_act", &self.hidden_act, "quick_gelu")?;
        check_rotary(&self.rope_parameters)
    }

    fn mlp_width(&self) -> usize {
        // As Python's int(): towards zero.
        (self.embed_dim as f64 * self.mlp_ratio) as usize
    }

    fn block(&self) -> BlockConfig<'static> {
        BlockConfig {
            heads: equal_heads(self.num_heads, self.embed_dim),
            ffn: self.mlp_width(),
            activation: Activation::QuickGelu,
            eps: VISION_NORM_EPS,
            qkv_bias: true,
            names: &BLOCK_NAMES,
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
        let config = QwenVlConfig::<VisionConfig>::parse(TextKind::QwenVl, &files.config)?;
        let vision = &config.vision;
        vision.check(config.text.hidden_size)?;
        let (size, variant) = (vision.patches.size(), Variant::QWEN2_VL);
        let input = QwenVlInput::new(files, size, config.tokens, variant)?;
        let root = weights.root(Part::Vision);
        Ok(Self {
            vision: VisionTransformer::init(vision, &root.child("vision", "visual"))?,
            projector: Merger::init(
                vision.patches.merger(vision.embed_dim, vision.hidden_size),
                (MergerNames::QWEN2_VL, MergerNorm::Patches),
                &root
                    .part(Part::Projector)
                    .child("projector", "visual.merger"),
                |scope, name, source, width| scope.layer_norm(name, source, width, VISION_NORM_EPS),
            )?,
            text: Decoder::init(config.text, DecoderNames::TOP, &root)?,
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
        _times: &FrameTimes,
        options: &MediaOptions,
    ) -> Result<MediaInput, ModelError> {
        self.input.video(frames, &VideoTime::Steps(1), options)
    }

    fn video_pieces<'a>(
        &'a self,
        frames: &'a dyn VideoFrames,
        _times: &FrameTimes,
        options: &MediaOptions,
    ) -> Result<Option<(MediaInput, VideoPieces<'a>)>, ModelError> {
        self.input
            .video_pieces(frames, &VideoTime::Steps(1), options)
    }

    fn encoder_size(&self, medium: &MediaInput) -> EncoderSize {
        let size = UnitPatches::new(medium, self.vision.merge).size();
        EncoderSize {
            layers: self.vision.blocks.len(),
            ..size
        }
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
        let tower = {
            let _stage = stage::top("vision");
            let _scope = stage::scope(format_args!("vision"));
            let shape = [medium.shape[0], medium.shape[1]];
            let pixels = Tensor::from_data(TensorData::new(medium.values.clone(), shape), &device);
            self.vision.forward(pixels, medium, monitor)?
        };
        probe::capture("vision_out", &tower.x);
        let _stage = stage::top("projector");
        let out = self.projector.forward(tower.x);
        probe::capture("projector_out", &out);
        Ok(Encoded::of_units(medium, out, tower.left))
    }
}

#[derive(Module, Debug)]
struct VisionTransformer<B: KernelBackend> {
    patch_embed: Linear<B>,
    blocks: Vec<Block<B>>,
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
            config.patches.width(),
            false,
        )?;
        let block = config.block();
        let blocks = scope
            .layers("blocks", config.depth, |i| format!("blocks.{i}"))?
            .iter()
            .map(|scope| Block::init(block, scope))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            patch_embed,
            blocks,
            heads: block.heads,
            merge: config.patches.spatial_merge_size,
        })
    }

    /// # Shapes
    /// - pixels: `[patches, channels * frames * height * width]` in merge order,
    ///   output: `[patches, embed_dim]`
    fn forward(
        &self,
        pixels: Tensor<B, 2>,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<TowerOutput<B>, ModelError> {
        let patches = UnitPatches::new(medium, self.merge);
        let units = patches.entering();
        let table = rotary_table(
            &patches.places(&units),
            self.heads.head_dim,
            &pixels.device(),
        );
        let x = {
            let _stage = stage::module("patch_embed");
            self.patch_embed.forward(pixels)
        };
        probe::capture("patch_embed", &x);
        let tower = Tower {
            layers: &self.blocks,
            table: Some(table),
            leading: 0,
            // Every temporal slice attends to itself alone.
            scopes: Scopes::Slices {
                slice: &|unit| patches.slice(unit),
                scope: &|_, unit| patches.slice(unit),
            },
            methods: &medium.reduction.methods,
            inner: &[],
        };
        tower.run(x, units, monitor)
    }
}
