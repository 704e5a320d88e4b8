//! Estimates of memory and of work per stage, for a context length and an image size.

use edge_lmm_models::ModelError;
use edge_lmm_models::families::Registry;
use edge_lmm_models::family::BuiltModel;
use edge_lmm_models::language::{LanguageModel, PREFILL_CHUNK};
use edge_lmm_models::media::{MediaInput, MediaOptions};
use edge_lmm_models::preprocess::RgbImage;
use edge_lmm_models::weights::{Part, Storage, WeightSpec};
use edge_lmm_ops::KernelBackend;
use edge_lmm_targets::{MemoryEstimate, Work};

use crate::{Cpu, EngineError, Record};

/// Tokens of a question and of the template around it.
const QUESTION_TOKENS: u64 = 64;
/// The program's own memory, threads and their stacks included.
const PROGRAM_BYTES: u64 = 24 << 20;
/// A tokenizer in memory is larger than its text: its vocabulary is held in both directions, and
/// the merges, too. The tests compare this factor with the heap.
const TOKENIZER_FACTOR: u64 = 16;

/// Context length and image size of an estimate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    /// Positions in the key-value cache. Raised to the length of a question about the image and
    /// limited to the context length of the model.
    pub context: usize,
    /// Width and height of an image; ignored by models without image input.
    pub image_size: Option<(usize, usize)>,
    /// Whether the layer that predicts further tokens drafts some, if the model has one. It has keys
    /// and values of its own. [`Speculation`](crate::Speculation) is on by default on CPUs.
    pub drafts: bool,
}

/// Estimated memory and work of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ResourceEstimate {
    /// Memory by purpose.
    pub memory: MemoryEstimate,
    /// Bytes of the weights of the largest stage: the language model or the encoders. With less
    /// memory for weights, every token reads some of them from disk again.
    pub stage_weights: u64,
    /// Work of each stage; `decode` is the work of one token. Attention over the context counts by
    /// its bytes; its arithmetic is small compared with the weights and is left out.
    pub stages: Vec<Work>,
    /// Positions in the key-value cache.
    pub context: usize,
    /// Tokens of the image.
    pub visual_tokens: usize,
}

/// A weight and its size in the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredWeight {
    /// The weight.
    pub spec: WeightSpec,
    /// Size in bytes.
    pub bytes: usize,
}

/// Sums over the weights of a part.
#[derive(Default)]
struct PartSums {
    bytes: u64,
    macs: u64,
    rows: u64,
    cols: u64,
}

impl PartSums {
    /// Adds up the weights of `part` except those that `skip` matches. Vectors count by their bytes
    /// only.
    fn new(weights: &[StoredWeight], part: Part, skip: impl Fn(&WeightSpec) -> bool) -> Self {
        let mut sums = Self::default();
        for weight in weights.iter().filter(|w| w.spec.part == part) {
            if skip(&weight.spec) {
                continue;
            }
            sums.bytes += weight.bytes as u64;
            if let Storage::Packed { cols } = weight.spec.storage {
                let (rows, cols) = (weight.spec.rows() as u64, cols as u64);
                sums.macs = sums.macs.saturating_add(rows.saturating_mul(cols));
                sums.rows = sums.rows.max(rows);
                sums.cols = sums.cols.max(cols);
            }
        }
        sums
    }

    /// Returns the bytes of the activations of `tokens` tokens: input and output of the widest
    /// layer, and the residual stream with its projections.
    fn activations(&self, tokens: u64, width: u64) -> u64 {
        tokens.saturating_mul((self.rows + self.cols + 4 * width) * size_of::<f32>() as u64)
    }
}

impl ResourceEstimate {
    /// Returns the minimum memory in bytes: all weights are mapped, and only those of one stage at a
    /// time stay in memory.
    pub fn minimum(&self) -> u64 {
        let weights = self.stage_weights.min(self.memory.weights);
        self.memory.total() - (self.memory.weights - weights)
    }

