//! The files of a repository that make up a checkpoint.

use anyhow::{bail, ensure};

use crate::hub::RemoteFile;

/// Formats of vision towers in GGUF files, preferred ones first.
const TOWER_FORMATS: [&str; 4] = ["f16", "bf16", "q8_0", "f32"];

/// A checkpoint: a Hugging Face folder, or a language model in GGUF format and its vision tower.
#[derive(Debug, PartialEq)]
pub struct Checkpoint<'a> {
    /// All files.
    pub files: Vec<&'a RemoteFile>,
    /// Language model and vision tower, if they are GGUF files.
    pub gguf: Option<(&'a str, Option<&'a str>)>,
}

impl<'a> Checkpoint<'a> {
    /// Chooses the files of a variant, which is a file name in GGUF format or a part of it.
    ///
    /// # Errors
    /// If there are no weights in a supported format, or more than one choice.
    pub fn choose(files: &'a [RemoteFile], variant: Option<&str>) -> anyhow::Result<Self> {
        // Files in folders belong to other formats.
        let top: Vec<&RemoteFile> = files.iter().filter(|f| !f.name.contains('/')).collect();
        let has_weights = top.iter().any(|file| is_weights(&file.name));
        let checkpoint = match (variant, has_weights) {
            (None, true) => Self {
                files: top.into_iter().filter(|f| is_needed(&f.name)).collect(),
                gguf: None,
            },
            _ => Self::gguf(&top, variant)?,
        };
        if let Some(file) = checkpoint.files.iter().find(|file| file.size.is_none()) {
            bail!(
                "the server announces no size of {}; HF_ENDPOINT must name a server that supports \
                 the hub's ?blobs=true",
                file.name
            );
        }
        Ok(checkpoint)
    }

    fn gguf(top: &[&'a RemoteFile], variant: Option<&str>) -> anyhow::Result<Self> {
        let is_gguf = |file: &&&RemoteFile| file.name.to_lowercase().ends_with(".gguf");
        let (towers, models): (Vec<&RemoteFile>, Vec<&RemoteFile>) = top
            .iter()
            .filter(is_gguf)
            .partition(|file| is_tower(&file.name));
        let model = choose_model(top, &models, variant)?;
        ensure!(
            !model.name.contains("-of-"),
            "{} is a part of a model; models in several GGUF files are not supported",
            model.name
        );
        let tower = towers.iter().min_by_key(|file| rank(&file.name)).copied();
        Ok(Self {
            files: std::iter::once(model).chain(tower).collect(),
            gguf: Some((&model.name, tower.map(|tower| &*tower.name))),
        })
    }

    /// Returns the size of all files.
    pub fn bytes(&self) -> u64 {
        let sizes = self.files.iter().map(|file| file.size.unwrap_or(0));
        sizes.fold(0, u64::saturating_add)
    }
}

fn choose_model<'a>(
    top: &[&RemoteFile],
    models: &[&'a RemoteFile],
    variant: Option<&str>,
) -> anyhow::Result<&'a RemoteFile> {
    let matching: Vec<&RemoteFile> = match variant {
        None => models.to_vec(),
        Some(variant) => matching(models, &variant.to_lowercase()),
    };
    let names = |files: &[&RemoteFile]| {
        let names: Vec<&str> = files.iter().map(|file| &*file.name).collect();
        names.join(", ")
    };
    match (&matching[..], models) {
        ([only], _) => Ok(only),
        ([], []) if top.iter().any(|file| file.name.ends_with(".bin")) => bail!(
            "the repository has only pickled PyTorch weights, which are not read because they can run \
             code; choose one with .safetensors or .gguf files"
        ),
        ([], []) => bail!("the repository has neither .safetensors nor .gguf files at its top"),
        ([], all) => bail!(
            "no file of the repository matches {:?}; found {}",
            variant.unwrap_or_default(),
            names(all)
        ),
        (several, _) => bail!(
            "the repository has several models; append one as :VARIANT: {}",
            names(several)
        ),
    }
}

