//! Qwen2.5-Omni without speech (Xu et al. 2025, <https://arxiv.org/abs/2503.20215>): the thinker, with
//! the vision tower of Qwen2.5-VL, a sound encoder over blocks of two seconds, and a Qwen2 decoder
//! whose positions count 25 steps per second for video and sound alike. A video and its sound take
//! turns, two seconds of each. The talker, which speaks the answer, is not part of the record. The
//! reference is `modeling_qwen2_5_omni.py` of `transformers`.
//!
//! ```text
//! edge-lmm-convert Qwen2.5-Omni-3B -o qwen2.5-omni-3b.bpk
//! edge-lmm run qwen2.5-omni-3b.bpk --video cat.mp4 --video-sound --prompt "What happens?"
//! ```

use std::ops::Range;

use burn::module::Module;
use edge_lmm_ops::{KernelBackend, probe, stage};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config_file::parse_section;
use crate::encoders::merger::Merger;
use crate::encoders::qwen2_5_audio::{AudioConfig, AudioEncoder};
use crate::encoders::qwen2_5_vit::{SPLIT_QKV, VisionConfig, VisionTransformer};
use crate::encoders::whisper::Spectrogram;
use crate::error::ModelError;
use crate::families::qwen_vl_input::{MediaTokens, QwenVlInput, Variant, VideoTime};
use crate::families::sound::{MARGIN, Sound, check_margin};
use crate::family::{FamilyInfo, ModelFiles};
use crate::language::LanguageModel;
use crate::layers::{Linear, RmsNorm};
use crate::layout::{Layout, Position, Run};
use crate::media::{
    FrameTimes, InputReduction, MediaInput, MediaKind, MediaOptions, VideoFrames, VideoPieces,
};
use crate::model::{Encoded, Model};
use crate::monitor::Monitor;
use crate::preprocess::RgbImage;
use crate::preprocess::mel::{MelConfig, Padding};
use crate::preprocess::settings::without_nulls;
use crate::prompt::{Content, Conversation, Message, Prompt, PromptBuilder, TextProcessor};
use crate::reduce::EncoderSize;
use crate::sizes::Section;
use crate::text::config::{TextKind, decoder_config};
use crate::text::decoder::{Decoder, DecoderNames};
use crate::weights::{Part, Weights};

/// The registry's entry.
pub const INFO: FamilyInfo = FamilyInfo {
    model_type: "qwen2_5_omni",
    title: "Qwen2.5-Omni",
    parts: &[("thinker_config", &["qwen2_5_omni_thinker"])],
};

/// Renders as the template of the published checkpoints does, for those that come without one.
const DEFAULT_TEMPLATE: &str = "{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}\
<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n\
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

const TEXT_NAMES: DecoderNames = DecoderNames {
    model: "thinker.model",
    head: "thinker.lm_head",
};

/// Tokens before and after an image or a video, and before and after a sound.
const VISION_MARKERS: [&str; 2] = ["<|vision_bos|>", "<|vision_eos|>"];
const AUDIO_MARKERS: [&str; 2] = ["<|audio_bos|>", "<|audio_eos|>"];

/// `thinker_config`, with the defaults of the reference.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    #[serde(default)]
    text_config: Value,
    #[serde(default)]
    vision_config: VisionConfig,
    #[serde(default)]
    audio_config: AudioConfig,
    image_token_index: Option<u32>,
    image_token_id: Option<u32>,
    video_token_index: Option<u32>,
    video_token_id: Option<u32>,
    audio_token_index: Option<u32>,
    audio_token_id: Option<u32>,
    tie_word_embeddings: Option<bool>,
    #[serde(default = "default_per_second")]
    position_id_per_seconds: u32,
    #[serde(default = "default_chunk")]
    seconds_per_chunk: f64,
}

fn default_per_second() -> u32 {
    25
}

fn default_chunk() -> f64 {
    2.0
}

