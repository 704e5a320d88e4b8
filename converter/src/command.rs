//! The `edge-lmm-convert` command.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{CommandFactory, Parser, Subcommand};
use edge_lmm::estimate::Scenario;
use edge_lmm::one_line;
use edge_lmm::output::{Output, OutputError};
use edge_lmm::target::{TargetReport, parse_size};
use edge_lmm::units::{bytes, parse_bytes};
use edge_lmm_ops::Format;
use indicatif::{ProgressBar, ProgressStyle};

use crate::calibration::{self, Calibration, Method, Samples, SavedStatistics};
use crate::compare_command::Compare;
use crate::generate;
use crate::mixed::{Budget, Mixed, Search};
use crate::prune::{
    Importance, Shares, Trial, prune_shares, prune_vision_layers, prune_vocabulary, search,
};
use crate::source::Checkpoint;
use crate::{
    Options, Plan, PlannedWeight, Progress, Pruning, Report, random_checkpoint, write_calibrated,
};

/// Converts a checkpoint into one 4-bit record for edge-lmm.
///
/// SOURCE is a Hugging Face folder (config.json, *.safetensors, tokenizer.json), or a language
/// model in GGUF format with its vision tower in --mmproj. By default the language model is stored
/// in 4 bits and the encoders in 8 bits. The checkpoint is read tensor by tensor, so a model larger
/// than memory can be converted.
///
/// Example: edge-lmm-convert Qwen2-VL-2B-Instruct -o qwen2-vl-2b.bpk
#[derive(Parser)]
#[command(
    name = "edge-lmm-convert",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    convert: Option<Convert>,
}

#[derive(Subcommand)]
enum Command {
    Compare(Compare),
}

