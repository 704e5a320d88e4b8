//! Options that several subcommands share.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::Args;
use edge_lmm::media::{FrameSelection, MediaBudget, MediaError, Source};
use edge_lmm::memory::RequestEstimate;
use edge_lmm::sampler::Sampling;
use edge_lmm::{AnyEngine, Devices, Media, Record, Recording};
use edge_lmm_kernels::pool;
use edge_lmm_models::media::{AudioPadding, MediaKind, MediaOptions};
use edge_lmm_ops::stage;

use super::memory::{MemoryOptions, RequestCheck};

/// Device and threads.
#[derive(Debug, Clone, Args)]
pub struct DeviceOptions {
    /// Where to compute: cpu, cuda, cuda:N (an NVIDIA GPU by its index) or vulkan (experimental);
    /// several, as in cuda,cpu: the first that this program and this machine have
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: Devices,
    /// Threads on the CPU [default: one per core]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    threads: Option<NonZeroUsize>,
    #[command(flatten)]
    memory: MemoryOptions,
}

/// Most threads that can be asked for; a core needs one.
const MAX_THREADS: usize = 256;

/// A number of threads.
///
/// # Errors
/// If it is 0, too large or no number.
pub fn parse_threads(text: &str) -> Result<NonZeroUsize, String> {
    match text.parse::<NonZeroUsize>() {
        Ok(threads) if threads.get() <= MAX_THREADS => Ok(threads),
        _ => Err(format!("expected 1 to {MAX_THREADS} threads")),
    }
}

impl DeviceOptions {
    /// A recording of stages on the device.
    pub fn recording(&self) -> anyhow::Result<Recording> {
        Ok(Recording::new(self.device.choose()?))
    }

    /// Opens a record and loads its model, if it fits into memory.
    pub fn load(&self, model: &Path) -> anyhow::Result<AnyEngine> {
        self.load_record(&Record::open_unverified(model)?)
    }

    /// Prepares the check of requests with answers of at most `max_tokens`.
    pub fn request_check(&self, engine: &AnyEngine, max_tokens: usize) -> RequestCheck {
        self.memory.request_check(engine, max_tokens)
    }

    /// What tells whether a request fits into memory; `None` if that is not to be asked.
    pub fn request_estimate(&self, engine: &AnyEngine) -> Option<RequestEstimate> {
        self.memory.request_estimate(engine)
    }

    /// Loads the model of an open record, if it fits into memory.
    pub fn load_record(&self, record: &Record) -> anyhow::Result<AnyEngine> {
        if let Some(threads) = self.threads {
            pool::set_global_threads(threads);
        }
        self.memory.load(record, self.device.choose()?)
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
    /// Fewest and most tokens of an image, which is resized to fit; for models that take images of
    /// any size
    #[arg(long, value_name = "MIN..MAX")]
    image_tokens: Option<TokenRange>,
    /// Frames of a video to use, evenly spread [default: all]
    #[arg(long, value_name = "N")]
    frames: Option<NonZeroUsize>,
    /// What follows a sound: nothing, or silence up to the 30 seconds that encoders were trained
    /// on; the answers are the same
    #[arg(long, value_name = "none|30s", default_value = "none")]
    audio_padding: PaddingChoice,
}

impl MediaArgs {
    /// The options for the engine.
    pub fn options(&self) -> MediaOptions {
        MediaOptions {
            image_tokens: self.image_tokens.map(|range| (range.0, range.1)),
            audio_padding: self.audio_padding.0,
            ..MediaOptions::default()
        }
    }

    /// Frames of a video to use.
    pub fn frames(&self) -> FrameSelection {
        match self.frames {
            None => FrameSelection::All,
            Some(count) => FrameSelection::Uniform(count.get()),
        }
    }

    /// Reads an image, a video or a sound, whichever the file holds.
    pub fn open(&self, path: &Path) -> Result<Media, MediaError> {
        let _stage = stage::top("media");
        let source = Source::file(path)?;
        Media::read(&source, source.kind()?, self.frames())
    }
}

/// The media of a question, given by kind.
#[derive(Debug, Clone, Args)]
pub struct MediaFiles {
    /// An image (PNG, JPEG, WebP, BMP, GIF), or - for standard input; repeat for several
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// A video (animated GIF, Y4M, a folder of images), or - for standard input
    #[arg(long, value_name = "FILE")]
    video: Option<PathBuf>,
    /// A sound (WAV, AIFF, FLAC, MP3), or - for standard input; repeat for several
    #[arg(long, value_name = "FILE")]
    audio: Vec<PathBuf>,
}

impl MediaFiles {
    /// Reads them all: images, then the video, then sounds.
    pub fn open(&self, args: &MediaArgs) -> anyhow::Result<Vec<Media>> {
        if self
            .paths()
            .filter(|(path, _)| path.as_os_str() == "-")
            .count()
            > 1
        {
            bail!("only one of --image, --video and --audio can be -: standard input is read once");
        }
        let mut budget = MediaBudget::new();
        self.paths()
            .map(|(path, kind)| {
                let _stage = stage::top("media");
                let medium = Media::read(&Source::open(path)?, kind, args.frames())?;
                budget.hold(&medium)?;
                Ok(medium)
            })
            .collect()
    }

    /// The files with the kind that the user gave them as.
    pub fn paths(&self) -> impl Iterator<Item = (&Path, MediaKind)> {
        let images = self.image.iter().map(|path| (path, MediaKind::Image));
        let video = self.video.iter().map(|path| (path, MediaKind::Video));
        let audio = self.audio.iter().map(|path| (path, MediaKind::Audio));
        let all = images.chain(video).chain(audio);
        all.map(|(path, kind)| (path.as_path(), kind))
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
