//! What a model needs: memory, and work per stage, for a context and a picture of some size.

use edge_lmm_models::ModelError;
use edge_lmm_models::families::Registry;
use edge_lmm_models::family::BuiltModel;
use edge_lmm_models::language::PREFILL_CHUNK;
use edge_lmm_models::media::{MediaInput, MediaOptions};
use edge_lmm_models::preprocess::RgbImage;
use edge_lmm_models::weights::{Part, Storage, WeightSpec};
use edge_lmm_ops::KernelBackend;
use edge_lmm_targets::{Needs, Work};

use crate::{Cpu, EngineError, Record};

/// Tokens of a question and of the template around it.
const QUESTION_TOKENS: u64 = 64;
/// The program's own memory, threads and their stacks included.
const PROGRAM_BYTES: u64 = 24 << 20;
/// A tokenizer in memory is larger than its text: its vocabulary is held in both directions, and
/// the merges, too. The tests compare this factor with the heap.
const TOKENIZER_FACTOR: u64 = 16;

/// What a model is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    /// Positions to keep keys and values for: at least a question's about the picture, no more
    /// than the model has.
    pub context: usize,
    /// Width and height of a picture, for models that take one.
    pub picture: Option<(usize, usize)>,
}

/// What that takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Demand {
    /// Memory.
    pub needs: Needs,
    /// Bytes of the weights that the hungriest stage reads: the language model's, or an encoder's.
    /// With less memory for weights, every token reads some of them from the disk again.
    pub stage_weights: u64,
    /// Work of each stage; that of `decode` is one token's. Attention over the context is counted
    /// by its bytes; its arithmetic, small beside the weights', is left out.
    pub stages: Vec<Work>,
    /// Positions that were counted.
    pub context: usize,
    /// Tokens of the picture.
    pub visual_tokens: usize,
}

/// A weight and its bytes in the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredWeight {
    /// The weight.
    pub spec: WeightSpec,
    /// Its bytes.
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
    /// Over matrices, vectors' bytes included; `skip` leaves weights out.
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

    /// Bytes of the values between the widest layers, for so many tokens at once: input and output
    /// of the widest, and a residual stream with its projections.
    fn activations(&self, tokens: u64, width: u64) -> u64 {
        tokens.saturating_mul((self.rows + self.cols + 4 * width) * size_of::<f32>() as u64)
    }
}

impl Demand {
    /// The memory with which a model can just be run: all weights are mapped, but those of one stage
    /// at a time need to stay in memory.
    pub fn least(&self) -> u64 {
        let weights = self.stage_weights.min(self.needs.weights);
        self.needs.total() - (self.needs.weights - weights)
    }

    /// Of a record.
    ///
    /// # Errors
    /// If the record does not fit its model.
    pub fn of_record(record: &Record, scenario: &Scenario) -> Result<Self, EngineError> {
        let (model, specs) = record.skeleton::<Cpu>(&Registry::default(), &Default::default())?;
        Ok(Holdings::new(record, specs).demand(&*model, scenario)?)
    }

    /// Of a model with these weights and a tokenizer of so many bytes.
    ///
    /// # Errors
    /// If the model cannot take a picture of that size.
    pub fn new<B: KernelBackend>(
        model: &dyn BuiltModel<B>,
        weights: &[StoredWeight],
        tokenizer: usize,
        scenario: &Scenario,
    ) -> Result<Self, ModelError> {
        let takes_images = weights.iter().any(|w| w.spec.part == Part::Vision);
        let visual = match scenario.picture.filter(|_| takes_images) {
            Some(size) => Visual::of_blank_image(model, size)?,
            None => Visual::default(),
        };
        let prompt = visual.tokens + QUESTION_TOKENS;
        Ok(Self::of_prompt(
            model,
            weights,
            tokenizer,
            &visual,
            prompt,
            scenario.context,
        ))
    }

