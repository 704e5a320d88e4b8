//! Models by name: a folder with one record per model, `NAME.bpk`.

pub mod description;
pub mod preset;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{fs, io};

use anyhow::{Context, bail, ensure};
use clap::builder::{PathBufValueParser, TypedValueParser};

/// Maximum length of a name.
const MAX_NAME: usize = 100;

/// Least similarity of a name that an error suggests.
const SIMILAR: f64 = 0.8;

/// Maximum number of names in an error.
const MAX_SUGGESTIONS: usize = 5;

/// The folder, chosen once per process.
static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Chooses the folder of models: that of `--models`, of `EDGE_LMM_MODELS`, or `edge-lmm` below
/// `XDG_DATA_HOME` or `~/.local/share`.
pub fn choose_folder(arguments: &[OsString]) {
    let folder = option(arguments).or_else(|| from_environment(|name| std::env::var_os(name)));
    // A second command in one process, such as that of a script, keeps the folder.
    let _ = FOLDER.set(folder);
}

/// Returns the value of `--models`. Names are resolved while the command line is parsed, so the
/// option is read before.
fn option(arguments: &[OsString]) -> Option<PathBuf> {
    let mut rest = arguments.iter().take_while(|argument| *argument != "--");
    while let Some(argument) = rest.next() {
        if argument == "--models" {
            return rest.next().map(PathBuf::from);
        }
        if let Some(value) = argument.to_str().and_then(|a| a.strip_prefix("--models=")) {
            return Some(PathBuf::from(value));
        }
    }
    None
}

fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| {
        let value = variable(name).filter(|value| !value.is_empty());
        value.map(PathBuf::from)
    };
    path("EDGE_LMM_MODELS").or_else(|| {
        let data = path("XDG_DATA_HOME").or_else(|| Some(path("HOME")?.join(".local/share")));
        Some(data?.join("edge-lmm"))
    })
}

/// Returns the folder of models, which may not exist.
///
/// # Errors
/// If none is given and there is no home folder.
pub fn folder() -> anyhow::Result<&'static Path> {
    let folder = FOLDER.get().and_then(Option::as_deref);
    folder.context("no folder for models: give one with --models or EDGE_LMM_MODELS")
}

/// Parser of an argument that is the path of a record or the name of a model.
pub fn argument() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|given| match folder() {
        Ok(folder) => resolve(folder, given),
        Err(_) => given,
    })
}

/// Returns the record of a model if `given` is no file and is the name of one, and `given` otherwise.
fn resolve(folder: &Path, given: PathBuf) -> PathBuf {
    if given.exists() {
        return given;
    }
    let model = given.to_str().map(|name| Model::find(folder, name));
    match model {
        Some(Ok(Some(model))) => model.record(),
        _ => given,
    }
}

/// Returns a remark about the names of models for a record that does not exist.
pub fn remark(given: &Path) -> Option<String> {
    let name = given.to_str().filter(|name| check_name(name).is_ok())?;
    let folder = folder().ok()?;
    let models = Model::all(folder).unwrap_or_default();
    Some(suggestions(name, folder, &models))
}

fn suggestions(name: &str, folder: &Path, models: &[Model]) -> String {
    let folder = folder.display();
    if models.is_empty() {
        return format!("there is no model {name:?} in {folder}, which has no models");
    }
    let lower = name.to_lowercase();
    let mut similar: Vec<(f64, &str)> = models
        .iter()
        .map(|model| {
            let other = model.name.to_lowercase();
            let contains = other.contains(&lower) || lower.contains(&other);
            let similarity = strsim::jaro_winkler(&lower, &other);
            (similarity.max(f64::from(contains)), &*model.name)
        })
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .collect();
    similar.sort_by(|a, b| b.0.total_cmp(&a.0));
    let similar: Vec<&str> = similar.iter().map(|(_, name)| *name).collect();
    match similar.is_empty() {
        true => format!("there is no model {name:?} in {folder}; edge-lmm list shows the models"),
        false => format!(
            "there is no model {name:?} in {folder}; similar: {}",
            similar[..similar.len().min(MAX_SUGGESTIONS)].join(", ")
        ),
    }
}

/// Checks the name of a model.
///
/// # Errors
/// If it is empty, too long, begins with a dot or a hyphen, or has characters other than ASCII
/// letters, digits, `-`, `_` and `.`.
pub fn check_name(name: &str) -> anyhow::Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    ensure!(
        (1..=MAX_NAME).contains(&name.len())
            && name.chars().all(is_plain)
            && !name.starts_with(['.', '-'])
            && !name.ends_with('.'),
        "invalid name of a model {name:?}: expected up to {MAX_NAME} ASCII letters, digits, \"-\", \
         \"_\" and \".\", with a letter or digit first"
    );
    Ok(())
}

/// A model of the folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Model {
    /// Name of the model.
    pub name: String,
    folder: PathBuf,
}

impl Model {
    /// Names a model that need not exist.
    ///
    /// # Errors
    /// If the name is invalid.
    pub fn named(folder: &Path, name: &str) -> anyhow::Result<Self> {
        check_name(name)?;
        Ok(Self {
            name: name.to_owned(),
            folder: folder.to_owned(),
        })
    }

