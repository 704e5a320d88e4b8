//! `edge-lmm data prepare`: a question set from a published dataset.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use edge_lmm::MediaKind;
use edge_lmm::metric::Metric;

use super::choose::chosen;
use super::datasets::{Dataset, Layout, Located, Samples};
use super::extract::{Extraction, is_present, sound_tracks};
use super::media::{self, Media};
use super::names;
use super::output::{Missing, remove, write_manifest, write_missing};
use super::row::Row;
use super::sample::Sample;
use super::source::Source;
use super::synthetic;
use super::tables::{self, Part};
use super::ytdlp::Downloads;

/// Questions of the generated dataset without --max-samples.
const SYNTHETIC_SAMPLES: usize = 160;

/// Prepares a question set for `eval` and `bench` from a published dataset.
///
/// Reads the published files from a folder, or downloads them from the Hugging Face hub, extracts
/// the media and writes `manifest.csv`. Media that are not found are listed in `missing.csv`. A
/// second run extracts only what is missing or damaged. The licenses of the datasets apply.
#[derive(Args)]
pub struct Cmd {
    /// The dataset
    #[arg(long, value_enum, value_name = "NAME")]
    dataset: Dataset,
    /// Folder with the published files, or hf:OWNER/NAME[@REVISION] for a dataset of the Hugging Face
    /// hub (HF_ENDPOINT names another server, HF_TOKEN a token)
    #[arg(long, value_name = "DIR|hf:OWNER/NAME")]
    source: Option<String>,
    /// Folder for the question set
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number of questions, balanced over the tasks of the dataset; by default all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_samples: Option<u32>,
    /// Choose the questions at random, or generate others; by default, the first ones are taken
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Split of the dataset; by default the one whose answers are published and results are reported
    /// for
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// Choose only among questions whose clip is in the source, for a partial copy
    #[arg(long)]
    present_only: bool,
    /// Write the sound tracks of videos, too, and `audio.csv` with the same questions about them
    #[arg(long)]
    with_audio: bool,
    /// Download missing clips with the program yt-dlp
    #[arg(long)]
    ytdlp: bool,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let folder = self
            .source
            .as_deref()
            .filter(|source| !source.starts_with("hf:"));
        media::check_folder(&self.out, folder.map(Path::new))?;
        match self.dataset.layout() {
            Some(layout) => self.published(layout),
            None => self.synthetic(),
        }
    }

    fn synthetic(&self) -> anyhow::Result<()> {
        ensure!(
            self.source.is_none()
                && !self.ytdlp
                && !self.present_only
                && !self.with_audio
                && self.split.is_none(),
            "the synthetic dataset is generated: it has no --source, --split, --ytdlp, \
             --present-only or --with-audio"
        );
        let count = self.max_samples.map_or(SYNTHETIC_SAMPLES, |n| n as usize);
        let questions = synthetic::write(&self.out, count, self.seed.unwrap_or(0))?;
        let rows = questions.iter().map(|(sample, stored)| (sample, stored));
        write_manifest(&self.out.join("manifest.csv"), Metric::Exact, rows)?;
        eprintln!(
            "{} questions in {}",
            questions.len(),
            self.manifest().display()
        );
        Ok(())
    }

    fn published(&self, layout: &Layout) -> anyhow::Result<()> {
        ensure!(
            !self.with_audio || layout.kind == MediaKind::Video,
            "--with-audio writes the sound tracks of videos; this dataset has none"
        );
        ensure!(
            !self.ytdlp || layout.kind != MediaKind::Image,
            "--ytdlp downloads videos and sounds; this dataset has images"
        );
        let source = self.source.as_deref().with_context(|| match layout.hub {
            Some(hub) => format!("--source is required: a folder, or hf:{hub}"),
            None => "--source is required: a folder with the published files".to_owned(),
        })?;
        let downloads = self.ytdlp.then(|| self.downloads()).transpose()?;
        let source = Source::open(source)?;
        let split = self.split.as_deref().unwrap_or(layout.split);
        let tables = source.tables(layout, split)?;
        let mut samples = questions(&source, &tables, layout)?;
        if self.present_only {
            samples = is_present(&source, layout, samples)?;
        }
        ensure!(
            !samples.is_empty(),
            "no question with a published answer and a medium in the source"
        );
        let tasks: Vec<&str> = samples.iter().map(|(_, s)| s.task.as_str()).collect();
        let max = self.max_samples.map(|max| max as usize);
        let chosen = chosen(&tasks, max, self.seed);
        let mut media = Media::open(&self.out, &self.folder(layout), layout.kind)?;
        Extraction {
            source: &source,
            tables: &tables,
            layout,
            samples: &samples,
        }
        .run(&chosen, &mut media, downloads.as_ref())?;
        let chosen: Vec<&Sample> = chosen.iter().map(|&index| &samples[index].1).collect();
        self.write(layout, &chosen, &media)
    }

    fn downloads(&self) -> anyhow::Result<Downloads> {
        std::fs::create_dir_all(&self.out)
            .with_context(|| format!("cannot create {}", self.out.display()))?;
        Downloads::new(&self.out)
    }

    /// Returns the name of the folder of the media. Other datasets and splits have others, because
    /// they may use the same names for other media.
    fn folder(&self, layout: &Layout) -> String {
        let dataset = self.dataset.to_possible_value();
        let dataset = dataset.as_ref().map_or("media", PossibleValue::get_name);
        let split = self.split.as_deref().unwrap_or(layout.split);
        names::file_stem(&format!("{dataset}_{split}"))
    }

    fn manifest(&self) -> PathBuf {
        self.out.join("manifest.csv")
    }

    /// Writes the manifests, the list of missing media and a summary.
    fn write(&self, layout: &Layout, chosen: &[&Sample], media: &Media) -> anyhow::Result<()> {
        let sounds = self
            .with_audio
            .then(|| {
                let folder = format!("{}_audio", self.folder(layout));
                sound_tracks(&self.out, &folder, chosen, media)
            })
            .transpose()?;
        let mut missing = without_medium(chosen, media, "not found in the source");
        let count = missing.len();
        if let Some(sounds) = &sounds {
            let with_clip = chosen.iter().copied();
            let with_clip: Vec<&Sample> = with_clip.filter(|sample| has(media, sample)).collect();
            missing.extend(without_medium(&with_clip, sounds, "no sound track"));
        }
        let list = self.out.join("missing.csv");
        write_missing(&list, &missing)?;
        let first = missing.first();
        let first = first.map(|first| format!("{}: {}", first.medium, first.reason));
        let first = first.unwrap_or_default();
        if count == chosen.len() {
            bail!("no medium of {count} questions can be used; the first is {first}");
        }
        media.finish()?;
        self.write_one(&self.manifest(), layout, chosen, media)?;
        let audio = self.out.join("audio.csv");
        remove(&audio)?;
        if let Some(sounds) = &sounds {
            sounds.finish()?;
            if chosen.iter().any(|sample| has(sounds, sample)) {
                self.write_one(&audio, layout, chosen, sounds)?;
            }
        }
        eprintln!(
            "{} questions in {}; {} media were unchanged",
            chosen.len() - count,
            self.manifest().display(),
            media.unchanged
        );
        if !missing.is_empty() {
            eprintln!(
                "{} media are missing, listed in {}; the first is {first}",
                missing.len(),
                list.display()
            );
        }
        Ok(())
    }

    fn write_one(
        &self,
        path: &Path,
        layout: &Layout,
        chosen: &[&Sample],
        media: &Media,
    ) -> anyhow::Result<()> {
        let rows = chosen.iter().filter_map(|&sample| {
            let stored = media.get(&sample.medium.name)?.as_ref().ok()?;
            Some((sample, stored))
        });
        write_manifest(path, layout.metric, rows)
    }
}