    /// Of a prompt of `prompt` tokens, those of its media included, and a context of at least
    /// `context` positions.
    fn of_prompt<B: KernelBackend>(
        model: &dyn BuiltModel<B>,
        weights: &[StoredWeight],
        tokenizer: usize,
        visual: &Visual,
        prompt: u64,
        context: usize,
    ) -> Self {
        let language = model.language();
        let hidden = language.hidden_size() as u64;
        let vocabulary = language.vocabulary();
        let encoder = PartSums::new(weights, Part::Vision, |_| false);
        let projector = PartSums::new(weights, Part::Projector, |_| false);
        let is_table = |spec: &WeightSpec| spec.rows() == vocabulary;
        let text = PartSums::new(weights, Part::Text, is_table);
        let head = head(weights, vocabulary);

        let context = context.max(prompt as usize).min(language.context_length());
        let cache = language.cache_shape(context).bytes() as u64;
        let prompt = prompt.min(context as u64);

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
            text.bytes + head.bytes + cache_per_token * prompt,
            text.macs + head.macs,
        ));
        Self {
            needs: Needs {
                weights: record + tokenizer,
                cache,
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

/// The weights of a record, for estimates of many requests.
#[derive(Debug, Clone)]
pub struct Holdings {
    weights: Vec<StoredWeight>,
    tokenizer: usize,
}

impl Holdings {
    /// Those of a record whose model declares `specs`.
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

    /// The demand of a model with these weights.
    ///
    /// # Errors
    /// If the model cannot take an image of the scenario's size.
    pub fn demand<B: KernelBackend>(
        &self,
        model: &dyn BuiltModel<B>,
        scenario: &Scenario,
    ) -> Result<Demand, ModelError> {
        Demand::new(model, &self.weights, self.tokenizer, scenario)
    }

    /// The demand of a request with preprocessed media, a prompt of `prompt` tokens and an answer
    /// of up to `max_tokens`.
    pub fn request<B: KernelBackend>(
        &self,
        model: &dyn BuiltModel<B>,
        media: &[MediaInput],
        prompt: usize,
        max_tokens: usize,
    ) -> Demand {
        Demand::of_prompt(
            model,
            &self.weights,
            self.tokenizer,
            &Visual::of_media(media),
            prompt as u64,
            prompt.saturating_add(max_tokens),
        )
    }
}

fn work(stage: &'static str, tokens: u64, bytes: u64, macs: u64) -> Work {
    Work {
        stage,
        tokens,
        bytes,
        macs,
    }
}

/// The output head: of the tables with a row per token one is multiplied with, the other (if they
/// are not the same) only looked up.
fn head(weights: &[StoredWeight], vocabulary: usize) -> PartSums {
    let mut tables = weights
        .iter()
        .filter(|w| w.spec.part == Part::Text && w.spec.rows() == vocabulary);
    tables.next_back().map_or_else(PartSums::default, |table| {
        PartSums::new(std::slice::from_ref(table), Part::Text, |_| false)
    })
}

/// The work that preprocessed media make.
#[derive(Debug, Clone, Copy, Default)]
struct Visual {
    /// Patches of all media.
    patches: u64,
    /// Patches of the largest medium: media are encoded one after the other.
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
        let visual = Self::of_media(&[medium]);
        Ok(Self {
            bytes: visual.bytes + pixels as u64,
            ..visual
        })
    }

    /// Media whose features are held already have no values and cost no encoder work.
    fn of_media(media: &[MediaInput]) -> Self {
        let mut visual = Self::default();
        for medium in media {
            visual.tokens += medium.tokens() as u64;
            if medium.values.is_empty() {
                continue;
            }
            // Families without a grid have about one patch per token or more.
            let patches = medium.grid.iter().product::<usize>().max(medium.tokens()) as u64;
            visual.patches += patches;
            visual.largest = visual.largest.max(patches);
            visual.bytes += (2 * size_of_val(&medium.values[..])) as u64;
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

    fn demand(context: usize, picture: Option<(usize, usize)>) -> Demand {
        Demand::of_record(&record(), &Scenario { context, picture }).expect("a demand")
    }

    #[test]
    fn a_longer_context_needs_more_memory() {
        let (short, long) = (demand(64, None), demand(128, None));
        assert_eq!(2 * short.needs.cache, long.needs.cache);
        assert_eq!(short.needs.weights, long.needs.weights);
    }

    #[test]
    fn a_larger_picture_needs_more_memory_and_work() {
        let (small, large) = (demand(512, Some((56, 56))), demand(512, Some((224, 224))));
        assert!(small.needs.activations < large.needs.activations);
        let vision = |demand: &Demand| demand.stages[0].clone();
        assert_eq!(vision(&small).stage, "vision");
        assert_eq!(vision(&small).bytes, vision(&large).bytes);
        assert!(vision(&small).macs < vision(&large).macs);
    }

    #[test]
    fn stages_without_a_picture_are_the_language_models() {
        let demand = demand(512, None);
        let stages: Vec<&str> = demand.stages.iter().map(|work| work.stage).collect();
        assert_eq!(stages, ["prefill", "decode"]);
        // A token reads the language model, and not all of the record.
        assert!(demand.stages[1].bytes < demand.needs.weights + demand.needs.cache);
        assert_eq!(demand.visual_tokens, 0);
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
