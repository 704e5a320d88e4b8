//! Qwen2-Audio (Chu et al. 2024, <https://arxiv.org/abs/2407.10759>): Whisper's sound encoder,
//! pooled by two, one linear layer, and a Qwen2 decoder. The reference is
//! `modeling_qwen2_audio.py` of `transformers`.
//!
//! ```text
//! edge-lmm-convert Qwen2-Audio-7B-Instruct -o qwen2-audio-7b.bpk
//! edge-lmm run qwen2-audio-7b.bpk --audio glass.wav --prompt "What is this sound?"
//! ```

use burn::module::Module;
use burn::tensor::Tensor;
use edge_lmm_ops::{KernelBackend, probe, stage};
use serde::Deserialize;
use serde_json::Value;

use crate::config_file::parse_config;
use crate::encoders::whisper::{Spectrogram, WhisperConfig, WhisperEncoder, pool_by_two};
use crate::error::ModelError;
use crate::families::sound::{MARGIN, Sound, check_margin, positions};
use crate::family::{FamilyInfo, ModelFiles};
use crate::language::LanguageModel;
use crate::layers::Linear;
use crate::layout::{Layout, Run};
use crate::media::{AudioPadding, InputReduction, MediaInput, MediaKind, MediaOptions};
use crate::model::{Encoded, Model};
use crate::monitor::Monitor;
use crate::preprocess::mel::{MelConfig, Padding};
use crate::prompt::{Conversation, Prompt, TextProcessor, expand_placeholders};
use crate::reduce::EncoderSize;
use crate::text::config::{TextKind, decoder_config};
use crate::text::decoder::{Decoder, DecoderNames};
use crate::weights::{Part, Weights};

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "qwen2_audio",
    title: "Qwen2-Audio",
    parts: &[
        ("audio_config", &["qwen2_audio_encoder"]),
        ("text_config", &["qwen2"]),
    ],
};

/// Renders as the template of the published checkpoints does, for those that come without one.
const DEFAULT_TEMPLATE: &str = "{% set sounds = namespace(count=0) %}\
{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}\
<|im_start|>{{ message['role'] }}\n\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}\
{% if part['type'] == 'audio' %}{% set sounds.count = sounds.count + 1 %}\
Audio {{ sounds.count }}: <|audio_bos|><|AUDIO|><|audio_eos|>\n\
{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>\n\
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

#[derive(Debug, Clone, Deserialize)]
struct Config {
    #[serde(default)]
    audio_config: WhisperConfig,
    audio_token_index: Option<u32>,
    audio_token_id: Option<u32>,
}

impl Config {
    fn parse(config: &Value) -> Result<Self, ModelError> {
        let config: Self = parse_config(config)?;
        config.audio_config.check()?;
        Ok(config)
    }

    /// Returns the token that stands for a sound, under its older or newer name.
    fn audio_token(&self) -> u32 {
        let named = self.audio_token_index.or(self.audio_token_id);
        named.unwrap_or(151_646)
    }
}

/// The model.
#[derive(Module, Debug)]
pub struct Qwen2Audio<B: KernelBackend> {
    audio: WhisperEncoder<B>,
    projector: Linear<B>,
    text: Decoder<B>,
    #[module(skip)]
    mel: MelConfig,
    #[module(skip)]
    audio_token: u32,
}

