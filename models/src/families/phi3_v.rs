//! Phi-3-Vision and Phi-3.5-Vision (Abdin et al. 2024, <https://arxiv.org/abs/2404.14219>): a
//! image in crops and as a whole through a CLIP tower, 2x2 patches merged, learned separators
//! after every row and between crops and whole, an MLP, and a Phi-3 decoder with LongRoPE. The
//! reference is the code published beside the weights (`modeling_phi3_v.py`,
//! `processing_phi3_v.py`).
//!
//! ```text
//! edge-lmm-convert Phi-3.5-vision-instruct -o phi35v.bpk
//! edge-lmm run phi35v.bpk --image a.jpg --image b.jpg --prompt "What is different?"
//! ```

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use edge_lmm_ops::{Activation, KernelBackend, probe, stage};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config_file::parse_config;
use crate::encoders::clip::{ClipConfig, ClipVisionTower, cut_patches};
use crate::encoders::tower::TowerOutput;
use crate::error::ModelError;
use crate::family::{FamilyInfo, ModelFiles};
use crate::language::LanguageModel;
use crate::layers::Linear;
use crate::layout::{Layout, Run};
use crate::media::{MediaInput, MediaKind, MediaOptions};
use crate::model::{Encoded, Model, UnitsLeft};
use crate::monitor::Monitor;
use crate::preprocess::RgbImage;
use crate::preprocess::normalize::Normalization;
use crate::preprocess::phi3_vision::PreprocessConfig;
use crate::prompt::{Conversation, Prompt, PromptBuilder, TextProcessor};
use crate::reduce::duplicates::enter;
use crate::reduce::merge::Units;
use crate::reduce::rows::indices;
use crate::reduce::{EncoderSize, Reduction, Reductions};
use crate::text::config::{TextKind, decoder_config};
use crate::text::decoder::{Decoder, DecoderNames, Projections};
use crate::weights::{Part, Scope, Weights};

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "phi3_v",
    title: "Phi-3.5-Vision",
    parts: &[],
};

/// The template of the published checkpoints, for those that come without one.
const DEFAULT_TEMPLATE: &str = "{% for message in messages %}\
<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n\
{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}";

/// Tag of an image in a prompt, before and after its number.
const TAG: (&str, &str) = ("<|image_", "|>");

/// Stands for visual tokens among the ids; the reference has negative ones there, which no table
/// of embeddings knows.
const PLACEHOLDER: u32 = 0;

#[derive(Debug, Clone, Deserialize)]
struct Config {
    img_processor: ImageProcessor,
    embd_layer: EmbeddingLayer,
    /// Test checkpoints bring sizes; the published code has those of CLIP-L/14-336 in it.
    #[serde(rename = "tiny_clip_config", default = "ClipConfig::large_patch14_336")]
    clip: ClipConfig,
}

#[derive(Debug, Clone, Deserialize)]
struct ImageProcessor {
    #[serde(default = "default_tower")]
    name: String,
    #[serde(default = "default_layer")]
    layer_idx: i64,
    #[serde(default = "default_feature")]
    type_feature: String,
}

fn default_tower() -> String {
    "clip_vision_model".to_owned()
}

fn default_layer() -> i64 {
    -2
}

fn default_feature() -> String {
    "patch".to_owned()
}

#[derive(Debug, Clone, Deserialize)]
struct EmbeddingLayer {
    #[serde(default)]
    hd_transform_order: String,
    #[serde(default)]
    projection_cls: String,
    #[serde(default)]
    use_hd_transform: bool,
    #[serde(default)]
    with_learnable_separator: bool,
}

