//! SmolVLM2 (Marafioti et al. 2025, <https://arxiv.org/abs/2504.05299>): an image in tiles and as a
//! whole through a SigLIP tower, a square of patches to one token (pixel shuffle) by one linear layer,
//! and a Llama decoder. Text names the tiles, and the times of a video's frames. The reference is
//! `modeling_smolvlm.py` of `transformers`.
//!
//! ```text
//! edge-lmm-convert SmolVLM2-500M-Video-Instruct -o smolvlm2.bpk
//! edge-lmm run smolvlm2.bpk --image cat.jpg --prompt "What is this?"
//! ```

use burn::module::Module;
use edge_lmm_ops::{KernelBackend, probe, stage};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config_file::parse_config;
use crate::encoders::merged_patches::MergedPatches;
use crate::encoders::siglip::{SiglipConfig, SiglipTower};
use crate::error::ModelError;
use crate::family::{FamilyInfo, ModelFiles};
use crate::language::LanguageModel;
use crate::layers::Linear;
use crate::layout::{Layout, Piece, Run};
use crate::media::{FrameTimes, MediaInput, MediaKind, MediaOptions};
use crate::model::{Encoded, Model};
use crate::monitor::Monitor;
use crate::preprocess::settings::without_nulls;
use crate::preprocess::smolvlm::{PreprocessConfig, Tiles};
use crate::preprocess::{PreprocessError, RgbImage};
use crate::prompt::{Content, Conversation, Prompt, TextProcessor, expand_placeholders};
use crate::reduce::EncoderSize;
use crate::reduce::duplicates::enter;
use crate::sizes::Section;
use crate::text::config::{TextKind, decoder_config};
use crate::text::decoder::{Decoder, DecoderNames};
use crate::weights::{Part, Weights};

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "smolvlm",
    title: "SmolVLM2",
    parts: &[
        (
            "vision_config",
            &["smolvlm_vision", "smolvlm", "siglip_vision_model"],
        ),
        ("text_config", &["llama"]),
    ],
};

/// The template of the published checkpoints, for those that come without one.
const DEFAULT_TEMPLATE: &str = "<|im_start|>{% for message in messages %}\
{{ message['role'] | capitalize }}: {{ message['content'] }}<end_of_utterance>\n\
{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}";

const TEXT_NAMES: DecoderNames = DecoderNames {
    model: "model.text_model",
    head: "lm_head",
};

/// The text of an image and of a video in a template.
const IMAGE: &str = "<image>";
const VIDEO: &str = "<video>";

/// The token around tiles and images.
const AROUND: &str = "<fake_token_around_image>";

#[derive(Debug, Clone, Deserialize)]
struct Config {
    #[serde(default)]
    text_config: Value,
    #[serde(default)]
    vision_config: SiglipConfig,
    #[serde(default = "default_image_token")]
    image_token_id: u32,
    #[serde(default = "default_scale_factor")]
    scale_factor: usize,
    #[serde(default)]
    tie_word_embeddings: bool,
}

fn default_image_token() -> u32 {
    128_257
}

fn default_scale_factor() -> usize {
    2
}

impl Config {
    fn parse(config: &Value) -> Result<Self, ModelError> {
        let config: Self = parse_config(config)?;
        config.vision_config.check()?;
        Section("").sizes(&[("scale_factor", config.scale_factor, 1 << 6)])?;
        let side = config.vision_config.grid().side();
        if !side.is_multiple_of(config.scale_factor) {
            return Err(ModelError::config(format!(
                "a tile has {side}x{side} patches, which cannot be merged in squares of \
                 scale_factor {}",
                config.scale_factor
            )));
        }
        for name in ["use_resampler", "qk_layer_norms", "rope_interleaved"] {
            if config.text_config.get(name) == Some(&Value::Bool(true)) {
                return Err(ModelError::config(format!(
                    "text_config.{name} is true, expected false: such models are not supported"
                )));
            }
        }
        Ok(config)
    }

