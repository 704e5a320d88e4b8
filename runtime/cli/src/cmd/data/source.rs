//! The place of a dataset: a folder or a repository of the Hugging Face hub.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Repo, RepoType};

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
    Hub(Box<ApiRepo>),
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
        let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
        let is_valid = |part: &str| {
            !part.is_empty()
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && !part.starts_with('.')
        };
        ensure!(
            name.split('/').count() == 2 && name.split('/').all(is_valid),
            "expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION, found hf:{name}"
        );
        let mut builder = ApiBuilder::from_env().with_retries(3);
        if let Some(token) = std::env::var("HF_TOKEN")
            .ok()
            .filter(|token| !token.is_empty())
        {
            builder = builder.with_token(Some(token));
        }
        let repo = Repo::with_revision(name.to_owned(), RepoType::Dataset, revision.to_owned());
        let repo = builder.build()?.repo(repo);
        let info = repo.info().with_context(|| {
            format!(
                "cannot list {name} on the Hugging Face hub; HF_ENDPOINT names another server, \
                 HF_TOKEN a token for restricted datasets"
            )
        })?;
        let files = info.siblings.into_iter().map(|file| file.rfilename);
        let mut names = Vec::new();
        for file in files {
            names::check_below(&file)?;
            names.push(file);
        }
        names.sort();
        Ok(Self {
            place: Place::Hub(Box::new(repo)),
            names,
        })
    }

    /// Returns the relative paths of all files.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns `true` if reading a file may download it.
    pub fn is_remote(&self) -> bool {
        matches!(self.place, Place::Hub(_))
    }

    /// Returns the path of a file, after downloading it if necessary.
    ///
    /// # Errors
    /// If the download fails.
    pub fn fetch(&self, name: &str) -> anyhow::Result<PathBuf> {
        match &self.place {
            Place::Folder(folder) => Ok(folder.join(name)),
            Place::Hub(repo) => repo
                .get(name)
                .with_context(|| format!("cannot download {name}")),
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