fn has(media: &Media, sample: &Sample) -> bool {
    matches!(media.get(&sample.medium.name), Some(Ok(_)))
}

/// Returns the questions without a medium, with the reason or `absent`.
fn without_medium<'a>(
    samples: &[&'a Sample],
    media: &'a Media,
    absent: &'a str,
) -> Vec<Missing<'a>> {
    let missing = samples.iter().filter_map(|sample| {
        let reason = match media.get(&sample.medium.name) {
            Some(Ok(_)) => return None,
            Some(Err(reason)) => reason,
            None => absent,
        };
        Some(Missing {
            id: &sample.id,
            medium: &sample.medium.name,
            reason,
        })
    });
    missing.collect()
}

/// Reads the questions with published answers.
fn questions(source: &Source, tables: &[&str], layout: &Layout) -> anyhow::Result<Samples> {
    let mut rows = Vec::new();
    for (table, name) in tables.iter().enumerate() {
        let part = Part::Without(layout.column);
        tables::read(name, &source.fetch(name)?, part, &mut |number, row| {
            rows.push(Located { table, number, row });
            Ok(())
        })?;
    }
    let mut samples = Samples::new();
    for mut located in (layout.join)(rows)? {
        let row = std::mem::take::<Row>(&mut located.row);
        let sample = (layout.sample)(&row)
            .with_context(|| format!("{}, row {}", tables[located.table], located.number))?;
        samples.extend(sample.map(|sample| (located, sample)));
    }
    (layout.merge)(samples)
}
