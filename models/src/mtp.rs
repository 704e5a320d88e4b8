//! Multi-token prediction (DeepSeek-AI 2024, [arXiv:2412.19437](https://arxiv.org/abs/2412.19437),
//! section 2.2): a layer that drafts the tokens after the next one.
//!
//! For each token, the layer takes the model's hidden state of that token and the embedding of the
//! token after it. Its output, scored by the model's head, predicts the token after both. Its own
//! output can take the place of the model's hidden state, so that it drafts any number of tokens. It
//! has keys and values of its own.

use burn::tensor::Tensor;
use edge_lmm_ops::{CacheError, CacheShape, KernelBackend, KvStore, argmax};

use crate::error::ModelError;
use crate::language::{LanguageModel, OutputRows, reserved_bytes};
use crate::layout::Position;

/// Tokens that may wait for the layer when further ones come.
const MOST_WAITING: usize = 64;

/// The layer of a language model that predicts further tokens.
pub trait MtpLayer<B: KernelBackend> {
    /// Returns the shape of a cache for `capacity` tokens.
    fn cache_shape(&self, capacity: usize) -> CacheShape;

    /// Processes tokens at `positions` and appends them to the cache. Returns the normalized hidden
    /// states of the last one or of all, for [`LanguageModel::logits`].
    ///
    /// # Shapes
    /// - hidden: normalized hidden states of the tokens, `[tokens, hidden_size]`
    /// - next: embeddings of the tokens after them, `[tokens, hidden_size]`
    /// - result: `[1, hidden_size]` or `[tokens, hidden_size]`
    fn forward(
        &self,
        hidden: Tensor<B, 2>,
        next: Tensor<B, 2>,
        positions: &[Position],
        output: OutputRows,
        cache: &mut B::KvCache,
    ) -> Tensor<B, 2>;
}

/// State of an [`MtpLayer`] that follows a conversation.
///
/// The layer processes a token when the token after it is known, so that the last one always waits.
/// Others wait for the next draft, or until many of them can be processed together.
pub struct MtpState<B: KernelBackend> {
    cache: B::KvCache,
    waiting: Option<Waiting<B>>,
}

/// The last tokens of a conversation.
#[derive(Clone)]
struct Waiting<B: KernelBackend> {
    /// `[tokens, hidden_size]`
    hidden: Tensor<B, 2>,
    /// `[tokens, hidden_size]`
    embeddings: Tensor<B, 2>,
    positions: Vec<Position>,
}

impl<B: KernelBackend> Waiting<B> {
    fn len(&self) -> usize {
        self.positions.len()
    }

    /// Returns the tokens from `first` on, `count` in number.
    fn part(&self, first: usize, count: usize) -> Self {
        Self {
            hidden: self.hidden.clone().narrow(0, first, count),
            embeddings: self.embeddings.clone().narrow(0, first, count),
            positions: self.positions[first..first + count].to_vec(),
        }
    }

    fn append(&mut self, other: Self) {
        let join = |a: &Tensor<B, 2>, b| Tensor::cat(vec![a.clone(), b], 0);
        self.hidden = join(&self.hidden, other.hidden);
        self.embeddings = join(&self.embeddings, other.embeddings);
        self.positions.extend(other.positions);
    }
}

