//! Models and settings of an experiment.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use edge_lmm_models::ModelError;
use edge_lmm_models::families;
use edge_lmm_models::media::MediaOptions;
use edge_lmm_models::reduce::Reductions;

use super::answer::prompt_tokens;
use super::error::ExperimentError;
use super::sample::{Modality, QUESTION, Sample, SampleKey};
use super::spec::About;
use crate::any_device::{AnyEngine, AnySession};
use crate::error::EngineError;
use crate::manifest::Manifest;
use crate::media::Media;
use crate::record::Record;

/// Longest sound of an experiment.
const MOST_SECONDS: f64 = 600.0;

/// Settings of an experiment.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Measurements of each case: with each question, or with synthetic media.
    pub repeat: usize,
    /// Measurements of each case before the first one that counts.
    pub warmup: usize,
    /// Uses the first questions of each task only.
    pub limit: Option<usize>,
    /// Largest number of tokens of an answer.
    pub max_tokens: usize,
    /// Values of the varied quantity, if not those of the experiment.
    pub values: Option<Vec<f64>>,
    /// Options for the preparation of media.
    pub media: MediaOptions,
    /// Chains of methods of `token-reduction`.
    pub chains: Vec<Reductions>,
}

/// A loaded model.
pub struct BenchModel {
    /// Name in tables: that of the file, without its ending.
    pub name: String,
    /// Family of the model, such as `qwen2_vl`.
    pub family: String,
    /// Hash of the record.
    pub identity: u128,
    /// Bytes of the record.
    pub bytes: usize,
    /// The model.
    pub engine: AnyEngine,
    /// Conversation of the current measurement.
    pub session: AnySession,
    /// Medium whose encoder outputs are kept, as the manifest names it.
    pub(super) medium: Option<String>,
    /// The same model on a second device, for `two-devices`.
    pub second: Option<AnyEngine>,
}

impl BenchModel {
    /// Creates a model.
    pub fn new(record: &Record, engine: AnyEngine, second: Option<AnyEngine>) -> Self {
        let name = record.path().file_stem().unwrap_or_default();
        Self {
            name: name.to_string_lossy().into_owned(),
            family: families::info(&record.info().files)
                .map_or_else(|_| String::new(), |family| family.model_type.to_owned()),
            identity: record.identity(),
            bytes: record.len(),
            session: engine.session(),
            engine,
            medium: None,
            second,
        }
    }

    /// Returns the model with a conversation of its own.
    pub(super) fn again(&self) -> Self {
        Self {
            name: self.name.clone(),
            family: self.family.clone(),
            identity: self.identity,
            bytes: self.bytes,
            engine: self.engine.clone(),
            session: self.engine.session(),
            medium: None,
            second: self.second.clone(),
        }
    }

