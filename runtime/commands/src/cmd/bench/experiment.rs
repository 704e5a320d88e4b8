//! `edge-lmm bench EXPERIMENT`: an experiment of the registry.

use std::path::{Path, PathBuf};

use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand};
use edge_lmm::experiment::token_reduction::{self, Score};
use edge_lmm::experiment::{
    self, ALL, Bench, BenchModel, Experiment, Folder, Progress, Settings, Shard,
};
use edge_lmm::manifest::Manifest;
use edge_lmm::output::Output;
use edge_lmm::reduce::Reductions;
use edge_lmm::{Device, Record};
use indicatif::{ProgressBar, ProgressStyle};

use crate::models;

use super::super::options::{DeviceOptions, TokenArgs};
use super::output::OutputOptions;

/// Measurements of a case with synthetic media.
const REPEAT: usize = 5;

/// An experiment with its options.
pub struct Cmd {
    experiment: &'static dyn Experiment,
    options: Options,
    /// Options of `token-reduction`.
    reduction: Option<ReductionOptions>,
    /// Second device of `two-devices`.
    second: Option<SecondDevice>,
}

/// Options of all experiments.
#[derive(Debug, Args)]
struct Options {
    /// Records written by edge-lmm-convert, or names of models
    #[arg(required = true, value_name = "MODEL", value_parser = models::argument())]
    models: Vec<PathBuf>,
    /// Question set; without one, experiments make synthetic media
    #[arg(long, value_name = "M.csv")]
    manifest: Option<PathBuf>,
    /// Measurements of each case, with each question or with a synthetic medium [default: 1 with a
    /// manifest, 5 without]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: Option<u32>,
    /// Measurements of each case before the first one that counts
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup: usize,
    /// Use only the first N questions of every task
    #[arg(long, value_name = "N", requires = "manifest", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Maximum number of tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Values of the varied quantity, such as frames or pixels: see edge-lmm bench list
    #[arg(long, value_name = "X,X,...", value_delimiter = ',')]
    values: Vec<f64>,
    /// Folder for the results, one line per measurement; a run that ended early is continued
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Measure only part I of N of the questions or repeats, for several machines: see edge-lmm
    /// bench merge
    #[arg(long, value_name = "I/N", requires = "out")]
    shard: Option<Shard>,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    media: TokenArgs,
    #[command(flatten)]
    device: DeviceOptions,
}

/// Options of `token-reduction`.
#[derive(Debug, Args)]
struct ReductionOptions {
    /// Chain of methods to compare, as for --reduce of edge-lmm run; may be repeated [default: every
    /// method at several ratios]
    #[arg(long, value_name = "METHODS")]
    chain: Vec<Reductions>,
    /// Right answers of another program to print beside ours: reduce,task,right,questions
    #[arg(long, value_name = "FILE.csv")]
    reference: Option<PathBuf>,
    /// Write right answers by chain and task to a file: reduce,task,right,questions
    #[arg(long, value_name = "FILE.csv")]
    scores: Option<PathBuf>,
}

/// Options of `two-devices`.
#[derive(Debug, Args)]
struct SecondDevice {
    /// Device of the language task in a further case, such as cuda
    #[arg(long, value_name = "DEVICE")]
    second_device: Option<Device>,
}

impl Subcommand for Cmd {
    fn augment_subcommands(command: Command) -> Command {
        ALL.iter().fold(command, |command, experiment| {
            let about = experiment.about();
            let long = format!(
                "{}\n\nVaries: {}.\nMeasures: {}.\nNeeds: {}.",
                about.question, about.varies, about.measures, about.needs
            );
            let mut one = Options::augment_args(Command::new(about.name));
            match about.name {
                "token-reduction" => one = ReductionOptions::augment_args(one),
                "two-devices" => one = SecondDevice::augment_args(one),
                _ => {}
            }
            if about.values.is_empty() {
                one = one.mut_arg("values", |argument| argument.hide(true));
            }
            // A time limit would choose other settings on each machine.
            one = one.mut_arg("first_token_budget", |argument| argument.hide(true));
            command.subcommand(one.about(about.question).long_about(long))
        })
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        experiment::find(name).is_some()
    }
}

