//! `edge-lmm tokens`: the cost of media before anything runs.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use comfy_table::{Table, presets};
use edge_lmm::cost::{CostKey, CostModel};
use edge_lmm::media::MediaData;
use edge_lmm::reduce::{ReductionStep, Reductions};
use edge_lmm::tokens::{MediumCount, TokenCounter};
use edge_lmm::{Media, MediaOptions, Record, user_message};
use serde::Serialize;

use crate::errors::message;
use crate::models;

use super::costs;
use super::options::{DeviceOptions, MediaArgs, print_now};

/// Largest numbers of tokens that smaller images are shown for.
const SMALLER: [usize; 5] = [1024, 576, 256, 144, 64];
/// Number of smaller images that are shown.
const SHOWN: usize = 3;

/// Counts the tokens of images, videos and audio and estimates the time to the first token, without
/// running the model.
///
/// Tokens decide what a question costs: the encoder turns media into tokens, and the language model
/// processes them before it answers. The counts need no weights. The times come from a few
/// measurements of this model on this machine, which take some seconds and are kept for the next
/// time; the line `prompt` has all files in one question. Options that change the tokens, such as
/// --image-tokens, --frames and --reduce, have the same effect as for run.
///
/// Example: edge-lmm tokens cat.jpg clip.mp4 --model qwen2-vl-2b.bpk --reduce merge:0.5
#[derive(Args)]
pub struct Cmd {
    /// Images, videos and audio files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Record written by edge-lmm-convert, or name of a model
    #[arg(long, value_name = "M.bpk", value_parser = models::argument())]
    model: PathBuf,
    /// Question about the files
    #[arg(long, value_name = "TEXT", default_value = "Describe this.")]
    prompt: String,
    #[command(flatten)]
    media: MediaArgs,
    #[command(flatten)]
    device: DeviceOptions,
    /// Keep the measured times below this folder instead of the user's cache folder
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Measure the times again, for example after the clock rate of the machine has changed
    #[arg(long)]
    measure: bool,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    context_length: usize,
    /// Chain of methods of reduction; empty for none.
    reduce: String,
    files: Vec<FileReport>,
    /// All files in one question; `null` if the model does not take them together.
    prompt: Option<PromptReport>,
}

#[derive(Serialize)]
struct FileReport {
    file: String,
    kind: &'static str,
    #[serde(flatten)]
    extent: Extent,
    /// Tokens without a reduction.
    all_tokens: usize,
    /// Tokens that enter the language model.
    tokens: usize,
    context_share: f64,
    /// Tokens left after each method of reduction.
    reductions: Vec<ReductionStep>,
    #[serde(flatten)]
    times: Times,
    /// Smaller settings of --image-tokens.
    smaller: Vec<Smaller>,
}

#[derive(Serialize)]
struct Extent {
    width: Option<usize>,
    height: Option<usize>,
    frames: Option<usize>,
    seconds: Option<f64>,
}

/// Estimated times; `null` if the model could not be measured.
#[derive(Serialize)]
struct Times {
    encoding_ms: Option<f64>,
    prefill_ms: Option<f64>,
}

#[derive(Serialize)]
struct Smaller {
    /// Largest number of tokens of the setting.
    image_tokens: usize,
    tokens: usize,
    #[serde(flatten)]
    times: Times,
}

#[derive(Serialize)]
struct PromptReport {
    tokens: usize,
    context_share: f64,
    reductions: Vec<ReductionStep>,
    #[serde(flatten)]
    times: Times,
    /// Sum of both.
    first_token_ms: Option<f64>,
}

