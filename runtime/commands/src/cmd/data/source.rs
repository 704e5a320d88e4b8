//! The place of a dataset: a folder or a repository of the Hugging Face hub.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::hub::{Client, Kind, Reference, Repository};

use super::super::progress::download_bar;
use super::datasets::Layout;
use super::{names, tables};

/// Maximum depth of folders.
const MAX_DEPTH: usize = 8;

/// Names of splits in paths.
const SPLITS: [&str; 5] = ["train", "validation", "val", "dev", "test"];

/// The files of a dataset.
pub struct Source {
    place: Place,
    /// Relative paths with `/`, sorted.
    names: Vec<String>,
}

enum Place {
    Folder(PathBuf),
    Hub {
        repository: Box<Repository>,
        /// Folder of this commit's downloads.
        cache: PathBuf,
    },
}

impl Source {
    /// Opens a folder, or `hf:OWNER/NAME` with an optional `@REVISION`.
    ///
    /// # Errors
    /// If the folder cannot be read or the repository cannot be listed.
    pub fn open(source: &str) -> anyhow::Result<Self> {
        match source.strip_prefix("hf:") {
            Some(name) => Self::hub(name),
            None => Self::folder(Path::new(source)),
        }
    }

    fn folder(folder: &Path) -> anyhow::Result<Self> {
        let mut names = Vec::new();
        collect(folder, "", 0, &mut names)
            .with_context(|| format!("cannot read the folder {}", folder.display()))?;
        names.sort();
        Ok(Self {
            place: Place::Folder(folder.to_owned()),
            names,
        })
    }

    fn hub(name: &str) -> anyhow::Result<Self> {
        let reference = Reference::parse(name)?;
        let repository = Repository::open(Client::from_environment()?, Kind::Dataset, reference)?;
        let folder = repository.reference.name.replace('/', "--");
        let cache = cache()?.join(folder).join(&repository.commit);
        let names = repository.files.iter().map(|file| file.name.clone());
        Ok(Self {
            names: names.collect(),
            place: Place::Hub {
                repository: Box::new(repository),
                cache,
            },
        })
    }

    /// Returns the relative paths of all files.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns `true` if reading a file may download it.
    pub fn is_remote(&self) -> bool {
        matches!(self.place, Place::Hub { .. })
    }

    /// Returns the path of a file, after downloading it if necessary.
    ///
    /// # Errors
    /// If the download fails.
    pub fn fetch(&self, name: &str) -> anyhow::Result<PathBuf> {
        match &self.place {
            Place::Folder(folder) => Ok(folder.join(name)),
            Place::Hub { repository, cache } => download(repository, name, cache),
        }
    }

    /// Returns the names of the tables of a split.
    ///
    /// # Errors
    /// If there are none.
    pub fn tables(&self, layout: &Layout, split: &str) -> anyhow::Result<Vec<&str>> {
        let is_other =
            |name: &str| names::words(name).any(|word| layout.others.contains(&word.as_str()));
        for formats in tables::FORMATS {
            let candidates: Vec<&str> = self
                .names
                .iter()
                .map(String::as_str)
                .filter(|name| formats.contains(&names::extension(name).as_str()))
                .filter(|name| !is_other(name))
                .collect();
            let wanted = canonical(split);
            let tables: Vec<&str> = candidates
                .iter()
                .copied()
                .filter(|name| names::words(name).any(|word| canonical(&word) == wanted))
                .collect();
            let has_splits =
                |name: &&str| names::words(name).any(|word| SPLITS.contains(&word.as_str()));
            match (&tables[..], &candidates[..]) {
                ([_, ..], _) => return Ok(tables),
                // A table whose name says nothing about its split.
                ([], [only]) if !has_splits(only) => return Ok(candidates),
                ([], []) => {}
                ([], found) => bail!(
                    "no table of the split {split:?}; found {}; choose one with --split",
                    found.join(", ")
                ),
            }
        }
        bail!(
            "no table (.parquet, .json, .csv or .tsv) among {} files",
            self.names.len()
        )
    }
}

