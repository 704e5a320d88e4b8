//! BLIP-2 (Li et al. 2023, <https://arxiv.org/abs/2301.12597>): an EVA-CLIP vision tower, a
//! Q-Former that makes a few tokens of an image whatever its size, and a language model, OPT or
//! Flan-T5. The reference is `modeling_blip_2.py` of `transformers`.
//!
//! ```text
//! edge-lmm-convert blip2-opt-2.7b -o blip2.bpk
//! edge-lmm run blip2.bpk --image cat.jpg --prompt "What is this?"
//! ```
//!
//! A prompt has at most one image; its tokens stand before everything else. The language models
//! were not trained on conversations: earlier turns are put before the question as the paper's
//! authors do (`Question: … Answer: …. Question: … Answer:`).

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use burn_store::{BurnpackError, BurnpackStore};
use edge_lmm_ops::{KernelBackend, probe, stage};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config_file::parse_config;
use crate::encoders::eva_vit::{EvaVit, EvaVitConfig};
use crate::encoders::qformer::{QFormer, QFormerConfig};
use crate::encoders::tower::TowerOutput;
use crate::error::ModelError;
use crate::family::{BuiltModel, FamilyInfo, ModelFiles};
use crate::language::LanguageModel;
use crate::layers::Linear;
use crate::layout::{Layout, Run};
use crate::media::{MediaInput, MediaKind, MediaOptions};
use crate::model::{Encoded, Model};
use crate::monitor::Monitor;
use crate::preprocess::RgbImage;
use crate::preprocess::clip::{PreprocessConfig, Target};
use crate::prompt::{Conversation, Prompt, PromptBuilder, TextProcessor};
use crate::reduce::EncoderSize;
use crate::reduce::duplicates::enter;
use crate::reduce::merge::Units;
use crate::sizes::Section;
use crate::text::opt::{Opt, OptConfig};
use crate::text::t5::{T5, T5Config};
use crate::weights::{Inputs, Part, Scope, Weights};

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "blip-2",
    title: "BLIP-2",
    parts: &[
        ("vision_config", &["blip_2_vision_model"]),
        ("qformer_config", &["blip_2_qformer"]),
        ("text_config", &["opt", "t5"]),
    ],
};

/// The paper's prompt for questions; published checkpoints have no template.
const DEFAULT_TEMPLATE: &str = "{% for message in messages %}\
{% if message['role'] == 'user' %}Question: {{ message['content'] }} Answer:\
{% elif message['role'] == 'assistant' %} {{ message['content'] }}. \
{% else %}{{ message['content'] }} {% endif %}\
{% endfor %}";

#[derive(Debug, Clone, Deserialize)]
struct Config {
    #[serde(default)]
    vision_config: EvaVitConfig,
    #[serde(default)]
    qformer_config: QFormerConfig,
    #[serde(default = "default_text")]
    text_config: Value,
    #[serde(default = "default_queries")]
    num_query_tokens: usize,
    /// Missing where the vocabulary has no such token: the first published checkpoints.
    image_token_index: Option<u32>,
    /// Newer name of the same.
    image_token_id: Option<u32>,
}

fn default_text() -> Value {
    Value::Object(serde_json::Map::new())
}

fn default_queries() -> usize {
    32
}

impl Config {
    fn parse(config: &Value) -> Result<Self, ModelError> {
        parse_config(config)
    }

    fn text_type(&self) -> &str {
        let name = self.text_config.get("model_type").and_then(Value::as_str);
        name.unwrap_or("opt")
    }
}

/// Reads how images are preprocessed to squares of `side` pixels.
fn parse_preprocess(file: Option<&Value>, side: usize) -> Result<PreprocessConfig, ModelError> {
    let target = Target::Exact {
        height: side,
        width: side,
    };
    let default = || {
        json!({
            "image_processor_type": "BlipImageProcessor",
            "size": { "height": side, "width": side },
        })
    };
    let config = PreprocessConfig::parse(&file.cloned().unwrap_or_else(default))?;
    if config.target != Some(target) || config.crop.is_some() {
        return Err(ModelError::config(format!(
            "preprocessor_config.json asks for {:?}, cropped to {:?}; the vision tower takes \
             images resized to {side}x{side} (vision_config.image_size), not cropped",
            config.target, config.crop
        )));
    }
    Ok(config)
}

