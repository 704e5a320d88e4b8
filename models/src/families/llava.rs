//! LLaVA-1.5 (Liu et al. 2023, <https://arxiv.org/abs/2310.03744>): the patches of a CLIP tower,
//! taken before its last layer, go through an MLP of two layers into a Llama decoder. The reference
//! is `modeling_llava.py` of `transformers`.
//!
//! ```text
//! edge-lmm-convert llava-1.5-7b-hf -o llava-7b.bpk
//! edge-lmm-convert ggml-model-q4_k.gguf --mmproj mmproj-model-f16.gguf -o llava-7b.bpk
//! edge-lmm run llava-7b.bpk --image cat.jpg --prompt "What is this?"
//! ```

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use edge_lmm_ops::{Activation, KernelBackend, probe, stage};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config_file::parse_config;
use crate::encoders::clip::{ClipConfig, ClipVisionTower, cut_patches};
use crate::encoders::tower::TowerOutput;
use crate::error::ModelError;
use crate::family::{FamilyInfo, ModelFiles};
use crate::language::LanguageModel;
use crate::layers::Linear;
use crate::layout::{Layout, Run};
use crate::media::{MediaInput, MediaKind, MediaOptions};
use crate::model::{Encoded, Model};
use crate::monitor::Monitor;
use crate::preprocess::clip::{PreprocessConfig, Target};
use crate::preprocess::normalize::Normalization;
use crate::preprocess::settings::without_nulls;
use crate::preprocess::{Filter, RgbImage};
use crate::prompt::{Conversation, Prompt, TextProcessor, expand_placeholders};
use crate::reduce::EncoderSize;
use crate::reduce::duplicates::enter;
use crate::reduce::merge::Units;
use crate::text::config::{TextKind, decoder_config};
use crate::text::decoder::{Decoder, DecoderNames};
use crate::weights::{Part, Scope, Weights};

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "llava",
    title: "LLaVA-1.5",
    parts: &[
        ("vision_config", &["clip_vision_model"]),
        ("text_config", &["llama", "qwen2"]),
    ],
};

/// The form of the published checkpoints, for those that come without a template.
const DEFAULT_TEMPLATE: &str = "{% for message in messages %}\
{% if message['role'] == 'user' %}USER: {{ message['content'] }} \
{% elif message['role'] == 'assistant' %}ASSISTANT: {{ message['content'] }}</s>\
{% else %}{{ message['content'] }} {% endif %}\
{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}";

#[derive(Debug, Clone, Deserialize)]
struct Config {
    #[serde(default)]
    text_config: Value,
    #[serde(default = "ClipConfig::large_patch14_336")]
    vision_config: ClipConfig,
    image_token_index: Option<u32>,
    image_token_id: Option<u32>,
    #[serde(default = "default_feature_layer")]
    vision_feature_layer: Value,
    #[serde(default = "default_select_strategy")]
    vision_feature_select_strategy: String,
    #[serde(default = "default_projector_act")]
    projector_hidden_act: String,
    #[serde(default = "default_true")]
    multimodal_projector_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
}

fn default_feature_layer() -> Value {
    Value::from(-2)
}

fn default_select_strategy() -> String {
    "default".to_owned()
}

fn default_projector_act() -> String {
    "gelu".to_owned()
}

fn default_true() -> bool {
    true
}

impl Config {
    fn parse(config: &Value) -> Result<Self, ModelError> {
        let config: Self = parse_config(config)?;
        if config.projector_hidden_act != "gelu" {
            return Err(ModelError::config(format!(
                "projector_hidden_act is {:?}, expected \"gelu\"",
                config.projector_hidden_act
            )));
        }
        Ok(config)
    }

    /// Returns the token that stands for an image, under its older or newer name.
    fn image_token(&self) -> u32 {
        let named = self.image_token_index.or(self.image_token_id);
        named.unwrap_or(32_000)
    }

    fn text_kind(&self) -> Result<TextKind, ModelError> {
        let model_type = self.text_config.get("model_type").and_then(Value::as_str);
        match TextKind::parse(model_type.unwrap_or("llama"))? {
            TextKind::Phi3 => Err(ModelError::config(
                "LLaVA with a phi3 language model is not supported; expected llama or qwen2",
            )),
            kind => Ok(kind),
        }
    }