impl Config {
    fn parse(config: &Value) -> Result<Self, ModelError> {
        let config: Self = parse_config(config)?;
        let (tower, layer) = (&config.img_processor, &config.embd_layer);
        let flag = |on: bool| on.to_string();
        for (name, found, expected) in [
            (
                "img_processor.name",
                tower.name.clone(),
                "clip_vision_model",
            ),
            (
                "img_processor.type_feature",
                tower.type_feature.clone(),
                "patch",
            ),
            (
                "embd_layer.hd_transform_order",
                layer.hd_transform_order.clone(),
                "sub_glb",
            ),
            (
                "embd_layer.projection_cls",
                layer.projection_cls.clone(),
                "mlp",
            ),
            (
                "embd_layer.use_hd_transform",
                flag(layer.use_hd_transform),
                "true",
            ),
            (
                "embd_layer.with_learnable_separator",
                flag(layer.with_learnable_separator),
                "true",
            ),
        ] {
            if found != expected {
                return Err(ModelError::config(format!(
                    "{name} is {found:?}, expected {expected:?}: other kinds of Phi-3-Vision are \
                     not supported"
                )));
            }
        }
        if !config.clip.side().is_multiple_of(2) {
            return Err(ModelError::config(format!(
                "a crop has {0}x{0} patches, which cannot be merged 2x2",
                config.clip.side()
            )));
        }
        Ok(config)
    }
}

/// The model.
#[derive(Module, Debug)]
pub struct Phi3Vision<B: KernelBackend> {
    vision: ClipVisionTower<B>,
    projector: Projector<B>,
    text: Decoder<B>,
    #[module(skip)]
    clip: ClipConfig,
    #[module(skip)]
    preprocess: PreprocessConfig,
}