/// The model, with either language model.
pub struct Blip2<B: KernelBackend>(Box<dyn BuiltModel<B>>);

impl<B: KernelBackend> Blip2<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If the configuration makes no model or a weight is missing.
    pub fn init(files: &ModelFiles, weights: &Weights<'_, B>) -> Result<Self, ModelError> {
        let config = Config::parse(&files.config)?;
        let side = config.vision_config.image_size;
        let preprocess = parse_preprocess(files.preprocessor.as_ref(), side)?;
        let root = weights.root(Part::Vision);
        Ok(Self(match config.text_type() {
            "opt" => {
                let text = OptConfig::parse(&config.text_config)?;
                let traits = TextTraits {
                    width: text.hidden_size,
                    before: Some(text.bos_token_id),
                    after: None,
                };
                let init = |scope: &Scope<'_, '_, B>| Opt::init(text, scope);
                Box::new(Blip2Model::init(&config, preprocess, &root, traits, init)?)
            }
            "t5" => {
                let text = T5Config::parse(&config.text_config)?;
                let traits = TextTraits {
                    width: text.d_model,
                    before: None,
                    after: Some(text.eos_token_id),
                };
                let init = |scope: &Scope<'_, '_, B>| T5::init(text, scope);
                Box::new(Blip2Model::init(&config, preprocess, &root, traits, init)?)
            }
            other => {
                return Err(ModelError::config(format!(
                    "text_config.model_type is {other:?}, expected \"opt\" or \"t5\""
                )));
            }
        }))
    }
}

impl<B: KernelBackend> BuiltModel<B> for Blip2<B> {
    fn load(&mut self, store: &mut BurnpackStore) -> Result<(), BurnpackError> {
        self.0.load(store)
    }
}

impl<B: KernelBackend> Model<B> for Blip2<B> {
    fn language(&self) -> &dyn LanguageModel<B> {
        self.0.language()
    }

    fn image(&self, image: &RgbImage, options: &MediaOptions) -> Result<MediaInput, ModelError> {
        self.0.image(image, options)
    }

    fn encoder_size(&self, medium: &MediaInput) -> EncoderSize {
        self.0.encoder_size(medium)
    }

    fn prompt(
        &self,
        text: &TextProcessor,
        conversation: Conversation<'_>,
        media: &[&Layout],
    ) -> Result<Prompt, ModelError> {
        self.0.prompt(text, conversation, media)
    }

    fn encode(
        &self,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<Encoded<B>, ModelError> {
        self.0.encode(medium, monitor)
    }
}

/// Properties of the language model that the prompt depends on.
#[derive(Debug, Clone, Copy)]
struct TextTraits {
    /// Width of an embedding.
    width: usize,
    /// Token expected before the text.
    before: Option<u32>,
    /// Token expected behind it.
    after: Option<u32>,
}

/// BLIP-2 with a language model of type `L`.
#[derive(Module, Debug)]
struct Blip2Model<B: KernelBackend, L: Module<B>> {
    vision: EvaVit<B>,
    projector: Projector<B>,
    text: L,
    #[module(skip)]
    vision_config: EvaVitConfig,
    #[module(skip)]
    preprocess: PreprocessConfig,
    #[module(skip)]
    layout: PromptLayout,
}

impl<B: KernelBackend, L: Module<B> + LanguageModel<B>> Blip2Model<B, L> {
    fn init(
        config: &Config,
        preprocess: PreprocessConfig,
        root: &Scope<'_, '_, B>,
        traits: TextTraits,
        text: impl FnOnce(&Scope<'_, '_, B>) -> Result<L, ModelError>,
    ) -> Result<Self, ModelError> {
        let vision = &config.vision_config;
        let vision_scope = root.child("vision", "vision_model");
        let tower = EvaVit::init(vision, &vision_scope)?;
        let features = EvaVit::outputs(vision, &vision_scope);
        let projector = root.part(Part::Projector).child("projector", "");
        let projector = Projector::init(config, &features, traits.width, &projector)?;
        let text = text(&root.child("text", "language_model"))?;
        Ok(Self {
            vision: tower,
            projector,
            layout: PromptLayout::new(
                config.image_token_index.or(config.image_token_id),
                traits,
                text.vocabulary(),
            )?,
            text,
            vision_config: vision.clone(),
            preprocess,
        })
    }
}

impl<B: KernelBackend, L: Module<B> + LanguageModel<B> + Sync> Model<B> for Blip2Model<B, L> {
    fn language(&self) -> &dyn LanguageModel<B> {
        &self.text
    }

