//! LFM2-VL (Liquid AI 2025, <https://arxiv.org/abs/2511.23404>): a SigLIP 2 tower at the image's own
//! resolution, large images in tiles with a thumbnail, an MLP that makes one token of 2x2 patches, and
//! the LFM2 language model of short convolutions and attention. The reference is `modeling_lfm2_vl.py`
//! of `transformers`.
//!
//! ```text
//! edge-lmm-convert LFM2-VL-450M -o lfm2-vl-450m.bpk
//! edge-lmm run lfm2-vl-450m.bpk --image cat.jpg --prompt "What is this?"
//! ```

use burn::module::Module;
use burn::tensor::Tensor;
use edge_lmm_ops::{Activation, KernelBackend, probe, stage};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config_file::parse_config;
use crate::encoders::siglip2::{Grids, Siglip2Config, Siglip2Tower};
use crate::error::ModelError;
use crate::family::{FamilyInfo, ModelFiles};
use crate::language::LanguageModel;
use crate::layers::{LayerNorm, Linear};
use crate::layout::{Layout, Piece, Run};
use crate::media::{MediaInput, MediaKind, MediaOptions};
use crate::model::{Encoded, Model};
use crate::monitor::Monitor;
use crate::preprocess::lfm2_vl::{Cut, PreprocessConfig};
use crate::preprocess::settings::without_nulls;
use crate::preprocess::{PreprocessError, RgbImage};
use crate::prompt::{Conversation, Prompt, TextProcessor, expand_placeholders};
use crate::reduce::EncoderSize;
use crate::reduce::duplicates::enter;
use crate::sizes::{Section, WIDTH};
use crate::text::lfm2::{Lfm2, Lfm2Config};
use crate::weights::{Part, Scope, Weights};

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "lfm2_vl",
    title: "LFM2-VL",
    parts: &[
        ("vision_config", &["siglip2_vision_model"]),
        ("text_config", &["lfm2"]),
    ],
};

/// The turns of the published checkpoints, for those that come without a template.
const DEFAULT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n\
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The text of an image in a template, and of each of its tokens.
const IMAGE: &str = "<image>";

/// Epsilon of the projector's norm: PyTorch's default, used by the reference.
const NORM_EPS: f64 = 1e-5;

#[derive(Debug, Clone, Deserialize)]
struct Config {
    #[serde(default)]
    text_config: Value,
    #[serde(default)]
    vision_config: Siglip2Config,
    image_token_id: Option<u32>,
    image_token_index: Option<u32>,
    #[serde(default = "default_activation")]
    projector_hidden_act: String,
    #[serde(default = "default_width")]
    projector_hidden_size: usize,
    #[serde(default = "default_true")]
    projector_bias: bool,
    #[serde(default = "default_true")]
    projector_use_layernorm: bool,
    #[serde(default = "default_true")]
    use_image_special_tokens: bool,
    #[serde(default = "default_factor")]
    downsample_factor: usize,
    tie_word_embeddings: Option<bool>,
}

fn default_activation() -> String {
    "gelu".to_owned()
}

fn default_width() -> usize {
    2560
}

fn default_true() -> bool {
    true
}

fn default_factor() -> usize {
    2
}

impl Config {
    fn parse(config: &Value) -> Result<Self, ModelError> {
        let config: Self = parse_config(config)?;
        config.vision_config.check()?;
        let section = Section("");
        section.only("projector_hidden_act", &config.projector_hidden_act, "gelu")?;
        section.sizes(&[
            ("projector_hidden_size", config.projector_hidden_size, WIDTH),
            ("downsample_factor", config.downsample_factor, 64),
        ])?;
        Ok(config)
    }

    /// Returns the token that stands for a token of an image, under its older or newer name.
    fn image_token(&self) -> u32 {
        let named = self.image_token_id.or(self.image_token_index);
        named.unwrap_or(396)
    }

    /// Returns the language model's section.
    fn text(&self) -> Value {
        let mut text = without_nulls(&self.text_config);
        let says = |key: &str| text.get(key).is_some();
        let silent = !says("tie_word_embeddings") && !says("tie_embedding");
        if let (Some(tied), true) = (self.tie_word_embeddings, silent) {
            match text.as_object_mut() {
                Some(members) => {
                    drop(members.insert("tie_word_embeddings".to_owned(), tied.into()))
                }
                None => text = json!({"tie_word_embeddings": tied}),
            }
        }
        text
    }
}

/// The model.
#[derive(Module, Debug)]
pub struct Lfm2Vl<B: KernelBackend> {
    vision: Siglip2Tower<B>,
    projector: Projector<B>,
    text: Lfm2<B>,
    #[module(skip)]
    preprocess: PreprocessConfig,
    #[module(skip)]
    patch: usize,
    #[module(skip)]
    image_token: u32,
    #[module(skip)]
    has_markers: bool,
}

