//! Options shared by several subcommands.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use edge_lmm::RequestEstimator;
use edge_lmm::media::{FrameSelection, MediaBudget, MediaError, Source, VideoOptions};
use edge_lmm::reduce::{ReductionError, Reductions, Share};
use edge_lmm::sampler::Sampling;
use edge_lmm::{
    AnyEngine, AudioPadding, Device, DeviceError, Devices, Media, MediaKind, MediaOptions, Message,
    Record, Recording, Request, Speculation, timing,
};

use super::memory::{MemoryOptions, RequestCheck};

/// Options for device and threads.
#[derive(Debug, Clone, Args)]
pub struct DeviceOptions {
    /// Device: cpu, cuda, cuda:N (an NVIDIA GPU by index) or vulkan (experimental); with a list
    /// such as cuda,cpu, the first one that is available
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: Devices,
    /// Number of CPU threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    threads: Option<NonZeroUsize>,
    #[command(flatten)]
    memory: MemoryOptions,
}

/// Maximum number of threads.
const MAX_THREADS: usize = 256;

/// Parses a number of threads.
///
/// # Errors
/// If it is 0, too large or not a number.
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

    /// Prepares the check of requests.
    pub fn request_check(&self, engine: &AnyEngine) -> RequestCheck {
        self.memory.request_check(engine)
    }

    /// Returns the estimator that checks whether a request fits into memory; `None` if
    /// `--ignore-memory` turns the check off.
    pub fn request_estimator(&self, engine: &AnyEngine) -> Option<RequestEstimator> {
        self.memory.request_estimator(engine)
    }

    /// Loads the model of an open record, if it fits into memory.
    pub fn load_record(&self, record: &Record) -> anyhow::Result<AnyEngine> {
        self.set_threads();
        self.memory.load(record, self.device()?)
    }

    /// Returns the device.
    pub fn device(&self) -> Result<Device, DeviceError> {
        self.device.choose()
    }

    /// Sets the number of threads.
    pub fn set_threads(&self) {
        if let Some(threads) = self.threads {
            edge_lmm::set_threads(threads);
        }
    }
}

/// Minimum and maximum number of tokens, as `MIN..MAX`.
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

/// Padding of audio.
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

/// Methods of reduction, or a choice of them for a time limit.
#[derive(Debug, Clone, PartialEq)]
enum ReduceChoice {
    Auto,
    Chain(Reductions),
}

impl FromStr for ReduceChoice {
    type Err = ReductionError;

    fn from_str(text: &str) -> Result<Self, ReductionError> {
        match text {
            "auto" => Ok(Self::Auto),
            chain => chain.parse().map(Self::Chain),
        }
    }
}

fn parse_budget(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(ms) if ms > 0.0 && ms <= 86_400_000.0 => Ok(Duration::from_secs_f64(ms / 1e3)),
        _ => Err("expected milliseconds above 0, such as 500".to_owned()),
    }
}

fn parse_share(text: &str) -> Result<Share, String> {
    let share = text.parse();
    share.map_err(|()| "expected a ratio above 0 and up to 1, such as 0.25 or 25%".to_owned())
}

/// Number of video frames: N, keyframes:N, or syncframes:N.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrameChoice(FrameSelection);

impl FrameChoice {
    /// Returns the number of frames.
    pub fn count(self) -> usize {
        match self.0 {
            FrameSelection::Uniform(count)
            | FrameSelection::Key(count)
            | FrameSelection::SyncKey(count) => count,
            // Not parsed from this option.
            _ => 0,
        }
    }
}

impl FromStr for FrameChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (count, select): (_, fn(usize) -> FrameSelection) = match text.split_once(':') {
            Some(("keyframes", count)) => (count, FrameSelection::Key),
            Some(("syncframes", count)) => (count, FrameSelection::SyncKey),
            _ => (text, FrameSelection::Uniform),
        };
        match count.parse::<NonZeroUsize>() {
            Ok(count) => Ok(Self(select(count.get()))),
            Err(_) => Err("expected N, keyframes:N or syncframes:N with N above 0".to_owned()),
        }
    }
}