impl<B: KernelBackend> Phi3Vision<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If the configuration makes no model or a weight is missing.
    pub fn init(files: &ModelFiles, weights: &Weights<'_, B>) -> Result<Self, ModelError> {
        let config = Config::parse(&files.config)?;
        let clip = config.clip;
        let text = decoder_config(TextKind::Phi3, &files.config)?;
        let layers = clip.layers_until(config.img_processor.layer_idx)?;
        let root = weights.root(Part::Vision);
        let embedding = root.child("", "model.vision_embed_tokens");
        let vision = embedding.child("vision", "img_processor.vision_model");
        let projector = embedding.part(Part::Projector).child("projector", "");
        Ok(Self {
            vision: ClipVisionTower::init(&clip, layers, &vision)?,
            projector: Projector::init(&clip, text.hidden_size, &projector)?,
            text: Decoder::init_with(text, DecoderNames::TOP, Projections::Fused, &root)?,
            preprocess: preprocess_config(files.preprocessor.as_ref(), &clip)?,
            clip,
        })
    }

    /// Returns the number of tokens of an image of `rows` x `columns` crops.
    fn tokens(&self, [rows, columns]: [usize; 2]) -> usize {
        let side = self.clip.side() / 2;
        rows * side * (columns * side + 1) + 1 + side * (side + 1)
    }

    /// Returns the configuration, with fewer crops if the image's tokens exceed the limit.
    fn preprocess(&self, image: &RgbImage, options: &MediaOptions) -> PreprocessConfig {
        let most = options.image_tokens.map_or(usize::MAX, |(_, most)| most);
        let mut config = self.preprocess.clone();
        let grid = |config: &PreprocessConfig| config.grid(image.width(), image.height());
        while config.num_crops > 1 && self.tokens(grid(&config)) > most {
            config.num_crops -= 1;
        }
        config
    }

    /// Returns the patches of unit `unit` of a crop.
    fn unit_patches(&self, unit: usize) -> [usize; PATCHES] {
        let side = self.clip.side();
        let (row, column) = (unit / (side / 2) * 2, unit % (side / 2) * 2);
        [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(y, x)| (row + y) * side + column + x)
    }

    /// Returns the 8-bit samples of all units of an image's crops.
    fn samples(&self, values: &[f32]) -> Vec<u8> {
        let plane = self.clip.patch_size * self.clip.patch_size;
        let units = 0..self.clip.patches() / PATCHES;
        let patches: Vec<usize> = units.flat_map(|unit| self.unit_patches(unit)).collect();
        values
            .chunks_exact(self.clip.image_len())
            .flat_map(|crop| {
                let cut = cut_patches(crop, &self.clip, patches.iter().copied());
                Normalization::default().samples(&cut, plane)
            })
            .collect()
    }

    /// Encodes an image whose units are reduced before or within the tower.
    fn encode_units(
        &self,
        medium: &MediaInput,
        device: &B::Device,
        monitor: &mut Monitor<'_>,
    ) -> Result<Encoded<B>, ModelError> {
        let (count, side) = (medium.shape[0], self.clip.side() / 2);
        let methods = &medium.reduction.methods;
        let entering = medium.reduction.entering(count * side * side);
        let (mut ids, mut attention, mut features) = (Vec::new(), Vec::new(), Vec::new());
        {
            let _stage = stage::top("vision");
            let _scope = stage::scope(format_args!("vision"));
            let crops = medium.values.chunks_exact(self.clip.image_len());
            for (i, crop) in crops.enumerate() {
                let first = i * side * side;
                let of_crop = [first, first + side * side]
                    .map(|bound| entering.partition_point(|&unit| unit < bound));
                let of_crop = entering[of_crop[0]..of_crop[1]].iter();
                let units: Vec<usize> = of_crop.map(|unit| unit - first).collect();
                let places: Vec<usize> = units
                    .iter()
                    .flat_map(|&unit| self.unit_patches(unit))
                    .collect();
                let patches = cut_patches(crop, &self.clip, places.iter().copied());
                let shape = [places.len(), self.clip.patch_width()];
                let patches = Tensor::from_data(TensorData::new(patches, shape), device);
                let units = Units::new(units, PATCHES);
                let TowerOutput { x, left, .. } = monitor.pass(i, count, |monitor| {
                    self.vision
                        .forward(patches, &places, units, methods, monitor)
                })?;
                let [_, width] = x.dims();
                let states = x.narrow(0, 1, left.ids.len() * PATCHES);
                features.push(states.reshape([left.ids.len(), PATCHES * width]));
                ids.extend(left.ids.iter().map(|unit| unit + first));
                attention.extend(left.attention.into_iter().flatten());
            }
        }
        let _stage = stage::top("projector");
        let tokens = CropTokens {
            grid: [1, 2].map(|axis| medium.grid[axis] / self.clip.side()),
            side,
        };
        let arranged = tokens.arrange(&ids);
        let out = self.projector.forward_units(features, &arranged.sources);
        // Tokens between the units are kept by every choice that looks at attention.
        let received = |source: &TokenSource| match source {
            TokenSource::Unit(place) => attention[*place],
            _ => f32::INFINITY,
        };
        let merge = methods.merge().map(Reduction::Merge);
        let left = UnitsLeft {
            attention: (methods.needs_attention())
                .then(|| arranged.sources.iter().map(received).collect()),
            steps: merge
                .map(|merge| merge.left(ids.len()))
                .into_iter()
                .collect(),
            ids,
        };
        let before = tokens.arrange(&entering).kept;
        let place = |token: &usize| before.partition_point(|other| other < token);
        let kept: Vec<usize> = arranged.kept.iter().map(place).collect();
        Ok(Encoded::of_tokens(medium, out, &kept, left))
    }

    /// Returns the tower's features of one crop, without the class token.
    fn features(
        &self,
        crop: &[f32],
        device: &B::Device,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let shape = [self.clip.patches(), self.clip.patch_width()];
        let places: Vec<usize> = (0..shape[0]).collect();
        let patches = TensorData::new(cut_patches(crop, &self.clip, 0..shape[0]), shape);
        let patches = Tensor::from_data(patches, device);
        let (units, methods) = (Units::new(places.clone(), 1), Reductions::default());
        let tower = (self.vision).forward(patches, &places, units, &methods, monitor)?;
        let features = tower.x.narrow(0, 1, shape[0]);
        probe::capture("vision_out", &features.clone().unsqueeze::<3>());
        Ok(features)
    }
}

/// Reads `preprocessor_config.json` and checks it against the tower.
fn preprocess_config(
    file: Option<&Value>,
    clip: &ClipConfig,
) -> Result<PreprocessConfig, ModelError> {
    let config = PreprocessConfig::parse(file.unwrap_or(&json!({})))?;
    if config.crop_size != clip.image_size {
        return Err(ModelError::config(format!(
            "preprocessor_config.json makes crops of {} pixels, the vision tower takes {}",
            config.crop_size, clip.image_size
        )));
    }
    Ok(config)
}

