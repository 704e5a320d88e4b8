//! Qwen3-VL (Bai et al. 2025, <https://arxiv.org/abs/2511.21631>): a vision transformer at the image's
//! own resolution with interpolated learned positions and 2-D rotary embeddings, mergers that make one
//! token of 2x2 patches of its last block and of some inner ones (DeepStack,
//! <https://arxiv.org/abs/2406.04334>), and a Qwen3 decoder whose first layers take the features of the
//! inner blocks. Rotary frequencies of time, height and width take turns; the time of a video is text.
//! The reference is `modeling_qwen3_vl.py` of `transformers`.
//!
//! ```text
//! edge-lmm-convert Qwen3-VL-2B-Instruct -o qwen3-vl-2b.bpk
//! edge-lmm run qwen3-vl-2b.bpk --image cat.jpg --prompt "What is this?"
//! ```

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use edge_lmm_ops::{Activation, Heads, KernelBackend, RowSums, probe, stage, sum_rows};
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
use crate::families::qwen_vl_input::{QwenVlInput, Stamps, Variant, VideoTime};
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
    model_type: "qwen3_vl",
    title: "Qwen3-VL",
    parts: &[
        ("vision_config", &["qwen3_vl", "qwen3_vl_vision"]),
        ("text_config", &["qwen3_vl_text"]),
    ],
};

/// Epsilon of the vision tower's norms; the reference has it in its code.
const VISION_NORM_EPS: f64 = 1e-6;

/// First version of `transformers` that keeps the markers around a whole video.
const OUTER_MARKERS_SINCE: [u32; 2] = [5, 12];

const TEXT_NAMES: DecoderNames = DecoderNames {
    model: "model.language_model",
    head: "lm_head",
};

const BLOCK_NAMES: BlockNames = BlockNames {
    norms: ["norm1", "norm2"],
    qkv: &["attn.qkv"],
    out: "attn.proj",
    mlp: ["mlp.linear_fc1", "mlp.linear_fc2"],
};

/// The vision tower's part of `config.json`; the defaults are those of the reference's
/// `Qwen3VLVisionConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct VisionConfig {
    depth: usize,
    hidden_size: usize,
    out_hidden_size: usize,
    intermediate_size: usize,
    num_heads: usize,
    hidden_act: String,
    in_channels: usize,
    patch_size: usize,
    spatial_merge_size: usize,
    temporal_patch_size: usize,
    num_position_embeddings: usize,
    deepstack_visual_indexes: Vec<usize>,
    rope_parameters: Value,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            depth: 27,
            hidden_size: 1152,
            out_hidden_size: 3584,
            intermediate_size: 4304,
            num_heads: 16,
            hidden_act: "gelu_pytorch_tanh".to_owned(),
            in_channels: 3,
            patch_size: 16,
            spatial_merge_size: 2,
            temporal_patch_size: 2,
            num_position_embeddings: 2304,
            deepstack_visual_indexes: vec![8, 16, 24],
            rope_parameters: Value::Null,
        }
    }
}

impl VisionConfig {
    /// Checks the sizes for a language model of the given width and number of layers.
    fn check(&self, text_width: usize, text_layers: usize) -> Result<(), ModelError> {
        let section = Section("vision_config");
        section.sizes(&[
            ("depth", self.depth, sizes::LAYERS),
            ("hidden_size", self.hidden_size, sizes::WIDTH),
            ("intermediate_size", self.intermediate_size, sizes::FFN),
            ("num_heads", self.num_heads, sizes::HEADS),
            (
                "num_position_embeddings",
                self.num_position_embeddings,
                1 << 20,
            ),
        ])?;
        self.patches().check(section)?;
        check_heads(self.hidden_size, self.num_heads)?;
        if self.grid_side() * self.grid_side() != self.num_position_embeddings {
            return Err(ModelError::config(format!(
                "vision_config.num_position_embeddings is {}, expected a square number",
                self.num_position_embeddings
            )));
        }
        check_token_width("out_hidden_size", self.out_hidden_size, text_width)?;
        section.only("hidden_act", &self.hidden_act, "gelu_pytorch_tanh")?;
        self.check_deepstack(text_layers)?;
        check_rotary(&self.rope_parameters)
    }