    /// Returns the language model's section. `transformers` 5 says at the top level whether its
    /// output head is its embedding table.
    fn text_config(&self) -> Value {
        let mut text = match without_nulls(&self.text_config) {
            Value::Object(members) => members,
            _ => Map::new(),
        };
        text.entry("tie_word_embeddings")
            .or_insert(Value::Bool(self.tie_word_embeddings));
        text.into()
    }

    /// Layers of the tower that run.
    fn layers(&self) -> Result<usize, ModelError> {
        let layer = match &self.vision_feature_layer {
            Value::Array(layers) if layers.len() == 1 => layers[0].as_i64(),
            layer => layer.as_i64(),
        };
        match layer {
            Some(layer) => self.vision_config.layers_until(layer),
            None => Err(ModelError::config(format!(
                "vision_feature_layer is {}, expected one layer: features of several layers are \
                 not supported",
                self.vision_feature_layer
            ))),
        }
    }

    fn keeps_class_token(&self) -> Result<bool, ModelError> {
        match self.vision_feature_select_strategy.as_str() {
            "default" => Ok(false),
            "full" => Ok(true),
            other => Err(ModelError::config(format!(
                "vision_feature_select_strategy is {other:?}, expected \"default\" or \"full\""
            ))),
        }
    }
}

/// The model.
#[derive(Module, Debug)]
pub struct Llava<B: KernelBackend> {
    vision: ClipVisionTower<B>,
    projector: Projector<B>,
    text: Decoder<B>,
    #[module(skip)]
    clip: ClipConfig,
    #[module(skip)]
    preprocess: PreprocessConfig,
    #[module(skip)]
    image_token: u32,
    #[module(skip)]
    keeps_class_token: bool,
}

impl<B: KernelBackend> Llava<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If the configuration makes no model or a weight is missing.
    pub fn init(files: &ModelFiles, weights: &Weights<'_, B>) -> Result<Self, ModelError> {
        let config = Config::parse(&files.config)?;
        let clip = &config.vision_config;
        let text = decoder_config(config.text_kind()?, &config.text_config())?;
        let preprocess = preprocess_config(files.preprocessor.as_ref(), clip)?;
        let root = weights.root(Part::Vision);
        let vision = root.child("vision", "vision_tower.vision_model");
        let projector = root
            .part(Part::Projector)
            .child("projector", "multi_modal_projector");
        Ok(Self {
            vision: ClipVisionTower::init(clip, config.layers()?, &vision)?,
            projector: Projector::init(&config, text.hidden_size, &projector)?,
            text: Decoder::init(text, DecoderNames::NESTED, &root)?,
            preprocess,
            image_token: config.image_token(),
            keeps_class_token: config.keeps_class_token()?,
            clip: config.vision_config,
        })
    }
}

/// Reads `preprocessor_config.json` and checks it against the tower.
fn preprocess_config(
    file: Option<&Value>,
    clip: &ClipConfig,
) -> Result<PreprocessConfig, ModelError> {
    let side = clip.image_size;
    let config = match file {
        Some(file) => PreprocessConfig::parse(file)?,
        None => PreprocessConfig {
            pad: false,
            target: Some(Target::ShortestEdge(side)),
            crop: Some((side, side)),
            filter: Filter::Bicubic,
            normalization: Normalization::default(),
        },
    };
    let made = match (config.crop, config.target) {
        (Some(size), _) => Some(size),
        (None, Some(Target::Exact { height, width })) => Some((height, width)),
        _ => None,
    };
    match made {
        Some(size) if size == (side, side) => Ok(config),
        Some((height, width)) => Err(ModelError::config(format!(
            "preprocessor_config.json makes images of {width}x{height} pixels, \
             the vision tower takes {side}x{side}"
        ))),
        None => Err(ModelError::config(format!(
            "preprocessor_config.json makes images of any shape (no crop_size), \
             the vision tower takes {side}x{side}"
        ))),
    }
}

impl<B: KernelBackend> Model<B> for Llava<B> {
    fn language(&self) -> &dyn LanguageModel<B> {
        &self.text
    }