impl<B: KernelBackend> Lfm2Vl<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If the configuration makes no model or a weight is missing.
    pub fn init(files: &ModelFiles, weights: &Weights<'_, B>) -> Result<Self, ModelError> {
        let config = Config::parse(&files.config)?;
        let vision = &config.vision_config;
        let text = Lfm2Config::parse(&config.text())?;
        Section("").token("image_token_id", config.image_token(), text.vocabulary)?;
        let root = weights.root(Part::Vision);
        let tower = root.child("vision", "model.vision_tower.vision_model");
        let projector = root
            .part(Part::Projector)
            .child("projector", "model.multi_modal_projector");
        Ok(Self {
            vision: Siglip2Tower::init(vision, &tower)?,
            projector: Projector::init(&config, text.hidden_size, &projector)?,
            text: Lfm2::init(text, "model.language_model", &root)?,
            preprocess: preprocess_config(files, &config)?,
            patch: vision.patch_size,
            image_token: config.image_token(),
            has_markers: config.use_image_special_tokens,
        })
    }

    /// Returns the patches of an image's tiles and of the whole.
    fn grids(&self, cut: Cut) -> Grids {
        let [rows, columns] = cut.tiles;
        let tile = [self.preprocess.tile_side(); 2];
        let mut images = vec![tile; rows * columns];
        let whole = cut.whole.map(|side| side / self.patch);
        images.extend((whole != [0, 0]).then_some(whole));
        Grids {
            images,
            merge: self.preprocess.merge(),
        }
    }

    /// Returns the grids of a prepared image, whose `grid` is the number of tiles, and rows and columns
    /// of patches of the whole.
    fn grids_of(&self, medium: &MediaInput) -> Grids {
        let [tiles, height, width] = medium.grid;
        self.grids(Cut {
            tiles: [1.min(tiles), tiles],
            whole: [height, width].map(|patches| patches * self.patch),
        })
    }

    /// Returns the place of an image in the prompt.
    fn layout(&self, grids: &Grids, [rows, columns]: [usize; 2]) -> Layout {
        let mut text = match self.has_markers {
            true => "<|image_start|>".to_owned(),
            false => String::new(),
        };
        let mut pieces = Vec::new();
        for (i, tokens) in grids.units().enumerate() {
            if self.has_markers && i < rows * columns {
                let (row, column) = (i / columns + 1, i % columns + 1);
                text += &format!("<|img_row_{row}_col_{column}|>");
            } else if self.has_markers && rows > 0 {
                text += "<|img_thumbnail|>";
            }
            let before = std::mem::take(&mut text);
            pieces.extend([Piece::Text(before), Piece::Run(Run::sequence(tokens))]);
        }
        pieces.extend((self.has_markers).then(|| Piece::Text("<|image_end|>".to_owned())));
        Layout::new(pieces)
    }
}

/// Reads `preprocessor_config.json`, which may leave sizes to `config.json`.
fn preprocess_config(files: &ModelFiles, config: &Config) -> Result<PreprocessConfig, ModelError> {
    const SIZES: [&str; 8] = [
        "min_image_tokens",
        "max_image_tokens",
        "tile_size",
        "min_tiles",
        "max_tiles",
        "max_pixels_tolerance",
        "use_thumbnail",
        "do_image_splitting",
    ];
    let mut file = json!({"downsample_factor": config.downsample_factor});
    for key in SIZES {
        if let Some(value) = files.config.get(key) {
            file[key] = value.clone();
        }
    }
    let given = without_nulls(files.preprocessor.as_ref().unwrap_or(&Value::Null));
    for (key, value) in given.as_object().into_iter().flatten() {
        file[key.as_str()] = value.clone();
    }
    let preprocess = PreprocessConfig::parse(&file, config.vision_config.patch_size)?;
    if preprocess.merge() != config.downsample_factor {
        return Err(ModelError::config(format!(
            "preprocessor_config.json has downsample_factor {}, config.json {}",
            preprocess.merge(),
            config.downsample_factor
        )));
    }
    Ok(preprocess)
}

impl<B: KernelBackend> Model<B> for Lfm2Vl<B> {
    fn language(&self) -> &dyn LanguageModel<B> {
        &self.text
    }

    fn resizes_images(&self) -> bool {
        true
    }