    fn image(&self, image: &RgbImage, options: &MediaOptions) -> Result<MediaInput, ModelError> {
        let (config, side) = (&self.vision_config, self.vision_config.image_size);
        let values = self.preprocess.image(image)?.values;
        let grid = [1, config.side(), config.side()];
        let samples = || {
            let cut = config.cut_patches(&values, 0..config.side() * config.side());
            let plane = config.patch_size * config.patch_size;
            self.preprocess.normalization.samples(&cut, plane)
        };
        // Units are patches; the number of tokens is that of the queries.
        let reduction = enter(&options.reductions, MediaKind::Image, grid, samples);
        Ok(MediaInput {
            kind: MediaKind::Image,
            values,
            reduction,
            shape: vec![1, 3, side, side],
            grid: [0; 3],
            layout: Run::sequence(self.projector.tokens()).into(),
            piece: None,
        })
    }

    fn encoder_size(&self, medium: &MediaInput) -> EncoderSize {
        let [units, _] = self.vision_config.patches_shape();
        EncoderSize {
            layers: self.vision_config.num_hidden_layers,
            units_are_tokens: false,
            ..EncoderSize::of_parts(&medium.reduction, 1, units)
        }
    }

    fn prompt(
        &self,
        text: &TextProcessor,
        conversation: Conversation<'_>,
        media: &[&Layout],
    ) -> Result<Prompt, ModelError> {
        // Images stand before the text, wherever the messages show them.
        let rendered = text.render(conversation, DEFAULT_TEMPLATE, |_| String::new())?;
        self.layout.prompt(&text.encode(&rendered)?, media)
    }

    fn encode(
        &self,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<Encoded<B>, ModelError> {
        let device = self.text.embed(&[0]).device();
        let TowerOutput {
            x: features, left, ..
        } = {
            let _stage = stage::top("vision");
            let _scope = stage::scope(format_args!("vision"));
            let [count, width] = self.vision_config.patches_shape();
            let units = medium.reduction.entering(count);
            let entering = units.iter().copied();
            let patches = self.vision_config.cut_patches(&medium.values, entering);
            let patches = TensorData::new(patches, [units.len(), width]);
            let patches = Tensor::from_data(patches, &device);
            let methods = &medium.reduction.methods;
            self.vision
                .forward(patches, Units::new(units, 1), methods, monitor)?
        };
        probe::capture("vision_out", &features.clone().unsqueeze::<3>());
        let _stage = stage::top("projector");
        let _scope = stage::scope(format_args!("projector"));
        let mut encoded = Encoded::new(medium, self.projector.forward(features));
        encoded.steps.extend(left.steps);
        Ok(encoded)
    }
}

/// Order of image and text in the prompt.
#[derive(Debug, Clone, Copy)]
struct PromptLayout {
    /// Placeholder of an image token. If the vocabulary has none, any id: it is never looked up.
    placeholder: u32,
    /// `true` if the vocabulary has a placeholder.
    own_placeholder: bool,
    traits: TextTraits,
}

impl PromptLayout {
    fn new(
        placeholder: Option<u32>,
        traits: TextTraits,
        vocabulary: usize,
    ) -> Result<Self, ModelError> {
        let ids = [
            ("image_token_index", placeholder),
            ("text_config.bos_token_id", traits.before),
            ("text_config.eos_token_id", traits.after),
        ];
        for (name, id) in ids {
            if let Some(id) = id {
                Section("").token(name, id, vocabulary)?;
            }
        }
        Ok(Self {
            placeholder: placeholder.unwrap_or(0),
            own_placeholder: placeholder.is_some(),
            traits,
        })
    }

