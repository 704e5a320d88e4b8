//! Gemma 3 with images: the 4B, 12B and 27B models (Gemma Team 2025,
//! <https://arxiv.org/abs/2503.19786>). A SigLIP tower, the mean of each square of patches, a norm and
//! one linear layer, and the decoder of Gemma 3, in which the tokens of an image attend to each other
//! in both directions. The reference is `modeling_gemma3.py` of `transformers`.
//!
//! ```text
//! edge-lmm-convert gemma-3-4b-it -o gemma3-4b.bpk
//! edge-lmm run gemma3-4b.bpk --image cat.jpg --prompt "What is this?"
//! ```

use burn::module::Module;
use burn::tensor::Tensor;
use edge_lmm_ops::{KernelBackend, probe, stage};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config_file::{parse_config, parse_section};
use crate::encoders::merged_patches::MergedPatches;
use crate::encoders::siglip::{SiglipConfig, SiglipTower};
use crate::error::ModelError;
use crate::family::{FamilyInfo, ModelFiles};
use crate::language::LanguageModel;
use crate::layers::{Linear, RmsNorm};
use crate::layout::{Layout, Piece, Run};
use crate::media::{MediaInput, MediaKind, MediaOptions};
use crate::model::{Encoded, Model};
use crate::monitor::Monitor;
use crate::preprocess::gemma3::PreprocessConfig;
use crate::preprocess::settings::without_nulls;
use crate::preprocess::{PreprocessError, RgbImage};
use crate::prompt::{Conversation, Prompt, TextProcessor, expand_placeholders};
use crate::reduce::EncoderSize;
use crate::reduce::duplicates::enter;
use crate::sizes::{Section, VOCABULARY};
use crate::text::config::{TextKind, decoder_config};
use crate::text::decoder::{Decoder, DecoderNames};
use crate::weights::{Part, Scope, Weights};

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "gemma3",
    title: "Gemma 3 with images",
    parts: &[
        ("vision_config", &["siglip_vision_model"]),
        ("text_config", &["gemma3_text"]),
    ],
};

/// The turns of the published checkpoints, for those that come without a template.
const DEFAULT_TEMPLATE: &str = "{% for message in messages %}\
<start_of_turn>{{ 'model' if message['role'] == 'assistant' else 'user' }}\n\
{{ message['content'] | trim }}<end_of_turn>\n\
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}";

/// The text of an image in a template.
const IMAGE: &str = "<start_of_image>";

/// The text of each of its tokens.
const TOKEN: &str = "<image_soft_token>";

/// The text after the tokens of an image.
const END: &str = "<end_of_image>\n\n";

#[derive(Debug, Clone, Deserialize)]
struct Config {
    #[serde(default)]
    text_config: Value,
    #[serde(default)]
    vision_config: Value,
    image_token_index: Option<u32>,
    image_token_id: Option<u32>,
    #[serde(default = "default_tokens")]
    mm_tokens_per_image: usize,
    tie_word_embeddings: Option<bool>,
}

fn default_tokens() -> usize {
    256
}

impl Config {
    /// Returns the token that stands for a token of an image, under its older or newer name.
    fn image_token(&self) -> u32 {
        let named = self.image_token_index.or(self.image_token_id);
        named.unwrap_or(262_144)
    }

    /// Returns the tower's section, with the defaults of the reference.
    fn vision(&self) -> Result<SiglipConfig, ModelError> {
        let mut section = json!({
            "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
            "patch_size": 16,
        });
        for (key, value) in self.vision_config.as_object().into_iter().flatten() {
            section[key] = value.clone();
        }
        let config: SiglipConfig = parse_section("vision_config", &section)?;
        config.check()?;
        Ok(config)
    }

    /// Returns the squares of patches of which each is one token.
    fn squares(&self, vision: &SiglipConfig) -> Result<MergedPatches, ModelError> {
        let tokens = self.mm_tokens_per_image;
        Section("").sizes(&[("mm_tokens_per_image", tokens, 1 << 20)])?;
        let (patches, side) = (vision.grid(), tokens.isqrt());
        if side * side != tokens || !patches.side().is_multiple_of(side) {
            return Err(ModelError::config(format!(
                "mm_tokens_per_image is {tokens}, expected the square of a divisor of the {} \
                 patches per side of an image",
                patches.side()
            )));
        }
        Ok(MergedPatches {
            patches,
            merge: patches.side() / side,
        })
    }