impl<B: KernelBackend> Model<B> for Phi3Vision<B> {
    fn language(&self) -> &dyn LanguageModel<B> {
        &self.text
    }

    fn resizes_images(&self) -> bool {
        true
    }

    fn image(&self, image: &RgbImage, options: &MediaOptions) -> Result<MediaInput, ModelError> {
        let crops = self.preprocess(image, options).image(image)?;
        let [rows, columns] = crops.grid;
        let (side, size) = (self.clip.side(), self.clip.image_size);
        let tokens = CropTokens {
            grid: crops.grid,
            side: side / 2,
        };
        let units = [crops.count(), tokens.side, tokens.side];
        let samples = || self.samples(&crops.pixel_values);
        let reduction = enter(&options.reductions, MediaKind::Image, units, samples);
        let layout = Layout::from(Run::sequence(self.tokens(crops.grid)));
        let layout = match &reduction.units {
            None => layout,
            Some(units) => layout.keep(&tokens.arrange(units).kept),
        };
        Ok(MediaInput {
            kind: MediaKind::Image,
            shape: vec![crops.count(), self.clip.num_channels, size, size],
            values: crops.pixel_values,
            grid: [1, rows * side, columns * side],
            layout,
            reduction,
            piece: None,
        })
    }

    fn encoder_size(&self, medium: &MediaInput) -> EncoderSize {
        let units = self.clip.patches() / PATCHES;
        EncoderSize {
            rows: PATCHES,
            layers: self.vision.depth(),
            ..EncoderSize::of_parts(&medium.reduction, medium.shape[0], units)
        }
    }

    fn prompt(
        &self,
        text: &TextProcessor,
        conversation: Conversation<'_>,
        media: &[&Layout],
    ) -> Result<Prompt, ModelError> {
        // Numbers have to rise from image to image, so the order alone says which is which.
        let placeholder = |_| format!("{}1{}\n", TAG.0, TAG.1);
        let rendered = text.render(conversation, DEFAULT_TEMPLATE, placeholder)?;
        let chunks = rendered.split(split_at_tags);
        if chunks.len() != media.len() + 1 {
            return Err(ModelError::Placeholders {
                found: chunks.len() - 1,
                expected: media.len(),
            });
        }
        let mut prompt = PromptBuilder::new();
        for (medium, chunk) in chunks.into_iter().enumerate() {
            // Every piece of text is encoded by itself and begins with the token for it.
            prompt.text(&text.encode_whole(&chunk)?);
            if let Some(layout) = media.get(medium) {
                prompt.medium(PLACEHOLDER, medium, layout);
            }
        }
        Ok(prompt.finish())
    }

    fn encode(
        &self,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<Encoded<B>, ModelError> {
        let device = self.text.embed(&[0]).device();
        let reduction = &medium.reduction;
        if reduction.units.is_some()
            || reduction.methods.merges()
            || reduction.methods.needs_attention()
        {
            return self.encode_units(medium, &device, monitor);
        }
        let crops: Vec<Tensor<B, 2>> = {
            let _stage = stage::top("vision");
            let _scope = stage::scope(format_args!("vision"));
            let crops = medium.values.chunks_exact(self.clip.image_len());
            let count = crops.len();
            crops
                .enumerate()
                .map(|(i, crop)| {
                    monitor.pass(i, count, |monitor| self.features(crop, &device, monitor))
                })
                .collect::<Result<_, _>>()?
        };
        let _stage = stage::top("projector");
        let columns = medium.grid[2] / self.clip.side();
        let out = self.projector.forward(crops, columns, self.clip.side() / 2);
        probe::capture("projector_out", &out.clone().unsqueeze::<3>());
        let mut encoded = Encoded::new(medium, out);
        let merge = reduction.methods.merge().map(Reduction::Merge);
        let units = medium.shape[0] * self.clip.patches() / PATCHES;
        encoded.steps.extend(merge.map(|merge| merge.left(units)));
        Ok(encoded)
    }
}

/// Patches of a unit: a square that becomes one token.
const PATCHES: usize = 4;

/// The order of an image's tokens: the crops row by row, a token after each row; a separator; the
/// whole image, a token after each row.
#[derive(Debug, Clone, Copy)]
struct CropTokens {
    /// Rows and columns of crops.
    grid: [usize; 2],
    /// Units per side of a crop.
    side: usize,
}

/// The tokens of some units, and the tokens between them.
#[derive(Debug, PartialEq, Eq)]
struct Arranged {
    /// Place of each token among all tokens of the image.
    kept: Vec<usize>,
    /// The features of each token.
    sources: Vec<TokenSource>,
}

/// The features of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenSource {
    /// A unit, by its place among the units that are left.
    Unit(usize),
    /// The end of a row.
    RowEnd,
    /// The separator of crops and whole image.
    Separator,
}