fn parse_rate(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 && rate <= 1000.0 => Ok(rate),
        _ => Err("expected a number of frames above 0 and up to 1000".to_owned()),
    }
}

/// Parses a difference of images.
///
/// # Errors
/// If it is not from 0 to 255.
pub fn parse_difference(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(difference) if (0.0..=255.0).contains(&difference) => Ok(difference),
        _ => Err("expected a number from 0 to 255".to_owned()),
    }
}

/// The program that converts videos of other formats.
pub const FFMPEG: &str = "ffmpeg";

/// Options for the tokens of images and videos.
#[derive(Debug, Clone, Args)]
pub struct TokenArgs {
    /// Minimum and maximum tokens of an image, which is resized to fit; for models that accept
    /// images of any size
    #[arg(long, value_name = "MIN..MAX")]
    image_tokens: Option<TokenRange>,
    /// Add crops to images that are far from square, which takes more time and shows more details;
    /// for Gemma 3
    #[arg(long)]
    pan_and_scan: bool,
    /// Reduce the tokens of images and videos by a chain of methods: METHOD[:RATIO][,METHOD...],
    /// where RATIO is the share of tokens to keep, or auto with --first-token-budget
    ///
    /// Before the encoder: duplicates[:T] drops parts of an image that equal a neighbor, still[:T]
    /// those of a video that do not change (T: largest difference, or the share to keep with %).
    /// Within the encoder: merge:RATIO[:LAYERS] joins similar parts, which also shortens the
    /// encoder.
    /// After it: diverse:RATIO keeps tokens that differ most, attention:RATIO those that the
    /// encoder attends to, question:RATIO diverse ones by their relevance to the question;
    /// random:RATIO and stride:RATIO are baselines.
    /// Within the language model: language:LAYER:RATIO keeps tokens that the question attends to.
    /// anchors[:RATIO] reserves a share of the tokens that the last six keep for those at positions
    /// that serve as coordinates.
    ///
    /// Try edge-lmm tokens FILE --model M.bpk --reduce METHODS to see what a chain saves.
    #[arg(long, value_name = "METHODS", conflicts_with = "keep_visual_tokens")]
    reduce: Option<ReduceChoice>,
    /// Keep this share of the tokens of images and videos, by the methods that lose the least
    #[arg(long, value_name = "RATIO", value_parser = parse_share)]
    keep_visual_tokens: Option<Share>,
    /// Reduce the tokens of images and videos only as much as needed for the first token of the
    /// answer to come within this time, by the methods that lose the least
    ///
    /// The choice is made for each request from the times of the model on this machine. They are
    /// measured on first use, which takes some seconds, and kept (see edge-lmm tokens). If no
    /// choice is fast enough, the fastest one is used, with a warning.
    #[arg(
        long,
        value_name = "MS",
        value_parser = parse_budget,
        conflicts_with = "keep_visual_tokens"
    )]
    first_token_budget: Option<Duration>,
}

impl TokenArgs {
    /// Returns the media options of the engine.
    pub fn options(&self) -> MediaOptions {
        MediaOptions {
            image_tokens: self.image_tokens.map(|range| (range.0, range.1)),
            pan_and_scan: self.pan_and_scan,
            reductions: self.reductions(),
            first_token_budget: self.first_token_budget,
            ..MediaOptions::default()
        }
    }

    fn reductions(&self) -> Reductions {
        let chosen = self.keep_visual_tokens.map(Reductions::keeping);
        let given = || match &self.reduce {
            Some(ReduceChoice::Chain(chain)) => chain.clone(),
            Some(ReduceChoice::Auto) | None => Reductions::default(),
        };
        chosen.unwrap_or_else(given)
    }

    /// Returns the time limit that the methods are chosen for.
    pub fn first_token_budget(&self) -> Option<Duration> {
        self.first_token_budget
    }