impl FromArgMatches for Cmd {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let found = matches
            .subcommand()
            .and_then(|(name, matches)| Some((experiment::find(name)?, matches)));
        let Some((experiment, matches)) = found else {
            return Err(clap::Error::new(clap::error::ErrorKind::MissingSubcommand));
        };
        let name = experiment.about().name;
        Ok(Self {
            experiment,
            options: Options::from_arg_matches(matches)?,
            reduction: (name == "token-reduction")
                .then(|| ReductionOptions::from_arg_matches(matches))
                .transpose()?,
            second: (name == "two-devices")
                .then(|| SecondDevice::from_arg_matches(matches))
                .transpose()?,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let Options {
            models,
            manifest,
            output,
            media,
            device,
            shard,
            ..
        } = &self.options;
        media.check()?;
        anyhow::ensure!(
            media.first_token_budget().is_none(),
            "experiments compare fixed settings: leave out --first-token-budget"
        );
        anyhow::ensure!(
            self.options.values.is_empty() || !self.experiment.about().values.is_empty(),
            "{} has no --values: it does not vary a number",
            self.experiment.about().name
        );
        let inputs = models.iter().chain(manifest).map(PathBuf::as_path);
        let files = output.reserve(inputs.clone())?;
        let reduction = self.reduction.as_ref();
        let scores = reduction.and_then(|options| options.scores.as_deref());
        let scores = scores
            .map(|path| Output::replace(path, inputs.clone()))
            .transpose()?;
        let reference = reduction.and_then(|options| options.reference.as_deref());
        let reference = reference.map(read_scores).transpose()?;
        let manifest = match manifest {
            Some(path) => Some((path.clone(), Manifest::open(path)?)),
            None => None,
        };
        let second = self.second.as_ref().and_then(|second| second.second_device);
        let models = load(models, device, second)?;
        let mut bench = Bench::new(models, manifest, self.settings());
        let shard = shard.unwrap_or(Shard::WHOLE);
        let (plan, lines) = measure(
            self.experiment,
            &mut bench,
            shard,
            self.options.out.as_deref(),
        )?;
        let mut report = experiment::report(&plan, &lines)?;
        if let Some(reference) = reference {
            token_reduction::add_reference(&mut report, &reference);
        }
        if let Some(file) = scores {
            write_scores(file, &token_reduction::scores(&plan, &lines))?;
        }
        files.write(&report)
    }

    fn settings(&self) -> Settings {
        let Options {
            repeat,
            warmup,
            limit,
            max_tokens,
            values,
            manifest,
            media,
            ..
        } = &self.options;
        let default = match manifest {
            Some(_) => 1,
            None => REPEAT,
        };
        Settings {
            repeat: repeat.map_or(default, |repeat| repeat as usize),
            warmup: *warmup,
            limit: limit.map(|limit| limit as usize),
            max_tokens: *max_tokens as usize,
            values: (!values.is_empty()).then(|| values.clone()),
            media: media.options(),
            chains: self
                .reduction
                .as_ref()
                .map(|options| options.chain.clone())
                .unwrap_or_default(),
        }
    }
}

/// Opens and loads records.
pub fn load(
    paths: &[PathBuf],
    device: &DeviceOptions,
    second: Option<Device>,
) -> anyhow::Result<Vec<BenchModel>> {
    let load = |path: &PathBuf| {
        let record = Record::open_unverified(path)?;
        let engine = device.load_record(&record)?;
        let second = second.map(|second| second.load(&record)).transpose()?;
        Ok(BenchModel::new(&record, engine, second))
    };
    paths.iter().map(load).collect()
}

/// Makes the measurements of an experiment that the folder does not have, with a progress bar.
fn measure(
    experiment: &dyn Experiment,
    bench: &mut Bench,
    shard: Shard,
    out: Option<&Path>,
) -> anyhow::Result<(experiment::Plan, Vec<experiment::Line>)> {
    let (mut plan, cases, samples) = experiment::plan(experiment, bench, shard)?;
    let (mut folder, known) = match out.map(|out| Folder::open(out, &plan)).transpose()? {
        Some((folder, known)) => (Some(folder), known),
        None => (None, Vec::new()),
    };
    let bar = progress_bar()?;
    let planned = (&mut plan, &*cases, &*samples);
    let lines = experiment::run(bench, planned, folder.as_mut(), known, None, |progress| {
        show(&bar, progress);
    });
    bar.finish_and_clear();
    Ok((plan, lines?))
}

/// Returns the progress bar of a run.
pub fn progress_bar() -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {eta}")?;
    Ok(ProgressBar::new(0).with_style(style))
}

/// Shows the progress of a run.
pub fn show(bar: &ProgressBar, progress: Progress<'_>) {
    match progress {
        Progress::Measuring {
            done,
            total,
            model,
            setting,
        } => {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(format!("{model}, {setting}"));
        }
        Progress::Failed(failure) => bar.suspend(|| {
            eprintln!(
                "error: {}, {}, sample {}: {}",
                failure.model, failure.setting, failure.sample, failure.error
            );
        }),
    }
}

fn read_scores(path: &Path) -> anyhow::Result<Vec<Score>> {
    use anyhow::Context;
    let rows = csv::Reader::from_path(path).and_then(|mut reader| reader.deserialize().collect());
    rows.with_context(|| format!("{}: expected reduce,task,right,questions", path.display()))
}

fn write_scores(file: Output, scores: &[Score]) -> anyhow::Result<()> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for score in scores {
        writer.serialize(score)?;
    }
    let bytes = writer
        .into_inner()
        .map_err(csv::IntoInnerError::into_error)?;
    Ok(file.finish_with(&bytes)?)
}