    /// Returns the language model's section. The top level says whether its output head is its
    /// embedding table.
    fn text_config(&self) -> Value {
        let mut text = match without_nulls(&self.text_config) {
            Value::Object(members) => members,
            _ => Map::new(),
        };
        let tied = Value::Bool(self.tie_word_embeddings);
        text.insert("tie_word_embeddings".to_owned(), tied);
        text.into()
    }
}

/// The model.
#[derive(Module, Debug)]
pub struct SmolVlm<B: KernelBackend> {
    vision: SiglipTower<B>,
    projector: Linear<B>,
    text: Decoder<B>,
    #[module(skip)]
    squares: MergedPatches,
    #[module(skip)]
    preprocess: PreprocessConfig,
    #[module(skip)]
    image_token: u32,
    #[module(skip)]
    #[module(skip)]
    takes_videos: bool,
}

impl<B: KernelBackend> SmolVlm<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If the configuration makes no model or a weight is missing.
    pub fn init(files: &ModelFiles, weights: &Weights<'_, B>) -> Result<Self, ModelError> {
        let config = Config::parse(&files.config)?;
        let vision = &config.vision_config;
        let text = decoder_config(TextKind::Llama, &config.text_config())?;
        let root = weights.root(Part::Vision);
        let connector = root
            .part(Part::Projector)
            .child("", "model.connector.modality_projection");
        let merged = vision.hidden_size * config.scale_factor * config.scale_factor;
        Ok(Self {
            vision: SiglipTower::init(vision, &root.child("vision", "model.vision_model"))?,
            projector: connector.linear(
                "projector",
                &[("proj", text.hidden_size)],
                merged,
                false,
            )?,
            text: Decoder::init(text, TEXT_NAMES, &root)?,
            preprocess: preprocess_config(files.preprocessor.as_ref(), vision)?,
            image_token: config.image_token_id,
            takes_videos: files.config["model_type"] == INFO.model_type,
            squares: MergedPatches {
                patches: vision.grid(),
                merge: config.scale_factor,
            },
        })
    }

    /// Returns the number of tokens of an image of `grid` tiles.
    fn tokens(&self, [rows, columns]: [usize; 2]) -> usize {
        (rows * columns + 1) * self.squares.units()
    }

    /// Returns the configuration, with a smaller image if its tokens exceed the limit.
    fn preprocess(&self, image: &RgbImage, options: &MediaOptions) -> PreprocessConfig {
        let most = options.image_tokens.map_or(usize::MAX, |(_, most)| most);
        let mut config = self.preprocess.clone();
        let grid = |config: &PreprocessConfig| config.grid(image.width(), image.height());
        while config.longest_edge > config.tile && self.tokens(grid(&config)) > most {
            let tiles = config.longest_edge.div_ceil(config.tile);
            config.longest_edge = (tiles - 1) * config.tile;
        }
        config
    }

    fn medium(
        &self,
        kind: MediaKind,
        tiles: Tiles,
        layout: Layout,
        options: &MediaOptions,
    ) -> MediaInput {
        let MergedPatches { patches, .. } = self.squares;
        let size = patches.image_size;
        let count = tiles.values.len() / (3 * size * size);
        let units = [count, self.squares.side(), self.squares.side()];
        let samples = || {
            let all: Vec<usize> = (0..units.iter().product()).collect();
            let plane = patches.patch_size * patches.patch_size;
            let cut = self.squares.cut(&tiles.values, &all);
            self.preprocess.normalization.samples(&cut, plane)
        };
        let reduction = enter(&options.reductions, kind, units, samples);
        let layout = match &reduction.units {
            None => layout,
            Some(units) => layout.keep(units),
        };
        MediaInput {
            kind,
            shape: vec![count, 3, size, size],
            values: tiles.values,
            grid: [0; 3],
            layout,
            reduction,
            piece: None,
        }
    }

    /// Returns the run of a tile's tokens.
    fn run(&self) -> Piece {
        Piece::Run(Run::sequence(self.squares.units()))
    }

    /// Returns the place of a whole image in the prompt.
    fn whole(&self, before: &str, after: &str) -> [Piece; 3] {
        [
            Piece::Text(format!("{before}{AROUND}<global-img>")),
            self.run(),
            Piece::Text(format!("{AROUND}{after}")),
        ]
    }

    /// Returns the place in the prompt of an image of `grid` tiles.
    fn image_layout(&self, [rows, columns]: [usize; 2]) -> Layout {
        let mut pieces = Vec::new();
        for row in 1..=rows {
            for column in 1..=columns {
                pieces.push(Piece::Text(format!("{AROUND}<row_{row}_col_{column}>")));
                pieces.push(self.run());
            }
            pieces.push(Piece::Text("\n".to_owned()));
        }
        let before = if rows > 0 { "\n" } else { "" };
        pieces.extend(self.whole(before, ""));
        Layout::new(pieces)
    }

    /// Returns the place in the prompt of a video of `count` frames.
    fn video_layout(&self, count: usize, times: &FrameTimes) -> Layout {
        let seconds = whole_seconds(count as f64 / f64::from(times.frames_per_second));
        let intro = format!(
            "You are provided the following series of {} frames from a {}:{:02}:{:02} \
             [H:MM:SS] video.\n",
            in_words(count),
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        );
        let frames = (0..count).flat_map(|frame| {
            let seconds = whole_seconds(times.of(frame));
            let time = format!("\nFrame from {:02}:{:02}:", seconds / 60, seconds % 60);
            self.whole(&time, "")
        });
        let pieces = std::iter::once(Piece::Text(intro)).chain(frames);
        let pieces = pieces.chain([Piece::Text("\n\n".to_owned())]);
        Layout::new(pieces.collect())
    }
}