/// Returns the files that match a variant best: the file itself, the end of its name, or a part.
fn matching<'a>(models: &[&'a RemoteFile], variant: &str) -> Vec<&'a RemoteFile> {
    let variant = variant.strip_suffix(".gguf").unwrap_or(variant);
    let stem = |file: &RemoteFile| {
        let name = file.name.to_lowercase();
        name.strip_suffix(".gguf").unwrap_or(&name).to_owned()
    };
    let ends = |name: &str| {
        let rest = name.strip_suffix(variant);
        rest.is_some_and(|rest| rest.ends_with(['-', '_', '.']))
    };
    let tests: [&dyn Fn(&str) -> bool; 3] = [&|name| name == variant, &ends, &|name| {
        name.contains(variant)
    }];
    tests
        .iter()
        .map(|test| {
            let matching = models.iter().copied().filter(|file| test(&stem(file)));
            matching.collect::<Vec<_>>()
        })
        .find(|matching| !matching.is_empty())
        .unwrap_or_default()
}

fn is_weights(name: &str) -> bool {
    // The layout of Mistral's own programs lies beside that of transformers.
    name.ends_with(".safetensors") && !name.starts_with("consolidated")
}

fn is_needed(name: &str) -> bool {
    is_weights(name)
        || [".json", ".jinja"].iter().any(|end| name.ends_with(end))
        || name == "merges.txt"
}

fn is_tower(name: &str) -> bool {
    name.to_lowercase().contains("mmproj")
}

/// Returns the place of a vision tower's format among the preferred ones.
fn rank(name: &str) -> usize {
    let name = name.to_lowercase();
    let mut words = name.split(['-', '.']);
    let format = words.find_map(|word| TOWER_FORMATS.iter().position(|format| *format == word));
    format.unwrap_or(TOWER_FORMATS.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<RemoteFile> {
        let file = |name: &&str| RemoteFile {
            name: (*name).to_owned(),
            size: Some(1),
            sha256: None,
        };
        names.iter().map(file).collect()
    }

    fn chosen(names: &[&str], variant: Option<&str>) -> Result<Vec<String>, String> {
        let files = files(names);
        let checkpoint = Checkpoint::choose(&files, variant);
        let names = checkpoint.map(|c| c.files.iter().map(|file| file.name.clone()).collect());
        names.map_err(|error| error.to_string())
    }

    #[test]
    fn a_folder_is_complete_without_other_formats() {
        let names = [
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "merges.txt",
            "model.safetensors",
            "onnx/model.onnx",
            "original/x.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
        ];
        let expected = [
            "config.json",
            "merges.txt",
            "model.safetensors",
            "tokenizer.json",
        ];
        assert_eq!(chosen(&names, None).unwrap(), expected);
    }

    #[test]
    fn variants_choose_a_file_and_its_tower() {
        let names = [
            "m-Q4_0.gguf",
            "m-Q4_0_4_4.gguf",
            "m-Q8_0.gguf",
            "mmproj-m-BF16.gguf",
            "mmproj-m-f16.gguf",
        ];
        for variant in ["q4_0", "Q4_0.gguf", "m-q4_0.gguf"] {
            assert_eq!(
                chosen(&names, Some(variant)).unwrap(),
                [names[0], names[4]],
                "{variant}"
            );
        }
        assert!(
            chosen(&names, None)
                .unwrap_err()
                .contains("append one as :VARIANT")
        );
        assert!(
            chosen(&names, Some("q4"))
                .unwrap_err()
                .contains("m-Q4_0.gguf, m-Q4_0_4_4.gguf")
        );
        assert!(chosen(&names, Some("q5")).unwrap_err().contains("no file"));
        assert_eq!(chosen(&names[2..3], None).unwrap(), [names[2]]);
    }

    #[test]
    fn repositories_without_readable_weights_are_refused() {
        assert!(
            chosen(&["pytorch_model.bin"], None)
                .unwrap_err()
                .contains("pickled")
        );
        assert!(
            chosen(&["README.md"], None)
                .unwrap_err()
                .contains("neither")
        );
        let parts = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
        assert!(
            chosen(&parts, Some("m-00001-of-00002"))
                .unwrap_err()
                .contains("several GGUF")
        );
    }
}