#[derive(clap::Args)]
struct Convert {
    /// Hugging Face folder, or language model as .gguf
    source: PathBuf,
    /// Record to write (.bpk)
    #[arg(short, long, value_name = "OUT.bpk")]
    output: PathBuf,
    /// Vision tower of a .gguf language model
    #[arg(long, value_name = "FILE.gguf")]
    mmproj: Option<PathBuf>,
    /// LoRA adapter of PEFT to merge into SOURCE: the folder with adapter_config.json and
    /// adapter_model.safetensors. FOLDER=0.5 halves its updates. May be repeated
    #[arg(long, value_name = "FOLDER[=WEIGHT]", value_parser = Adapter::parse)]
    adapter: Vec<Adapter>,
    /// Use random weights, to measure the time and memory of a model without downloading it: SOURCE
    /// is then a Hugging Face folder of which only the JSON files are read. The answers of such a
    /// record have no meaning
    #[arg(long, value_name = "SEED", conflicts_with_all = ["mmproj", "calibration", "adapter"])]
    random_weights: Option<u64>,
    /// Format of the language model: f32, f16, q8 or q4
    #[arg(long, value_name = "FORMAT", default_value = "q4")]
    text_quant: Format,
    /// Format of the vision encoder and projector
    #[arg(long, value_name = "FORMAT", default_value = "q8")]
    vision_quant: Format,
    /// Format of the audio encoder
    #[arg(long, value_name = "FORMAT", default_value = "q8")]
    audio_quant: Format,
    /// Format of the embeddings and the output head, if not that of the language model
    #[arg(long, value_name = "FORMAT")]
    head_quant: Option<Format>,
    /// Store the weights of the language model that need it most in 8 bits, so that the rest of its
    /// layers and these have BITS per weight on average: 4.5, for example. The need is measured on
    /// the samples
    #[arg(long, value_name = "BITS", value_parser = positive)]
    bits: Option<f64>,
    /// As --bits, for a size of the whole record: 1.2GB or 900MiB. Embeddings and output head compete
    /// with the layers
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, conflicts_with = "bits")]
    budget: Option<u64>,
    /// Method of quantization: nearest (no calibration, minutes), weighted (scales for the mean squares
    /// of the inputs), awq (weighted, with scaled inputs), gptq, or best (gptq, then single changes that
    /// improve the layer's outputs; ten times as long). All but nearest run samples through the model
    /// and need a temporary file of the record's size next to it [default: best if a weight has 4
    /// bits, nearest otherwise]
    #[arg(long, value_name = "METHOD", value_parser = methods())]
    method: Option<Method>,
    /// Samples for the method: a text, or a question set (.csv) with images, videos or sounds as for
    /// `edge-lmm eval`; may be repeated. Without it, a text that is built in and generated pictures
    #[arg(long, value_name = "FILE")]
    calibration: Vec<PathBuf>,
    /// Mean squares of the inputs of the weights. A file that exists is used instead of samples: one
    /// that an earlier conversion has written, or an importance matrix of llama.cpp (.dat or .gguf);
    /// gptq and best then work as weighted. Otherwise the file is written
    #[arg(long, value_name = "FILE")]
    statistics: Option<PathBuf>,
    /// Memory for the samples and statistics of the method in MiB; with less, fewer samples are used,
    /// and gptq and best divide wide weights into more ranges of columns
    #[arg(long, value_name = "MIB", default_value_t = calibration::MEMORY >> 20)]
    calibration_memory: usize,
    /// Keep only the tokens of these texts and question sets (.csv), of prompts and of single bytes.
    /// The embeddings and the output head become smaller; texts like the given ones keep their
    /// tokens, others are split into more of them. May be repeated
    #[arg(long, value_name = "FILE")]
    prune_vocabulary: Vec<PathBuf>,
    /// Number of CPU threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Leave out a share of the language model's layers, those that change their input least on the
    /// samples: 0.1 for one tenth
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    prune_layers: Option<f64>,
    /// Leave out a share of the feed-forward channels of each layer of the language model, those
    /// whose outputs are smallest on the samples
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    prune_ffn: Option<f64>,
    /// Leave out a share of the attention heads of each layer of the language model, those whose
    /// outputs are smallest on the samples; of query heads that share keys and values, as many in
    /// every group
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    prune_heads: Option<f64>,
    /// Leave out a share of the vision encoder's layers, those that change their input least on the
    /// images of the samples
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    prune_vision_layers: Option<f64>,
    /// Keep a share of the parameters of the language model's layers: fewer layers, channels or heads,
    /// whichever changes the predictions least on the samples
    #[arg(long, value_name = "RATIO", value_parser = ratio,
        conflicts_with_all = ["prune_layers", "prune_ffn", "prune_heads"])]
    prune_to: Option<f64>,
    /// Refuse to write a record that does not fit a device: raspberry-pi-5, raspberry-pi-5-8gb,
    /// jetson-orin-nano, host, ...; with --force only warn
    #[arg(long, value_name = "DEVICE")]
    target: Option<String>,
    /// Context length of the key-value cache in the memory estimate of --target
    #[arg(long, value_name = "N", default_value_t = 4096)]
    target_context: usize,
    /// Image size in the memory estimate of --target
    #[arg(long, value_name = "WIDTHxHEIGHT", default_value = "448x448", value_parser = parse_size)]
    target_image_size: (usize, usize),
    /// Write a JSON report with the format, size and relative error of every weight
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// Show what would be written and its size, without writing anything
    #[arg(long)]
    dry_run: bool,
    /// Overwrite the record if it exists
    #[arg(long)]
    force: bool,
}

/// An adapter of the command line.
#[derive(Debug, Clone, PartialEq)]
struct Adapter {
    folder: PathBuf,
    weight: f32,
}

impl Adapter {
    /// Parses `FOLDER` or `FOLDER=WEIGHT`. A folder whose name ends like a weight is taken as a folder
    /// if it exists.
    fn parse(text: &str) -> Result<Self, String> {
        let whole = PathBuf::from(text);
        let weighted = text.rsplit_once('=').filter(|_| !whole.exists());
        let Some((folder, weight)) = weighted else {
            return Ok(Self {
                folder: whole,
                weight: 1.0,
            });
        };
        let number = weight
            .parse()
            .ok()
            .filter(|weight: &f32| weight.is_finite());
        Ok(Self {
            folder: folder.into(),
            weight: number.ok_or_else(|| format!("{weight:?} is not a number"))?,
        })
    }
}

