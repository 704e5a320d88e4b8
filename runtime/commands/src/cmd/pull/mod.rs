//! `edge-lmm pull`: a model from the Hugging Face hub.

pub mod choose;
mod convert;
mod disk;
mod preset;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;
use edge_lmm::units::bytes;

use crate::hub::{Client, Kind, Reference, RemoteFile, Repository};
use crate::models::description::{Description, SourceFile};
use crate::models::{self, Model};

use self::choose::Checkpoint;
use self::convert::Converter;
use super::options::print_now;
use super::progress::download_bar;

/// Downloads a model from the Hugging Face hub and converts it into a record with a name.
///
/// A download that was interrupted continues. The record is written by edge-lmm-convert, which lies
/// beside this program or in PATH; without it, the checkpoint is kept. HF_ENDPOINT names another
/// server, HF_TOKEN a token for restricted models.
///
/// Examples: edge-lmm pull hf:Qwen/Qwen2-VL-2B-Instruct --target raspberry-pi-5-8gb,
/// edge-lmm pull hf:OWNER/NAME-GGUF:q4_0
#[derive(Args)]
pub struct Cmd {
    /// Repository, revision, and file in GGUF format or part of its name, such as q4_0
    #[arg(value_name = "hf:OWNER/NAME[@REVISION][:VARIANT]", value_parser = source)]
    source: Source,
    /// Name of the model [default: that of the repository in lower case]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Choose formats, context length and image tokens for a device and refuse a model that does not
    /// fit it: raspberry-pi-5, raspberry-pi-5-8gb, jetson-orin-nano, host, ...
    #[arg(long, value_name = "DEVICE")]
    target: Option<String>,
    /// Keep the checkpoint after the conversion
    #[arg(long)]
    keep: bool,
    /// Replace a model of the same name
    #[arg(long)]
    force: bool,
    /// Further options of edge-lmm-convert, such as --method best
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<OsString>,
}

/// The repository and the variant.
#[derive(Debug, Clone)]
struct Source {
    /// The text of the argument.
    text: String,
    reference: Reference,
    variant: Option<String>,
}

fn source(text: &str) -> anyhow::Result<Source> {
    let rest = text.strip_prefix("hf:");
    let rest = rest.with_context(|| format!("expected hf:OWNER/NAME, found {text:?}"))?;
    let (reference, variant) = match rest.split_once(':') {
        Some((reference, variant)) => (reference, Some(variant)),
        None => (rest, None),
    };
    if let Some(variant) = variant {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        ensure!(
            !variant.is_empty() && variant.chars().all(is_plain),
            "invalid variant {variant:?}: expected the name of a .gguf file or a part of it"
        );
    }
    Ok(Source {
        text: text.to_owned(),
        reference: Reference::parse(reference)?,
        variant: variant.map(str::to_owned),
    })
}

impl Source {
    /// Returns the name of the model, if none is given.
    fn default_name(&self) -> String {
        let mut name = self.reference.base_name().to_lowercase();
        if let Some(variant) = &self.variant {
            let variant = variant.to_lowercase();
            let variant = variant.strip_suffix(".gguf").unwrap_or(&variant);
            let name_without = name.strip_suffix("-gguf").unwrap_or(&name);
            name = match variant.starts_with(name_without) {
                true => variant.to_owned(),
                false => format!("{name_without}-{variant}"),
            };
        }
        name
    }
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let folder = models::folder()?;
        let name = self.name.clone();
        let name = name.unwrap_or_else(|| self.source.default_name());
        let model = Model::named(folder, &name)?;
        ensure!(
            self.force || Model::find(folder, &name)?.is_none(),
            "there is a model {name:?} already; replace it with --force, or choose another name \
             with --name"
        );
        if let Some(target) = &self.target {
            edge_lmm::targets::device(target)?;
        }
        let downloads = Downloads::lock(&model)?;
        let reference = self.source.reference.clone();
        let repository = Repository::open(Client::from_environment()?, Kind::Model, reference)?;
        let checkpoint = Checkpoint::choose(&repository.files, self.source.variant.as_deref())?;
        let place = downloads.of_commit(&repository.commit)?;
        disk::check(folder, &place, &checkpoint)?;
        download(&repository, &checkpoint, &place)?;
        self.convert(&model, &repository, &checkpoint, &place)?;
        if !self.keep {
            downloads.remove();
        }
        print_now(&format!("{name}\n"))
    }

    /// Writes record and description, and moves or keeps the checkpoint.
    fn convert(
        &self,
        model: &Model,
        repository: &Repository,
        checkpoint: &Checkpoint<'_>,
        place: &Path,
    ) -> anyhow::Result<()> {
        let Some(converter) = Converter::find() else {
            let kept = keep(place, &model.checkpoint())?;
            let arguments = convert::arguments(checkpoint, &kept, &model.record());
            bail!(
                "edge-lmm-convert is neither beside this program nor in PATH: the checkpoint is in {}; \
                 convert it with: {}",
                kept.display(),
                convert::command_line(&arguments)
            );
        };
        let mut arguments = convert::arguments(checkpoint, place, &model.record());
        if self.force {
            arguments.push("--force".into());
        }
        arguments.extend(self.options.iter().cloned());
        let choice = match &self.target {
            Some(target) => Some(preset::choose(&converter, target, &arguments)?),
            None => None,
        };
        arguments.extend(choice.iter().flat_map(preset::Choice::arguments));
        converter.run(&arguments)?;
        let preset = choice.map(|choice| choice.preset(&model.record()));
        let description = Description {
            source: self.source.text.clone(),
            commit: repository.commit.clone(),
            files: checkpoint
                .files
                .iter()
                .map(|file| described(file))
                .collect(),
            preset: preset.transpose()?,
        };
        description.write(model)?;
        if self.keep {
            let kept = keep(place, &model.checkpoint())?;
            eprintln!("the checkpoint is in {}", kept.display());
        }
        Ok(())
    }
}

