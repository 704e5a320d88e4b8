//! Application of an adapter to the tensors of a checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::super::error::{Result, SourceError, malformed, some_of};
use super::super::view::{Stored, View};
use super::super::{Checkpoint, Tensor, safetensors};
use super::config::Config;
use super::low_rank::{Factor, LowRank};
use super::{CONFIG, WEIGHTS};
use crate::names;

/// Tensors of an adapter for one module, by the part of the name from `lora_` on.
type Parts = BTreeMap<String, Tensor>;

impl Checkpoint {
    /// Merges a LoRA adapter that PEFT saved in `folder`. Its low-rank updates are multiplied by
    /// `weight` and added to the rows of the weights when these are read. Further adapters are added
    /// to the result.
    ///
    /// # Errors
    /// If the adapter is damaged, of another kind, or does not belong to this checkpoint. The checkpoint
    /// may then be changed in part.
    pub fn add_adapter(&mut self, folder: &Path, weight: f32) -> Result<()> {
        let mut files = Vec::new();
        let config = Config::read(folder, &mut files)?;
        let path = folder.join(WEIGHTS);
        if !path.exists() {
            return Err(missing_weights(folder));
        }
        let tensors = safetensors::read_file(&path, &mut files)?;
        let mut modules: BTreeMap<String, Parts> = BTreeMap::new();
        let mut replaced = Vec::new();
        for (name, tensor) in tensors {
            match split(&name) {
                Some((module, part)) => {
                    modules.entry(module).or_default().insert(part, tensor);
                }
                None => replaced.push((without_wrappers(&name), tensor)),
            }
        }
        let file = path.display().to_string();
        let mut merge = Merge {
            checkpoint: self,
            config,
            weight,
            file,
            targets: Vec::new(),
        };
        for (name, tensor) in replaced {
            merge.replace(&name, tensor)?;
        }
        for (module, parts) in modules {
            merge.update(&module, parts)?;
        }
        let targets = merge.targets;
        if targets.is_empty() {
            return Err(malformed(
                path.display().to_string(),
                "no tensors",
                "the weights of an adapter",
            ));
        }
        log::info!(
            "{}: {} tensors are changed",
            folder.display(),
            targets.len()
        );
        self.adapted.extend(targets);
        self.files.extend(files);
        Ok(())
    }
}

/// Returns the module of a low-rank part in the names of the model, and the part.
fn split(name: &str) -> Option<(String, String)> {
    let parts: Vec<&str> = without_prefix(name).split('.').collect();
    let at = parts.iter().position(|part| part.starts_with("lora_"))?;
    // Trainers that save parameters directly keep the adapter's name, `default`.
    let rest = parts[at..].iter().filter(|part| **part != "default");
    let rest: Vec<&str> = rest.copied().collect();
    let part = rest.join(".");
    let part = part.strip_suffix(".weight").unwrap_or(&part);
    Some((parts[..at].join("."), part.to_owned()))
}

fn without_prefix(name: &str) -> &str {
    name.strip_prefix("base_model.model.").unwrap_or(name)
}

/// Returns the name of a tensor that an adapter replaces, without the modules that PEFT wraps
/// around it.
fn without_wrappers(name: &str) -> String {
    let parts = without_prefix(name).split('.');
    let kept: Vec<&str> = parts
        .filter(|part| !["base_layer", "modules_to_save", "default"].contains(part))
        .collect();
    kept.join(".")
}

/// The error for a folder without safetensors.
fn missing_weights(folder: &Path) -> SourceError {
    let pickled = ["adapter_model.bin", "adapter_model.pt"];
    match pickled.iter().find(|file| folder.join(file).exists()) {
        Some(file) => SourceError::NotACheckpoint {
            path: folder.to_path_buf(),
            found: format!("{file}, which is not read because it can run code"),
            expected: format!("{WEIGHTS}; save the adapter again with safe_serialization=True"),
        },
        None => SourceError::MissingFile {
            path: folder.join(WEIGHTS),
            needed_for: format!("{CONFIG} is there; download the whole adapter"),
        },
    }
}

/// An adapter that is being applied.
struct Merge<'a> {
    checkpoint: &'a mut Checkpoint,
    config: Config,
    weight: f32,
    /// Name of the adapter's weight file, for messages.
    file: String,
    /// Names of the changed tensors in the checkpoint.
    targets: Vec<String>,
}