    /// Checks the inner blocks whose features the first layers of the language model take.
    fn check_deepstack(&self, text_layers: usize) -> Result<(), ModelError> {
        let blocks = &self.deepstack_visual_indexes;
        let ascend = blocks.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascend || blocks.last().is_some_and(|&last| last >= self.depth) {
            return Err(ModelError::config(format!(
                "vision_config.deepstack_visual_indexes is {blocks:?}, expected ascending numbers \
                 of {} blocks",
                self.depth
            )));
        }
        if blocks.len() >= text_layers {
            return Err(ModelError::config(format!(
                "vision_config.deepstack_visual_indexes has {} blocks for {text_layers} layers of \
                 the language model, expected fewer than layers",
                blocks.len()
            )));
        }
        Ok(())
    }

    fn patches(&self) -> PatchConfig {
        PatchConfig {
            in_channels: self.in_channels,
            patch_size: self.patch_size,
            spatial_merge_size: self.spatial_merge_size,
            temporal_patch_size: self.temporal_patch_size,
        }
    }

    /// Returns the side of the square grid of learned positions.
    fn grid_side(&self) -> usize {
        self.num_position_embeddings.isqrt()
    }

    fn block(&self) -> BlockConfig<'static> {
        BlockConfig {
            heads: equal_heads(self.num_heads, self.hidden_size),
            ffn: self.intermediate_size,
            activation: Activation::GeluTanh,
            eps: VISION_NORM_EPS,
            qkv_bias: true,
            names: &BLOCK_NAMES,
        }
    }

    fn merger<B: KernelBackend>(
        &self,
        norm: MergerNorm,
        scope: &Scope<'_, '_, B>,
    ) -> Result<Merger<B, LayerNorm<B>>, ModelError> {
        Merger::init(
            self.patches()
                .merger(self.hidden_size, self.out_hidden_size),
            (MergerNames::QWEN3_VL, norm),
            scope,
            |scope, name, source, width| scope.layer_norm(name, source, width, VISION_NORM_EPS),
        )
    }
}

/// The model.
#[derive(Module, Debug)]
pub struct Qwen3Vl<B: KernelBackend> {
    vision: VisionTransformer<B>,
    projector: Merger<B, LayerNorm<B>>,
    deepstack: Vec<Merger<B, LayerNorm<B>>>,
    text: Decoder<B>,
    #[module(skip)]
    input: QwenVlInput,
    #[module(skip)]
    outer_markers: bool,
}

impl<B: KernelBackend> Qwen3Vl<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If the configuration makes no model or a weight is missing.
    pub fn init(files: &ModelFiles, weights: &Weights<'_, B>) -> Result<Self, ModelError> {
        let config = QwenVlConfig::<VisionConfig>::parse(TextKind::Qwen3Vl, &files.config)?;
        let vision = &config.vision;
        vision.check(config.text.hidden_size, config.text.layers)?;
        let (size, variant) = (vision.patches().size(), Variant::QWEN3_VL);
        let input = QwenVlInput::new(files, size, config.tokens, variant)?;
        let root = weights.root(Part::Vision);
        let mergers = root.part(Part::Projector).child("", "model.visual");
        let deepstack = (0..vision.deepstack_visual_indexes.len()).map(|i| {
            let (name, source) = (
                format!("deepstack.{i}"),
                format!("deepstack_merger_list.{i}"),
            );
            vision.merger(MergerNorm::Tokens, &mergers.child(&name, &source))
        });
        Ok(Self {
            vision: VisionTransformer::init(vision, &root.child("vision", "model.visual"))?,
            projector: vision.merger(MergerNorm::Patches, &mergers.child("projector", "merger"))?,
            deepstack: deepstack.collect::<Result<_, _>>()?,
            text: Decoder::init(config.text, TEXT_NAMES, &root)?,
            input,
            outer_markers: keeps_outer_markers(&files.config),
        })
    }

    fn stamps(&self, frames: usize, times: &FrameTimes) -> Result<VideoTime, ModelError> {
        times.check()?;
        Ok(VideoTime::Stamps(Stamps {
            frames,
            times: times.clone(),
            outer_markers: self.outer_markers,
        }))
    }
}

