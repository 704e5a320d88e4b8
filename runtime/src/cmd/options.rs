//! Options that several subcommands share.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::Args;
use edge_lmm::sampler::Sampling;
use edge_lmm::{AnyEngine, Device, Devices, Media, Record};
use edge_lmm_kernels::pool;
use edge_lmm_models::model::{AudioPadding, MediaKind, MediaOptions};
use edge_lmm_models::prompt::{Content, Message, Role};
use edge_lmm_ops::stage;

use super::memory::MemoryOptions;

/// Device and threads.
#[derive(Debug, Clone, Args)]
pub struct DeviceOptions {
    /// Where to compute: cpu, cuda, cuda:N (an NVIDIA GPU by its index) or vulkan (experimental);
    /// several, as in cuda,cpu: the first that this program and this machine have
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: Devices,
    /// Threads on the CPU [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    #[command(flatten)]
    memory: MemoryOptions,
}

impl DeviceOptions {
    /// Begins to record stages; on a device that works asynchronously a stage then ends when its
    /// work is done.
    pub fn record_stages(&self) -> anyhow::Result<()> {
        stage::record(self.device.choose()?.synchronize());
        Ok(())
    }

    /// Opens a record and loads its model.
    pub fn load(&self, model: &std::path::Path) -> anyhow::Result<AnyEngine> {
        let device = self.device.choose()?;
        let record = {
            let _stage = stage::top("load");
            self.memory.open(model, device)?
        };
        self.load_on(device, &record)
    }

    /// Loads the model of an open record.
    pub fn load_record(&self, record: &Record) -> anyhow::Result<AnyEngine> {
        self.load_on(self.device.choose()?, record)
    }

    fn load_on(&self, device: Device, record: &Record) -> anyhow::Result<AnyEngine> {
        if let Some(threads) = self.threads {
            pool::set_global_threads(threads);
        }
        Ok(device.load(record)?)
    }
}

/// Fewest and most, as `MIN..MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenRange(usize, usize);

impl FromStr for TokenRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once("..")
            .and_then(|(min, max)| Some((min.parse().ok()?, max.parse().ok()?)));
        match parsed {
            Some((min, max)) if 0 < min && min <= max => Ok(Self(min, max)),
            _ => Err("expected MIN..MAX with 0 < MIN <= MAX, for example 64..576".to_owned()),
        }
    }
}

/// Which frames of a video are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frames {
    /// So many, evenly spread.
    Uniform(usize),
    /// So many, where the scene changes.
    Key(usize),
}

impl FromStr for Frames {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (make, count): (fn(usize) -> Self, &str) = match text.split_once(':') {
            Some(("keyframes", count)) => (Self::Key, count),
            Some(_) => return Err("expected N or keyframes:N".to_owned()),
            None => (Self::Uniform, text),
        };
        match count.parse() {
            Ok(count) if count > 0 => Ok(make(count)),
            _ => Err(format!("{count:?} is no number of frames")),
        }
    }
}

/// What follows a sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaddingChoice(AudioPadding);

impl FromStr for PaddingChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(AudioPadding::None)),
            "30s" => Ok(Self(AudioPadding::Window)),
            _ => Err("expected none or 30s".to_owned()),
        }
    }
}

/// How media are read and prepared.
#[derive(Debug, Clone, Args)]
pub struct MediaArgs {
    /// Fewest and most tokens of a picture; it is scaled to fit, where the model allows
    #[arg(long, value_name = "MIN..MAX")]
    image_tokens: Option<TokenRange>,
    /// Frames of a video to use: N evenly spread, or keyframes:N where the scene changes
    /// [default: all]
    #[arg(long, value_name = "N|keyframes:N")]
    frames: Option<Frames>,
    /// Share of a picture's tokens to keep after the encoder
    #[arg(long, value_name = "RATIO", default_value_t = 1.0)]
    keep_visual_tokens: f32,
    /// What follows a sound: nothing, or silence up to the 30 seconds that encoders were trained
    /// on; the answers are the same
    #[arg(long, value_name = "none|30s", default_value = "none")]
    audio_padding: PaddingChoice,
}

impl MediaArgs {
    /// The options for the engine.
    pub fn options(&self) -> anyhow::Result<MediaOptions> {
        if self.keep_visual_tokens != 1.0 {
            bail!(
                "--keep-visual-tokens {}: dropping tokens is not available in this version; \
                 only 1 is accepted",
                self.keep_visual_tokens
            );
        }
        Ok(MediaOptions {
            image_tokens: self.image_tokens.map(|range| (range.0, range.1)),
            audio_padding: self.audio_padding.0,
        })
    }