    /// Finds a model; `None` if there is none of this name.
    ///
    /// # Errors
    /// If the name is invalid, or its record is something other than a regular file.
    pub fn find(folder: &Path, name: &str) -> anyhow::Result<Option<Self>> {
        let model = Self::named(folder, name)?;
        let record = model.record();
        match fs::symlink_metadata(&record) {
            Ok(metadata) if metadata.is_file() => Ok(Some(model)),
            Ok(_) => bail!("{} is not a regular file", record.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", record.display())),
        }
    }

    /// Finds a model that must exist.
    ///
    /// # Errors
    /// If there is none of this name; the error names similar ones.
    pub fn existing(name: &str) -> anyhow::Result<Self> {
        let folder = folder()?;
        match Self::find(folder, name)? {
            Some(model) => Ok(model),
            None => bail!("{}", suggestions(name, folder, &Self::all(folder)?)),
        }
    }

    /// Returns all models by name. Files that are no records are left out.
    ///
    /// # Errors
    /// If the folder exists and cannot be read.
    pub fn all(folder: &Path) -> anyhow::Result<Vec<Self>> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("cannot read {}", folder.display()))?,
        };
        let mut models = Vec::new();
        for entry in entries {
            let file = entry?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".bpk"));
            if let Some(Ok(Some(model))) = name.map(|name| Self::find(folder, name)) {
                models.push(model);
            }
        }
        models.sort();
        Ok(models)
    }

    /// Returns the path of the record.
    pub fn record(&self) -> PathBuf {
        self.folder.join(format!("{}.bpk", self.name))
    }

    /// Returns the path of the description.
    pub fn description(&self) -> PathBuf {
        self.folder.join(format!("{}.json", self.name))
    }

    /// Returns the folder of the checkpoint that `pull --keep` leaves.
    pub fn checkpoint(&self) -> PathBuf {
        self.folder.join(format!("{}.checkpoint", self.name))
    }

    /// Returns the folder of unfinished downloads.
    pub fn downloads(&self) -> PathBuf {
        self.folder.join(".downloads").join(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_wins_over_the_environment() {
        let arguments = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        let found = |list: &[&str]| option(&arguments(list));
        assert_eq!(found(&["e", "list", "--models", "a"]), Some("a".into()));
        assert_eq!(found(&["e", "--models=b", "list"]), Some("b".into()));
        assert_eq!(found(&["e", "pull", "--", "--models", "a"]), None);
        let folder = |pairs: &'static [(&str, &str)]| {
            from_environment(|name| {
                let pair = pairs.iter().find(|pair| pair.0 == name);
                pair.map(|pair| pair.1.into())
            })
        };
        assert_eq!(
            folder(&[("HOME", "/h")]),
            Some("/h/.local/share/edge-lmm".into())
        );
        assert_eq!(
            folder(&[("HOME", "/h"), ("XDG_DATA_HOME", "/d")]),
            Some("/d/edge-lmm".into())
        );
        assert_eq!(
            folder(&[("EDGE_LMM_MODELS", "/m"), ("XDG_DATA_HOME", "/d")]),
            Some("/m".into())
        );
        assert_eq!(folder(&[]), None);
    }

    #[test]
    fn hostile_names_are_refused() {
        let long = "a".repeat(MAX_NAME + 1);
        for name in [
            "", ".", "..", "../a", "/a", "a/b", "a\0b", "-f", ".a", "a\\b", "c:a", "\u{e9}", &long,
        ] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for name in ["a", "Qwen2-VL_2b.v1", "2b"] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn a_path_wins_over_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let resolved = |given: &Path| resolve(folder.path(), given.to_owned());
        fs::write(path("tiny.bpk"), "").unwrap();
        assert_eq!(resolved(Path::new("tiny")), path("tiny.bpk"));
        assert_eq!(resolved(Path::new("other")), Path::new("other"));
        assert_eq!(resolved(&path("tiny.bpk")), path("tiny.bpk"));
        // The folder of the sources is an existing path.
        fs::write(path("src.bpk"), "").unwrap();
        assert_eq!(resolved(Path::new("src")), Path::new("src"));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_no_models() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("a.bpk")).unwrap();
        assert!(Model::find(folder.path(), "a").is_err());
        assert_eq!(Model::all(folder.path()).unwrap(), []);
    }

    #[test]
    fn similar_names_are_suggested() {
        let folder = Path::new("/m");
        let models = ["qwen2-vl-2b", "smolvlm-256m", "whisper"];
        let models = models.map(|name| Model::named(folder, name).unwrap());
        let remark = |name| suggestions(name, folder, &models);
        assert!(
            remark("qwen2-vl").ends_with("similar: qwen2-vl-2b"),
            "{}",
            remark("qwen2-vl")
        );
        assert!(remark("SmolVLM-256").ends_with("similar: smolvlm-256m"));
        assert!(remark("zzz").ends_with("edge-lmm list shows the models"));
        assert!(suggestions("a", folder, &[]).ends_with("has no models"));
    }
}