impl CropTokens {
    /// Arranges the tokens of `units`, sorted: units of the whole image, then those of the crops.
    fn arrange(&self, units: &[usize]) -> Arranged {
        let Self {
            grid: [rows, columns],
            side,
        } = *self;
        let row_of = |crops: std::ops::Range<usize>, y: usize| {
            let units = crops.flat_map(move |crop| {
                let first = (crop * side + y) * side;
                first..first + side
            });
            units.map(Some).chain([None])
        };
        let crops = (0..rows)
            .flat_map(|row| (0..side).map(move |y| (1 + row * columns..1 + (row + 1) * columns, y)))
            .flat_map(|(crops, y)| row_of(crops, y));
        let whole = (0..side).flat_map(|y| row_of(0..1, y));
        let place = |unit: Option<usize>| match unit {
            None => Some(TokenSource::RowEnd),
            Some(unit) => units.binary_search(&unit).ok().map(TokenSource::Unit),
        };
        let all = crops
            .map(place)
            .chain([Some(TokenSource::Separator)])
            .chain(whole.map(place));
        let (kept, sources) = all
            .enumerate()
            .filter_map(|(token, source)| Some((token, source?)))
            .unzip();
        Arranged { kept, sources }
    }
}

/// Splits text at the image tags (`<|image_1|>` and so on).
fn split_at_tags(text: &str) -> Vec<&str> {
    let (mut chunks, mut start, mut from) = (Vec::new(), 0, 0);
    while let Some(found) = text[from..].find(TAG.0) {
        let tag = from + found;
        let number = tag + TAG.0.len();
        let rest = &text[number..];
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        from = number + digits;
        if digits > 0 && text[from..].starts_with(TAG.1) {
            chunks.push(&text[start..tag]);
            from += TAG.1.len();
            start = from;
        }
    }
    chunks.push(&text[start..]);
    chunks
}

/// Merges patches, sets separators between them and maps them into the language model.
#[derive(Module, Debug)]
struct Projector<B: KernelBackend> {
    row_end: Param<Tensor<B, 2>>,
    separator: Param<Tensor<B, 2>>,
    up: Linear<B>,
    down: Linear<B>,
}

impl<B: KernelBackend> Projector<B> {
    fn init(
        clip: &ClipConfig,
        hidden: usize,
        scope: &Scope<'_, '_, B>,
    ) -> Result<Self, ModelError> {
        let width = 4 * clip.hidden_size;
        let mlp = scope.child("", "img_projection");
        Ok(Self {
            row_end: scope.matrix("row_end", "sub_GN", 1, width),
            separator: scope.matrix("separator", "glb_GN", 1, width),
            up: mlp.linear("up", &[("0", hidden)], width, true)?,
            down: mlp.linear("down", &[("2", hidden)], hidden, true)?,
        })
    }

