//! The extraction of media from tables, folders, archives and the network.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use anyhow::{Context, ensure};
use edge_lmm::MediaKind;
use indicatif::{ProgressBar, ProgressStyle};

use super::archive::{Archive, Loose};
use super::datasets::{Layout, Located, Samples};
use super::media::{self, Media};
use super::names;
use super::sample::{File, Place, Sample};
use super::soundtrack;
use super::source::Source;
use super::tables::{self, Part};
use super::ytdlp::Downloads;

/// The place of the media of chosen questions.
pub struct Extraction<'a> {
    pub source: &'a Source,
    pub tables: &'a [&'a str],
    pub layout: &'a Layout,
    /// All questions.
    pub samples: &'a [(Located, Sample)],
}

/// Files that were not found yet, by the names of the media.
type Pending<'a> = BTreeMap<&'a str, &'a File>;

impl Extraction<'_> {
    /// Extracts the media of these questions.
    ///
    /// # Errors
    /// If the source is damaged or a file cannot be written. Media that are missing or damaged are no
    /// errors.
    pub fn run(
        &self,
        chosen: &[usize],
        media: &mut Media,
        downloads: Option<&Downloads>,
    ) -> anyhow::Result<()> {
        let names: BTreeSet<&str> = chosen
            .iter()
            .map(|&index| self.samples[index].1.medium.name.as_str())
            .collect();
        let progress = bar(names.len(), "media")?;
        let mut rows = BTreeMap::new();
        let mut files = Pending::new();
        for &index in chosen {
            let (located, sample) = &self.samples[index];
            let name = sample.medium.name.as_str();
            if rows.contains_key(name) || files.contains_key(name) {
                continue;
            }
            if media.has(name) {
                continue;
            }
            match &sample.medium.place {
                Place::Table => _ = rows.insert(name, located),
                Place::File(file) => _ = files.insert(name, file),
            }
        }
        progress.inc((names.len() - rows.len() - files.len()) as u64);
        let references = self.extract_tables(&rows, media, &progress)?;
        self.extract_references(&references, media, &progress)?;
        self.extract_files(&mut files, media, &progress)?;
        self.extract_archives(&mut files, media, &progress)?;
        if let Some(downloads) = downloads {
            download(downloads, &files, media, &progress)?;
        }
        progress.finish_and_clear();
        Ok(())
    }

    /// Extracts media of rows. Returns the indices of other rows to which rows refer.
    fn extract_tables<'n>(
        &self,
        rows: &BTreeMap<&'n str, &Located>,
        media: &mut Media,
        progress: &ProgressBar,
    ) -> anyhow::Result<BTreeMap<&'n str, String>> {
        let mut references = BTreeMap::new();
        let mut by_table: BTreeMap<usize, HashMap<usize, Vec<&'n str>>> = BTreeMap::new();
        for (name, located) in rows {
            let numbers = by_table.entry(located.table).or_default();
            numbers.entry(located.number).or_default().push(name);
        }
        for (table, names) in by_table {
            let numbers = names.keys().copied().collect();
            let path = self.source.fetch(self.tables[table])?;
            let part = Part::Rows(&numbers);
            tables::read(self.tables[table], &path, part, &mut |number, row| {
                let reference = media::reference(&row, self.layout.column);
                for &name in names.get(&number).into_iter().flatten() {
                    match &reference {
                        Some(reference) => _ = references.insert(name, reference.clone()),
                        None => {
                            media.put_cell(name, &row, self.layout.column)?;
                            progress.inc(1);
                        }
                    }
                }
                Ok(())
            })?;
        }
        Ok(references)
    }

    /// Extracts media of rows that refer to others.
    fn extract_references(
        &self,
        references: &BTreeMap<&str, String>,
        media: &mut Media,
        progress: &ProgressBar,
    ) -> anyhow::Result<()> {
        if references.is_empty() {
            return Ok(());
        }
        let by_id: HashMap<&str, &Located> = self
            .samples
            .iter()
            .map(|(located, sample)| (sample.id.as_str(), located))
            .collect();
        let mut rows = BTreeMap::new();
        for (&name, index) in references {
            match by_id.get(index.as_str()) {
                Some(&located) => _ = rows.insert(name, located),
                None => media.reject(name, format!("refers to row {index}, which is not there")),
            }
        }
        for (name, index) in self.extract_tables(&rows, media, progress)? {
            media.reject(name, format!("refers to a row that refers to row {index}"));
        }
        Ok(())
    }

    fn extract_files(
        &self,
        files: &mut Pending<'_>,
        media: &mut Media,
        progress: &ProgressBar,
    ) -> anyhow::Result<()> {
        let loose = Loose::new(self.source);
        let mut result = Ok(());
        files.retain(|name, file| {
            let found = result.is_ok().then(|| {
                let found = loose.open(&file.stems, self.layout.kind)?;
                let Some((extension, content)) = found else {
                    return Ok(false);
                };
                media.put(name, &extension, content)?;
                progress.inc(1);
                Ok(true)
            });
            match found {
                Some(Ok(found)) => !found,
                Some(Err(error)) => {
                    result = Err(error);
                    true
                }
                None => true,
            }
        });
        result
    }

    /// Reads archives, one after the other, until nothing is missing.
    fn extract_archives(
        &self,
        files: &mut Pending<'_>,
        media: &mut Media,
        progress: &ProgressBar,
    ) -> anyhow::Result<()> {
        for name in archives(self.source, self.layout) {
            if files.is_empty() {
                return Ok(());
            }
            let mut archive = Archive::open(self.source, name)?;
            let names: Vec<&str> = files.keys().copied().collect();
            for name in names {
                let Some((extension, content)) =
                    archive.find(&files[name].stems, self.layout.kind)?
                else {
                    continue;
                };
                media.put(name, &extension, content)?;
                files.remove(name);
                progress.inc(1);
            }
        }
        Ok(())
    }
}