impl Config {
    fn parse(config: &Value) -> Result<Self, ModelError> {
        let thinker = config.get("thinker_config").unwrap_or(&Value::Null);
        if !thinker.is_object() {
            return Err(ModelError::config(format!(
                "thinker_config is {thinker}, expected the configuration of the model that writes \
                 the answer"
            )));
        }
        let parsed: Self = parse_section("thinker_config", thinker)?;
        let per_second = parsed.position_id_per_seconds as usize;
        Section("thinker_config").sizes(&[
            ("position_id_per_seconds", per_second, 1 << 16),
            ("seconds_per_chunk", parsed.chunk(), 1 << 24),
        ])?;
        Ok(parsed)
    }

    /// Returns the positions of a chunk of a video with its sound.
    fn chunk(&self) -> usize {
        (f64::from(self.position_id_per_seconds) * self.seconds_per_chunk) as usize
    }

    /// Returns the language model's section, with the defaults of the reference.
    fn text(&self) -> Value {
        let mut text = json!({
            "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944,
            "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
        });
        let given = without_nulls(&self.text_config);
        for (key, value) in given.as_object().into_iter().flatten() {
            text[key] = value.clone();
        }
        // In files of `transformers` 5, the text's own field is the default of any configuration.
        if let Some(tied) = self.tie_word_embeddings {
            text["tie_word_embeddings"] = tied.into();
        }
        text
    }

    fn tokens(&self) -> Tokens {
        let either = |old: Option<u32>, new: Option<u32>, default| old.or(new).unwrap_or(default);
        Tokens {
            image: either(self.image_token_index, self.image_token_id, 151_655),
            video: either(self.video_token_index, self.video_token_id, 151_656),
            audio: either(self.audio_token_index, self.audio_token_id, 151_646),
        }
    }
}

/// The tokens that stand for media.
#[derive(Debug, Clone, Copy)]
struct Tokens {
    image: u32,
    video: u32,
    audio: u32,
}

/// The model.
#[derive(Module, Debug)]
pub struct Qwen25Omni<B: KernelBackend> {
    vision: VisionTransformer<B>,
    projector: Merger<B, RmsNorm<B>>,
    audio: AudioEncoder<B>,
    audio_projector: Linear<B>,
    text: Decoder<B>,
    #[module(skip)]
    input: QwenVlInput,
    #[module(skip)]
    mel: MelConfig,
    #[module(skip)]
    tokens: Tokens,
    #[module(skip)]
    per_second: u32,
    #[module(skip)]
    chunk: u32,
}

impl<B: KernelBackend> Qwen25Omni<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If the configuration makes no model or a weight is missing.
    pub fn init(files: &ModelFiles, weights: &Weights<'_, B>) -> Result<Self, ModelError> {
        let config = Config::parse(&files.config)?;
        let (vision, audio) = (&config.vision_config, &config.audio_config);
        let text = decoder_config(TextKind::QwenVl, &config.text())?;
        vision.check(text.hidden_size)?;
        audio.check(text.hidden_size)?;
        let tokens = config.tokens();
        let media = MediaTokens::new(tokens.image, tokens.video);
        let input = QwenVlInput::new(files, vision.patches.size(), media, Variant::QWEN2_VL)?;
        let root = weights.root(Part::Vision);
        let tower = root.child("vision", "thinker.visual");
        let projector = root.part(Part::Projector);
        let merger = projector.child("projector", "thinker.visual.merger");
        let sound = root.part(Part::Audio).child("audio", "thinker.audio_tower");
        Ok(Self {
            vision: VisionTransformer::init(vision, SPLIT_QKV, &tower)?,
            projector: vision.merger(&merger)?,
            audio: AudioEncoder::init(audio, &sound)?,
            audio_projector: projector.child("", "thinker.audio_tower").linear(
                "audio_projector",
                &[("proj", text.hidden_size)],
                AudioEncoder::outputs(audio, &sound),
                true,
            )?,
            mel: mel_config(files.preprocessor.as_ref(), audio)?,
            text: Decoder::init(text, TEXT_NAMES, &root)?,
            input,
            tokens,
            per_second: config.position_id_per_seconds,
            chunk: config.chunk() as u32,
        })
    }

    /// Returns the positions of a video's temporal patches: `position_id_per_seconds` per second.
    fn time(&self, times: &FrameTimes) -> Result<VideoTime, ModelError> {
        times.check()?;
        let seconds = self.input.frames() as f32 / times.frames_per_second;
        Ok(VideoTime::Multiples(seconds * self.per_second as f32))
    }

    fn see(
        &self,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<Encoded<B>, ModelError> {
        let tower = self.vision.encode(medium, monitor)?;
        let _stage = stage::top("projector");
        let out = self.projector.forward(tower.x);
        probe::capture("projector_out", &out);
        Ok(Encoded::of_units(medium, out, tower.left))
    }

    fn hear(
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
            self.audio.forward(spectrogram, monitor)?
        };
        let _stage = stage::top("projector");
        let out = self.audio_projector.forward(features);
        probe::capture("audio_projector_out", &out);
        Ok(Encoded::new(medium, out))
    }
}