    /// Returns the language model's section.
    fn text_config(&self) -> Value {
        let mut text = match without_nulls(&self.text_config) {
            Value::Object(members) => members,
            _ => Map::new(),
        };
        if let Some(tied) = self.tie_word_embeddings {
            text.entry("tie_word_embeddings").or_insert(tied.into());
        }
        text.into()
    }
}

/// The model.
#[derive(Module, Debug)]
pub struct Gemma3<B: KernelBackend> {
    vision: SiglipTower<B>,
    projector: Projector<B>,
    text: Decoder<B>,
    #[module(skip)]
    squares: MergedPatches,
    #[module(skip)]
    preprocess: PreprocessConfig,
    #[module(skip)]
    image_token: u32,
}

impl<B: KernelBackend> Gemma3<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If the configuration makes no model or a weight is missing.
    pub fn init(files: &ModelFiles, weights: &Weights<'_, B>) -> Result<Self, ModelError> {
        let config: Config = parse_config(&files.config)?;
        let vision = config.vision()?;
        let text = decoder_config(TextKind::Gemma3, &config.text_config())?;
        Section("").sizes(&[("vocab_size", text.vocabulary, VOCABULARY)])?;
        Section("").token("image_token_index", config.image_token(), text.vocabulary)?;
        let root = weights.root(Part::Vision);
        let projector = root
            .part(Part::Projector)
            .child("projector", "multi_modal_projector");
        Ok(Self {
            squares: config.squares(&vision)?,
            preprocess: preprocess_config(files.preprocessor.as_ref(), &vision)?,
            image_token: config.image_token(),
            projector: Projector::init(&vision, text.hidden_size, &projector)?,
            vision: SiglipTower::init(&vision, &root.child("vision", "vision_tower.vision_model"))?,
            text: Decoder::init(text, DecoderNames::NESTED, &root)?,
        })
    }

    /// Returns the place in the prompt of an image with a number of crops.
    fn layout(&self, crops: usize) -> Layout {
        let run = || Piece::Run(Run::sequence(self.squares.units()).bidirectional());
        let mut pieces = vec![Piece::Text(match crops {
            0 => format!("\n\n{IMAGE}"),
            _ => format!("Here is the original image \n\n{IMAGE}"),
        })];
        for crop in 0..crops {
            let text = match crop {
                0 => " and here are some crops to help you see better ",
                _ => " ",
            };
            pieces.extend([run(), Piece::Text(format!("{END}{text}\n\n{IMAGE}"))]);
        }
        pieces.extend([run(), Piece::Text(END.to_owned())]);
        Layout::new(pieces)
    }
}

/// Reads `preprocessor_config.json` and checks it against the tower.
fn preprocess_config(
    file: Option<&Value>,
    vision: &SiglipConfig,
) -> Result<PreprocessConfig, ModelError> {
    let config = PreprocessConfig::parse(file.unwrap_or(&json!({})), vision.image_size)?;
    if config.side != vision.image_size {
        return Err(ModelError::config(format!(
            "preprocessor_config.json makes images of {} pixels, the vision tower takes {}",
            config.side, vision.image_size
        )));
    }
    Ok(config)
}

impl<B: KernelBackend> Model<B> for Gemma3<B> {
    fn language(&self) -> &dyn LanguageModel<B> {
        &self.text
    }

    fn pans_images(&self) -> bool {
        true
    }

    fn image(&self, image: &RgbImage, options: &MediaOptions) -> Result<MediaInput, ModelError> {
        let pans = options.pan_and_scan || self.preprocess.pans;
        let [rows, columns] = match pans {
            true => (self.preprocess.crops).grid(image.width(), image.height()),
            false => [0, 0],
        };
        let (count, side) = (1 + rows * columns, self.squares.side());
        let (tokens, limit) = (count * side * side, options.most_tokens);
        if tokens > limit {
            return Err(PreprocessError::TooManyTokens { tokens, limit }.into());
        }
        let values = self.preprocess.image(image, pans)?;
        let samples = || {
            let all: Vec<usize> = (0..tokens).collect();
            let plane = self.squares.patches.patch_size.pow(2);
            let cut = self.squares.cut(&values, &all);
            self.preprocess.normalization.samples(&cut, plane)
        };
        let units = [count, side, side];
        let reduction = enter(&options.reductions, MediaKind::Image, units, samples);
        let layout = self.layout(count - 1);
        let layout = match &reduction.units {
            None => layout,
            Some(units) => layout.keep(units),
        };
        Ok(MediaInput {
            kind: MediaKind::Image,
            values,
            shape: vec![count, 3, self.preprocess.side, self.preprocess.side],
            grid: [0; 3],
            layout,
            reduction,
            piece: None,
        })
    }