/// Runs the command with its arguments, the first of which is the name of the program. Returns the exit
/// code; `--help` and wrong arguments end the process.
pub fn main(arguments: impl Iterator<Item = OsString>) -> u8 {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    #[cfg(unix)]
    crate::interrupt::install();
    let arguments: Vec<OsString> = arguments.collect();
    let result = match generate::requested(&arguments) {
        Some(what) => generate::print(&what, Cli::command()),
        None => run(Cli::parse_from(arguments)),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {}", one_line(error.as_ref()));
            1
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match (cli.command, cli.convert) {
        (Some(Command::Compare(compare)), _) => compare.run(),
        (None, Some(convert)) => convert_source(&convert),
        (None, None) => Ok(Cli::command().print_help()?),
    }
}

fn convert_source(cli: &Convert) -> anyhow::Result<()> {
    if let Some(jobs) = cli.jobs.and_then(|jobs| NonZeroUsize::new(jobs.into())) {
        edge_lmm::set_threads(jobs);
    }
    let outputs = match cli.dry_run {
        true => None,
        false => Some(Outputs::create(cli)?),
    };
    let mut checkpoint = match cli.random_weights {
        Some(seed) => random_checkpoint(&cli.source, seed)?,
        None => Checkpoint::open(&cli.source, cli.mmproj.as_deref())?,
    };
    for adapter in &cli.adapter {
        checkpoint.add_adapter(&adapter.folder, adapter.weight)?;
    }
    if let Some(outputs) = &outputs {
        outputs.check_inputs(cli, &checkpoint)?;
    }
    let options = Options {
        text: cli.text_quant,
        vision: cli.vision_quant,
        audio: cli.audio_quant,
        head: cli.head_quant,
        weights: BTreeMap::new(),
    };
    let mut checkpoint = Arc::new(checkpoint);
    let pruning = prune(cli, &mut checkpoint)?;
    let mut plan = Plan::pruned(&checkpoint, &options, pruning)?;
    if let Some(mixed) = mixed(cli, &plan, &options, &checkpoint)? {
        let options = Options {
            weights: mixed.weights,
            ..options
        };
        plan = plan.in_formats(&checkpoint, &options)?;
    }
    for tensor in &plan.unused {
        match checkpoint.is_adapted(tensor) {
            true => log::warn!("{tensor} is not part of the record, but an adapter changes it"),
            false => log::info!("unused tensor {tensor}"),
        }
    }
    eprintln!("{}", describe(&plan));
    check_target(cli, &plan, checkpoint.tokenizer.len())?;
    match outputs {
        Some(outputs) => outputs.write(cli, &plan, checkpoint),
        None => Ok(()),
    }
}

/// Names the option that helps.
fn with_option(error: OutputError) -> anyhow::Error {
    match error {
        OutputError::Exists { .. } => anyhow!("{error} (--force)"),
        error => error.into(),
    }
}

/// The output files of a run, reserved before any work starts.
struct Outputs {
    record: Output,
    report: Option<Output>,
}

impl Outputs {
    fn create(cli: &Convert) -> anyhow::Result<Self> {
        let record = Output::create(&cli.output, cli.force).map_err(with_option)?;
        let report = match &cli.report {
            Some(path) if record.is(path) => return Err(record.in_use("the report").into()),
            Some(path) => Some(Output::create(path, true)?),
            None => None,
        };
        Ok(Self { record, report })
    }

    fn check_inputs(&self, cli: &Convert, checkpoint: &Checkpoint) -> anyhow::Result<()> {
        for output in std::iter::once(&self.record).chain(&self.report) {
            output.check_inputs(checkpoint.files.iter().map(|file| &*file.path))?;
            let inputs = (cli.calibration.iter())
                .chain(&cli.statistics)
                .chain(&cli.prune_vocabulary);
            output.check_inputs(inputs.map(PathBuf::as_path))?;
        }
        Ok(())
    }

    fn write(self, cli: &Convert, plan: &Plan, checkpoint: Arc<Checkpoint>) -> anyhow::Result<()> {
        let path = self.record.path().to_owned();
        let calibration = calibration(cli, plan)?;
        let report = convert(plan, checkpoint, self.record, calibration)?;
        if let Some(output) = self.report {
            output.finish_with(&serde_json::to_vec_pretty(&report)?)?;
        }
        eprintln!(
            "wrote {}, {}",
            path.display(),
            bytes(report.file_bytes as usize)
        );
        Ok(())
    }
}

/// Parses a share of parts to leave out.
fn ratio(text: &str) -> Result<f64, String> {
    let ratio: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match (0.0..1.0).contains(&ratio) {
        true => Ok(ratio),
        false => Err("expected a number from 0 to less than 1".to_owned()),
    }
}

/// Parses a number of bits.
fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match number.is_finite() && number > 0.0 {
        true => Ok(number),
        false => Err("expected a number above 0".to_owned()),
    }
}