/// Reads the settings of spectrograms and checks them against the encoder.
fn mel_config(file: Option<&Value>, audio: &AudioConfig) -> Result<MelConfig, ModelError> {
    let mel = MelConfig::parse(file)?;
    let (found, expected) = (mel.feature_size, audio.whisper.num_mel_bins);
    if found != expected {
        return Err(ModelError::config(format!(
            "preprocessor_config.json makes spectrograms of {found} bins, the model was made for \
             {expected}"
        )));
    }
    check_margin(&mel)?;
    Ok(mel)
}

impl<B: KernelBackend> Model<B> for Qwen25Omni<B> {
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
        self.input.video(frames, &self.time(times)?, options)
    }

    fn video_pieces<'a>(
        &'a self,
        frames: &'a dyn VideoFrames,
        times: &FrameTimes,
        options: &MediaOptions,
    ) -> Result<Option<(MediaInput, VideoPieces<'a>)>, ModelError> {
        self.input.video_pieces(frames, &self.time(times)?, options)
    }

    /// Only the frames of the sound are computed, as in the reference, whatever the padding.
    fn audio(
        &self,
        samples: &[f32],
        sample_rate: u32,
        _options: &MediaOptions,
    ) -> Result<MediaInput, ModelError> {
        let sound = Sound::new(samples, sample_rate, &self.mel)?;
        let mut samples = sound.samples;
        // The loudest frame, from which silence is counted, may begin after the sound.
        samples.resize(samples.len() + MARGIN * self.mel.hop_length, 0.0);
        let mel = self.mel.features(&samples, Padding::None)?;
        let rows = mel.values.chunks_exact(mel.frames);
        let values = rows.flat_map(|row| &row[..sound.frames]).copied();
        Ok(MediaInput {
            kind: MediaKind::Audio,
            values: values.collect(),
            shape: vec![1, mel.bins, sound.frames],
            grid: [sound.frames, 1, 1],
            layout: Run::sequence(sound.tokens).into(),
            reduction: InputReduction::default(),
            piece: None,
        })
    }

    fn encoder_size(&self, medium: &MediaInput) -> EncoderSize {
        match medium.kind {
            MediaKind::Audio => EncoderSize {
                parts: self.audio.blocks(medium.shape[2]),
                rows: 1,
                layers: self.audio.depth(),
                merges: false,
                units_are_tokens: false,
            },
            MediaKind::Image | MediaKind::Video => self.vision.size(medium),
        }
    }

    fn prompt(
        &self,
        text: &TextProcessor,
        conversation: Conversation<'_>,
        media: &[&Layout],
    ) -> Result<Prompt, ModelError> {
        let placeholder = |kind| {
            let ([before, after], token) = match kind {
                MediaKind::Image => (VISION_MARKERS, "<|IMAGE|>"),
                MediaKind::Video => (VISION_MARKERS, "<|VIDEO|>"),
                MediaKind::Audio => (AUDIO_MARKERS, "<|AUDIO|>"),
            };
            format!("{before}{token}{after}")
        };
        let places = places(conversation.messages, media.len())?;
        // The sound of a video has no place of its own.
        let silent: Vec<Message> = conversation.messages.iter().map(without_tracks).collect();
        let shown = Conversation {
            messages: &silent,
            ..conversation
        };
        let rendered = text.render(shown, DEFAULT_TEMPLATE, placeholder)?;
        let mut ids = text.encode(&rendered)?.into_iter().peekable();
        let pads = [self.tokens.image, self.tokens.video, self.tokens.audio];
        let found = ids.clone().filter(|id| pads.contains(id)).count();
        if found != places.len() {
            return Err(ModelError::Placeholders {
                found,
                expected: places.len(),
            });
        }
        let mut places = places.into_iter().peekable();
        let mut prompt = PromptBuilder::new();
        while let Some(id) = ids.next() {
            let opens_track = ids.peek() == Some(&self.tokens.video)
                && places.peek().is_some_and(|place| place.track.is_some());
            match places.next_if(|_| opens_track || pads.contains(&id)) {
                None => prompt.text(&[id]),
                Some(Place {
                    medium,
                    track: None,
                }) => prompt.medium(id, medium, media[medium]),
                Some(Place {
                    medium,
                    track: Some(track),
                }) => {
                    let [vision_bos, vision_eos] =
                        [text.id(VISION_MARKERS[0])?, text.id(VISION_MARKERS[1])?];
                    let [audio_bos, audio_eos] =
                        [text.id(AUDIO_MARKERS[0])?, text.id(AUDIO_MARKERS[1])?];
                    if id != vision_bos || ids.nth(1) != Some(vision_eos) {
                        return Err(ModelError::Prompt(format!(
                            "the template writes a video with sound without {} and {} around it",
                            VISION_MARKERS[0], VISION_MARKERS[1]
                        )));
                    }
                    prompt.together(&[vision_bos, audio_bos]);
                    self.interleave(&mut prompt, [medium, track], media);
                    prompt.together(&[audio_eos, vision_eos]);
                }
            }
        }
        Ok(prompt.finish())
    }

    fn encode(
        &self,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<Encoded<B>, ModelError> {
        match medium.kind {
            MediaKind::Audio => self.hear(medium, monitor),
            MediaKind::Image | MediaKind::Video => self.see(medium, monitor),
        }
    }
}