/// Returns the folder for downloads: `edge-lmm/datasets` below `XDG_CACHE_HOME` or `~/.cache`.
fn cache() -> anyhow::Result<PathBuf> {
    let path = |name| {
        let value = std::env::var_os(name).filter(|value| !value.is_empty());
        value.map(PathBuf::from)
    };
    let cache = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
    let cache = cache.context("no folder for downloads: neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(cache.join("edge-lmm/datasets"))
}

/// Returns the path of a file of a repository after downloading it, with a progress bar.
fn download(repository: &Repository, name: &str, cache: &Path) -> anyhow::Result<PathBuf> {
    let mut files = repository.files.iter();
    let file = files.find(|file| file.name == name);
    let file = file.with_context(|| format!("the repository has no file {name}"))?;
    let path = cache.join(name);
    let folder = path.parent().unwrap_or(cache);
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let bar = download_bar(file.size.unwrap_or(0))?;
    bar.set_message(name.to_owned());
    let result = repository.download(file, &path, |done| bar.set_position(done));
    bar.finish_and_clear();
    result.map(|()| path)
}

/// Returns one name for a split that has two.
fn canonical(split: &str) -> &str {
    if split == "val" { "validation" } else { split }
}

/// Lists the files below a folder, without hidden ones.
fn collect(
    folder: &Path,
    prefix: &str,
    depth: usize,
    names: &mut Vec<String>,
) -> std::io::Result<()> {
    for entry in folder.read_dir()? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if name.starts_with('.') {
            continue;
        }
        // Follows links, of which folders of the hub's cache consist.
        let Ok(metadata) = entry.path().metadata() else {
            continue;
        };
        let name = format!("{prefix}{name}");
        if metadata.is_file() {
            names.push(name);
        } else if metadata.is_dir() && depth < MAX_DEPTH {
            collect(&entry.path(), &format!("{name}/"), depth + 1, names)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::datasets::Dataset;
    use super::*;

    fn tables(
        dataset: Dataset,
        split: Option<&str>,
        names: &[&str],
    ) -> anyhow::Result<Vec<String>> {
        let source = Source {
            place: Place::Folder(PathBuf::new()),
            names: names.iter().map(|&name| name.to_owned()).collect(),
        };
        let layout = dataset.layout().unwrap();
        let tables = source.tables(layout, split.unwrap_or(layout.split))?;
        Ok(tables.into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn the_tables_of_a_split_are_found() {
        let docvqa = [
            "DocVQA/test-00000-of-00006.parquet",
            "DocVQA/validation-00000-of-00006.parquet",
            "InfographicVQA/validation-00000-of-00003.parquet",
            "README.md",
        ];
        assert_eq!(tables(Dataset::Docvqa, None, &docvqa).unwrap(), [docvqa[1]]);
        assert_eq!(
            tables(Dataset::Docvqa, Some("test"), &docvqa).unwrap(),
            [docvqa[0]]
        );
        let json = ["val_v1.0_withQT.json", "train_v1.0_withQT.json"];
        assert_eq!(tables(Dataset::Docvqa, None, &json).unwrap(), [json[0]]);
        let pair = ["test_a.json", "test_q.json", "val_a.json"];
        assert_eq!(
            tables(Dataset::ActivitynetQa, None, &pair).unwrap(),
            pair[..2]
        );
        let mmbench = ["cn/dev-0.parquet", "en/dev-0.parquet", "en/test-0.parquet"];
        assert_eq!(
            tables(Dataset::Mmbench, None, &mmbench).unwrap(),
            [mmbench[1]]
        );
        assert_eq!(
            tables(Dataset::Mmbench, None, &["mmbench.tsv"]).unwrap(),
            ["mmbench.tsv"]
        );
    }

    #[test]
    fn other_splits_are_named() {
        let error = tables(Dataset::Audiocaps, None, &["train.csv", "val.csv"]).unwrap_err();
        assert!(error.to_string().contains("train.csv, val.csv"), "{error}");
        assert!(tables(Dataset::Audiocaps, None, &["train.csv"]).is_err());
        assert!(tables(Dataset::Audiocaps, None, &["a.wav"]).is_err());
    }

    #[test]
    fn repositories_have_an_owner_and_a_name() {
        for name in ["hf:", "hf:a", "hf:a/b/c", "hf:../a", "hf:a/b?c", "hf:a/.."] {
            let error = Source::open(name).err().unwrap().to_string();
            assert!(error.contains("hf:OWNER/NAME"), "{name}: {error}");
        }
    }
}