/// Returns the samples of --calibration, or those that are built in.
fn samples(cli: &Convert) -> anyhow::Result<Samples> {
    Ok(match cli.calibration.is_empty() {
        true => Samples::built_in(),
        false => Samples::read(&cli.calibration)?,
    })
}

/// Returns a path beside the record for a temporary file.
fn beside(cli: &Convert, extension: &str) -> PathBuf {
    let mut name = cli.output.file_name().unwrap_or_default().to_owned();
    name.push(extension);
    cli.output.with_file_name(name)
}

/// Chooses the rows, columns and layers to keep.
fn prune(cli: &Convert, checkpoint: &mut Arc<Checkpoint>) -> anyhow::Result<Pruning> {
    let mut pruning = Pruning::none(checkpoint);
    let shares = Shares {
        layers: cli.prune_layers.unwrap_or(0.0),
        channels: cli.prune_ffn.unwrap_or(0.0),
        heads: cli.prune_heads.unwrap_or(0.0),
    };
    let vision = cli.prune_vision_layers;
    if shares != Shares::default() || cli.prune_to.is_some() || vision.is_some() {
        let plan = Plan::new(checkpoint, &Options::default())?;
        let (path, samples) = (beside(cli, ".pruning"), samples(cli)?);
        let (bar, progress) = steps()?;
        let importance = Importance::measure(&plan, checkpoint, &samples, &path, &progress)?;
        let trials = cli.prune_to.map(|ratio| {
            let importance = &importance;
            search(
                &plan, checkpoint, &samples, importance, ratio, &path, &progress,
            )
        });
        let trials = trials.transpose()?.unwrap_or_default();
        bar.finish_and_clear();
        for trial in &trials {
            let Trial {
                shares, divergence, ..
            } = trial;
            eprintln!("without {shares}: divergence {divergence:.4} nats");
        }
        let shares = trials.first().map_or(shares, |best| best.shares);
        let removed = prune_shares(&mut pruning, &importance, &shares)?;
        describe_pruning(&pruning, &importance, &removed);
        if let Some(ratio) = vision {
            let removed = prune_vision_layers(&mut pruning, &importance, ratio)?;
            describe_layers("vision layers", &removed, importance.vision_layers.len());
        }
    }
    if !cli.prune_vocabulary.is_empty() {
        let corpus = Samples::read(&cli.prune_vocabulary)?;
        let checkpoint = Arc::get_mut(checkpoint).context("the checkpoint is in use")?;
        let (before, after) = prune_vocabulary(checkpoint, &mut pruning, &corpus)?;
        eprintln!("vocabulary: {after} of {before} tokens");
    }
    Ok(pruning)
}

/// Returns a bar for steps that come before the record is written, and what moves it.
fn steps() -> anyhow::Result<(ProgressBar, Progress)> {
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{bar:16} {percent} %, {eta} left, {wide_msg}",
    )?);
    let (moved, current) = (bar.clone(), Cell::new(""));
    let progress = Progress::new(move |step, done, all| {
        if current.replace(step) != step {
            moved.reset();
            moved.set_message(step);
        }
        moved.set_length(all as u64);
        moved.set_position(done as u64);
    });
    Ok((bar, progress))
}

/// Tells which parts of the language model are left out.
fn describe_pruning(pruning: &Pruning, importance: &Importance, removed: &[usize]) {
    describe_layers("layers", removed, importance.layers.len());
    for (what, dimension, before) in [
        ("feed-forward channels", "ffn", &importance.channels),
        ("attention heads", "heads", &importance.heads),
    ] {
        let left = pruning
            .selection
            .len_of(&format!("text.layers.0.{dimension}"));
        if let (Some(left), Some(before)) = (left, before.first()) {
            eprintln!("{what}: {left} of {} per layer", before.len());
        }
    }
}