    /// Builds the prompt: the image's tokens, then the text between the tokens that the language
    /// model expects around it.
    fn prompt(&self, text: &[u32], media: &[&Layout]) -> Result<Prompt, ModelError> {
        if media.len() > 1 {
            return Err(ModelError::Prompt(format!(
                "{} images, but {} takes at most one",
                media.len(),
                INFO.title
            )));
        }
        if self.own_placeholder && text.contains(&self.placeholder) {
            return Err(ModelError::Prompt(
                "the text contains the token that stands for an image".to_owned(),
            ));
        }
        let mut prompt = PromptBuilder::new();
        if let Some(layout) = media.first() {
            prompt.medium(self.placeholder, 0, layout);
        }
        prompt.text(self.traits.before.as_slice());
        prompt.text(text);
        prompt.text(self.traits.after.as_slice());
        Ok(prompt.finish())
    }
}

/// From the tower's features to embeddings: the Q-Former and a linear layer.
#[derive(Module, Debug)]
struct Projector<B: KernelBackend> {
    qformer: QFormer<B>,
    projection: Linear<B>,
}

impl<B: KernelBackend> Projector<B> {
    fn init(
        config: &Config,
        features: &Inputs,
        width: usize,
        scope: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        let (qformer, queries) = (&config.qformer_config, config.num_query_tokens);
        let qformer_scope = scope.child("qformer", "");
        Ok(Self {
            qformer: QFormer::init(qformer, queries, features, &qformer_scope)?,
            projection: scope.linear(
                "projection",
                &[("language_projection", width)],
                QFormer::outputs(qformer, &qformer_scope),
                true,
            )?,
        })
    }

    fn tokens(&self) -> usize {
        self.qformer.queries()
    }

    fn forward(&self, features: Tensor<B, 2>) -> Tensor<B, 2> {
        let queries = {
            let _scope = stage::scope(format_args!("qformer"));
            self.qformer.forward(features)
        };
        probe::capture("qformer_out", &queries.clone().unsqueeze::<3>());
        let _stage = stage::module("projection");
        let out = self.projection.forward(queries);
        probe::capture("projector_out", &out.clone().unsqueeze::<3>());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(tokens: usize) -> Layout {
        Run::sequence(tokens).into()
    }

    fn layout(placeholder: Option<u32>, before: Option<u32>, after: Option<u32>) -> PromptLayout {
        let traits = TextTraits {
            width: 8,
            before,
            after,
        };
        PromptLayout::new(placeholder, traits, 100).unwrap()
    }

    #[test]
    fn the_image_stands_before_the_first_token() {
        let opt = layout(Some(99), Some(2), None);
        let prompt = opt.prompt(&[7, 8], &[&image(3)]).unwrap();
        assert_eq!(prompt.ids, [99, 99, 99, 2, 7, 8]);
        assert_eq!(prompt.positions[5], [5; 3]);
        assert_eq!((prompt.spans[0].start, prompt.spans[0].len), (0, 3));
        let t5 = layout(None, None, Some(1));
        let prompt = t5.prompt(&[7, 8], &[&image(2)]).unwrap();
        assert_eq!(prompt.ids, [0, 0, 7, 8, 1]);
        let text_only = t5.prompt(&[7, 8], &[]).unwrap();
        assert_eq!(text_only.ids, [7, 8, 1]);
        assert!(text_only.spans.is_empty());
    }

    #[test]
    fn images_must_fit_the_tower() {
        assert!(parse_preprocess(None, 224).is_ok());
        let blip = |size| json!({"image_processor_type": "BlipImageProcessor", "size": size});
        assert!(parse_preprocess(Some(&blip(json!(224))), 224).is_ok());
        for file in [
            blip(json!({"height": 224, "width": 448})),
            blip(json!({"shortest_edge": 224})),
            json!({"size": {"height": 224, "width": 224}, "do_center_crop": true}),
        ] {
            let error = parse_preprocess(Some(&file), 224).unwrap_err().to_string();
            assert!(error.contains("224x224"), "{error}");
        }
    }

    #[test]
    fn what_is_no_prompt_is_refused() {
        let layout = layout(Some(99), Some(2), None);
        let error = layout.prompt(&[7], &[&image(3), &image(3)]).unwrap_err();
        assert!(error.to_string().contains("at most one"), "{error}");
        let error = layout.prompt(&[7, 99], &[&image(3)]).unwrap_err();
        assert!(error.to_string().contains("stands for an image"), "{error}");
        let outside = PromptLayout::new(Some(100), layout.traits, 100).unwrap_err();
        assert!(
            outside.to_string().contains("image_token_index"),
            "{outside}"
        );
    }
}