impl<B: KernelBackend> Qwen2Audio<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If the configuration makes no model or a weight is missing.
    pub fn init(files: &ModelFiles, weights: &Weights<'_, B>) -> Result<Self, ModelError> {
        let config = Config::parse(&files.config)?;
        let audio = &config.audio_config;
        let mel = MelConfig::parse(files.preprocessor.as_ref())?;
        let found = (mel.feature_size, mel.frames());
        let expected = (audio.num_mel_bins, audio.max_frames());
        if found != expected {
            return Err(ModelError::config(format!(
                "preprocessor_config.json makes spectrograms of {} bins and at most {} frames; \
                 the model was made for {} and {}",
                found.0, found.1, expected.0, expected.1
            )));
        }
        check_margin(&mel)?;
        let root = weights.root(Part::Audio);
        let text = files.config.get("text_config").unwrap_or(&Value::Null);
        let text = decoder_config(TextKind::Qwen2, text)?;
        let projector = root
            .part(Part::Projector)
            .child("", "multi_modal_projector");
        let audio_scope = root.child("audio", "audio_tower");
        Ok(Self {
            audio: WhisperEncoder::init(audio, &audio_scope)?,
            projector: projector.linear(
                "projector",
                &[("linear", text.hidden_size)],
                WhisperEncoder::outputs(audio, &audio_scope),
                true,
            )?,
            text: Decoder::init(text, DecoderNames::NESTED, &root)?,
            mel,
            audio_token: config.audio_token(),
        })
    }

    /// Encodes a spectrogram. One that is filled up to the full window is computed as a whole, as
    /// the reference does; of others, the `valid` positions of the sound alone.
    ///
    /// # Shapes
    /// - output: `[positions / 2, d_model]`
    fn hear(
        &self,
        spectrogram: Spectrogram<'_>,
        valid: usize,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let count = if spectrogram.frames == self.mel.frames() {
            positions(spectrogram.frames)
        } else {
            valid
        };
        let x = self.audio.forward(spectrogram, count, valid, monitor)?;
        let _stage = stage::module("pool");
        Ok(self.audio.normalize(pool_by_two(x)))
    }
}

impl<B: KernelBackend> Model<B> for Qwen2Audio<B> {
    fn language(&self) -> &dyn LanguageModel<B> {
        &self.text
    }

    fn audio(
        &self,
        samples: &[f32],
        sample_rate: u32,
        options: &MediaOptions,
    ) -> Result<MediaInput, ModelError> {
        let Sound {
            mut samples,
            frames,
            tokens,
        } = Sound::new(samples, sample_rate, &self.mel)?;
        let padding = match options.audio_padding {
            AudioPadding::Window => Padding::Chunk,
            AudioPadding::None => {
                samples.resize(samples.len() + MARGIN * self.mel.hop_length, 0.0);
                Padding::None
            }
        };
        let mel = self.mel.features(&samples, padding)?;
        Ok(MediaInput {
            kind: MediaKind::Audio,
            values: mel.values,
            shape: vec![1, mel.bins, mel.frames],
            grid: [frames, 1, 1],
            layout: Run::sequence(tokens).into(),
            reduction: InputReduction::default(),
            piece: None,
        })
    }

    fn encoder_size(&self, medium: &MediaInput) -> EncoderSize {
        let frames = medium.shape[2];
        let computed = match frames == self.mel.frames() {
            true => frames,
            false => medium.grid[0],
        };
        EncoderSize {
            parts: vec![positions(computed)],
            rows: 1,
            layers: self.audio.depth(),
            merges: false,
            units_are_tokens: false,
        }
    }

    fn prompt(
        &self,
        text: &TextProcessor,
        conversation: Conversation<'_>,
        media: &[&Layout],
    ) -> Result<Prompt, ModelError> {
        let placeholder = |_| "<|audio_bos|><|AUDIO|><|audio_eos|>\n".to_owned();
        let rendered = text.render(conversation, DEFAULT_TEMPLATE, placeholder)?;
        let ids = text.encode(&rendered)?;
        expand_placeholders(&ids, |id| id == self.audio_token, media)
    }

    fn encode(
        &self,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<Encoded<B>, ModelError> {
        let features = {
            let _stage = stage::top("audio");
            let _scope = stage::scope(format_args!("audio"));
            let spectrogram = Spectrogram {
                values: &medium.values,
                frames: medium.shape[2],
            };
            let features = self.hear(spectrogram, positions(medium.grid[0]), monitor)?;
            features.narrow(0, 0, medium.tokens())
        };
        probe::capture("vision_out", &features);
        let _stage = stage::top("projector");
        let out = self.projector.forward(features);
        probe::capture("projector_out", &out);
        Ok(Encoded::new(medium, out))
    }
}