/// Tells which layers are left out.
fn describe_layers(what: &str, removed: &[usize], count: usize) {
    if !removed.is_empty() {
        let numbers: Vec<String> = removed.iter().map(usize::to_string).collect();
        let (left_out, numbers) = (removed.len(), numbers.join(", "));
        eprintln!("{what}: {left_out} of {count} left out: {numbers}");
    }
}

/// Chooses the weights that get 8 bits.
fn mixed(
    cli: &Convert,
    plan: &Plan,
    options: &Options,
    checkpoint: &Arc<Checkpoint>,
) -> anyhow::Result<Option<Mixed>> {
    let budget = match (cli.bits, cli.budget) {
        (Some(bits), _) => Budget::Bits(bits),
        (None, Some(bytes)) => Budget::Bytes(usize::try_from(bytes)?),
        (None, None) => return Ok(None),
    };
    let (bar, progress) = steps()?;
    let search = Search {
        plan,
        options,
        checkpoint,
        samples: &samples(cli)?,
        path: &beside(cli, ".mixed"),
        progress: &progress,
    };
    let mixed = search.run(budget, rounding(cli, plan)?);
    bar.finish_and_clear();
    let mixed = mixed?;
    for weight in &mixed.sensitivities {
        log::info!(
            "{}: divergence {:.2e} nats in 4 bits, {} more in 8 bits",
            weight.name,
            weight.divergence,
            bytes(weight.bytes)
        );
    }
    let eight = |format: &&Format| **format == Format::Q8;
    eprintln!(
        "8 bits: {} of {} weights of the language model",
        mixed.weights.values().filter(eight).count(),
        mixed.sensitivities.len()
    );
    Ok(Some(mixed))
}

/// Returns the calibration that rounds weights whose sensitivity is measured; `None` if they are rounded
/// to the nearest values.
fn rounding(cli: &Convert, plan: &Plan) -> anyhow::Result<Option<Calibration>> {
    let method = method(cli, plan).alone();
    if !method.is_calibrated() {
        return Ok(None);
    }
    let calibration = Calibration::new(method, samples(cli)?, beside(cli, ".rounded"));
    Ok(Some(calibration.with_memory(cli.calibration_memory << 20)))
}

/// Checks the planned record against the target device.
fn check_target(cli: &Convert, plan: &Plan, tokenizer: usize) -> anyhow::Result<()> {
    let Some(name) = &cli.target else {
        return Ok(());
    };
    let device = edge_lmm_targets::device(name)?;
    let scenario = Scenario {
        context: cli.target_context,
        image_size: Some(cli.target_image_size),
        drafts: true,
    };
    let estimate = plan.estimate(tokenizer, &scenario)?;
    let report = TargetReport::new(device, estimate, cli.target_image_size);
    eprintln!("{report}");
    ensure!(
        report.fit.fits || cli.force,
        "{}; use smaller formats, a smaller context (--target-context) or image \
         (--target-image-size), or use --force to write it anyway",
        report.verdict()
    );
    Ok(())
}

/// Describes the planned record: weights, parameters and bytes per part and format.
fn describe(plan: &Plan) -> String {
    let mut parts: BTreeMap<(String, String), (usize, usize, usize)> = BTreeMap::new();
    for weight in &plan.weights {
        let (count, parameters, size) = parts
            .entry((weight.spec.part.to_string(), weight.scheme()))
            .or_default();
        *count += 1;
        *parameters += weight.spec.rows() * weight.spec.cols();
        *size += weight.bytes;
    }
    let skipped = plan.skipped_parts().into_iter().map(|(part, tensors)| {
        format!("  {part:9} is not part of the record: {tensors} tensors are skipped")
    });
    let mtp = plan.weights.iter().filter(|weight| weight.spec.is_mtp());
    let sizes: Vec<usize> = mtp.map(|weight| weight.bytes).collect();
    let drafts = (!sizes.is_empty()).then(|| {
        let (count, size) = (sizes.len(), bytes(sizes.iter().sum()));
        format!("  text      drafts tokens with {count} of these weights, {size} (mtp)")
    });
    let lines: Vec<String> = parts
        .iter()
        .map(|((part, format), (count, parameters, size))| {
            format!(
                "  {part:9} {format:9} {count:4} weights, {parameters:>11} parameters, {}",
                bytes(*size)
            )
        })
        .chain(drafts)
        .chain(skipped)
        .collect();
    format!(
        "{}: {} weights, {}\n{}",
        plan.family.title,
        plan.weights.len(),
        bytes(plan.bytes()),
        lines.join("\n")
    )
}