    fn image(&self, image: &RgbImage, options: &MediaOptions) -> Result<MediaInput, ModelError> {
        let values = self.preprocess.image(image)?.values;
        let (side, patches) = (self.clip.image_size, self.clip.side());
        let all = 0..self.clip.patches();
        let samples = || {
            let cut = cut_patches(&values, &self.clip, all.clone());
            let plane = self.clip.patch_size * self.clip.patch_size;
            self.preprocess.normalization.samples(&cut, plane)
        };
        let grid = [1, patches, patches];
        let reduction = enter(&options.reductions, MediaKind::Image, grid, samples);
        let class = usize::from(self.keeps_class_token);
        let layout = Layout::from(Run::sequence(class + all.len()));
        let layout = match &reduction.units {
            None => layout,
            Some(units) => layout.keep(&with_class(class, units)),
        };
        Ok(MediaInput {
            kind: MediaKind::Image,
            values,
            shape: vec![1, self.clip.num_channels, side, side],
            grid: [0; 3],
            layout,
            reduction,
            piece: None,
        })
    }

    fn encoder_size(&self, medium: &MediaInput) -> EncoderSize {
        EncoderSize {
            layers: self.vision.depth(),
            ..EncoderSize::of_parts(&medium.reduction, 1, self.clip.patches())
        }
    }

    fn prompt(
        &self,
        text: &TextProcessor,
        conversation: Conversation<'_>,
        media: &[&Layout],
    ) -> Result<Prompt, ModelError> {
        let placeholder = |_| "<image>\n".to_owned();
        let rendered = text.render(conversation, DEFAULT_TEMPLATE, placeholder)?;
        let ids = text.encode_whole(&rendered)?;
        expand_placeholders(&ids, |id| id == self.image_token, media)
    }

    fn encode(
        &self,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<Encoded<B>, ModelError> {
        let device = self.text.embed(&[0]).device();
        let class = usize::from(self.keeps_class_token);
        let (features, mut left) = {
            let _stage = stage::top("vision");
            let _scope = stage::scope(format_args!("vision"));
            let units = medium.reduction.entering(self.clip.patches());
            let shape = [units.len(), self.clip.patch_width()];
            let patches = cut_patches(&medium.values, &self.clip, units.iter().copied());
            let patches = Tensor::from_data(TensorData::new(patches, shape), &device);
            let (places, units) = (units.clone(), Units::new(units, 1));
            let methods = &medium.reduction.methods;
            let TowerOutput { x, left, .. } =
                (self.vision).forward(patches, &places, units, methods, monitor)?;
            (x.narrow(0, 1 - class, left.ids.len() + class), left)
        };
        probe::capture("vision_out", &features.clone().unsqueeze::<3>());
        let _stage = stage::top("projector");
        let out = self.projector.forward(features);
        probe::capture("projector_out", &out.clone().unsqueeze::<3>());
        let tokens = with_class(class, &medium.reduction.places(&left.ids));
        if let Some(attention) = &mut left.attention {
            // The class token is kept by every choice that looks at attention.
            attention.splice(0..0, std::iter::repeat_n(f32::INFINITY, class));
        }
        Ok(Encoded::of_tokens(medium, out, &tokens, left))
    }
}

/// Returns the tokens of the units at `places`, after `class` class tokens.
fn with_class(class: usize, places: &[usize]) -> Vec<usize> {
    let units = places.iter().map(|place| place + class);
    (0..class).chain(units).collect()
}

/// The MLP between the tower and the language model.
#[derive(Module, Debug)]
struct Projector<B: KernelBackend> {
    up: Linear<B>,
    down: Linear<B>,
}

impl<B: KernelBackend> Projector<B> {
    fn init(config: &Config, hidden: usize, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let (width, bias) = (
            config.vision_config.hidden_size,
            config.multimodal_projector_bias,
        );
        Ok(Self {
            up: scope.linear("up", &[("linear_1", hidden)], width, bias)?,
            down: scope.linear("down", &[("linear_2", hidden)], hidden, bias)?,
        })
    }

    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.up.feed_forward(x, Activation::Gelu, &self.down, None)
    }
}
