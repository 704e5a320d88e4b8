//! `edge-lmm bench paper`: the findings of the PyTorch study beside ours.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use edge_lmm::demo::RECORD;
use edge_lmm::experiment::paper::{self, Options};
use edge_lmm::experiment::{BenchModel, Settings, TimeLimit};
use edge_lmm::manifest::Manifest;
use edge_lmm::{MediaOptions, Record};

use crate::models;

use super::super::options::DeviceOptions;
use super::experiment::{load, progress_bar, show};
use super::output::OutputOptions;

/// Measures what the findings of the PyTorch study rest on and puts its figures beside ours.
///
/// Each finding uses the records that suit it: a model of images and videos (Qwen2-VL), a Q-Former
/// (BLIP-2), an MLP projection (LLaVA), a model of sounds (Qwen2-Audio). Random weights suffice for
/// times. Without a record, the embedded model is measured, which cannot show much.
#[derive(Args)]
pub struct Cmd {
    /// Records written by edge-lmm-convert, or names of models
    #[arg(value_name = "MODEL", value_parser = models::argument())]
    models: Vec<PathBuf>,
    /// Question set about videos, for the accuracy of the third finding
    #[arg(long, value_name = "M.csv")]
    manifest: Option<PathBuf>,
    /// Most measurements of each case
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Measurements of each case before the first one that counts
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup: usize,
    /// Use only the first N questions of every task
    #[arg(long, value_name = "N", requires = "manifest", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Maximum number of tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Time limit: measurements estimated to end later are left out, repeats first
    #[arg(long, value_name = "MINUTES", default_value = "15", value_parser = parse_minutes)]
    minutes: Duration,
    /// Folder for the results; a run that ended early is continued
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    device: DeviceOptions,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let limit = TimeLimit::new(self.minutes);
        let inputs = self
            .models
            .iter()
            .chain(&self.manifest)
            .map(PathBuf::as_path);
        let files = self.output.reserve(inputs)?;
        let manifest = match &self.manifest {
            Some(path) => Some((path.clone(), Manifest::open(path)?)),
            None => None,
        };
        let models = match self.models.is_empty() {
            false => load(&self.models, &self.device, None)?,
            true => {
                let record = Record::from_static(RECORD, "the embedded model")?;
                let engine = self.device.load_record(&record)?;
                vec![BenchModel::new(&record, engine, None)]
            }
        };
        let options = Options {
            settings: Settings {
                repeat: self.repeat as usize,
                warmup: self.warmup,
                limit: self.limit.map(|limit| limit as usize),
                max_tokens: self.max_tokens as usize,
                values: None,
                media: MediaOptions::default(),
                chains: Vec::new(),
            },
            out: self.out.clone(),
            demo: self.models.is_empty(),
        };
        let bar = progress_bar()?;
        let compared = paper::compare(models, manifest, &options, limit, |progress| {
            show(&bar, progress);
        });
        bar.finish_and_clear();
        let compared = compared?;
        files.write_all(&compared.summary, &compared.parts)
    }
}

fn parse_minutes(text: &str) -> Result<Duration, String> {
    let minutes = text.parse().ok().filter(|&minutes: &f64| minutes > 0.0);
    minutes
        .and_then(|minutes| Duration::try_from_secs_f64(60.0 * minutes).ok())
        .ok_or_else(|| "expected a number of minutes above 0".to_owned())
}
