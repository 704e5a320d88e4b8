//! Language models without any encoder: what Llama, Qwen2, Phi-3 and Gemma 3 share. Each has a
//! file of its own for what it is; `model_type` of the configuration says which one a checkpoint holds.

use burn::module::Module;
use burn::tensor::Tensor;
use edge_lmm_ops::KernelBackend;
use serde_json::Value;

use crate::error::ModelError;
use crate::family::ModelFiles;
use crate::language::LanguageModel;
use crate::layout::Layout;
use crate::media::MediaInput;
use crate::model::{Encoded, Model};
use crate::monitor::Monitor;
use crate::prompt::{Conversation, Prompt, PromptBuilder, TextProcessor};
use crate::text::config::{TextKind, decoder_config};
use crate::text::decoder::{Decoder, DecoderNames};
use crate::weights::{Part, Weights};

/// Template of checkpoints without a chat template, which were not trained on conversations: the
/// plain text.
const PLAIN_TEMPLATE: &str = "{% for message in messages %}{{ message['content'] }}{% endfor %}";

/// The model.
#[derive(Module, Debug)]
pub struct TextModel<B: KernelBackend> {
    text: Decoder<B>,
}

impl<B: KernelBackend> TextModel<B> {
    /// Declares the weights.
    ///
    /// # Errors
    /// If the configuration makes no model or a weight is missing.
    pub fn init(files: &ModelFiles, weights: &Weights<'_, B>) -> Result<Self, ModelError> {
        let model_type = files.config.get("model_type").and_then(Value::as_str);
        let kind = TextKind::parse(model_type.unwrap_or_default())?;
        let config = decoder_config(kind, &files.config)?;
        let root = weights.root(Part::Text);
        Ok(Self {
            text: Decoder::init_with(config, DecoderNames::TOP, kind.projections(), &root)?,
        })
    }
}

impl<B: KernelBackend> Model<B> for TextModel<B> {
    fn language(&self) -> &dyn LanguageModel<B> {
        &self.text
    }

    fn prompt(
        &self,
        text: &TextProcessor,
        conversation: Conversation<'_>,
        _media: &[&Layout],
    ) -> Result<Prompt, ModelError> {
        let rendered = text.render(conversation, PLAIN_TEMPLATE, |_| String::new())?;
        // A template writes the token that begins a text itself, where it wants one.
        let ids = match text.has_template() {
            true => text.encode(&rendered)?,
            false => text.encode_whole(&rendered)?,
        };
        let mut prompt = PromptBuilder::new();
        prompt.text(&ids);
        Ok(prompt.finish())
    }

    /// Never called: the model prepares no media.
    fn encode(
        &self,
        medium: &MediaInput,
        _monitor: &mut Monitor<'_>,
    ) -> Result<Encoded<B>, ModelError> {
        let embedded = self.text.embed(&[0]);
        let none = Tensor::empty([0, embedded.dims()[1]], &embedded.device());
        Ok(Encoded::new(medium, none))
    }
}
