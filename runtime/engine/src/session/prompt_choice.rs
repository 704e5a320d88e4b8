//! Choices of the tokens of media that depend on the prompt: on the question about a medium, or on
//! the positions of its tokens.
//!
//! The encoder output that they choose from is cached under the key of the medium, their result under
//! a key of its own. Tokens of the conversation carry that key, so that another question about the
//! same medium is computed from the medium on, and a further turn continues the conversation.

use edge_lmm_models::ModelError;
use edge_lmm_models::layout::Position;
use edge_lmm_models::media::{MediaKind, MediaOptions};
use edge_lmm_models::model::Encoded;
use edge_lmm_models::monitor::Monitor;
use edge_lmm_models::prompt::{Message, Prompt};
use edge_lmm_models::reduce::select::{PromptContext, select_for_prompt};
use edge_lmm_ops::{KernelBackend, stage};

use super::events::{OnEvent, report};
use crate::error::EngineError;
use crate::features::{MediumKey, choice_key};
use crate::loaded::LoadedModel;
use crate::request::Request;

/// Inputs that the choice of a medium's tokens depends on.
#[derive(Debug, Clone)]
pub(super) struct PromptChoice {
    /// Key of the result.
    pub key: MediumKey,
    /// Tokens of the question.
    question: Vec<u32>,
    /// Positions of all tokens of the encoder output in the prompt.
    positions: Vec<Position>,
}

impl<B: KernelBackend> LoadedModel<B> {
    /// Returns the choices of all media; `None` for a medium whose tokens do not depend on the
    /// prompt. `keys` are those of the encoder outputs that `prompt` has.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub(super) fn prompt_choices(
        &self,
        request: &Request<'_>,
        options: &[MediaOptions],
        keys: &[MediumKey],
        prompt: &Prompt,
    ) -> Result<Vec<Option<PromptChoice>>, EngineError> {
        let questions = questions(request.messages);
        let vocabulary = self.model.language().vocabulary();
        let choice = |(medium, options): (usize, &MediaOptions)| {
            let methods = options.reductions.of_prompt();
            let is_sound = request.media[medium].kind() == MediaKind::Audio;
            if methods.is_empty() || is_sound {
                return Ok(None);
            }
            let mut question = match questions.get(medium) {
                Some(text) if methods.asks_question() => self.text.encode_text(text)?,
                _ => Vec::new(),
            };
            question.retain(|&id| (id as usize) < vocabulary);
            let positions = positions_of(prompt, medium);
            Ok(Some(PromptChoice {
                key: choice_key(keys[medium], &methods, &question, &positions),
                question,
                positions,
            }))
        };
        options.iter().enumerate().map(choice).collect()
    }

    /// Chooses tokens of an encoder output and keeps the result for later requests.
    ///
    /// # Errors
    /// If the model lacks what a method needs, or `on_event` cancels.
    pub(super) fn choose_for_prompt(
        &self,
        output: Encoded<B>,
        choice: &PromptChoice,
        kind: MediaKind,
        options: &MediaOptions,
        on_event: &mut OnEvent<'_>,
    ) -> Result<Encoded<B>, ModelError> {
        let _stage = stage::top("projector");
        let language = self.model.language();
        let question = match choice.question.is_empty() {
            true => None,
            false => Some(language.embed(&choice.question)),
        };
        let prompt = PromptContext {
            question: question.as_ref(),
            positions: &choice.positions,
        };
        let mut report = report("projector", on_event);
        let monitor = &mut Monitor::new(&mut report);
        let chosen = select_for_prompt(output, kind, options, prompt, language, monitor)?;
        self.features().insert(choice.key, chosen.clone());
        Ok(chosen)
    }
}

/// Returns the question about each medium: the text of the message that shows it, or of the next
/// message that has text.
fn questions(messages: &[Message]) -> Vec<String> {
    let mut questions = Vec::new();
    for (i, message) in messages.iter().enumerate() {
        let mut texts = messages[i..].iter().map(Message::joined_text);
        let question = texts.find(|text| !text.trim().is_empty());
        let question = question.unwrap_or_default();
        questions.extend(std::iter::repeat_n(question, message.media()));
    }
    questions
}

/// Returns the position of each token of a medium, in the order of its features.
fn positions_of(prompt: &Prompt, medium: usize) -> Vec<Position> {
    let mut spans: Vec<_> = prompt.spans.iter().collect();
    spans.retain(|span| span.medium == medium);
    spans.sort_by_key(|span| span.row);
    let positions = spans.iter().map(|span| span.start..span.end());
    positions
        .flat_map(|tokens| &prompt.positions[tokens])
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use edge_lmm_models::prompt::{Content, Role};

    use super::*;

    #[test]
    fn the_question_about_a_medium_is_the_text_beside_or_after_it() {
        let message = |content: &[Content]| Message {
            role: Role::User,
            content: content.to_vec(),
        };
        let (image, text) = (Content::Media(MediaKind::Image), |text: &str| {
            Content::Text(text.to_owned())
        });
        let messages = [
            message(&[image.clone(), text("what?"), image.clone()]),
            message(std::slice::from_ref(&image)),
            message(&[text("and "), text("this?")]),
            message(std::slice::from_ref(&image)),
        ];
        assert_eq!(questions(&messages), ["what?", "what?", "and \nthis?", ""]);
    }
}