fn described(file: &RemoteFile) -> SourceFile {
    SourceFile {
        name: file.name.clone(),
        bytes: file.size.unwrap_or(0),
        sha256: file.sha256.clone(),
    }
}

/// Moves a complete checkpoint to its place.
fn keep(place: &Path, kept: &Path) -> anyhow::Result<PathBuf> {
    if kept.exists() {
        fs::remove_dir_all(kept).with_context(|| format!("cannot replace {}", kept.display()))?;
    }
    fs::rename(place, kept).with_context(|| format!("cannot write {}", kept.display()))?;
    Ok(kept.to_owned())
}

/// The folder for the downloads of a model, locked against a second pull.
struct Downloads {
    folder: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Downloads {
    /// Creates the folder.
    ///
    /// # Errors
    /// If another process downloads the same model, or the folder cannot be written.
    fn lock(model: &Model) -> anyhow::Result<Self> {
        let folder = model.downloads();
        let parent = folder.parent().unwrap_or(&folder);
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
        let lock_path = parent.join(format!("{}.lock", model.name));
        check_not_a_link(&lock_path)?;
        let lock = File::create(&lock_path);
        let lock = lock.with_context(|| format!("cannot write {}", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => bail!(
                "another edge-lmm pull downloads {}; wait for it, or choose another name with --name",
                model.name
            ),
            Err(fs::TryLockError::Error(error)) => {
                return Err(error).context(format!("cannot lock {}", lock_path.display()));
            }
        }
        Ok(Self {
            folder,
            lock_path,
            _lock: lock,
        })
    }

    /// Returns the folder of a commit and removes unfinished downloads of others.
    fn of_commit(&self, commit: &str) -> anyhow::Result<PathBuf> {
        check_not_a_link(&self.folder)?;
        let place = self.folder.join(commit);
        check_not_a_link(&place)?;
        fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;
        for entry in fs::read_dir(&self.folder)? {
            let other = entry?.path();
            if other != place {
                fs::remove_dir_all(&other)
                    .with_context(|| format!("cannot remove {}", other.display()))?;
            }
        }
        Ok(place)
    }

    /// Removes the downloads after the conversion.
    fn remove(self) {
        for result in [
            fs::remove_dir_all(&self.folder),
            fs::remove_file(&self.lock_path),
        ] {
            if let Err(error) = result {
                log::warn!("cannot remove {}: {error}", self.folder.display());
            }
        }
    }
}

/// Refuses symbolic links, which would lead downloads out of the folder of models.
fn check_not_a_link(path: &Path) -> anyhow::Result<()> {
    ensure!(
        !path.is_symlink(),
        "{} is a symbolic link; remove it",
        path.display()
    );
    Ok(())
}

/// Downloads the files of a checkpoint, with one progress bar for all.
fn download(
    repository: &Repository,
    checkpoint: &Checkpoint<'_>,
    place: &Path,
) -> anyhow::Result<()> {
    let total = checkpoint.bytes();
    let size = bytes(usize::try_from(total).unwrap_or(usize::MAX));
    let (name, count) = (&repository.reference.name, checkpoint.files.len());
    eprintln!("downloading {count} files of {name}, {size}");
    let bar = download_bar(total)?;
    let mut before = 0;
    for file in &checkpoint.files {
        bar.set_message(file.name.clone());
        let path = place.join(&file.name);
        repository.download(file, &path, |done| bar.set_position(before + done))?;
        before += file.size.unwrap_or(0);
    }
    bar.finish_and_clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_name_a_repository_and_a_variant() {
        let parsed = source("hf:Qwen/Qwen2-VL-2B-Instruct@v1").unwrap();
        assert_eq!(parsed.reference.revision, "v1");
        assert_eq!(parsed.default_name(), "qwen2-vl-2b-instruct");
        let name = |text| source(text).unwrap().default_name();
        assert_eq!(name("hf:a/Tiny-GGUF:Q4_0"), "tiny-q4_0");
        assert_eq!(name("hf:a/Tiny-GGUF:tiny-Q8_0.gguf"), "tiny-q8_0");
        for text in [
            "a/b",
            "hf:a",
            "hf:a/b:",
            "hf:a/b:../c",
            "hf:a/b:x/y",
            "https://a/b",
        ] {
            assert!(source(text).is_err(), "{text}");
        }
    }
}