impl Merge<'_> {
    /// Returns the name in the checkpoint of a tensor that the adapter changes.
    fn target(&self, name: &str) -> Result<String> {
        let missing = || SourceError::MissingTensor {
            file: self.checkpoint.weights_file(),
            tensor: name.to_owned(),
            needed_for: format!(
                "{} changes it; the adapter belongs to another model",
                self.file
            ),
        };
        let found = names::found(name, self.checkpoint);
        let is_table = ["lm_head.weight", "embed_tokens.weight"];
        let is_table = is_table.iter().any(|end| name.ends_with(end));
        if is_table && self.is_tied() {
            return Err(SourceError::Unsupported {
                file: self.file.clone(),
                what: "an adapter for".into(),
                found: name.to_owned(),
                supported: "adapters for other layers, because the output head shares the weights \
                            of the embeddings; merge the adapter with merge_and_unload() of peft"
                    .into(),
            });
        }
        found.ok_or_else(missing)
    }

    /// Returns `true` if the output head is the table of embeddings.
    fn is_tied(&self) -> bool {
        const KEY: &str = "tie_word_embeddings";
        let config = &self.checkpoint.config;
        let section = || config.get("text_config")?.get(KEY);
        let stated = config.get(KEY).or_else(section).and_then(Value::as_bool);
        stated.unwrap_or_else(|| {
            let mut names = self.checkpoint.tensors.keys();
            !names.any(|name| name.ends_with("lm_head.weight"))
        })
    }

    /// Replaces a tensor that was trained as a whole.
    fn replace(&mut self, name: &str, tensor: Tensor) -> Result<()> {
        let target = self.target(name)?;
        let shape = &self.checkpoint.tensors[&target].info.shape;
        if *shape != tensor.info.shape {
            return Err(self.wrong_shape(name, &tensor.info.shape, &format!("{shape:?}")));
        }
        if self.weight != 1.0 || self.checkpoint.adapted.contains(&target) {
            return Err(SourceError::Unsupported {
                file: self.file.clone(),
                what: "an adapter that replaces".into(),
                found: name.to_owned(),
                supported:
                    "low-rank updates only, if an adapter has a weight or if several change \
                            the same tensor"
                        .into(),
            });
        }
        self.checkpoint.tensors.insert(target.clone(), tensor);
        self.targets.push(target);
        Ok(())
    }

    /// Adds the update of a module.
    fn update(&mut self, module: &str, mut parts: Parts) -> Result<()> {
        let target = self.target(&format!("{module}.weight"))?;
        let info = &self.checkpoint.tensors[&target].info;
        let size = [info.rows(), info.row_len()];
        let mut update = match parts.contains_key("lora_embedding_A") {
            true => self.embedding(module, &mut parts, size)?,
            false => self.linear(module, &mut parts, size)?,
        };
        let magnitudes = parts.remove("lora_magnitude_vector");
        update.magnitudes = self.magnitudes(module, magnitudes, (size[0], &update))?;
        if let Some(part) = parts.keys().next() {
            return Err(malformed(
                &*self.file,
                format!("tensor {module}.{part}"),
                "lora_A and lora_B, and lora_magnitude_vector with use_dora",
            ));
        }
        let tensors = &mut self.checkpoint.tensors;
        if let Some(Tensor { mut info, view }) = tensors.remove(&target) {
            info.dtype += "+LoRA";
            let base = Box::new(view);
            let view = View::Adapted { base, update };
            tensors.insert(target.clone(), Tensor { info, view });
        }
        self.targets.push(target);
        Ok(())
    }

    /// Takes the factors of a linear layer or convolution: `lora_A [rank, inputs]`, `lora_B
    /// [outputs, rank]`. PEFT transposes them (`fan_in_fan_out`) only for layers that no supported
    /// model has.
    fn linear(&self, module: &str, parts: &mut Parts, size: [usize; 2]) -> Result<LowRank> {
        let (right, [rank, inputs]) = self.matrix(module, parts, "lora_A")?;
        let (left, [outputs, inner]) = self.matrix(module, parts, "lora_B")?;
        self.check(module, size, [outputs, inputs], [rank, inner])?;
        Ok(LowRank {
            left: Factor::new(left, [outputs, rank]),
            right: Factor::new(right, [rank, inputs]),
            scale: self.weight * self.config.scale(module, rank),
            magnitudes: None,
        })
    }

    /// Takes the factors of a table: `lora_embedding_A [rank, tokens]`, `lora_embedding_B [width,
    /// rank]`.
    fn embedding(&self, module: &str, parts: &mut Parts, size: [usize; 2]) -> Result<LowRank> {
        let (left, [rank, tokens]) = self.matrix(module, parts, "lora_embedding_A")?;
        let (right, [width, inner]) = self.matrix(module, parts, "lora_embedding_B")?;
        self.check(module, size, [tokens, width], [rank, inner])?;
        Ok(LowRank {
            left: Factor::transposed(left, [rank, tokens]),
            right: Factor::transposed(right, [width, rank]),
            scale: self.weight * self.config.scale(module, rank),
            magnitudes: None,
        })
    }

    /// Takes a tensor as a matrix with all dimensions but the first as columns.
    fn matrix(&self, module: &str, parts: &mut Parts, part: &str) -> Result<(Stored, [usize; 2])> {
        let name = format!("{module}.{part}");
        let Some(Tensor { info, view }) = parts.remove(part) else {
            return Err(SourceError::MissingTensor {
                file: self.file.clone(),
                tensor: name,
                needed_for: format!("there is {}", some_of(&parts.keys().collect::<Vec<_>>())),
            });
        };
        view.check_readable()
            .map_err(|unreadable| unreadable.into_error(&name))?;
        match view {
            View::Whole(stored) => Ok((stored, [info.rows(), info.row_len()])),
            _ => Err(malformed(&*self.file, name, "a stored tensor")),
        }
    }

    /// Checks the sizes of two factors, and their common rank.
    fn check(
        &self,
        module: &str,
        size: [usize; 2],
        product: [usize; 2],
        ranks: [usize; 2],
    ) -> Result<()> {
        if size == product && ranks[0] == ranks[1] && ranks[0] > 0 {
            return Ok(());
        }
        let found = [product[0], ranks[1], ranks[0], product[1]];
        let [rows, columns] = size;
        let expected = format!("[{rows}, rank, rank, {columns}]");
        Err(self.wrong_shape(&format!("the update of {module}"), &found, &expected))
    }

    /// Takes the norms of the rows, if the adapter has them.
    fn magnitudes(
        &self,
        module: &str,
        tensor: Option<Tensor>,
        (rows, update): (usize, &LowRank),
    ) -> Result<Option<Vec<f32>>> {
        let unsupported = |found: &str, supported: &str| SourceError::Unsupported {
            file: self.file.clone(),
            what: format!("{module}.lora_magnitude_vector"),
            found: found.into(),
            supported: supported.into(),
        };
        match (tensor, self.config.magnitudes) {
            (None, false) => Ok(None),
            (Some(_), false) => Err(unsupported("without use_dora", "adapters with use_dora")),
            (None, true) => Err(SourceError::MissingTensor {
                file: self.file.clone(),
                tensor: format!("{module}.lora_magnitude_vector"),
                needed_for: "use_dora is set".into(),
            }),
            (Some(_), true) if self.weight != 1.0 => {
                Err(unsupported("with a weight", "DoRA without a weight"))
            }
            (Some(_), true) if update.is_of_table() => Err(unsupported(
                "of embeddings",
                "DoRA of linear layers and convolutions",
            )),
            (Some(tensor), true) => {
                let mut values = Vec::new();
                let elements = tensor.info.elements();
                if elements != rows {
                    let name = format!("{module}.lora_magnitude_vector");
                    return Err(self.wrong_shape(&name, &tensor.info.shape, &format!("[{rows}]")));
                }
                let read = tensor.view.read(0..elements, &mut values);
                read.map_err(|unreadable| unreadable.into_error(module))?;
                Ok(Some(values))
            }
        }
    }

    fn wrong_shape(&self, name: &str, found: &[usize], expected: &str) -> SourceError {
        malformed(
            &*self.file,
            format!("{name} of shape {found:?}"),
            format!("{expected}; the adapter belongs to another model"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_what_peft_adds() {
        let part = |name| split(name).unwrap();
        let expected = ("model.layers.0.q_proj".to_owned(), "lora_A".to_owned());
        for name in [
            "base_model.model.model.layers.0.q_proj.lora_A.weight",
            "model.layers.0.q_proj.lora_A.default.weight",
        ] {
            assert_eq!(part(name), expected);
        }
        assert_eq!(part("embed_tokens.lora_embedding_B").1, "lora_embedding_B");
        assert_eq!(
            part("q.lora_magnitude_vector.default.weight").1,
            "lora_magnitude_vector"
        );
        assert_eq!(part("q.lora_B.bias").1, "lora_B.bias");
        for name in [
            "base_model.model.lm_head.modules_to_save.default.weight",
            "base_model.model.lm_head.weight",
            "lm_head.base_layer.weight",
        ] {
            assert_eq!(split(name), None);
            assert_eq!(without_wrappers(name), "lm_head.weight");
        }
    }
}