    /// Estimates the model of a record.
    ///
    /// # Errors
    /// If the record does not fit its model.
    pub fn of_record(record: &Record, scenario: &Scenario) -> Result<Self, EngineError> {
        let (model, specs) = record.skeleton::<Cpu>(&Registry::default(), &Default::default())?;
        Ok(WeightSizes::new(record, specs).estimate(&*model, scenario)?)
    }

    /// Estimates a model with the given weights and a tokenizer of `tokenizer` bytes.
    ///
    /// # Errors
    /// If the model does not accept an image of that size.
    pub fn new<B: KernelBackend>(
        model: &dyn BuiltModel<B>,
        weights: &[StoredWeight],
        tokenizer: usize,
        scenario: &Scenario,
    ) -> Result<Self, ModelError> {
        let takes_images = weights.iter().any(|w| w.spec.part == Part::Vision);
        let visual = match scenario.image_size.filter(|_| takes_images) {
            Some(size) => Visual::of_blank_image(model, size)?,
            None => Visual::default(),
        };
        let prompt = visual.tokens + QUESTION_TOKENS;
        Ok(Self::of_prompt(
            model, weights, tokenizer, &visual, prompt, scenario,
        ))
    }

    /// Estimates a prompt of `prompt` tokens, including the tokens of its media, and the context of a
    /// scenario.
    fn of_prompt<B: KernelBackend>(
        model: &dyn BuiltModel<B>,
        weights: &[StoredWeight],
        tokenizer: usize,
        visual: &Visual,
        prompt: u64,
        scenario: &Scenario,
    ) -> Self {
        let language = model.language();
        let hidden = language.hidden_size() as u64;
        let vocabulary = language.vocabulary();
        let encoder = PartSums::new(weights, Part::Vision, |_| false);
        let projector = PartSums::new(weights, Part::Projector, |_| false);
        // Prompts and tokens without drafts do not use the layer that drafts.
        let is_apart = |spec: &WeightSpec| spec.rows() == vocabulary || spec.is_mtp();
        let text = PartSums::new(weights, Part::Text, is_apart);
        let head = head(weights, vocabulary);

        let context = (scenario.context.max(prompt as usize)).min(language.context_length());
        let cache = language.cache_shape(context).bytes() as u64;
        let drafting = cache_of_drafts(language, context, scenario.drafts) as u64;
        let prompt = prompt.min(context as u64);
        // A step keeps the states before it until it is complete.
        let recurrent = 2 * language.recurrent_bytes() as u64;

        let chunk = (PREFILL_CHUNK as u64).min(prompt);
        let embeddings = 2 * (prompt + visual.tokens) * hidden * size_of::<f32>() as u64;
        let scores = 2 * (vocabulary * size_of::<f32>()) as u64;
        let activations = visual.bytes
            + embeddings
            + scores
            + encoder
                .activations(visual.largest, encoder.cols.min(hidden))
                .max(text.activations(chunk, hidden));
        let of_text = |is_text: bool| {
            let weights = weights
                .iter()
                .filter(|w| (w.spec.part == Part::Text) == is_text);
            weights.map(|w| w.bytes as u64).sum::<u64>()
        };
        let stage_weights = of_text(true).max(of_text(false));
        let record: u64 = weights.iter().map(|w| w.bytes as u64).sum();
        let tokenizer = tokenizer as u64;
        let mut stages = Vec::new();
        if visual.patches > 0 {
            stages.push(work(
                "vision",
                visual.patches,
                encoder.bytes,
                encoder.macs * visual.patches,
            ));
            stages.push(work(
                "projector",
                visual.tokens,
                projector.bytes,
                projector.macs * visual.tokens,
            ));
        }
        let passes = prompt.div_ceil(PREFILL_CHUNK as u64);
        stages.push(work(
            "prefill",
            prompt,
            text.bytes * passes + head.bytes,
            text.macs * prompt + head.macs,
        ));
        let cache_per_token = cache / (context as u64).max(1);
        stages.push(work(
            "decode",
            1,
            text.bytes + head.bytes + cache_per_token * prompt + recurrent,
            text.macs + head.macs,
        ));
        Self {
            memory: MemoryEstimate {
                weights: record + tokenizer,
                cache: cache + drafting + recurrent,
                activations,
                program: PROGRAM_BYTES + TOKENIZER_FACTOR * tokenizer,
            },
            stage_weights,
            stages,
            context,
            visual_tokens: visual.tokens as usize,
        }
    }
}