impl<B: KernelBackend> Qwen25Omni<B> {
    /// Appends a video and its sound in chunks that take turns. Both begin at the same position; text
    /// continues after the largest position of the last chunk.
    fn interleave(&self, prompt: &mut PromptBuilder, pair: [usize; 2], media: &[&Layout]) {
        let ids = [self.tokens.video, self.tokens.audio];
        let offsets = pair.map(|medium| -> Vec<Position> {
            media[medium]
                .runs()
                .flat_map(Run::offsets)
                .copied()
                .collect()
        });
        let order = chunk_order(offsets.each_ref().map(|all| chunks(all, self.chunk)));
        for (place, (which, rows)) in order.iter().enumerate() {
            let offsets = offsets[*which][rows.clone()].to_vec();
            let largest = offsets.iter().flatten().max().copied().unwrap_or(0);
            let extent = match place + 1 == order.len() {
                true => largest.saturating_add(1),
                false => 0,
            };
            let run = Run::from_offsets(offsets, extent);
            prompt.run(ids[*which], pair[*which], rows.start, &run);
        }
    }
}

/// A medium with a place of its own in the prompt, and the medium that is its sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    medium: usize,
    track: Option<usize>,
}

/// Returns the places of the `count` media of a conversation, in order.
///
/// # Errors
/// If a sound track follows no video, or the number of media differs.
fn places(messages: &[Message], count: usize) -> Result<Vec<Place>, ModelError> {
    let mut places: Vec<Place> = Vec::new();
    let mut medium = 0;
    for message in messages {
        let mut before: Option<&Content> = None;
        for content in &message.content {
            match content {
                Content::Text(_) | Content::ToolCall(_) => continue,
                Content::Media(_) => places.push(Place {
                    medium,
                    track: None,
                }),
                Content::SoundTrack => match (places.last_mut(), before) {
                    (Some(video), Some(Content::Media(MediaKind::Video))) => {
                        video.track = Some(medium);
                    }
                    _ => {
                        return Err(ModelError::Prompt(
                            "a sound track has to follow its video".to_owned(),
                        ));
                    }
                },
            }
            before = Some(content);
            medium += 1;
        }
    }
    if medium != count {
        return Err(ModelError::Placeholders {
            found: medium,
            expected: count,
        });
    }
    Ok(places)
}