    /// Projects crops. The whole image comes first in `crops` and last in the result.
    ///
    /// # Shapes
    /// - crops: `[4 * side * side, width]` each
    /// - result: `[tokens, hidden_size]`
    fn forward(&self, crops: Vec<Tensor<B, 2>>, columns: usize, side: usize) -> Tensor<B, 2> {
        let mut merged = crops.into_iter().map(|crop| merge(crop, side));
        let whole = merged.next().into_iter().collect();
        let merged: Vec<Tensor<B, 3>> = merged.collect();
        let mut parts: Vec<Tensor<B, 2>> = merged
            .chunks(columns)
            .map(|row| self.end_rows(row.to_vec(), side))
            .collect();
        parts.push(self.separator.val());
        parts.push(self.end_rows(whole, side));
        let x = Tensor::cat(parts, 0);
        self.up.feed_forward(x, Activation::Gelu, &self.down, None)
    }

    /// Projects units, and the embeddings between them.
    ///
    /// # Shapes
    /// - units: `[units, 4 * width]` for each crop, result: `[sources, hidden_size]`
    fn forward_units(&self, mut units: Vec<Tensor<B, 2>>, sources: &[TokenSource]) -> Tensor<B, 2> {
        let count: usize = units.iter().map(|units| units.dims()[0]).sum();
        units.extend([self.row_end.val(), self.separator.val()]);
        let row = |source: &TokenSource| match source {
            TokenSource::Unit(place) => *place,
            TokenSource::RowEnd => count,
            TokenSource::Separator => count + 1,
        };
        let rows: Vec<usize> = sources.iter().map(row).collect();
        let all = Tensor::cat(units, 0);
        let x = all.clone().select(0, indices(&rows, &all.device()));
        self.up.feed_forward(x, Activation::Gelu, &self.down, None)
    }

    /// Concatenates a row of crops and appends the end-of-row embedding to each row of tokens.
    fn end_rows(&self, mut crops: Vec<Tensor<B, 3>>, side: usize) -> Tensor<B, 2> {
        let end = self.row_end.val();
        let width = end.dims()[1];
        crops.push(end.reshape([1, 1, width]).repeat_dim(0, side));
        Tensor::cat(crops, 1).reshape([-1, width as i32])
    }
}

/// Merges each 2x2 patches into one token: from `[4 * side * side, width]` to `[side, side, 4 *
/// width]`.
fn merge<B: KernelBackend>(crop: Tensor<B, 2>, side: usize) -> Tensor<B, 3> {
    let width = crop.dims()[1];
    crop.reshape([side, 2, side, 2 * width])
        .swap_dims(1, 2)
        .reshape([side, side, 4 * width])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked by hand: two crops of 2 x 2 units in a row, then the whole image. A token ends every
    /// row.
    #[test]
    fn tokens_between_units_are_kept() {
        use TokenSource::{RowEnd, Separator, Unit};
        let tokens = CropTokens {
            grid: [1, 2],
            side: 2,
        };
        let all: Vec<usize> = (0..12).collect();
        let whole = tokens.arrange(&all);
        let order = [4, 5, 8, 9, 99, 6, 7, 10, 11, 99, 98, 0, 1, 99, 2, 3, 99];
        let number = |source: &TokenSource| match source {
            Unit(place) => *place,
            RowEnd => 99,
            Separator => 98,
        };
        assert_eq!(whole.sources.iter().map(number).collect::<Vec<_>>(), order);
        assert_eq!(whole.kept, (0..17).collect::<Vec<_>>());
        let some = tokens.arrange(&[3, 8]);
        assert_eq!(some.kept, [2, 4, 9, 10, 13, 15, 16]);
        assert_eq!(
            some.sources,
            [Unit(1), RowEnd, RowEnd, Separator, RowEnd, Unit(0), RowEnd]
        );
    }

    #[test]
    fn text_is_split_at_the_tags_of_images() {
        assert_eq!(split_at_tags("none"), ["none"]);
        assert_eq!(split_at_tags("<|image_1|>\na<|image_12|>"), ["", "\na", ""]);
        let text = "<|image_|> <|image_1 <|image_<|image_2|>x";
        assert_eq!(split_at_tags(text), ["<|image_|> <|image_1 <|image_", "x"]);
    }
}