/// A file and its counts.
struct Counted<'a> {
    path: &'a Path,
    media: Media,
    all_tokens: usize,
    count: MediumCount,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        self.media.check()?;
        self.device.set_threads();
        let record = Record::open_unverified(&self.model)?;
        let counter = TokenCounter::new(&record)?;
        let files = self.files.iter();
        let mut files: Vec<Counted<'_>> = files
            .map(|path| self.count(&counter, path))
            .collect::<anyhow::Result<_>>()?;
        let costs = match self.costs(&record) {
            Ok(costs) => Some(costs),
            Err(error) if self.media.first_token_budget().is_none() => {
                eprintln!("no times are shown: {}", message(&error));
                None
            }
            Err(error) => return Err(error),
        };
        let chain = self.chain(&counter, &mut files, costs.as_ref())?;
        let report = self.report(&counter, &files, &chain, costs.as_ref())?;
        let text = match self.json {
            true => serde_json::to_string(&report)?,
            false => report.text(),
        };
        print_now(&format!("{text}\n"))
    }

    fn count<'a>(&self, counter: &TokenCounter, path: &'a Path) -> anyhow::Result<Counted<'a>> {
        let count = || -> anyhow::Result<Counted<'a>> {
            let media = self.media.open(path)?;
            let options = self.media.options();
            let count = counter.count(&media, &options)?;
            let all_tokens = match options.reductions.is_empty() {
                true => count.tokens(),
                false => {
                    let all = MediaOptions {
                        reductions: Reductions::default(),
                        ..options
                    };
                    counter.count(&media, &all)?.tokens()
                }
            };
            Ok(Counted {
                path,
                media,
                all_tokens,
                count,
            })
        };
        count().with_context(|| path.display().to_string())
    }

    /// Returns the measured times of the model; loads it only to measure.
    fn costs(&self, record: &Record) -> anyhow::Result<CostModel> {
        let folder = costs::folder(self.cache.as_deref());
        if !self.measure {
            let key = CostKey::new(record, self.device.device()?)?;
            let known = folder.as_ref().and_then(|folder| folder.load(&key));
            if let Some(costs) = known {
                return Ok(costs);
            }
        }
        costs::measure(&self.device.load_record(record)?, folder.as_ref())
    }

    /// Returns the chain of methods, which a time limit chooses for all files together.
    fn chain(
        &self,
        counter: &TokenCounter,
        files: &mut [Counted<'_>],
        costs: Option<&CostModel>,
    ) -> anyhow::Result<Reductions> {
        let (Some(budget), Some(costs)) = (self.media.first_token_budget(), costs) else {
            return Ok(self.media.options().reductions);
        };
        let mut counts: Vec<MediumCount> = files.iter().map(|file| file.count.clone()).collect();
        let messages = [self.message(files)];
        let budget = budget.as_secs_f64() * 1e3;
        let chain = counter.choose(&mut counts, &messages, costs, budget)?;
        for (file, count) in files.iter_mut().zip(counts) {
            file.count = count;
        }
        Ok(chain)
    }

    fn message(&self, files: &[Counted<'_>]) -> edge_lmm::Message {
        let media: Vec<Media> = files.iter().map(|file| file.media.clone()).collect();
        user_message(&media, &self.prompt)
    }

    fn report(
        &self,
        counter: &TokenCounter,
        files: &[Counted<'_>],
        chain: &Reductions,
        costs: Option<&CostModel>,
    ) -> anyhow::Result<Report> {
        let context = counter.context_length();
        let counts: Vec<MediumCount> = files.iter().map(|file| file.count.clone()).collect();
        let prompt = match counter.prompt(&counts, &[self.message(files)]) {
            Ok(prompt) => Some(prompt),
            Err(error) => {
                eprintln!(
                    "the files are not shown as one prompt: {}",
                    message(&error.into())
                );
                None
            }
        };
        let prompt = prompt.map(|prompt| {
            let encoding_ms =
                costs.map(|costs| counts.iter().map(|count| count.encoding(costs)).sum());
            let prefill_ms = costs.map(|costs| prompt.prefilling(costs));
            PromptReport {
                tokens: prompt.tokens,
                context_share: share(prompt.tokens, context),
                reductions: prompt.steps,
                first_token_ms: encoding_ms.zip(prefill_ms).map(|(a, b): (f64, f64)| a + b),
                times: Times {
                    encoding_ms,
                    prefill_ms,
                },
            }
        });
        let files = files.iter();
        let files = files.map(|file| self.file_report(counter, file, chain, costs));
        Ok(Report {
            context_length: context,
            reduce: chain.to_string(),
            files: files.collect::<anyhow::Result<_>>()?,
            prompt,
        })
    }

    fn file_report(
        &self,
        counter: &TokenCounter,
        file: &Counted<'_>,
        chain: &Reductions,
        costs: Option<&CostModel>,
    ) -> anyhow::Result<FileReport> {
        let tokens = file.count.tokens();
        Ok(FileReport {
            file: file.path.display().to_string(),
            kind: file.count.kind().as_str(),
            extent: Extent::of(file.media.data()),
            all_tokens: file.all_tokens,
            tokens,
            context_share: share(tokens, counter.context_length()),
            reductions: file.count.steps().to_vec(),
            times: Times::of(&file.count, costs),
            smaller: self.smaller(counter, file, chain, costs)?,
        })
    }

    /// Counts the tokens of an image at smaller settings.
    fn smaller(
        &self,
        counter: &TokenCounter,
        file: &Counted<'_>,
        chain: &Reductions,
        costs: Option<&CostModel>,
    ) -> anyhow::Result<Vec<Smaller>> {
        let is_image = matches!(file.media.data(), MediaData::Image(_));
        let mut smaller = Vec::new();
        let (mut shown, limits) = (file.all_tokens, SMALLER.into_iter());
        for most in limits.filter(|_| is_image && counter.resizes_images()) {
            let options = |reductions| MediaOptions {
                image_tokens: Some((1, most)),
                reductions,
                ..self.media.options()
            };
            let all = counter.count(&file.media, &options(Reductions::default()))?;
            if all.tokens() >= shown || smaller.len() == SHOWN {
                continue;
            }
            shown = all.tokens();
            let count = counter.count(&file.media, &options(chain.clone()))?;
            smaller.push(Smaller {
                image_tokens: most,
                tokens: count.tokens(),
                times: Times::of(&count, costs),
            });
        }
        Ok(smaller)
    }
}

fn share(tokens: usize, context: usize) -> f64 {
    tokens as f64 / context.max(1) as f64
}

impl Extent {
    fn of(data: &MediaData) -> Self {
        let mut extent = Self {
            width: None,
            height: None,
            frames: None,
            seconds: None,
        };
        match data {
            MediaData::Image(image) => {
                extent.width = Some(image.width());
                extent.height = Some(image.height());
            }
            MediaData::Video { frames, times } => {
                extent.width = frames.first().map(|frame| frame.width());
                extent.height = frames.first().map(|frame| frame.height());
                extent.frames = Some(frames.len());
                extent.seconds = Some(frames.len() as f64 / f64::from(times.frames_per_second));
            }
            MediaData::Audio {
                samples,
                sample_rate,
            } => extent.seconds = Some(samples.len() as f64 / f64::from(*sample_rate)),
            _ => {}
        }
        extent
    }

    fn text(&self) -> String {
        let size = self.width.zip(self.height);
        let parts = [
            size.map(|(width, height)| format!("{width}x{height}")),
            self.frames.map(|frames| format!("{frames} frames")),
            self.seconds.map(|seconds| format!("{seconds:.1} s")),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

impl Times {
    fn of(count: &MediumCount, costs: Option<&CostModel>) -> Self {
        Self {
            encoding_ms: costs.map(|costs| count.encoding(costs)),
            prefill_ms: costs.map(|costs| count.prefilling(costs)),
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_header([
            "file", "kind", "size", "tokens", "context", "encoding", "prefill",
        ]);
        for file in &self.files {
            let tokens = match file.all_tokens == file.tokens {
                true => file.tokens.to_string(),
                false => format!("{} of {}", file.tokens, file.all_tokens),
            };
            table.add_row([
                file.file.clone(),
                file.kind.to_owned(),
                file.extent.text(),
                tokens,
                percent(file.context_share),
                milliseconds(file.times.encoding_ms),
                milliseconds(file.times.prefill_ms),
            ]);
            for smaller in &file.smaller {
                table.add_row([
                    format!("  --image-tokens 1..{}", smaller.image_tokens),
                    String::new(),
                    String::new(),
                    smaller.tokens.to_string(),
                    percent(share(smaller.tokens, self.context_length)),
                    milliseconds(smaller.times.encoding_ms),
                    milliseconds(smaller.times.prefill_ms),
                ]);
            }
        }
        if let Some(prompt) = &self.prompt {
            table.add_row([
                "prompt".to_owned(),
                String::new(),
                String::new(),
                prompt.tokens.to_string(),
                percent(prompt.context_share),
                milliseconds(prompt.times.encoding_ms),
                milliseconds(prompt.times.prefill_ms),
            ]);
        }
        format!("{table}{}", self.notes())
    }

    /// Lines below the table: methods, and the time to the first token.
    fn notes(&self) -> String {
        let mut notes = String::new();
        if !self.reduce.is_empty() {
            notes += &format!("\nreduced by {}", self.reduce);
        }
        let Some(prompt) = &self.prompt else {
            return notes;
        };
        for step in &prompt.reductions {
            notes += &format!("\n{}: {} tokens left", step.method, step.tokens);
        }
        if let Some(ms) = prompt.first_token_ms {
            notes += &format!("\nfirst token after about {}", milliseconds(Some(ms)));
        }
        if prompt.context_share >= 1.0 {
            notes += &format!(
                "\nthe prompt does not fit: the model's context is {} tokens",
                self.context_length
            );
        }
        notes
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn milliseconds(ms: Option<f64>) -> String {
    match ms {
        None => "-".to_owned(),
        Some(ms) if ms < 100.0 => format!("{ms:.1} ms"),
        Some(ms) => format!("{ms:.0} ms"),
    }
}