/// Cuts a time to whole seconds. Times that are whole up to rounding stay.
fn whole_seconds(seconds: f64) -> u64 {
    (seconds + 1e-4).max(0.0) as u64
}

/// Returns a number below a million in English words, as `num2words`.
fn in_words(number: usize) -> String {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 10] = [
        "", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
    ];
    let joined = |first: String, link: &str, rest: usize| match rest {
        0 => first,
        rest => first + link + &in_words(rest),
    };
    match number {
        0..20 => SMALL[number].to_owned(),
        20..100 => joined(TENS[number / 10].to_owned(), "-", number % 10),
        100..1000 => joined(
            SMALL[number / 100].to_owned() + " hundred",
            " and ",
            number % 100,
        ),
        _ => {
            let rest = number % 1000;
            let link = if rest < 100 { " and " } else { ", " };
            joined(in_words(number / 1000) + " thousand", link, rest)
        }
    }
}

/// Reads `preprocessor_config.json` and checks it against the tower.
fn preprocess_config(
    file: Option<&Value>,
    vision: &SiglipConfig,
) -> Result<PreprocessConfig, ModelError> {
    let config = PreprocessConfig::parse(file.unwrap_or(&json!({})), vision.image_size)?;
    if config.tile != vision.image_size {
        return Err(ModelError::config(format!(
            "preprocessor_config.json makes tiles of {} pixels, the vision tower takes {}",
            config.tile, vision.image_size
        )));
    }
    Ok(config)
}

/// Rejects a medium that cannot fit before memory is allocated for its values.
fn check_tokens(tokens: usize, options: &MediaOptions) -> Result<(), ModelError> {
    let limit = options.most_tokens;
    if tokens > limit {
        return Err(PreprocessError::TooManyTokens { tokens, limit }.into());
    }
    Ok(())
}

impl<B: KernelBackend> Model<B> for SmolVlm<B> {
    fn language(&self) -> &dyn LanguageModel<B> {
        &self.text
    }