/// The weights of a record and their sizes, for estimates of many requests.
#[derive(Debug, Clone)]
pub struct WeightSizes {
    weights: Vec<StoredWeight>,
    tokenizer: usize,
}

impl WeightSizes {
    /// Reads the sizes of a record whose model declares `specs`.
    pub fn new(record: &Record, specs: Vec<WeightSpec>) -> Self {
        let lengths: std::collections::BTreeMap<&str, usize> = record
            .tensors()
            .map(|(name, entry)| (name, entry.len))
            .collect();
        let weights = specs.into_iter().map(|spec| StoredWeight {
            bytes: lengths.get(spec.name.as_str()).copied().unwrap_or(0),
            spec,
        });
        Self {
            weights: weights.collect(),
            tokenizer: record.tokenizer().len(),
        }
    }

    /// Creates the sizes of a model that is not read from a record.
    pub(crate) fn of_weights(weights: Vec<StoredWeight>, tokenizer: usize) -> Self {
        Self { weights, tokenizer }
    }

    /// Estimates a model with these weights.
    ///
    /// # Errors
    /// If the model does not accept an image of the scenario's size.
    pub fn estimate<B: KernelBackend>(
        &self,
        model: &dyn BuiltModel<B>,
        scenario: &Scenario,
    ) -> Result<ResourceEstimate, ModelError> {
        ResourceEstimate::new(model, &self.weights, self.tokenizer, scenario)
    }

    /// Estimates a request with preprocessed media, a prompt of `prompt` tokens and an answer of at
    /// most `max_tokens`. `drafts` is that of a [`Scenario`].
    pub fn estimate_request<B: KernelBackend>(
        &self,
        model: &dyn BuiltModel<B>,
        media: &[MediaInput],
        prompt: usize,
        max_tokens: usize,
        drafts: bool,
    ) -> ResourceEstimate {
        let scenario = Scenario {
            context: prompt.saturating_add(max_tokens),
            image_size: None,
            drafts,
        };
        ResourceEstimate::of_prompt(
            model,
            &self.weights,
            self.tokenizer,
            &Visual::of_media(model, media),
            prompt as u64,
            &scenario,
        )
    }
}

/// Returns the bytes of keys and values of `context` positions, those of the layer that predicts
/// further tokens included if it `drafts`.
pub fn cache_bytes<B: KernelBackend>(
    language: &dyn LanguageModel<B>,
    context: usize,
    drafts: bool,
) -> usize {
    language.cache_shape(context).bytes() + cache_of_drafts(language, context, drafts)
}

fn cache_of_drafts<B: KernelBackend>(
    language: &dyn LanguageModel<B>,
    context: usize,
    drafts: bool,
) -> usize {
    let layer = language.mtp().filter(|_| drafts);
    layer.map_or(0, |layer| layer.cache_shape(context).bytes())
}

fn work(stage: &'static str, tokens: u64, bytes: u64, macs: u64) -> Work {
    Work {
        stage,
        tokens,
        bytes,
        macs,
    }
}

/// Returns the sums of the output head, the last table with one row per token. The embedding table,
/// if it is a separate one, is only looked up.
fn head(weights: &[StoredWeight], vocabulary: usize) -> PartSums {
    let mut tables = weights
        .iter()
        .filter(|w| w.spec.part == Part::Text && w.spec.rows() == vocabulary);
    tables.next_back().map_or_else(PartSums::default, |table| {
        PartSums::new(std::slice::from_ref(table), Part::Text, |_| false)
    })
}

/// Sizes of preprocessed media.
#[derive(Debug, Clone, Copy, Default)]
struct Visual {
    /// Patches of all media.
    patches: u64,
    /// Patches of the largest medium or piece of a video; these are encoded in sequence.
    largest: u64,
    /// Tokens of all media.
    tokens: u64,
    /// Bytes of pixels and values.
    bytes: u64,
}