impl<B: KernelBackend> MtpState<B> {
    /// Creates the state of a layer that follows a conversation from here on, with memory for
    /// `capacity` tokens.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new(
        layer: &dyn MtpLayer<B>,
        capacity: usize,
        device: &B::Device,
    ) -> Result<Self, CacheError> {
        Ok(Self {
            cache: B::kv_cache(layer.cache_shape(capacity), device)?,
            waiting: None,
        })
    }

    /// Returns the number of tokens that the next draft has to process first.
    pub fn waiting(&self) -> usize {
        self.waiting.as_ref().map_or(0, Waiting::len)
    }

    /// Takes tokens of the conversation in. They wait; `layer` processes those that have waited if they
    /// are many.
    ///
    /// # Shapes
    /// - hidden: normalized hidden states, embeddings: `[tokens, hidden_size]`
    pub fn push(
        &mut self,
        layer: &dyn MtpLayer<B>,
        hidden: Tensor<B, 2>,
        embeddings: Tensor<B, 2>,
        positions: &[Position],
    ) {
        let new = Waiting {
            hidden,
            embeddings,
            positions: positions.to_vec(),
        };
        if self.waiting() > MOST_WAITING {
            self.process(layer, OutputRows::Last);
        }
        match &mut self.waiting {
            Some(waiting) => waiting.append(new),
            None => self.waiting = Some(new),
        }
    }

    /// Lets the layer process the waiting tokens except for the last one. The rows of the output,
    /// which is not used, matter to observers of products only.
    pub fn process(&mut self, layer: &dyn MtpLayer<B>, output: OutputRows) {
        let Some(waiting) = self.waiting.take_if(|waiting| waiting.len() > 1) else {
            return;
        };
        let known = waiting.len() - 1;
        let tokens = waiting.part(0, known);
        let next = waiting.part(1, known).embeddings;
        let positions = &tokens.positions;
        layer.forward(tokens.hidden, next, positions, output, &mut self.cache);
        self.waiting = Some(waiting.part(known, 1));
    }

    /// Removes the last `count` tokens. Returns `false` if the layer has processed some of them; the
    /// state is then of no use any more.
    #[must_use]
    pub fn remove_last(&mut self, count: usize) -> bool {
        let Some(waiting) = &mut self.waiting else {
            return count == 0;
        };
        let Some(left) = waiting.len().checked_sub(count).filter(|&left| left > 0) else {
            return false;
        };
        *waiting = waiting.part(0, left);
        true
    }

    /// Returns the most likely tokens after the token `next` at position `at`, which follows the
    /// conversation: `count` in number, or fewer if a score is not a number. `language` is the model
    /// of the layer. There must be room for `count` tokens.
    ///
    /// # Errors
    /// If the device fails.
    pub fn draft<L: LanguageModel<B> + ?Sized>(
        &mut self,
        language: &L,
        (next, at): (u32, u32),
        count: usize,
    ) -> Result<Vec<u32>, ModelError> {
        let (Some(layer), Some(waiting)) = (language.mtp(), &self.waiting) else {
            return Ok(Vec::new());
        };
        let known = waiting.len() - 1;
        let mut embeddings = language.embed(&[next]);
        if known > 0 {
            let others = waiting.part(1, known).embeddings;
            embeddings = Tensor::cat(vec![others, embeddings], 0);
        }
        let (hidden, positions) = (waiting.hidden.clone(), &waiting.positions);
        let (output, cache) = (OutputRows::Last, &mut self.cache);
        let mut hidden = layer.forward(hidden, embeddings, positions, output, cache);
        // The last token waits for its real successor.
        let processed = cache.len() - 1;
        self.waiting = Some(waiting.part(known, 1));
        let mut draft = Vec::with_capacity(count);
        for at in at.. {
            let best = argmax(language.logits(hidden.clone()));
            let Some(id) = best.map_err(|error| ModelError::Compute(error.to_string()))? else {
                break;
            };
            draft.push(id);
            if draft.len() >= count {
                break;
            }
            hidden = layer.forward(hidden, language.embed(&[id]), &[[at; 3]], output, cache);
        }
        cache.truncate(processed);
        Ok(draft)
    }

    /// Makes room for `capacity` tokens.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn grow(&mut self, capacity: usize) -> Result<(), CacheError> {
        self.cache.grow(capacity)
    }

    /// Returns an independent copy.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn fork(&self) -> Result<Self, CacheError> {
        Ok(Self {
            cache: self.cache.fork()?,
            waiting: self.waiting.clone(),
        })
    }

    /// Returns the bytes of keys and values that are reserved and not in use yet.
    pub fn reserved_bytes(&self) -> usize {
        reserved_bytes(&self.cache)
    }

    /// Returns the allocated bytes.
    pub fn bytes(&self) -> usize {
        let elements = |waiting: &Waiting<B>| 2 * waiting.hidden.shape().num_elements();
        self.cache.bytes() + self.waiting.as_ref().map_or(0, elements) * size_of::<f32>()
    }
}
