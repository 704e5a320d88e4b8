//! Prompts of a model without its weights.

use edge_lmm::Cpu;
use edge_lmm_models::families::Registry;
use edge_lmm_models::family::BuiltModel;
use edge_lmm_models::layout::Layout;
use edge_lmm_models::media::{MediaKind, MediaOptions};
use edge_lmm_models::preprocess::RgbImage;
use edge_lmm_models::prompt::{Content, Message, Role, TextProcessor};

use crate::plan::{ConvertError, Plan};

/// Width and height of the image.
const SIDE: usize = 64;
/// Sample rate of the sound of one second.
const SAMPLE_RATE: u32 = 16_000;

/// A model and a medium of each kind that it takes.
pub(super) struct Prompts<'a> {
    text: &'a TextProcessor,
    model: Box<dyn BuiltModel<Cpu>>,
    media: Vec<Option<(MediaKind, Layout)>>,
}

impl<'a> Prompts<'a> {
    pub(super) fn new(plan: &Plan, text: &'a TextProcessor) -> Result<Self, ConvertError> {
        let (model, _) = plan
            .info
            .skeleton::<Cpu>(&Registry::default(), &Default::default())?;
        let options = MediaOptions::default();
        let mut media = vec![None];
        if let Ok(image) = RgbImage::new(SIDE, SIDE, vec![128; SIDE * SIDE * 3]) {
            let frames = [image.clone(), image.clone()];
            media.extend([
                model
                    .image(&image, &options)
                    .ok()
                    .map(|m| (m.kind, m.layout)),
                (model.video(&frames, &2.0.into(), &options).ok()).map(|m| (m.kind, m.layout)),
            ]);
        }
        let silence = vec![0.0; SAMPLE_RATE as usize];
        let sound = model.audio(&silence, SAMPLE_RATE, &options).ok();
        media.push(sound.map(|m| (m.kind, m.layout)));
        media.dedup_by(|a, b| a.is_none() && b.is_none());
        Ok(Self { text, model, media })
    }

    /// Returns the tokens of prompts with a question, without a medium and about each kind.
    pub(super) fn tokens(&self, question: &str) -> Vec<u32> {
        let prompt = |medium: &Option<(MediaKind, Layout)>| {
            let mut content: Vec<Content> = (medium.iter())
                .map(|(kind, _)| Content::Media(*kind))
                .collect();
            content.push(Content::Text(question.to_owned()));
            let role = Role::User;
            let messages = [Message { role, content }];
            let layouts: Vec<&Layout> = medium.iter().map(|(_, layout)| layout).collect();
            // A model may need a medium, or not take text alone.
            let prompt = (self.model).prompt(self.text, messages[..].into(), &layouts);
            prompt.map(|prompt| prompt.ids).unwrap_or_default()
        };
        self.media.iter().flat_map(prompt).collect()
    }
}