    /// Checks that the methods are given in one way only.
    pub fn check(&self) -> anyhow::Result<()> {
        match (&self.reduce, self.first_token_budget) {
            (Some(ReduceChoice::Auto), None) => bail!(
                "--reduce auto chooses the methods for a time limit: add --first-token-budget MS, \
                 or name the methods"
            ),
            (Some(ReduceChoice::Chain(chain)), Some(_)) => bail!(
                "--first-token-budget chooses the methods itself: use it without --reduce {chain}, \
                 or with --reduce auto"
            ),
            _ => Ok(()),
        }
    }
}

/// Options for reading and preparing media.
#[derive(Debug, Clone, Args)]
pub struct MediaArgs {
    #[command(flatten)]
    common: CommonMediaArgs,
    /// Number of video frames to use, evenly spaced, or keyframes:N for the first one and those
    /// that differ most from the frame before, or syncframes:N to decode only frames of H.264 that
    /// depend on no other [default: all]
    #[arg(long, value_name = "N|keyframes:N|syncframes:N")]
    frames: Option<FrameChoice>,
}

/// Options for reading and preparing media, with several numbers of frames.
#[derive(Debug, Clone, Args)]
pub struct SweptMediaArgs {
    #[command(flatten)]
    common: CommonMediaArgs,
    /// Numbers of video frames to use, evenly spaced, or keyframes:N for the first one and those
    /// that differ most from the frame before, or syncframes:N to decode only frames of H.264 that
    /// depend on no other [default: all]. Without --video, the video is noise
    #[arg(long, value_name = "N|keyframes:N|syncframes:N", value_delimiter = ',')]
    pub frames: Vec<FrameChoice>,
}

impl SweptMediaArgs {
    /// Returns the options with one number of frames, or all.
    pub fn with_frames(&self, frames: Option<FrameChoice>) -> MediaArgs {
        MediaArgs {
            common: self.common.clone(),
            frames,
        }
    }
}

/// Options for media besides the number of frames.
#[derive(Debug, Clone, Args)]
struct CommonMediaArgs {
    #[command(flatten)]
    tokens: TokenArgs,
    /// Number of video frames to use per second
    #[arg(long, value_name = "X", value_parser = parse_rate, conflicts_with = "frames")]
    fps: Option<f32>,
    /// Skip video frames that differ by less than T from the last one that was not skipped: the
    /// mean difference of their 8-bit values, for example 2. --frames and --fps select from the rest
    #[arg(long, value_name = "T", value_parser = parse_difference)]
    motion_gate: Option<f32>,
    /// Padding of audio: none, or silence up to the 30 seconds that encoders were trained on;
    /// answers are the same
    #[arg(long, value_name = "none|30s", default_value = "none")]
    audio_padding: PaddingChoice,
}

impl MediaArgs {
    /// Returns the media options of the engine.
    pub fn options(&self) -> MediaOptions {
        MediaOptions {
            audio_padding: self.common.audio_padding.0,
            ..self.common.tokens.options()
        }
    }

    /// Returns the time limit that the methods are chosen for.
    pub fn first_token_budget(&self) -> Option<Duration> {
        self.common.tokens.first_token_budget()
    }

    /// Checks that the methods are given in one way only.
    pub fn check(&self) -> anyhow::Result<()> {
        self.common.tokens.check()
    }

    /// Returns the selection of video frames.
    pub fn video(&self) -> VideoOptions {
        VideoOptions {
            frames: match (self.frames, self.common.fps) {
                (Some(FrameChoice(selection)), _) => selection,
                (None, Some(rate)) => FrameSelection::Rate(rate),
                (None, None) => FrameSelection::All,
            },
            motion_gate: self.common.motion_gate,
        }
    }

    /// Reads an image, video or audio file and detects its kind.
    pub fn open(&self, path: &Path) -> Result<Media, MediaError> {
        let _stage = timing::stage("media");
        let source = Source::file(path)?.with_ffmpeg(FFMPEG);
        self.read(&source, source.kind()?)
    }

    /// Reads a file as a medium of a kind.
    pub fn open_as(&self, path: &Path, kind: MediaKind) -> Result<Media, MediaError> {
        let _stage = timing::stage("media");
        self.read(&Source::open(path)?.with_ffmpeg(FFMPEG), kind)
    }

