//! `edge-lmm profile`: time, memory, arithmetic and energy of every module.

pub mod compare;
pub mod comparison;
mod csv;
#[cfg(feature = "plots")]
mod figure;
mod noise;
mod sweep;

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, ValueEnum};
use edge_lmm::environment::Environment;
use edge_lmm::output::Output;
use edge_lmm::profile::energy::{self, EnergyMeter};
use edge_lmm::profile::report::{FORMAT, Parameters, Roofline, TokenCounts, VERSION};
use edge_lmm::profile::{Measured, ProfileReport, Runs, modules, table};
use edge_lmm::{
    AnyEngine, AnySession, Device, Event, Media, Message, Record, Recording, Request, Role, Timing,
    user_message,
};

use self::sweep::{Point, Sweep};
#[cfg(feature = "plots")]
use super::bench::plot;
use super::costs;
use super::memory::RequestCheck;
use super::options::{DeviceOptions, GenerationOptions, print_now};
use super::progress::AnswerProgress;
use crate::models;
use crate::page;

/// Answers questions and prints where time, memory and energy go.
///
/// The table combines the layers of a stack; --json and --csv list every module, --chrome-trace
/// every call (open it in https://ui.perfetto.dev or chrome://tracing). With --repeat, times are
/// medians. Lists of --image-size, --frames and --audio-seconds are combined, each combination is
/// measured; media that are not given as files are synthetic.
///
/// Example: edge-lmm profile qwen2-vl-2b.bpk --image-size 224,448 --warmup 1 --repeat 5
#[derive(Args)]
pub struct Cmd {
    /// Record written by edge-lmm-convert, or name of a model
    #[arg(required_unless_present = "compare", conflicts_with = "compare", value_parser = models::argument())]
    model: Option<PathBuf>,
    /// Question to answer
    #[arg(long, value_name = "TEXT", default_value = "Describe this.")]
    prompt: String,
    /// A further question of the same conversation; repeat for several
    #[arg(long, value_name = "TEXT")]
    turn: Vec<String>,
    #[command(flatten)]
    sweep: Sweep,
    /// Runs before the measured ones
    #[arg(long, value_name = "N", default_value_t = 0)]
    warmup: usize,
    /// Measured runs, over which statistics are computed
    #[arg(long, value_name = "N", default_value = "1")]
    repeat: NonZeroUsize,
    #[command(flatten)]
    generation: GenerationOptions,
    #[command(flatten)]
    device: DeviceOptions,
    /// Do not measure the peaks of the processor, which takes about a second
    #[arg(long)]
    no_roofline: bool,
    /// Rows of the table: every kind of module, or types of layers
    #[arg(long, value_name = "ROWS", default_value = "modules")]
    table: Table,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
    /// Write one row per module and run
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write a page with charts, a single file for a browser
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Draw the time of the stages; with several runs, of each of them
    #[cfg(feature = "plots")]
    #[arg(long, value_name = "FILE", conflicts_with = "compare")]
    svg: Option<PathBuf>,
    /// Compare profiles written with --json: prints what changed since the first one, and whether
    /// it is more than noise; with --html or --json, too
    #[arg(long, value_name = "FILE", num_args = 2.., conflicts_with_all = ["csv", "chrome_trace"])]
    compare: Vec<PathBuf>,
    /// Write every call of the last run as a Chrome trace
    #[arg(long, value_name = "FILE")]
    chrome_trace: Option<PathBuf>,
}

