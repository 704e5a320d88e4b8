//! Requests from Python objects.

use edge_lmm::reduce::Reductions;
use edge_lmm::sampler::Sampling;
use edge_lmm::{AudioPadding, Content, Device, MediaOptions, Message, Request, Role, Speculation};
use pyo3::prelude::*;

use crate::error::{InputError, input_error};
use crate::media::Media;

/// A part of a message.
#[derive(FromPyObject)]
pub enum Part<'py> {
    /// Text.
    Text(String),
    /// An image, video or sound.
    Medium(Bound<'py, Media>),
}

/// Settings of a request: the items of the dictionary `Settings`.
#[derive(FromPyObject)]
pub struct Settings {
    #[pyo3(item)]
    max_tokens: usize,
    #[pyo3(item, default)]
    ignore_eos: bool,
    #[pyo3(item, default)]
    temperature: f32,
    #[pyo3(item, default)]
    top_k: usize,
    #[pyo3(item, default)]
    top_p: Option<f32>,
    #[pyo3(item, default)]
    min_p: f32,
    #[pyo3(item, default)]
    seed: u64,
    #[pyo3(item, default)]
    repetition_penalty: Option<f32>,
    #[pyo3(item, default)]
    presence_penalty: f32,
    #[pyo3(item, default)]
    frequency_penalty: f32,
    #[pyo3(item, default)]
    ignore_generation_config: bool,
    #[pyo3(item, default)]
    stop: Vec<String>,
    #[pyo3(item, default)]
    parse_special: bool,
    #[pyo3(item, default)]
    image_tokens: Option<(usize, usize)>,
    #[pyo3(item, default)]
    reduce: Option<String>,
    #[pyo3(item, default)]
    pad_audio: bool,
    #[pyo3(item, default)]
    speculate: Option<String>,
    #[pyo3(item, default)]
    timing: bool,
}

/// A request that owns its parts.
pub struct OwnedRequest {
    messages: Vec<Message>,
    media: Vec<edge_lmm::Media>,
    options: MediaOptions,
    sampling: Sampling,
    speculation: Speculation,
    settings: Settings,
}

impl OwnedRequest {
    /// Takes messages, each of a role and its parts, and settings, for a model on `device`.
    ///
    /// # Errors
    /// `InputError` for an unknown role, or a setting out of its range.
    pub fn new(
        messages: Vec<(String, Vec<Part<'_>>)>,
        settings: Settings,
        device: Device,
    ) -> PyResult<Self> {
        let mut media = Vec::new();
        let messages = messages
            .into_iter()
            .map(|(role, parts)| message(&role, parts, &mut media))
            .collect::<PyResult<Vec<_>>>()?;
        let sampling = settings.sampling();
        sampling.check().map_err(input_error)?;
        Ok(Self {
            messages,
            media,
            options: settings.media_options()?,
            sampling,
            speculation: settings.speculation(device)?,
            settings,
        })
    }

    /// Returns the request.
    pub fn request(&self) -> Request<'_> {
        Request {
            media: &self.media,
            options: self.options.clone(),
            max_tokens: self.max_tokens(),
            ignore_eos: self.settings.ignore_eos,
            sampling: self.sampling.clone(),
            stop: &self.settings.stop,
            parse_special: self.settings.parse_special,
            speculation: self.speculation,
            timing: self.settings.timing,
            ..Request::new(&self.messages)
        }
    }

    /// Returns the largest number of tokens to generate.
    pub fn max_tokens(&self) -> usize {
        self.settings.max_tokens
    }

    /// Returns the text of the last message.
    pub fn prompt(&self) -> String {
        let last = self.messages.last().into_iter();
        let parts = last.flat_map(|message| &message.content);
        parts.filter_map(Content::as_text).collect()
    }
}

fn message(
    role: &str,
    parts: Vec<Part<'_>>,
    media: &mut Vec<edge_lmm::Media>,
) -> PyResult<Message> {
    let role = [Role::System, Role::User, Role::Assistant]
        .into_iter()
        .find(|known| known.as_str() == role)
        .ok_or_else(|| {
            InputError::new_err(format!(
                "unknown role {role:?}: expected system, user or assistant"
            ))
        })?;
    let content = parts.into_iter().map(|part| match part {
        Part::Text(text) => Content::Text(text),
        Part::Medium(medium) => {
            let medium = &medium.get().0;
            media.push(medium.clone());
            Content::Media(medium.kind())
        }
    });
    Ok(Message {
        role,
        content: content.collect(),
    })
}

impl Settings {
    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p,
            seed: self.seed,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            ignore_generation_config: self.ignore_generation_config,
        }
    }

    fn speculation(&self, device: Device) -> PyResult<Speculation> {
        match &self.speculate {
            Some(text) => text
                .parse::<Speculation>()
                .map_err(|error| InputError::new_err(format!("speculate is {text:?}, {error}"))),
            None => Ok(Speculation::default_on(device)),
        }
    }

    fn media_options(&self) -> PyResult<MediaOptions> {
        if let Some((least, most)) = self.image_tokens
            && !(0 < least && least <= most)
        {
            return Err(InputError::new_err(format!(
                "image_tokens is ({least}, {most}), expected (MIN, MAX) with 0 < MIN <= MAX, for \
                 example (64, 576)"
            )));
        }
        let reductions = self.reduce.as_deref().map(str::parse::<Reductions>);
        let reductions = reductions.transpose();
        Ok(MediaOptions {
            image_tokens: self.image_tokens,
            audio_padding: match self.pad_audio {
                true => AudioPadding::Window,
                false => AudioPadding::None,
            },
            reductions: reductions.map_err(input_error)?.unwrap_or_default(),
            seed: self.seed,
            ..MediaOptions::default()
        })
    }
}