    /// Reads a medium. With a motion gate, prints how many frames it skipped.
    fn read(&self, source: &Source, kind: MediaKind) -> Result<Media, MediaError> {
        if kind != MediaKind::Video {
            return Media::read(source, kind, FrameSelection::All);
        }
        let video = source.video(self.video())?;
        if self.common.motion_gate.is_some() {
            let (used, skipped) = (video.frames.len(), video.skipped);
            eprintln!("{used} frames are used, {skipped} without motion were skipped");
        }
        Ok(video.into())
    }
}

/// The media of a question by kind.
#[derive(Debug, Clone, Args)]
pub struct MediaFiles {
    /// Image (PNG, JPEG, WebP, BMP, GIF), or - for standard input; may be repeated
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Video (MP4 with H.264, animated GIF, Y4M, folder of images; others if ffmpeg is installed),
    /// or - for standard input
    #[arg(long, value_name = "FILE")]
    video: Option<PathBuf>,
    /// Use the sound track of the video, too
    #[arg(long, requires = "video")]
    video_sound: bool,
    /// Audio (WAV, AIFF, FLAC, MP3, M4A), or - for standard input; may be repeated
    #[arg(long, value_name = "FILE")]
    audio: Vec<PathBuf>,
}

impl MediaFiles {
    /// Reads all files: images, then the video and its sound track, then audio.
    pub fn open(&self, args: &MediaArgs) -> anyhow::Result<Vec<Media>> {
        self.open_with(args, |source, kind| args.read(source, kind))
    }

    /// Reads all files like [`Self::open`]. Where the selection allows it, a thread decodes the
    /// video until a session needs it; damage that it finds is an error of the answer.
    pub fn decode(&self, args: &MediaArgs) -> anyhow::Result<Vec<Media>> {
        self.open_with(args, |source, kind| match kind {
            MediaKind::Video if args.common.motion_gate.is_none() => {
                Media::decode(source, args.video())
            }
            _ => args.read(source, kind),
        })
    }

    fn open_with(
        &self,
        args: &MediaArgs,
        read: impl Fn(&Source, MediaKind) -> Result<Media, MediaError>,
    ) -> anyhow::Result<Vec<Media>> {
        if self
            .paths()
            .filter(|(path, _)| path.as_os_str() == "-")
            .count()
            > 1
        {
            bail!("only one of --image, --video and --audio can be -: standard input is read once");
        }
        let mut budget = MediaBudget::new();
        let mut media = Vec::new();
        let mut hold = |medium: Media| -> Result<(), MediaError> {
            budget.hold(&medium)?;
            media.push(medium);
            Ok(())
        };
        for (path, kind) in self.paths() {
            let _stage = timing::stage("media");
            let source = Source::open(path)?.with_ffmpeg(FFMPEG);
            hold(read(&source, kind)?)?;
            if kind == MediaKind::Video && self.video_sound {
                hold(args.read(&source, MediaKind::Audio)?.as_sound_track())?;
            }
        }
        Ok(media)
    }

    /// Returns `true` if there is a video.
    pub fn has_video(&self) -> bool {
        self.video.is_some()
    }

    /// Iterates over the files with the kinds given by the user.
    pub fn paths(&self) -> impl Iterator<Item = (&Path, MediaKind)> {
        let images = self.image.iter().map(|path| (path, MediaKind::Image));
        let video = self.video.iter().map(|path| (path, MediaKind::Video));
        let audio = self.audio.iter().map(|path| (path, MediaKind::Audio));
        let all = images.chain(video).chain(audio);
        all.map(|(path, kind)| (path.as_path(), kind))
    }
}

/// Options for building a prompt.
#[derive(Debug, Clone, Args)]
pub struct PromptOptions {
    /// Let control tokens in prompts and system messages, such as <|im_end|>, take effect; by
    /// default they are text
    #[arg(long)]
    pub parse_special: bool,
}