/// Returns a message without sound tracks.
fn without_tracks(message: &Message) -> Message {
    let content = message.content.iter();
    let content = content.filter(|content| **content != Content::SoundTrack);
    Message {
        role: message.role,
        content: content.cloned().collect(),
    }
}

/// Divides tokens by their time. A token whose time is at least `size` times the number of chunks so
/// far begins another one, so that after a jump over several multiples the next tokens are cut off one
/// by one (`get_chunked_index` of the reference).
fn chunks(offsets: &[Position], size: u32) -> Vec<Range<usize>> {
    let mut chunks = Vec::new();
    let (mut start, mut next) = (0, size);
    for (i, [time, ..]) in offsets.iter().enumerate() {
        if *time >= next {
            chunks.push(start..i);
            start = i;
            next = next.saturating_add(size);
        }
    }
    chunks.push(start..offsets.len());
    chunks
}

/// Lets the chunks of two media take turns; when one has no more, the other goes on. Returns the
/// medium and the rows of each.
fn chunk_order([first, second]: [Vec<Range<usize>>; 2]) -> Vec<(usize, Range<usize>)> {
    let count = first.len().max(second.len());
    let both = (0..count).flat_map(|i| [(0, first.get(i)), (1, second.get(i))]);
    let all = both.filter_map(|(which, rows)| Some((which, rows?.clone())));
    all.filter(|(_, rows)| !rows.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Role;

    /// Worked by hand from `get_chunked_index`: the token at 120 begins the second chunk, the next one,
    /// past another multiple, the third.
    #[test]
    fn a_jump_cuts_tokens_off_one_by_one() {
        let offsets: Vec<Position> = [0, 25, 120, 120, 120].map(|time| [time, 0, 0]).to_vec();
        assert_eq!(chunks(&offsets, 50), [0..2, 2..3, 3..5]);
        assert_eq!(chunks(&[], 50).len(), 1);
        let sound = std::iter::once(0..4).collect();
        let order = chunk_order([vec![0..2, 2..3], sound]);
        assert_eq!(order, [(0, 0..2), (1, 0..4), (0, 2..3)]);
    }

    #[test]
    fn a_sound_track_belongs_to_the_video_before_it() {
        let message = |content: &[Content]| Message {
            role: Role::User,
            content: content.to_vec(),
        };
        let [image, video] = [MediaKind::Image, MediaKind::Video].map(Content::Media);
        let text = Content::Text("what?".to_owned());
        let track = Content::SoundTrack;
        let shown = [message(&[image.clone(), video, track.clone(), text])];
        let places_of = |medium, track| Place { medium, track };
        let expected = [places_of(0, None), places_of(1, Some(2))];
        assert_eq!(places(&shown, 3).unwrap(), expected);
        assert_eq!(without_tracks(&shown[0]).media(), 2);
        let error = places(&[message(&[image, track])], 2).unwrap_err();
        assert!(error.to_string().contains("follow its video"), "{error}");
    }

    #[test]
    fn settings_that_make_no_model_are_named() {
        for (config, word) in [
            (json!({}), "thinker_config"),
            (
                json!({"thinker_config": {"position_id_per_seconds": 0}}),
                "position_id_per_seconds",
            ),
            (
                json!({"thinker_config": {"seconds_per_chunk": 0.0}}),
                "seconds_per_chunk",
            ),
        ] {
            let error = Config::parse(&config).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