/// Rows of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Table {
    Modules,
    Layers,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let Some(model) = &self.model else {
            return compare::run(&self.compare, self.html.as_deref(), self.json);
        };
        // Wrong options end the program before the model is loaded.
        self.generation.sampling()?;
        self.sweep.check()?;
        let trace_file = self.output(model, self.chrome_trace.as_deref())?;
        let csv_file = self.output(model, self.csv.as_deref())?;
        let html_file = self.output(model, self.html.as_deref())?;
        #[cfg(feature = "plots")]
        let svg_file = self.output(model, self.svg.as_deref())?;
        let (report, last) = self.measure(model)?;
        if let Some(file) = trace_file {
            file.finish_with(&serde_json::to_vec(&last.chrome_trace())?)?;
        }
        if let Some(file) = csv_file {
            file.finish_with(&csv::table(&report)?)?;
        }
        if let Some(file) = html_file {
            file.finish_with(page::profile(&report)?.as_bytes())?;
        }
        #[cfg(feature = "plots")]
        if let Some(file) = svg_file {
            file.finish_with(plot::svg(&figure::stages(&report))?.as_bytes())?;
        }
        let text = match self.json {
            true => serde_json::to_string(&report)?,
            false => self.text(&report),
        };
        print_now(&format!("{text}\n"))
    }

    /// Opens an output file, which must be none of the inputs.
    fn output(&self, model: &Path, path: Option<&Path>) -> anyhow::Result<Option<Output>> {
        let open = |path| {
            let inputs = self.sweep.files().chain([model]);
            Output::replace(path, inputs)
        };
        Ok(path.map(open).transpose()?)
    }

    /// Measures all runs; returns the stages of the last one, too.
    fn measure(&self, model: &Path) -> anyhow::Result<(ProfileReport, Timing)> {
        let device = self.device.device()?;
        self.device.set_threads();
        // Before the model is loaded, because it takes memory.
        let measured = device == Device::Cpu && !self.no_roofline;
        let roofline = measured.then(Roofline::measure);
        let meter = energy::find(Path::new("/")).and_then(EnergyMeter::start);
        let mut recording = Recording::detailed(device);
        let load_start = recording.origin().unwrap_or_else(Instant::now);
        let record = recording.run(|| Record::open_unverified(model))?;
        let mut environment = Environment::before(device, Some(&record));
        let engine = recording.run(|| self.device.load_record(&record))?;
        let load = recording.finish();
        costs::apply(self.sweep.media().first_token_budget(), None, &engine)?;
        let runs = self.measure_points(&engine)?;
        environment.finish();
        let energy = meter.map(EnergyMeter::stop);
        let (roofs, trace) = (roofline.as_ref(), energy.as_ref());
        let last = runs.last().and_then(|runs| runs.measured.last());
        let last = last.map(|run| run.timing.clone()).unwrap_or_default();
        let report = ProfileReport {
            format: FORMAT.to_owned(),
            version: VERSION,
            environment,
            energy_source: energy.as_ref().map(|trace| trace.source.clone()),
            load: modules(&[(load_start, &load)], roofs, trace),
            runs: runs
                .iter()
                .filter_map(|runs| runs.report(roofs, trace))
                .collect(),
            roofline,
        };
        Ok((report, last))
    }

    /// Measures every point of the sweep, turn by turn.
    fn measure_points(&self, engine: &AnyEngine) -> anyhow::Result<Vec<Runs>> {
        let check = self.device.request_check(engine);
        let mut all = Vec::new();
        for (index, point) in self.sweep.points().into_iter().enumerate() {
            let prepared = self.sweep.prepare(&point)?;
            let mut runs: Vec<Runs> = self
                .questions()
                .zip(1..)
                .map(|(prompt, turn)| Runs {
                    parameters: self.parameters(&point, prompt, turn),
                    warmup: self.warmup,
                    ..Runs::default()
                })
                .collect();
            for repeat in 0..self.warmup + self.repeat.get() {
                let mut session = engine.session();
                // Encoder outputs are shared by the sessions of an engine.
                session.forget();
                let turns = self.conversation(&mut session, &point, prepared.as_deref(), &check)?;
                for (runs, turn) in runs.iter_mut().zip(turns) {
                    if (index, repeat) == (0, 0) {
                        runs.cold = Some(turn.cold());
                    }
                    if repeat >= self.warmup {
                        runs.measured.push(turn);
                    }
                }
            }
            all.extend(runs);
        }
        Ok(all)
    }

    fn questions(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.prompt.as_str()).chain(self.turn.iter().map(String::as_str))
    }

    fn parameters(&self, point: &Point, prompt: &str, turn: usize) -> Parameters {
        let files = self.sweep.files().map(|path| path.display().to_string());
        Parameters {
            image_size: point.image_size,
            frames: point.frames(),
            audio_seconds: point.audio_seconds,
            turn,
            prompt: prompt.to_owned(),
            media: files.collect(),
            max_tokens: self.generation.max_tokens,
            reduce: self.sweep.media().options().reductions.to_string(),
        }
    }

    /// Measures the turns of one conversation. `prepared` are the media, unless they are read as a
    /// part of the first turn.
    fn conversation(
        &self,
        session: &mut AnySession,
        point: &Point,
        prepared: Option<&[Media]>,
        check: &RequestCheck,
    ) -> anyhow::Result<Vec<Measured>> {
        let mut media: Option<Vec<Media>> = prepared.map(sweep::fresh);
        let mut messages: Vec<Message> = Vec::new();
        let mut turns: Vec<Measured> = Vec::new();
        for question in self.questions() {
            let mut recording = Recording::detailed(session.device());
            let origin = recording.origin().unwrap_or_else(Instant::now);
            let entered = recording.enter();
            let opened = match media.take() {
                Some(media) => media,
                None => self.sweep.open(point)?,
            };
            messages.push(match turns.is_empty() {
                true => user_message(&opened, question),
                false => Message::text(Role::User, question),
            });
            let request = Request {
                media: &opened,
                options: self.sweep.media().options(),
                ..self.generation.request(&messages)?
            };
            let earlier = turns.last().map(|turn| &turn.tokens);
            let (answer, tokens) = answer(session, &request, check, earlier)?;
            drop(entered);
            let outside = origin.elapsed();
            messages.push(Message::text(Role::Assistant, answer.text.clone()));
            media = Some(opened);
            turns.push(Measured {
                origin,
                outside,
                timing: recording.finish(),
                answer,
                tokens,
            });
        }
        Ok(turns)
    }

    fn text(&self, report: &ProfileReport) -> String {
        let rows = match self.table {
            Table::Modules => table::modules,
            Table::Layers => table::layers,
        };
        let load: f64 = report
            .load
            .iter()
            .filter(|cost| cost.parent.is_none())
            .map(|cost| cost.ms.median)
            .sum();
        let mut text = format!("{}\nload {load:.1} ms", table::environment(report));
        for run in &report.runs {
            let title = table::title(run, !self.turn.is_empty());
            if !title.is_empty() {
                text += &format!("\n\n{title}");
            }
            text += &format!("\n\n{}\n{}", rows(&run.modules), table::summary(run));
        }
        text
    }
}

/// Answers a request and counts its tokens.
fn answer(
    session: &mut AnySession,
    request: &Request<'_>,
    check: &RequestCheck,
    earlier: Option<&TokenCounts>,
) -> anyhow::Result<(edge_lmm::Answer, TokenCounts)> {
    let mut progress = AnswerProgress::new();
    let mut tokens = TokenCounts::default();
    let mut failed = Ok(());
    let answer = session.answer(request, |event| {
        progress.show(&event);
        if let Event::Prepared {
            prompt_tokens,
            media,
        } = event
        {
            tokens = TokenCounts::prepared(request, media, earlier);
            failed = check.run(request, prompt_tokens, media, |note| progress.note(note));
        }
        match failed {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    });
    failed?;
    let answer = answer?;
    tokens.answered(&answer);
    Ok((answer, tokens))
}