    /// Reads a picture, a video or a sound, whichever the file holds.
    pub fn open(&self, path: &std::path::Path) -> anyhow::Result<Media> {
        let _stage = stage::top("media");
        match edge_lmm::media::kind(path)? {
            MediaKind::Image => Ok(Media::Image(edge_lmm::media::load_image(path)?)),
            MediaKind::Video => self.open_video(path),
            MediaKind::Audio => open_audio(path),
        }
    }

    fn open_video(&self, path: &std::path::Path) -> anyhow::Result<Media> {
        let selection = match self.frames {
            None => edge_lmm::media::FrameSelection::All,
            Some(Frames::Uniform(count)) => edge_lmm::media::FrameSelection::Uniform(count),
            Some(Frames::Key(count)) => bail!(
                "--frames keyframes:{count}: choosing frames by scene is not available in this \
                 version; use --frames {count}"
            ),
        };
        let video = edge_lmm::media::load_video(path, selection)?;
        Ok(Media::Video {
            frames: video.frames,
            frames_per_second: video.frames_per_second,
        })
    }
}

fn open_audio(path: &std::path::Path) -> anyhow::Result<Media> {
    let audio = edge_lmm::media::load_audio(path)?;
    Ok(Media::Audio {
        samples: audio.samples,
        sample_rate: audio.sample_rate,
    })
}

/// The media of a question, given by kind.
#[derive(Debug, Clone, Args)]
pub struct MediaFiles {
    /// A picture (PNG, JPEG, WebP, BMP, GIF); repeat for several
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// A video (animated GIF, Y4M, a folder of pictures)
    #[arg(long, value_name = "FILE")]
    video: Option<PathBuf>,
    /// A sound (WAV, FLAC, MP3); repeat for several
    #[arg(long, value_name = "FILE")]
    audio: Vec<PathBuf>,
}

impl MediaFiles {
    /// Reads them all: pictures, then the video, then sounds.
    pub fn open(&self, args: &MediaArgs) -> anyhow::Result<Vec<Media>> {
        let mut media = Vec::new();
        for path in &self.image {
            let _stage = stage::top("media");
            media.push(Media::Image(edge_lmm::media::load_image(path)?));
        }
        if let Some(path) = &self.video {
            let _stage = stage::top("media");
            media.push(args.open_video(path)?);
        }
        for path in &self.audio {
            let _stage = stage::top("media");
            media.push(open_audio(path)?);
        }
        Ok(media)
    }
}

/// How messages become a prompt.
#[derive(Debug, Clone, Args)]
pub struct PromptOptions {
    /// Let control tokens in questions and instructions, such as <|im_end|>, take effect; without
    /// this they are text
    #[arg(long)]
    pub parse_special: bool,
}

/// Changes to the logits before a token is picked.
#[derive(Debug, Clone, Args)]
pub struct LogitsOptions {
    /// Make tokens that were there before less likely; 1 is off [default: what the checkpoint's
    /// generation_config.json says]
    #[arg(long, value_name = "X", value_parser = parse_penalty)]
    pub repetition_penalty: Option<f32>,
    /// Do not apply the checkpoint's generation_config.json: repetition penalty, excluded tokens,
    /// ...; the tokens that end an answer are still read
    #[arg(long)]
    pub ignore_generation_config: bool,
}

fn parse_penalty(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(penalty) if edge_lmm::generation::is_penalty(penalty) => Ok(penalty),
        _ => Err("expected a number above 0".to_owned()),
    }
}

/// How many tokens, and how they are picked.
#[derive(Debug, Clone, Args)]
pub struct GenerationOptions {
    /// Tokens to generate at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_tokens: usize,
    /// Go on after the model says that it is done
    #[arg(long)]
    pub ignore_eos: bool,
    /// Randomness: 0 always takes the best token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Pick among the K best tokens only (0: all)
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Pick among the best tokens that together have probability P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Start of the random sequence
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    logits: LogitsOptions,
}

impl GenerationOptions {
    /// The checked choice of tokens.
    pub fn sampling(&self) -> anyhow::Result<Sampling> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            bail!("--temperature {}: expected 0 or more", self.temperature);
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            bail!("--top-p {}: expected more than 0, at most 1", self.top_p);
        }
        Ok(Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed,
            repetition_penalty: self.logits.repetition_penalty,
            ignore_generation_config: self.logits.ignore_generation_config,
        })
    }
}

/// A user's turn that shows `media` before it asks.
pub fn user_message(media: &[Media], prompt: &str) -> Message {
    let mut content: Vec<Content> = media
        .iter()
        .map(|medium| Content::Media(medium.kind()))
        .collect();
    content.push(Content::Text(prompt.to_owned()));
    Message {
        role: Role::User,
        content,
    }
}

/// Writes to standard output at once; a closed pipe, as `| head` leaves it, ends the program quietly.
pub fn print_now(text: &str) -> anyhow::Result<()> {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Nobody reads on: what would follow is computed in vain.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.context("cannot write to standard output"),
    }
}