/// Returns `true` if the version of `transformers` that saved a checkpoint keeps the markers around a
/// whole video. Published checkpoints were saved by versions that do not.
fn keeps_outer_markers(config: &Value) -> bool {
    let version = config.get("transformers_version").and_then(Value::as_str);
    let mut numbers = version.unwrap_or_default().split('.');
    let mut number = || numbers.next().and_then(|number| number.parse().ok());
    [number(), number()] >= OUTER_MARKERS_SINCE.map(Some)
}

impl<B: KernelBackend> Model<B> for Qwen3Vl<B> {
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
        times: &FrameTimes,
        options: &MediaOptions,
    ) -> Result<MediaInput, ModelError> {
        let stamps = self.stamps(frames.len(), times)?;
        self.input.video(frames, &stamps, options)
    }

    fn video_pieces<'a>(
        &'a self,
        frames: &'a dyn VideoFrames,
        times: &FrameTimes,
        options: &MediaOptions,
    ) -> Result<Option<(MediaInput, VideoPieces<'a>)>, ModelError> {
        let stamps = self.stamps(frames.count(), times)?;
        self.input.video_pieces(frames, &stamps, options)
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
        let deep = self.deepstack.iter().zip(tower.inner).enumerate();
        let deep = deep.map(|(i, (merger, x))| {
            let features = merger.forward(x);
            probe::capture(&format!("deepstack_{i}"), &features);
            // The reference adds them after layer `i`.
            (i + 1, features)
        });
        Ok(Encoded {
            deep: deep.collect(),
            ..Encoded::of_units(medium, out, tower.left)
        })
    }
}

#[derive(Module, Debug)]
struct VisionTransformer<B: KernelBackend> {
    patch_embed: Linear<B>,
    positions: Param<Tensor<B, 2>>,
    blocks: Vec<Block<B>>,
    #[module(skip)]
    inner: Vec<usize>,
    #[module(skip)]
    heads: Heads,
    #[module(skip)]
    merge: usize,
}

impl<B: KernelBackend> VisionTransformer<B> {
    fn init(config: &VisionConfig, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let width = config.hidden_size;
        let patch_embed = scope.linear(
            "patch_embed",
            &[("patch_embed.proj", width)],
            config.patches().width(),
            true,
        )?;
        let positions = scope.matrix(
            "positions",
            "pos_embed.weight",
            config.num_position_embeddings,
            width,
        );
        let block = config.block();
        let blocks = scope
            .layers("blocks", config.depth, |i| format!("blocks.{i}"))?
            .iter()
            .map(|scope| Block::init(block, scope))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            patch_embed,
            positions,
            blocks,
            inner: config.deepstack_visual_indexes.clone(),
            heads: block.heads,
            merge: config.spatial_merge_size,
        })
    }

    /// # Shapes
    /// - pixels: `[patches, channels * frames * height * width]` in merge order,
    ///   output: `[patches, hidden_size]`
    fn forward(
        &self,
        pixels: Tensor<B, 2>,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<TowerOutput<B>, ModelError> {
        let patches = UnitPatches::new(medium, self.merge);
        let units = patches.entering();
        let places = patches.places(&units);
        let table = rotary_table(&places, self.heads.head_dim, &pixels.device());
        let x = {
            let _stage = stage::module("patch_embed");
            let [_, rows, columns] = medium.grid;
            self.embed(pixels, &places, [rows, columns])
        };
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
            inner: &self.inner,
        };
        tower.run(x, units, monitor)
    }

    /// Embeds patches at `places` (row, column) of a grid of `size` patches.
    fn embed(
        &self,
        pixels: Tensor<B, 2>,
        places: &[(usize, usize)],
        size: [usize; 2],
    ) -> Tensor<B, 2> {
        let table = self.positions.val();
        let side = table.dims()[0].isqrt();
        let positions = sum_rows(table, &interpolation(places, size, side));
        probe::capture("pos_embed", &positions);
        let x = self.patch_embed.forward(pixels);
        probe::capture("patch_embed", &x);
        x + positions
    }
}

