//! A question about a medium with its answer, as a sample.

use std::path::PathBuf;

use edge_lmm::manifest::{Manifest, Question};
use edge_lmm::{Cpu, Engine, EngineError, Media, MediaOptions, Request, user_message};
use edge_lmm_models::ModelError;
use edge_lmm_models::family::BuiltModel;

use super::pictures::picture;

/// Questions about generated pictures, in turn.
const QUESTIONS: [&str; 4] = [
    "Describe the image.",
    "What is in the picture?",
    "How many objects are there?",
    "What color is the largest object?",
];
/// Fewest and most tokens of a generated picture, for models that resize images.
const TOKENS: (usize, usize) = (16, 256);

/// A question about a medium, and its answer.
#[derive(Debug, Clone)]
pub(crate) struct Example {
    /// Name for messages.
    pub name: String,
    medium: Medium,
    question: String,
    answer: String,
}

#[derive(Debug, Clone)]
enum Medium {
    None,
    File(PathBuf),
    /// A generated picture.
    Picture(u64),
}

/// The work of an example.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ExampleSize {
    /// Rows that enter the encoder.
    pub encoder_rows: usize,
    /// Tokens of the medium that enter the language model.
    pub tokens: usize,
}

impl Example {
    /// Returns a question of a set with its answer.
    pub fn of_question(manifest: &Manifest, question: &Question) -> Self {
        Self {
            name: format!("question {}", question.id),
            medium: (manifest.media_path(question)).map_or(Medium::None, Medium::File),
            question: question.question.clone(),
            answer: question.answer.clone(),
        }
    }

    /// Returns a question about a generated picture, without an answer.
    pub fn picture(number: u64) -> Self {
        Self {
            name: format!("picture {number}"),
            medium: Medium::Picture(number),
            question: QUESTIONS[number as usize % QUESTIONS.len()].to_owned(),
            answer: String::new(),
        }
    }

    /// Preprocesses the medium and returns the size of its work.
    ///
    /// # Errors
    /// If the medium cannot be read, or the model does not take it.
    pub fn size(&self, model: &dyn BuiltModel<Cpu>) -> Result<ExampleSize, EngineError> {
        let Some(medium) = self.open()? else {
            return Ok(ExampleSize::default());
        };
        let options = MediaOptions {
            most_tokens: model.language().context_length(),
            ..self.options(model.resizes_images())
        };
        let input = medium.prepare(model, &options)?;
        let size = model.encoder_size(&input);
        Ok(ExampleSize {
            encoder_rows: size.parts.iter().sum::<usize>() * size.rows,
            tokens: input.tokens(),
        })
    }

    /// Computes the question with its medium and answer, so that an observer or supplier of this
    /// thread sees every weight. A medium that the model does not support is left out with its
    /// question.
    ///
    /// # Errors
    /// If the medium cannot be read, or the question does not fit the model.
    pub fn run(&self, engine: &Engine<Cpu>) -> Result<(), EngineError> {
        let media: Vec<Media> = self.open()?.into_iter().collect();
        let messages = [user_message(&media, &self.question)];
        let request = Request {
            media: &media,
            options: self.options(engine.resizes_images()),
            ..Request::new(&messages)
        };
        let answer = engine.text().encode_text(&self.answer)?;
        match engine.session().score(&request, &answer) {
            Err(EngineError::Model(ModelError::Unsupported { .. })) => {
                log::info!("{}: the model does not support the medium", self.name);
                Ok(())
            }
            outcome => outcome.map(|_| ()),
        }
    }

    fn open(&self) -> Result<Option<Media>, EngineError> {
        Ok(match &self.medium {
            Medium::None => None,
            Medium::File(path) => Some(Media::open(path)?),
            Medium::Picture(number) => Some(Media::image(picture(*number))),
        })
    }

    fn options(&self, resizes_images: bool) -> MediaOptions {
        let is_picture = matches!(self.medium, Medium::Picture(_));
        MediaOptions {
            image_tokens: (is_picture && resizes_images).then_some(TOKENS),
            ..MediaOptions::default()
        }
    }
}
