//! Counts of tokens before anything runs: no weight is read.

use edge_lmm_models::families::Registry;
use edge_lmm_models::family::BuiltModel;
use edge_lmm_models::layout::Layout;
use edge_lmm_models::media::{MediaInput, MediaKind, MediaOptions};
use edge_lmm_models::prompt::{Conversation, Message, TextProcessor};
use edge_lmm_models::reduce::{EncoderSize, Reduction, ReductionStep, Reductions, Schedule};

use crate::cost::{CostModel, LanguageCut, Work, choose};
use crate::media::Media;
use crate::session::check_options;
use crate::{Cpu, EngineError, Record};

/// A medium may exceed the context this many times and is still counted.
const MOST_CONTEXTS: usize = 16;

/// Counts the tokens of media and prompts for the model of a record.
pub struct TokenCounter {
    model: Box<dyn BuiltModel<Cpu>>,
    text: TextProcessor,
}

/// A preprocessed medium and what is known about it.
#[derive(Debug, Clone)]
pub struct MediumCount {
    input: MediaInput,
    size: EncoderSize,
    methods: Reductions,
    schedule: Schedule,
}

/// Tokens and times of a prompt with its media.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptCount {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Tokens of the media left after each method of reduction, of all media together.
    pub steps: Vec<ReductionStep>,
    /// Tokens that the later layers of the language model do not process.
    cut: Option<LanguageCut>,
}

impl TokenCounter {
    /// Builds the model of a record without its weights.
    ///
    /// # Errors
    /// If the record does not fit its model.
    pub fn new(record: &Record) -> Result<Self, EngineError> {
        let (model, _) = record.skeleton::<Cpu>(&Registry::default(), &Default::default())?;
        let text = TextProcessor::new(record.tokenizer(), record.template().map(str::to_owned))?;
        Ok(Self {
            model,
            text: text.with_config(&record.info().files.config),
        })
    }

    /// Returns the largest number of positions of a conversation.
    pub fn context_length(&self) -> usize {
        self.model.language().context_length()
    }

    /// Returns `true` if the number of an image's tokens can be chosen.
    pub fn resizes_images(&self) -> bool {
        self.model.resizes_images()
    }

    /// Preprocesses a medium and counts its tokens.
    ///
    /// # Errors
    /// If the model cannot take it, or does not support the options.
    pub fn count(&self, media: &Media, options: &MediaOptions) -> Result<MediumCount, EngineError> {
        check_options(&*self.model, options)?;
        let options = MediaOptions {
            most_tokens: self.context_length().saturating_mul(MOST_CONTEXTS),
            ..options.clone()
        };
        let input = media.prepare(&*self.model, &options)?;
        let size = self.model.encoder_size(&input);
        Ok(MediumCount::new(input, size, options.reductions))
    }

    /// Chooses the chain of methods that reaches the first token within `budget` milliseconds, or the
    /// fastest one, and counts `media` with it.
    ///
    /// # Errors
    /// As [`prompt`](Self::prompt).
    pub fn choose(
        &self,
        media: &mut [MediumCount],
        messages: &[Message],
        costs: &CostModel,
        budget: f64,
    ) -> Result<Reductions, EngineError> {
        let tokens = self.prompt(media, messages)?.tokens;
        let works = media.iter().map(MediumCount::work);
        let chain = choose(costs, &works.collect::<Vec<_>>(), tokens, 0.0, budget).chain;
        for medium in media {
            let (input, size) = (medium.input.clone(), medium.size.clone());
            *medium = MediumCount::new(input, size, chain.clone());
        }
        Ok(chain)
    }

    /// Counts the tokens of a prompt with its media.
    ///
    /// # Errors
    /// If template, tokenizer and media do not fit together.
    pub fn prompt(
        &self,
        media: &[MediumCount],
        messages: &[Message],
    ) -> Result<PromptCount, EngineError> {
        let conversation = Conversation {
            messages,
            tools: &[],
            parse_special: false,
            raw: false,
        };
        let layouts: Vec<&Layout> = media.iter().map(|medium| &medium.input.layout).collect();
        let prompt = self.model.prompt(&self.text, conversation, &layouts)?;
        let dropped = |medium: &MediumCount| medium.input.tokens() - medium.tokens();
        let mut steps: Vec<ReductionStep> = Vec::new();
        for step in media.iter().flat_map(|medium| medium.steps()) {
            match steps.iter_mut().find(|other| other.method == step.method) {
                Some(other) => other.tokens += step.tokens,
                None => steps.push(*step),
            }
        }
        let language = media.iter().find_map(|medium| medium.methods.language());
        let visual: usize = media.iter().map(MediumCount::tokens).sum();
        let mut cut = None;
        if let Some(reduction) = language {
            let layers = self.model.language().decoder_layers();
            let new = LanguageCut::new(reduction, visual, layers.map_or(1, |model| model.layers()));
            steps.push(Reduction::Language(reduction).left(visual - new.dropped));
            cut = Some(new);
        }
        Ok(PromptCount {
            tokens: prompt.ids.len() - media.iter().map(dropped).sum::<usize>(),
            steps,
            cut,
        })
    }
}

impl MediumCount {
    fn new(input: MediaInput, size: EncoderSize, methods: Reductions) -> Self {
        Self {
            schedule: size.schedule(&input, &methods),
            input,
            size,
            methods,
        }
    }

    fn work(&self) -> Work<'_> {
        Work {
            input: &self.input,
            size: self.size.clone(),
        }
    }

    /// Returns the kind of medium.
    pub fn kind(&self) -> MediaKind {
        self.input.kind
    }

    /// Returns the tokens that enter the language model. An encoder that merges units within small
    /// windows may leave a few more.
    pub fn tokens(&self) -> usize {
        self.schedule.tokens
    }

    /// Returns the number left after each method of reduction.
    pub fn steps(&self) -> &[ReductionStep] {
        &self.schedule.steps
    }

    /// Returns the estimated milliseconds to preprocess and encode the medium.
    pub fn encoding(&self, costs: &CostModel) -> f64 {
        let encoding = costs.encoding(self.input.kind, &self.size, &self.schedule);
        costs.preprocessing(&self.input) + encoding
    }

    /// Returns the estimated milliseconds to process the medium's tokens in the language model.
    pub fn prefilling(&self, costs: &CostModel) -> f64 {
        costs.prefilling(self.tokens(), None)
    }
}

impl PromptCount {
    /// Returns the estimated milliseconds to process the prompt.
    pub fn prefilling(&self, costs: &CostModel) -> f64 {
        costs.prefilling(self.tokens, self.cut)
    }
}