    fn image(&self, image: &RgbImage, options: &MediaOptions) -> Result<MediaInput, ModelError> {
        let mut config = self.preprocess.with_tokens(options.image_tokens);
        let mut cut = config.cut(image.width(), image.height());
        let most = options.image_tokens.map_or(usize::MAX, |(_, most)| most);
        if self.grids(cut).units().sum::<usize>() > most {
            config = config.without_tiles();
            cut = config.cut(image.width(), image.height());
        }
        let grids = self.grids(cut);
        let (tokens, limit) = (grids.units().sum(), options.most_tokens);
        if tokens > limit {
            return Err(PreprocessError::TooManyTokens { tokens, limit }.into());
        }
        let values = config.image(image, cut)?;
        let width = 3 * self.patch * self.patch;
        // Tiles of different shapes have no common grid.
        let units = match &grids.images[..] {
            [[height, width]] => [1, height / grids.merge, width / grids.merge],
            _ => [1, 1, tokens],
        };
        let samples = || config.normalization.samples(&values, 1);
        let reduction = enter(&options.reductions, MediaKind::Image, units, samples);
        let layout = self.layout(&grids, cut.tiles);
        let unit = width * grids.merge * grids.merge;
        let (values, layout) = match &reduction.units {
            None => (values, layout),
            Some(entering) => {
                let kept = entering.iter();
                let kept = kept.flat_map(|i| &values[i * unit..(i + 1) * unit]);
                (kept.copied().collect(), layout.keep(entering))
            }
        };
        Ok(MediaInput {
            kind: MediaKind::Image,
            shape: vec![values.len() / width, width],
            values,
            grid: [
                cut.tiles[0] * cut.tiles[1],
                cut.whole[0] / self.patch,
                cut.whole[1] / self.patch,
            ],
            layout,
            reduction,
            piece: None,
        })
    }

    fn encoder_size(&self, medium: &MediaInput) -> EncoderSize {
        let grids = self.grids_of(medium);
        let entering = medium.reduction.entering(grids.units().sum());
        let bounds = grids.units().scan(0, |first, units| {
            *first += units;
            Some(*first)
        });
        let mut before = 0;
        let parts = bounds.map(|bound| {
            let end = entering.partition_point(|&unit| unit < bound);
            let part = end - before;
            before = end;
            part
        });
        EncoderSize {
            parts: parts.filter(|&units| units > 0).collect(),
            rows: grids.merge * grids.merge,
            layers: self.vision.depth(),
            merges: true,
            units_are_tokens: true,
        }
    }

    fn prompt(
        &self,
        text: &TextProcessor,
        conversation: Conversation<'_>,
        media: &[&Layout],
    ) -> Result<Prompt, ModelError> {
        let rendered = text.render(conversation, DEFAULT_TEMPLATE, |_| IMAGE.to_owned())?;
        let rendered = rendered.with_media(IMAGE, media, IMAGE)?;
        let ids = text.encode(&rendered)?;
        expand_placeholders(&ids, |id| id == self.image_token, media)
    }

    fn encode(
        &self,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<Encoded<B>, ModelError> {
        let grids = self.grids_of(medium);
        let units = medium.reduction.entering(grids.units().sum());
        let methods = &medium.reduction.methods;
        let input = (&grids, units);
        let tower = (self.vision).forward(&medium.values, input, methods, monitor)?;
        let _stage = stage::top("projector");
        let [_, width] = tower.x.dims();
        let merged = [tower.left.ids.len(), grids.merge * grids.merge * width];
        let out = self.projector.forward(tower.x.reshape(merged));
        probe::capture("projector_out", &out);
        Ok(Encoded::of_units(medium, out, tower.left))
    }
}

/// The MLP between the tower and the language model.
#[derive(Module, Debug)]
struct Projector<B: KernelBackend> {
    norm: Option<LayerNorm<B>>,
    up: Linear<B>,
    down: Linear<B>,
}

impl<B: KernelBackend> Projector<B> {
    fn init(config: &Config, hidden: usize, scope: &Scope<'_, '_, B>) -> Result<Self, ModelError> {
        let patches = config.downsample_factor * config.downsample_factor;
        let width = config.vision_config.hidden_size * patches;
        let (inner, bias) = (config.projector_hidden_size, config.projector_bias);
        let has_norm = config.projector_use_layernorm;
        let inputs = match has_norm {
            true => scope.normed("norm", width),
            false => width.into(),
        };
        Ok(Self {
            norm: has_norm.then(|| scope.layer_norm("norm", "layer_norm", width, NORM_EPS)),
            up: scope.linear("up", &[("linear_1", inner)], inputs, bias)?,
            down: scope.linear("down", &[("linear_2", hidden)], inner, bias)?,
        })
    }

    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let x = match &self.norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        self.up.feed_forward(x, Activation::Gelu, &self.down, None)
    }
}