fn methods() -> impl TypedValueParser<Value = Method> {
    PossibleValuesParser::new(Method::ALL.map(Method::name)).try_map(|name| {
        let named = |method: &Method| method.name() == name;
        Method::ALL.into_iter().find(named).ok_or("unknown method")
    })
}

/// Returns the method of quantization.
fn method(cli: &Convert, plan: &Plan) -> Method {
    if cli.statistics.as_ref().is_some_and(|path| path.exists()) {
        // They have no sums.
        return cli.method.unwrap_or(Method::Weighted);
    }
    let four_bits =
        |weight: &PlannedWeight| weight.spec.product && weight.format == Some(Format::Q4);
    match cli.method {
        Some(method) => method,
        None if cli.random_weights.is_some() => Method::Nearest,
        None if plan.weights.iter().any(four_bits) => Method::Best,
        None => Method::Nearest,
    }
}

/// Returns `true` if something else than the method of quantization uses samples.
fn uses_samples(cli: &Convert) -> bool {
    let prunes = [
        cli.prune_layers,
        cli.prune_ffn,
        cli.prune_heads,
        cli.prune_vision_layers,
        cli.prune_to,
    ];
    prunes.iter().any(Option::is_some) || cli.bits.is_some() || cli.budget.is_some()
}

/// Prepares the method of quantization, if it needs statistics and a weight is quantized.
fn calibration(cli: &Convert, plan: &Plan) -> anyhow::Result<Option<Calibration>> {
    let quantized = (plan.weights.iter()).any(|w| w.format.is_some_and(Format::is_quantized));
    let method = method(cli, plan);
    if !method.is_calibrated() || !quantized {
        ensure!(
            cli.calibration.is_empty() || uses_samples(cli),
            "--calibration has no use without --bits, --budget, --prune-layers, --prune-ffn, \
             --prune-heads, --prune-vision-layers, --prune-to, or a quantized format and --method \
             weighted, awq, gptq or best"
        );
        ensure!(
            cli.statistics.is_none(),
            "--statistics has no use without a quantized format and --method weighted, awq, gptq or \
             best"
        );
        return Ok(None);
    }
    let file = beside(cli, ".calibration");
    if let Some(saved) = cli.statistics.as_deref().filter(|path| path.exists()) {
        ensure!(
            cli.calibration.is_empty(),
            "{} exists and is used instead of samples: remove it to collect statistics of \
             --calibration, or leave --calibration out",
            saved.display()
        );
        let saved = SavedStatistics::read(saved)?;
        return Ok(Some(Calibration::with_statistics(method, saved, file)));
    }
    if cli.method.is_none() {
        let samples = match cli.calibration.is_empty() {
            true => "built-in samples",
            false => "--calibration",
        };
        eprintln!(
            "method: {} on {samples}; --method nearest is faster and less accurate",
            method.name()
        );
    }
    let calibration = Calibration::new(method, samples(cli)?, file);
    let calibration = calibration.with_memory(cli.calibration_memory << 20);
    Ok(Some(match &cli.statistics {
        Some(path) => calibration.saving_to(Output::create(path, false)?),
        None => calibration,
    }))
}

/// Writes the record. On a terminal, shows the current weight and the estimated time left.
fn convert(
    plan: &Plan,
    checkpoint: Arc<Checkpoint>,
    output: Output,
    calibration: Option<Calibration>,
) -> anyhow::Result<Report> {
    let bar = ProgressBar::new(plan.bytes() as u64).with_style(
        ProgressStyle::with_template("{bar:16} {bytes}/{total_bytes}, {eta} left, {wide_msg}")
            .context("progress bar")?,
    );
    let weights = plan.weights.len();
    let (step, number) = (bar.clone(), Cell::new(0));
    let report = write_calibrated(output, plan, checkpoint, calibration, move |name, size| {
        if size == 0 {
            number.set(number.get() + 1);
            step.set_message(format!("{} of {weights}: {name}", number.get()));
        }
        step.inc(size as u64);
    });
    bar.finish_and_clear();
    Ok(report?)
}