/// Returns the bilinear interpolation of a grid of `side` x `side` rows at `places` (row, column) of a
/// grid of `size` patches. The corners of both grids meet.
fn interpolation(places: &[(usize, usize)], size: [usize; 2], side: usize) -> RowSums {
    let [rows, columns] = size.map(|count| axis(count, side));
    let mut sums = RowSums::default();
    for &(row, column) in places {
        let terms = rows[row].iter().flat_map(|(y, wy)| {
            let terms = columns[column].iter();
            terms.map(move |(x, wx)| (y * side + x, wy * wx))
        });
        sums.push(terms);
    }
    sums
}

/// Returns the two neighbors, with their weights, of each of `count` points that are spread evenly over
/// `side` rows, the first on the first one and the last on the last one.
fn axis(count: usize, side: usize) -> Vec<[(usize, f32); 2]> {
    let step = (side - 1) as f32 / (count.max(2) - 1) as f32;
    let point = |i: usize| {
        // As `torch.linspace`, which counts the second half from the end.
        let place = match i < count.div_ceil(2) {
            true => step * i as f32,
            false => (side - 1) as f32 - step * (count - 1 - i) as f32,
        };
        let first = place as usize;
        let share = place - first as f32;
        [(first, 1.0 - share), ((first + 1).min(side - 1), share)]
    };
    (0..count).map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Worked by hand: five patches over a grid of three rows fall on rows and their middles; a
    /// single one stands at the first row.
    #[test]
    fn corners_meet() {
        let places: Vec<f32> = (axis(5, 3).iter())
            .map(|[(first, _), (_, share)]| *first as f32 + share)
            .collect();
        assert_eq!(places, [0.0, 0.5, 1.0, 1.5, 2.0]);
        assert_eq!(axis(1, 3), [[(0, 1.0), (1, 0.0)]]);
        assert_eq!(axis(2, 1), [[(0, 1.0), (0, 0.0)]; 2]);
        let sums = interpolation(&[(1, 2)], [3, 3], 2);
        let terms: Vec<_> = sums.terms().collect();
        assert_eq!(terms, [(0, 1, 0.5), (0, 1, 0.0), (0, 3, 0.5), (0, 3, 0.0)]);
    }

    #[test]
    fn lying_sizes_are_errors() {
        let check = |change: Value| {
            let mut config = json!({"out_hidden_size": 64, "deepstack_visual_indexes": [1, 2],
                "depth": 4, "hidden_size": 64, "num_heads": 4});
            for (key, value) in change.as_object().unwrap() {
                config[key.as_str()] = value.clone();
            }
            let config: VisionConfig = serde_json::from_value(config).unwrap();
            config.check(64, 3).map_err(|error| error.to_string())
        };
        assert_eq!(check(json!({})), Ok(()));
        for (change, word) in [
            (
                json!({"deepstack_visual_indexes": [1, 4]}),
                "deepstack_visual_indexes",
            ),
            (json!({"deepstack_visual_indexes": [2, 1]}), "ascending"),
            (
                json!({"deepstack_visual_indexes": [0, 1, 2]}),
                "fewer than layers",
            ),
            (json!({"num_position_embeddings": 2305}), "square"),
            (
                json!({"num_position_embeddings": 0}),
                "num_position_embeddings",
            ),
            (json!({"num_heads": 7}), "heads"),
            (json!({"patch_size": 0}), "patch_size"),
            (json!({"hidden_act": "relu"}), "hidden_act"),
            (json!({"out_hidden_size": 32}), "out_hidden_size"),
        ] {
            let error = check(change).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn newer_versions_keep_the_outer_markers() {
        let keeps = |version| keeps_outer_markers(&json!({"transformers_version": version}));
        assert!(keeps("5.12.0") && keeps("5.24.0") && keeps("6.0"));
        assert!(!keeps("4.57.6") && !keeps("5.11.3") && !keeps("4.57.0.dev0"));
        assert!(!keeps_outer_markers(&json!({})));
    }
}