    fn encoder_size(&self, medium: &MediaInput) -> EncoderSize {
        EncoderSize {
            rows: self.squares.rows(),
            layers: self.vision.depth(),
            ..EncoderSize::of_parts(&medium.reduction, medium.shape[0], self.squares.units())
        }
    }

    fn prompt(
        &self,
        text: &TextProcessor,
        conversation: Conversation<'_>,
        media: &[&Layout],
    ) -> Result<Prompt, ModelError> {
        let rendered = text.render(conversation, DEFAULT_TEMPLATE, |_| IMAGE.to_owned())?;
        let rendered = rendered.with_media(IMAGE, media, TOKEN)?;
        let ids = text.encode_whole(&rendered)?;
        expand_placeholders(&ids, |id| id == self.image_token, media)
    }

    fn encode(
        &self,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<Encoded<B>, ModelError> {
        let squares = &self.squares;
        let tower = {
            let _stage = stage::top("vision");
            let _scope = stage::scope(format_args!("vision"));
            let units = medium.reduction.entering(medium.shape[0] * squares.units());
            let methods = &medium.reduction.methods;
            (self.vision).forward_merged(squares, &medium.values, &units, methods, monitor)?
        };
        let _stage = stage::top("projector");
        let [_, width] = tower.x.dims();
        let units = tower.left.ids.len();
        let patches = tower.x.reshape([units, squares.rows(), width]);
        let means = patches.mean_dim(1).reshape([units, width]);
        let out = self.projector.forward(means);
        probe::capture("projector_out", &out);
        Ok(Encoded::of_units(medium, out, tower.left))
    }
}

/// The norm and the linear layer between the means of patches and the language model.
#[derive(Module, Debug)]
struct Projector<B: KernelBackend> {
    norm: RmsNorm<B>,
    linear: Linear<B>,
}

impl<B: KernelBackend> Projector<B> {
    fn init(
        vision: &SiglipConfig,
        hidden: usize,
        scope: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        let (width, eps) = (vision.hidden_size, vision.layer_norm_eps);
        let normed = scope.normed("norm", width);
        Ok(Self {
            norm: scope.zero_centered_rms_norm("norm", "mm_soft_emb_norm", width, eps),
            linear: scope.transposed_linear(
                "linear",
                "mm_input_projection_weight",
                hidden,
                normed,
            )?,
        })
    }

    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.linear.forward(self.norm.forward(x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squares(config: Value) -> Result<MergedPatches, ModelError> {
        let config: Config = parse_config(&config)?;
        config.squares(&config.vision()?)
    }

    #[test]
    fn defaults_are_those_of_the_classes() {
        let published = json!({"vision_config": {
            "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
            "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
        }});
        let found = squares(published).unwrap();
        assert_eq!((found.side(), found.merge), (16, 4));
        let config: Config = parse_config(&json!({})).unwrap();
        let vision = config.vision().unwrap();
        assert_eq!((vision.hidden_size, vision.patch_size), (768, 16));
        assert_eq!((vision.image_size, vision.num_hidden_layers), (224, 12));
    }

    #[test]
    fn lying_sizes_are_errors() {
        let vision = json!({"image_size": 70, "patch_size": 14});
        for (config, word) in [
            (json!({"mm_tokens_per_image": 0}), "mm_tokens_per_image"),
            (json!({"mm_tokens_per_image": 24}), "the square"),
            (
                json!({"mm_tokens_per_image": 9, "vision_config": vision}),
                "5 patches",
            ),
            (
                json!({"vision_config": {"num_attention_heads": 7}}),
                "heads",
            ),
        ] {
            let error = squares(config).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