    /// Returns the length of a prompt, `None` if it is too long for the model.
    ///
    /// # Errors
    /// If the model cannot take the media.
    pub(super) fn prompt_tokens(
        &mut self,
        media: &[Media],
        question: &str,
        options: &MediaOptions,
    ) -> Result<Option<usize>, ExperimentError> {
        match prompt_tokens(&mut self.session, media, question, options) {
            Ok(tokens) => Ok(Some(tokens)),
            Err(EngineError::TooLong { .. }) => Ok(None),
            Err(EngineError::Model(ModelError::Preprocess(error))) => {
                // The limit on tokens of a medium is checked before it is prepared.
                log::debug!("{}: {error}", self.name);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Returns `true` if the model takes media of a kind.
    pub fn takes(&mut self, modality: Modality) -> bool {
        let sample = Sample::synthetic(1);
        let medium = match modality {
            Modality::Text => return true,
            Modality::Image => sample.image(Some(56)),
            Modality::Video => sample.video(crate::media::FrameSelection::All, 2, 56),
            Modality::Audio => sample.audio(Some(1.0)),
        };
        let Ok(medium) = medium else { return false };
        let tokens = prompt_tokens(
            &mut self.session,
            &[medium.media],
            "x",
            &MediaOptions::default(),
        );
        !matches!(
            tokens,
            Err(EngineError::Model(ModelError::Unsupported { .. }))
        )
    }
}

/// Models, questions and settings of an experiment.
pub struct Bench {
    /// The models.
    pub models: Vec<BenchModel>,
    /// The questions; `None` for synthetic media.
    pub manifest: Option<(PathBuf, Manifest)>,
    /// Settings.
    pub settings: Settings,
}

impl Bench {
    /// Makes the names of models unique, so that their results do not mix.
    pub fn new(
        models: Vec<BenchModel>,
        manifest: Option<(PathBuf, Manifest)>,
        settings: Settings,
    ) -> Self {
        let mut models = models;
        for i in 1..models.len() {
            let same = models[..i].iter().filter(|m| m.name == models[i].name);
            let number = same.count();
            if number > 0 {
                models[i].name = format!("{} ({})", models[i].name, number + 1);
            }
        }
        Self {
            models,
            manifest,
            settings,
        }
    }

    /// Returns the indices of the models that take media of a kind.
    pub(super) fn taking(&mut self, modality: Modality) -> Vec<usize> {
        let models = self.models.iter_mut().enumerate();
        let taking = models.filter_map(|(i, model)| model.takes(modality).then_some(i));
        taking.collect()
    }

    /// Returns the indices of all models, all of which must take media of a kind.
    ///
    /// # Errors
    /// If one does not.
    pub(super) fn all_taking(
        &mut self,
        about: &About,
        modality: Modality,
    ) -> Result<Vec<usize>, ExperimentError> {
        let taking = self.taking(modality);
        let missing: Vec<String> = (0..self.models.len())
            .filter(|i| !taking.contains(i))
            .map(|i| self.models[i].name.clone())
            .collect();
        match missing.is_empty() {
            true => Ok(taking),
            false => Err(ExperimentError::Modality {
                experiment: about.name,
                needs: about.needs,
                models: missing.join(", "),
                modality,
            }),
        }
    }

    /// Returns the whole numbers that are varied, from 1 to `most`: those of the settings, or the
    /// default.
    ///
    /// # Errors
    /// If one is not such a number, or occurs twice.
    pub(super) fn counts(&self, default: &[f64], most: usize) -> Result<Vec<f64>, ExperimentError> {
        let fits = |value: f64| value.fract() == 0.0 && (1.0..=most as f64).contains(&value);
        self.values(default, &fits, &format!("a whole number from 1 to {most}"))
    }

    /// Returns the lengths in seconds that are varied: those of the settings, or the default.
    ///
    /// # Errors
    /// If one is too short or too long, or occurs twice.
    pub(super) fn seconds(&self, default: &[f64]) -> Result<Vec<f64>, ExperimentError> {
        let fits = |value: f64| (0.1..=MOST_SECONDS).contains(&value);
        let expected = format!("seconds from 0.1 to {MOST_SECONDS}");
        self.values(default, &fits, &expected)
    }

    fn values(
        &self,
        default: &[f64],
        fits: &dyn Fn(f64) -> bool,
        expected: &str,
    ) -> Result<Vec<f64>, ExperimentError> {
        let values = self.settings.values.as_deref().unwrap_or(default);
        let refuse = |value: f64, reason: &str| {
            let message = format!("{value} {reason}");
            Err(ExperimentError::Value(message))
        };
        for (i, &value) in values.iter().enumerate() {
            if !fits(value) {
                return refuse(value, &format!("is not {expected}"));
            }
            if values[..i].contains(&value) {
                return refuse(value, "is given twice");
            }
        }
        Ok(values.to_vec())
    }

    /// Returns the questions that an experiment uses, repeated, or the repeats.
    ///
    /// # Errors
    /// If there is no question about such media.
    pub(super) fn samples(&mut self, about: &About) -> Result<Vec<Sample>, ExperimentError> {
        let repeats = 1..=self.settings.repeat.max(1);
        let all = self.models.len();
        let uses: Vec<Modality> = about
            .uses
            .iter()
            .copied()
            .filter(|&kind| !about.common || self.taking(kind).len() == all)
            .collect();
        let Some((path, manifest)) = &self.manifest else {
            return Ok(repeats.map(|i| Sample::synthetic(i as u64)).collect());
        };
        let chosen = manifest_samples(manifest, &uses, self.settings.limit);
        if chosen.is_empty() {
            let kinds = uses.iter().map(|kind| kind.plural());
            return Err(ExperimentError::NoQuestions {
                path: path.display().to_string(),
                questions: manifest.questions.len(),
                kinds: kinds.collect::<Vec<_>>().join(" or "),
                experiment: about.name,
            });
        }
        check_ids(path, &chosen)?;
        let repeated = repeats.flat_map(|i| {
            chosen.iter().map(move |sample| {
                let mut sample = sample.clone();
                if i > 1 {
                    sample.key.id = format!("{}#{i}", sample.key.id);
                }
                sample
            })
        });
        Ok(repeated.collect())
    }
}

impl Sample {
    /// Creates a repeat with synthetic media.
    pub(super) fn synthetic(number: u64) -> Self {
        Self {
            key: SampleKey {
                id: number.to_string(),
                modality: None,
                task: None,
            },
            question: None,
            text: QUESTION.to_owned(),
            seed: number,
        }
    }
}

/// Checks that every id occurs once, as results are stored by it.
fn check_ids(path: &Path, samples: &[Sample]) -> Result<(), ExperimentError> {
    let mut seen = HashSet::new();
    match samples.iter().find(|sample| !seen.insert(&sample.key.id)) {
        None => Ok(()),
        Some(sample) => Err(ExperimentError::Impossible(format!(
            "{}: two questions have the id {:?}; results are stored by id, so give each its own",
            path.display(),
            sample.key.id
        ))),
    }
}

/// Returns the questions that an experiment uses, the first `limit` of each task.
fn manifest_samples(manifest: &Manifest, uses: &[Modality], limit: Option<usize>) -> Vec<Sample> {
    let mut seen = BTreeMap::new();
    let mut samples = Vec::new();
    for question in &manifest.questions {
        let path = manifest.media_path(question);
        let modality = match &path {
            None => Some(Modality::Text),
            Some(path) => modality_of(path),
        };
        // A medium that cannot be opened stays, so that it is reported.
        if modality.is_some_and(|modality| !uses.contains(&modality)) {
            continue;
        }
        let count = seen.entry(question.task.clone()).or_insert(0usize);
        *count += 1;
        if limit.is_some_and(|limit| *count > limit) {
            continue;
        }
        samples.push(Sample {
            key: SampleKey {
                id: question.id.clone(),
                modality,
                task: Some(question.task.clone()),
            },
            question: Some((question.clone(), path)),
            text: String::new(),
            seed: samples.len() as u64,
        });
    }
    samples
}

fn modality_of(path: &Path) -> Option<Modality> {
    crate::media::kind(path).ok().map(Modality::from)
}