/// Options that change the logits before sampling.
#[derive(Debug, Clone, Args)]
pub struct LogitsOptions {
    /// Penalize tokens that occurred before; 1 disables [default: that of the checkpoint's
    /// generation_config.json]
    #[arg(long, value_name = "X", value_parser = parse_penalty)]
    pub repetition_penalty: Option<f32>,
    /// Ignore the repetition penalty, excluded tokens, ... of the checkpoint's
    /// generation_config.json; its end-of-sequence tokens still apply
    #[arg(long)]
    pub ignore_generation_config: bool,
}

fn parse_penalty(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(penalty) if edge_lmm::sampler::is_penalty(penalty) => Ok(penalty),
        _ => Err("expected a number above 0".to_owned()),
    }
}

/// Options for the length and sampling of an answer.
#[derive(Debug, Clone, Args)]
pub struct GenerationOptions {
    /// Maximum number of tokens to generate
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_tokens: usize,
    /// Continue after the end-of-sequence token
    #[arg(long)]
    pub ignore_eos: bool,
    /// Sampling temperature; 0 always selects the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Sample from the K most likely tokens only (0: all)
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Sample from the most likely tokens with total probability P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Pick among tokens of at least P times the best token's probability (0: all)
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Make tokens that the answer contains less likely; 0 is off
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    presence_penalty: f32,
    /// Make tokens less likely for each time that the answer contains them; 0 is off
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    frequency_penalty: f32,
    /// End the answer before this text; repeat for several
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Start of the random sequence
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    logits: LogitsOptions,
}

impl GenerationOptions {
    /// Builds a request with these options and without media.
    pub fn request<'a>(&'a self, messages: &'a [Message]) -> anyhow::Result<Request<'a>> {
        Ok(Request {
            max_tokens: self.max_tokens,
            ignore_eos: self.ignore_eos,
            sampling: self.sampling()?,
            stop: &self.stop,
            ..Request::new(messages)
        })
    }

    /// Returns the sampling parameters after checking them.
    pub fn sampling(&self) -> anyhow::Result<Sampling> {
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
            repetition_penalty: self.logits.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            ignore_generation_config: self.logits.ignore_generation_config,
        };
        sampling.check()?;
        Ok(sampling)
    }
}

/// Options for speculative decoding.
#[derive(Debug, Clone, Args)]
pub struct SpeculationOptions {
    /// Tokens to draft and verify together in each step: a number, auto, or off. Answers stay the
    /// same on the CPU [default: auto on the CPU and with --draft, otherwise off]
    #[arg(long, value_name = "N|auto|off")]
    speculate: Option<Speculation>,
    /// Record of a smaller model with the same tokenizer that drafts tokens
    #[arg(long, value_name = "FILE")]
    draft: Option<PathBuf>,
}

impl SpeculationOptions {
    /// Checks that a draft model is not given in vain.
    pub fn check(&self) -> anyhow::Result<()> {
        match (&self.draft, self.speculate) {
            (Some(_), Some(Speculation::Off)) => {
                bail!("--draft has no effect with --speculate off: leave one of them out")
            }
            _ => Ok(()),
        }
    }

    /// Loads the draft model, if there is one, for `engine`.
    pub fn load_draft(&self, device: &DeviceOptions, engine: &AnyEngine) -> anyhow::Result<()> {
        if let Some(path) = &self.draft {
            engine
                .use_draft(device.load(path)?)
                .with_context(|| format!("cannot draft with {}", path.display()))?;
        }
        Ok(())
    }

    /// Returns the speculation of requests to a model on `device`.
    pub fn mode(&self, device: Device) -> Speculation {
        self.speculate.unwrap_or(match self.draft {
            Some(_) => Speculation::Auto,
            None => Speculation::default_on(device),
        })
    }
}

/// Writes to standard output and flushes it; a closed pipe, as with `| head`, ends the program
/// silently.
pub fn print_now(text: &str) -> anyhow::Result<()> {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // The reader is gone, so further output has no use.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            let _abandoned = edge_lmm::output::abandon_all();
            std::process::exit(0)
        }
        written => written.context("cannot write to standard output"),
    }
}