    fn resizes_images(&self) -> bool {
        true
    }

    fn image(&self, image: &RgbImage, options: &MediaOptions) -> Result<MediaInput, ModelError> {
        let config = self.preprocess(image, options);
        check_tokens(
            self.tokens(config.grid(image.width(), image.height())),
            options,
        )?;
        let tiles = config.image(image)?;
        let layout = self.image_layout(tiles.grid);
        Ok(self.medium(MediaKind::Image, tiles, layout, options))
    }

    fn video(
        &self,
        frames: &[RgbImage],
        times: &FrameTimes,
        options: &MediaOptions,
    ) -> Result<MediaInput, ModelError> {
        if !self.takes_videos {
            return Err(ModelError::Unsupported {
                family: "this model",
                kind: "videos",
            });
        }
        times.check()?;
        check_tokens(frames.len().saturating_mul(self.tokens([0, 0])), options)?;
        let tiles = self.preprocess.video(frames)?;
        let layout = self.video_layout(frames.len(), times);
        Ok(self.medium(MediaKind::Video, tiles, layout, options))
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
        let mark = |kind| match kind {
            MediaKind::Video => VIDEO.to_owned(),
            _ => IMAGE.to_owned(),
        };
        let rendered = text.render(conversation, DEFAULT_TEMPLATE, mark)?;
        let contents = conversation
            .messages
            .iter()
            .flat_map(|message| &message.content);
        let kinds = contents.filter_map(Content::media_kind);
        let (videos, images): (Vec<_>, Vec<_>) = kinds
            .zip(media.iter().copied())
            .partition(|(kind, _)| *kind == MediaKind::Video);
        let layouts = |media: Vec<(MediaKind, _)>| -> Vec<&Layout> {
            media.into_iter().map(|(_, layout)| layout).collect()
        };
        // Frames of a video contain the text of an image, so images come first.
        let rendered = rendered
            .with_media(IMAGE, &layouts(images), IMAGE)?
            .with_media(VIDEO, &layouts(videos), IMAGE)?;
        let ids = text.encode(&rendered)?;
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
        let merged = [tower.left.ids.len(), squares.rows() * width];
        let out = self.projector.forward(tower.x.reshape(merged));
        probe::capture("projector_out", &out);
        Ok(Encoded::of_units(medium, out, tower.left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_words() {
        for (number, words) in [
            (1, "one"),
            (4, "four"),
            (12, "twelve"),
            (21, "twenty-one"),
            (64, "sixty-four"),
            (90, "ninety"),
            (100, "one hundred"),
            (115, "one hundred and fifteen"),
            (1000, "one thousand"),
            (1001, "one thousand and one"),
            (2345, "two thousand, three hundred and forty-five"),
        ] {
            assert_eq!(in_words(number), words);
        }
    }

    #[test]
    fn seconds_are_cut() {
        assert_eq!(
            [0.0, 0.99, 2.5, 4.0 - 1e-7].map(whole_seconds),
            [0, 0, 2, 4]
        );
    }

    #[test]
    fn lying_sizes_are_errors() {
        for (config, word) in [
            (json!({"scale_factor": 0}), "scale_factor"),
            (json!({"scale_factor": 3}), "scale_factor"),
            (json!({"vision_config": {"image_size": 0}}), "image_size"),
            (
                json!({"vision_config": {"num_attention_heads": 7}}),
                "heads",
            ),
            (
                json!({"vision_config": {"num_channels": 1}}),
                "num_channels",
            ),
            (
                json!({"text_config": {"use_resampler": true}}),
                "use_resampler",
            ),
        ] {
            let mut config = config;
            for (field, size) in [("image_size", 64), ("patch_size", 16)] {
                if config["vision_config"][field].is_null() {
                    config["vision_config"][field] = json!(size);
                }
            }
            let error = Config::parse(&config).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