impl Visual {
    /// Preprocesses an image of the given width and height as the family does.
    fn of_blank_image<B: KernelBackend>(
        model: &dyn BuiltModel<B>,
        (width, height): (usize, usize),
    ) -> Result<Self, ModelError> {
        let pixels = RgbImage::bytes(width, height)?;
        let blank = RgbImage::new(width, height, vec![0; pixels])?;
        let medium = model.image(&blank, &MediaOptions::default())?;
        let visual = Self::of_media(model, &[medium]);
        Ok(Self {
            bytes: visual.bytes + pixels as u64,
            ..visual
        })
    }

    /// Adds up media. A medium whose features are cached has no values and needs no encoder work.
    fn of_media<B: KernelBackend>(model: &dyn BuiltModel<B>, media: &[MediaInput]) -> Self {
        let mut visual = Self::default();
        for medium in media {
            visual.tokens += medium.tokens() as u64;
            if medium.values.is_empty() && medium.piece.is_none() {
                continue;
            }
            let size = model.encoder_size(medium);
            let patches = (size.parts.iter().sum::<usize>() * size.rows) as u64;
            visual.patches += patches;
            let largest = medium
                .piece
                .map_or(patches, |piece| patches.min(piece.rows as u64));
            visual.largest = visual.largest.max(largest);
            visual.bytes += match medium.piece {
                None => (2 * size_of_val(&medium.values[..])) as u64,
                // The next piece is prepared while the encoder has two copies of this one.
                Some(piece) => {
                    let values = 3 * piece.rows * medium.shape[1] * size_of::<f32>();
                    (values + piece.undecoded_bytes) as u64
                }
            };
        }
        visual
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use edge_lmm_kernels::memory;
    use edge_lmm_models::prompt::TextProcessor;

    use super::*;

    #[global_allocator]
    static ALLOCATOR: memory::CountingAllocator = memory::CountingAllocator;

    fn record() -> Record {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo/qwen2vl-tiny.bpk");
        Record::open(&path).expect("the demo's record opens")
    }

    fn estimate(context: usize, image_size: Option<(usize, usize)>) -> ResourceEstimate {
        ResourceEstimate::of_record(
            &record(),
            &Scenario {
                context,
                image_size,
                drafts: true,
            },
        )
        .expect("an estimate")
    }

    #[test]
    fn a_longer_context_needs_more_memory() {
        let (short, long) = (estimate(64, None), estimate(128, None));
        assert_eq!(2 * short.memory.cache, long.memory.cache);
        assert_eq!(short.memory.weights, long.memory.weights);
    }

    #[test]
    fn a_larger_image_needs_more_memory_and_work() {
        let (small, large) = (
            estimate(512, Some((56, 56))),
            estimate(512, Some((224, 224))),
        );
        assert!(small.memory.activations < large.memory.activations);
        let vision = |estimate: &ResourceEstimate| estimate.stages[0].clone();
        assert_eq!(vision(&small).stage, "vision");
        assert_eq!(vision(&small).bytes, vision(&large).bytes);
        assert!(vision(&small).macs < vision(&large).macs);
    }

    #[test]
    fn stages_without_an_image_are_the_language_models() {
        let estimate = estimate(512, None);
        let stages: Vec<&str> = estimate.stages.iter().map(|work| work.stage).collect();
        assert_eq!(stages, ["prefill", "decode"]);
        // A token reads the language model, and not all of the record.
        assert!(estimate.stages[1].bytes < estimate.memory.weights + estimate.memory.cache);
        assert_eq!(estimate.visual_tokens, 0);
    }

    #[test]
    fn a_tokenizer_takes_no_more_than_counted() {
        let record = record();
        let before = memory::current_bytes();
        let text = TextProcessor::new(record.tokenizer(), None).expect("a tokenizer");
        // Other tests allocate at the same time; what they take makes this stricter by little.
        let taken = memory::current_bytes().saturating_sub(before) as u64;
        assert!(text.largest_id().is_some());
        let counted = PROGRAM_BYTES + TOKENIZER_FACTOR * record.tokenizer().len() as u64;
        assert!(taken < counted, "{taken} bytes, counted {counted}");
    }
}