/// Downloads the files that come from YouTube.
fn download(
    downloads: &Downloads,
    files: &Pending<'_>,
    media: &mut Media,
    progress: &ProgressBar,
) -> anyhow::Result<()> {
    for (name, file) in files {
        let Some(video) = &file.youtube else {
            continue;
        };
        match downloads.get(video)? {
            Ok((extension, content)) => media.put(name, &extension, content)?,
            Err(reason) => media.reject(name, reason),
        }
        progress.inc(1);
    }
    Ok(())
}

/// Returns the zip archives with media.
fn archives<'a>(source: &'a Source, layout: &'a Layout) -> impl Iterator<Item = &'a str> {
    let names = source.names().iter().map(String::as_str);
    names.filter(|name| {
        let mut words = names::words(name);
        names::extension(name) == "zip" && !words.any(|word| layout.others.contains(&word.as_str()))
    })
}

/// Keeps the questions whose medium is in the folder, an archive or a table.
///
/// # Errors
/// If the source is on the hub, or an archive is damaged.
pub fn is_present(source: &Source, layout: &Layout, samples: Samples) -> anyhow::Result<Samples> {
    ensure!(
        !source.is_remote(),
        "--present-only needs a folder: the archives of a repository would all be downloaded"
    );
    let loose = Loose::new(source);
    let archives = archives(source, layout).map(|name| Archive::open(source, name));
    let archives: Vec<Archive> = archives.collect::<anyhow::Result<_>>()?;
    let is_present = |sample: &Sample| match &sample.medium.place {
        Place::Table => true,
        Place::File(file) => {
            loose.has(&file.stems, layout.kind)
                || archives
                    .iter()
                    .any(|archive| archive.has(&file.stems, layout.kind))
        }
    };
    Ok(samples
        .into_iter()
        .filter(|(_, sample)| is_present(sample))
        .collect())
}

/// Writes the sound tracks of the clips that were extracted.
///
/// # Errors
/// If a file cannot be written. Clips without sound are no errors.
pub fn sound_tracks(
    out: &Path,
    folder: &str,
    samples: &[&Sample],
    clips: &Media,
) -> anyhow::Result<Media> {
    let mut sounds = Media::open(out, folder, MediaKind::Audio)?;
    let progress = bar(samples.len(), "sound tracks")?;
    for sample in samples {
        let name = sample.medium.name.as_str();
        progress.inc(1);
        let Some(Ok(clip)) = clips.get(name) else {
            continue;
        };
        if sounds.has(name) {
            continue;
        }
        match soundtrack::wav_of(&clips.path(clip)) {
            Ok(wav) => sounds.put(name, "wav", &wav[..])?,
            Err(reason) => sounds.reject(name, reason),
        }
    }
    progress.finish_and_clear();
    Ok(sounds)
}

/// Returns a progress bar on standard error, hidden unless it is a terminal.
pub fn bar(len: usize, what: &'static str) -> anyhow::Result<ProgressBar> {
    let style =
        ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {eta}").context("progress bar")?;
    Ok(ProgressBar::new(len as u64)
        .with_style(style)
        .with_message(what))
}
