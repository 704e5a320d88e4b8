//! From a request to embeddings: media, encoders, prompt.

use std::time::Duration;

use burn::tensor::Tensor;
use edge_lmm_models::ModelError;
use edge_lmm_models::family::BuiltModel;
use edge_lmm_models::language::{Injection, LanguageModel, StepInput};
use edge_lmm_models::layout::Layout;
use edge_lmm_models::media::{
    FrameTimes, MediaInput, MediaKind, MediaOptions, VideoFrames, VideoPieces,
};
use edge_lmm_models::model::Encoded;
use edge_lmm_models::monitor::Monitor;
use edge_lmm_models::prompt::{Conversation, Message, Prompt, Span, Tool};
use edge_lmm_models::reduce::language::StepReduction;
use edge_lmm_models::reduce::select::select;
use edge_lmm_models::reduce::{Anchors, LanguageReduction, ReductionStep};
use edge_lmm_ops::{KernelBackend, probe, stage};

use super::budget::Plan;
use super::events::{OnEvent, report};
use super::past::{Past, PastToken, Source};
use super::pieces::encode_pieces;
use super::prompt_choice::PromptChoice;
use crate::error::EngineError;
use crate::features::{MediumKey, MediumPlace, medium_key};
use crate::loaded::LoadedModel;
use crate::media::{Media, MediaData};
use crate::request::{Event, Request};

/// A request whose media are encoded and whose prompt is in tokens.
pub(super) struct Prepared<B: KernelBackend> {
    /// Key of each medium's tokens.
    pub keys: Vec<MediumKey>,
    /// Key of each medium's encoder output.
    output_keys: Vec<MediumKey>,
    /// Choice of each medium's tokens, if it depends on the prompt.
    choices: Vec<Option<PromptChoice>>,
    pub prompt: Prompt,
    /// Tokens left after each method of reduction, of all media together.
    pub reductions: Vec<ReductionStep>,
    /// Options of each medium.
    pub options: Vec<MediaOptions>,
    /// Estimated time to the first token, if the engine has a cost model.
    pub estimate: Option<Duration>,
    /// Media that were encoded, or whose tokens were chosen, for this request.
    encoded: Vec<(MediumKey, Encoded<B>)>,
}

impl<B: KernelBackend> Prepared<B> {
    /// Returns the tokens of the prompt.
    pub fn tokens(&self) -> Vec<PastToken> {
        tokens_of(&self.prompt, &self.keys)
    }

    /// Returns the reduction of the tokens of media from token `from` on.
    ///
    /// # Errors
    /// As [`StepReduction::choose`].
    pub fn reduction(
        &self,
        reduction: LanguageReduction,
        anchors: Option<Anchors>,
        from: usize,
        language: &dyn LanguageModel<B>,
    ) -> Result<StepReduction, ModelError> {
        let spans = self.prompt.spans.iter();
        let media = spans.filter(|span| span.end() > from);
        let media = media.map(|span| span.start.max(from) - from..span.end() - from);
        let positions = &self.prompt.positions[from..];
        StepReduction::choose(reduction, media.collect(), anchors, positions, language)
    }

    /// Returns the end of the last medium; 0 without media.
    pub fn media_end(&self) -> usize {
        self.media_ends().last().copied().unwrap_or(0)
    }

    /// Returns the end of each medium in the prompt, in ascending order.
    pub fn media_ends(&self) -> Vec<usize> {
        let spans = &self.prompt.spans;
        let of_medium = |medium: usize| {
            let own = spans.iter().filter(|span| span.medium == medium);
            own.map(Span::end).max()
        };
        let mut ends: Vec<usize> = (0..self.keys.len()).filter_map(of_medium).collect();
        ends.sort_unstable();
        ends
    }

    /// Returns the run of tokens around token `at` that attend to each other in both directions.
    pub fn bidirectional_run(&self, at: usize) -> Option<&Span> {
        let inside = |span: &&Span| span.bidirectional && span.start < at && at < span.end();
        self.prompt.spans.iter().find(inside)
    }
}

/// Returns the tokens of a prompt whose media have the given keys.
pub(super) fn tokens_of(prompt: &Prompt, keys: &[MediumKey]) -> Vec<PastToken> {
    let ids = prompt.ids.iter().zip(&prompt.positions);
    let mut tokens: Vec<PastToken> = ids
        .map(|(&id, &position)| PastToken {
            id,
            medium: None,
            position,
            next: position[0].saturating_add(1),
        })
        .collect();
    for span in &prompt.spans {
        for token in &mut tokens[span.start..span.end()] {
            token.medium = Some(keys[span.medium]);
            token.next = span.next_position;
        }
    }
    tokens
}

/// Checks that a model supports options that do not depend on a medium.
///
/// # Errors
/// If it does not resize or crop images, or cannot apply a method of reduction.
pub(crate) fn check_options<B: KernelBackend>(
    model: &dyn BuiltModel<B>,
    options: &MediaOptions,
) -> Result<(), ModelError> {
    if options.image_tokens.is_some() && !model.resizes_images() {
        return Err(ModelError::FixedImageTokens);
    }
    if options.pan_and_scan && !model.pans_images() {
        return Err(ModelError::NoPanAndScan);
    }
    if let Some(reduction) = options.reductions.language() {
        reduction.check(model.language())?;
    }
    let needs_rotary = options.reductions.anchors().is_some();
    if needs_rotary && model.language().rotary_means(&[]).is_none() {
        return Err(ModelError::NoRotary);
    }
    Ok(())
}

impl<B: KernelBackend> LoadedModel<B> {
    /// Preprocesses and encodes media and builds the prompt (stages `preprocess`, `vision` or
    /// `audio`, `projector`). A medium that was encoded before is not prepared again. `past` are the
    /// tokens of the current conversation, for the estimate of the time.
    ///
    /// # Errors
    /// If media or prompt do not fit the model, or `on_event` cancels.
    pub(super) fn prepare(
        &self,
        request: &Request<'_>,
        past: &[PastToken],
        on_event: &mut OnEvent<'_>,
    ) -> Result<Prepared<B>, EngineError> {
        self.finish_decoding(request)?;
        let mut preprocess = stage::top("preprocess");
        check_options(&*self.model, &request.options)?;
        self.check_text(request)?;
        let Plan {
            options,
            mut keys,
            mut inputs,
            estimate,
        } = self.plan(request, past)?;
        // A capture is to show what went into the encoder.
        if self.reads_store() {
            drop(preprocess);
            self.load_features(&keys, &options);
            preprocess = stage::top("preprocess");
        }
        let mut places: Vec<MediumPlace> = Vec::with_capacity(request.media.len());
        let mut new_keys: Vec<(MediumKey, &Media, &MediaOptions)> = Vec::new();
        let mut new_inputs: Vec<MediaInput> = Vec::new();
        let mut pieces = Vec::new();
        for ((medium, &key), options) in request.media.iter().zip(&keys).zip(&options) {
            let known = self.known_place(key);
            let again = new_keys.iter().position(|&(new, ..)| new == key);
            places.push(match (known, again) {
                (Some(place), _) => place,
                (None, Some(same)) => before_encoding(&new_inputs[same]),
                (None, None) => {
                    let (input, of_input) = match inputs.remove(&key) {
                        Some(input) => (input, None),
                        None => self.prepare_medium(medium, options)?,
                    };
                    let place = before_encoding(&input);
                    new_keys.push((key, medium, options));
                    new_inputs.push(input);
                    pieces.push(of_input);
                    place
                }
            });
        }
        let inputs = new_inputs;
        // An encoder may drop tokens, so this is an upper bound. A prompt that cannot fit is
        // refused before the encoders run.
        let mut prompt = self.prompt(request, &places)?;
        let event = Event::Prepared {
            prompt_tokens: prompt.ids.len(),
            media: &inputs,
        };
        if on_event(event).is_break() {
            return Err(ModelError::Canceled.into());
        }
        drop(preprocess);
        let mut encoded = Vec::with_capacity(inputs.len());
        let mut changed = false;
        for ((&(before, medium, options), input), pieces) in
            new_keys.iter().zip(&inputs).zip(&pieces)
        {
            let input = (input, pieces.as_ref());
            let (key, medium) = self.encode(medium, input, options, on_event)?;
            let new = MediumPlace::of(&medium);
            let all = places.iter_mut().zip(&mut keys);
            for (place, other) in all.filter(|(_, other)| **other == before) {
                changed |= place.layout != new.layout;
                place.clone_from(&new);
                // A video that is decoded while it is encoded has its key only now.
                *other = key;
            }
            encoded.push((key, medium));
        }
        // A video may have been decoded, and found in the cache, after the first look at it.
        for medium in request.media {
            finish(medium, Duration::ZERO)?;
        }
        if changed {
            prompt = self.prompt(request, &places)?;
        }
        let prepared = Prepared {
            choices: self.prompt_choices(request, &options, &keys, &prompt)?,
            output_keys: keys.clone(),
            keys,
            prompt,
            reductions: Vec::new(),
            options,
            estimate,
            encoded,
        };
        let prepared = self.choose(prepared, places, request, on_event)?;
        log::debug!(
            "prompt: {} tokens, {} of them of {} media",
            prepared.prompt.ids.len(),
            prepared.prompt.visual_tokens(),
            prepared.keys.len()
        );
        capture_inputs(&inputs, &prepared.prompt);
        Ok(prepared)
    }

    /// Applies the choices that depend on the prompt.
    fn choose(
        &self,
        mut prepared: Prepared<B>,
        mut places: Vec<MediumPlace>,
        request: &Request<'_>,
        on_event: &mut OnEvent<'_>,
    ) -> Result<Prepared<B>, EngineError> {
        for (medium, place) in places.iter_mut().enumerate() {
            let Some(choice) = &prepared.choices[medium] else {
                continue;
            };
            prepared.keys[medium] = choice.key;
            *place = match self.known_place(choice.key) {
                Some(known) => known,
                None => {
                    let chosen = self.encoded(&prepared, medium, request, on_event)?;
                    let new = MediumPlace::of(&chosen);
                    prepared.encoded.push((prepared.keys[medium], chosen));
                    new
                }
            };
        }
        if prepared.choices.iter().any(Option::is_some) {
            prepared.prompt = self.prompt(request, &places)?;
        }
        prepared.reductions = sum_of(&places);
        Ok(prepared)
    }

    pub(super) fn options(&self, request: &Request<'_>) -> MediaOptions {
        MediaOptions {
            most_tokens: self.model.language().context_length(),
            ..request.options.clone()
        }
    }

    /// Returns the place of a medium that was encoded before. A capture shows the encoder's input,
    /// so that every medium is encoded for it.
    pub(super) fn known_place(&self, key: MediumKey) -> Option<MediumPlace> {
        self.features().place(key).filter(|_| !probe::active())
    }

    /// Waits for videos that are still decoded by a thread, except for those that are encoded
    /// meanwhile.
    fn finish_decoding(&self, request: &Request<'_>) -> Result<(), EngineError> {
        let options = self.options(request);
        for medium in request.media {
            let pieces = match medium.undecoded() {
                // The choice of methods needs all media, a capture the values of the whole.
                Some((frames, rate))
                    if options.overlap
                        && options.first_token_budget.is_none()
                        && !probe::active() =>
                {
                    self.model.video_pieces(frames, rate, &options)
                }
                _ => Ok(None),
            };
            // An error of preparation comes after one of decoding.
            if !matches!(pieces, Ok(Some(_))) {
                finish(medium, Duration::ZERO)?;
            }
        }
        Ok(())
    }

    /// Prepares a medium; a video, if possible, in pieces while it is encoded.
    fn prepare_medium<'a>(
        &'a self,
        medium: &'a Media,
        options: &MediaOptions,
    ) -> Result<(MediaInput, Option<VideoPieces<'a>>), ModelError> {
        // A capture has the values of the whole.
        if options.overlap
            && !probe::active()
            && let Some((frames, times)) = video(medium)
            && let Some((input, pieces)) = self.model.video_pieces(frames, times, options)?
        {
            return Ok((input, Some(pieces)));
        }
        Ok((medium.prepare(&*self.model, options)?, None))
    }

    /// Runs the encoder, chooses tokens, and keeps them for later requests under the key that is
    /// returned with them.
    fn encode(
        &self,
        medium: &Media,
        (input, pieces): (&MediaInput, Option<&VideoPieces<'_>>),
        options: &MediaOptions,
        on_event: &mut OnEvent<'_>,
    ) -> Result<(MediumKey, Encoded<B>), EngineError> {
        let stage = match input.kind {
            MediaKind::Image | MediaKind::Video => "vision",
            MediaKind::Audio => "audio",
        };
        let encoded = {
            let mut report = report(stage, on_event);
            let monitor = &mut Monitor::new(&mut report);
            match pieces {
                Some(pieces) => {
                    let find = self.find_decoded(medium, options);
                    let outcome = encode_pieces(&*self.model, pieces, find, monitor);
                    let video = outcome.map_err(|error| failure(medium, error))?;
                    finish(medium, video.waited)?;
                    if video.is_found {
                        return Ok((medium_key(medium, options), video.encoded));
                    }
                    video.encoded
                }
                None => self.model.encode(input, monitor)?,
            }
        };
        let key = medium_key(medium, options);
        let encoded = {
            let _stage = stage::top("projector");
            let mut report = report("projector", on_event);
            select(encoded, input.kind, options, &mut Monitor::new(&mut report))?
        };
        probe::capture("features", &encoded.features);
        self.features().insert(key, encoded.clone());
        if is_stored(options) {
            self.store_features(key, &encoded);
        }
        Ok((key, encoded))
    }

    /// Returns a search for the encoder output of a video that is not decoded yet: its key is known
    /// at the end of its decoding.
    fn find_decoded(
        &self,
        medium: &Media,
        options: &MediaOptions,
    ) -> impl FnMut() -> Option<Encoded<B>> {
        let mut is_unknown = medium.undecoded().is_some();
        move || {
            if !is_unknown || medium.undecoded().is_some() {
                return None;
            }
            is_unknown = false;
            let key = medium_key(medium, options);
            let load = || is_stored(options).then(|| self.load_encoded(key)).flatten();
            let held = self.features().get(key);
            held.or_else(load)
        }
    }

    /// Rejects text that cannot fit before it is tokenized, as that takes many times the memory of
    /// the text.
    fn check_text(&self, request: &Request<'_>) -> Result<(), EngineError> {
        let messages = request.messages.iter().map(Message::text_len);
        let bytes: usize = messages
            .chain(request.tools.iter().map(Tool::text_len))
            .sum();
        let context = self.model.language().context_length();
        // Four bytes per token are common; only beyond that are the tokens looked at.
        let fits = |longest: usize| bytes <= context.saturating_mul(longest);
        match fits(4) || fits(self.text.longest_token()) {
            true => Ok(()),
            false => Err(EngineError::TextTooLong { bytes, context }),
        }
    }

    /// Builds the prompt with its media and checks it against the model.
    pub(super) fn prompt(
        &self,
        request: &Request<'_>,
        places: &[MediumPlace],
    ) -> Result<Prompt, EngineError> {
        let conversation = Conversation {
            messages: request.messages,
            tools: request.tools,
            parse_special: request.parse_special,
            raw: request.raw,
        };
        let layouts: Vec<&Layout> = places.iter().map(|place| &place.layout).collect();
        let prompt = self.model.prompt(&self.text, conversation, &layouts)?;
        let (tokens, language) = (prompt.ids.len(), self.model.language());
        let (context, vocabulary) = (language.context_length(), language.vocabulary());
        if tokens == 0 {
            return Err(ModelError::Prompt("it is empty".to_owned()).into());
        }
        if tokens >= context {
            return Err(EngineError::TooLong {
                tokens,
                visual: prompt.visual_tokens(),
                context,
            });
        }
        match prompt.ids.iter().find(|&&id| id as usize >= vocabulary) {
            Some(&id) => Err(EngineError::TokenOutOfRange { id, vocabulary }),
            None => Ok(prompt),
        }
    }

    /// Embeds the prompt's tokens from token `from` on. If `sources` are asked for, the features of
    /// the runs among them are appended.
    pub(super) fn embed<'p>(
        &self,
        prepared: &'p Prepared<B>,
        from: usize,
        mut sources: Option<&mut Vec<Source<B>>>,
        request: &Request<'_>,
        on_event: &mut OnEvent<'_>,
    ) -> Result<StepInput<'p, B>, EngineError> {
        let (prompt, language) = (&prepared.prompt, self.model.language());
        let (mut parts, mut injections) = (Vec::new(), Vec::new());
        let mut bidirectional = Vec::new();
        let mut at = from;
        for span in prompt.spans.iter().filter(|span| span.end() > from) {
            if span.start > at {
                parts.push(language.embed(&prompt.ids[at..span.start]));
                at = span.start;
            }
            let encoded = self.encoded(prepared, span.medium, request, on_event)?;
            let (first, count) = (span.row + at - span.start, span.end() - at);
            let rows = |features: &Tensor<B, 2>| features.clone().narrow(0, first, count);
            parts.push(rows(&encoded.features));
            injections.extend(encoded.deep.iter().map(|(layer, features)| Injection {
                layer: *layer,
                token: at - from,
                features: rows(features),
            }));
            if span.bidirectional {
                bidirectional.push(at - from..span.end() - from);
            }
            if let Some(sources) = &mut sources {
                sources.push(Source::new(*span, &encoded));
            }
            at = span.end();
        }
        if at < prompt.ids.len() {
            parts.push(language.embed(&prompt.ids[at..]));
        }
        Ok(StepInput {
            injections,
            bidirectional,
            ..StepInput::new(Tensor::cat(parts, 0), &prompt.positions[from..])
        })
    }

    /// Returns the features of the runs before token `end` that `past` does not know.
    pub(super) fn missing_sources(
        &self,
        prepared: &Prepared<B>,
        past: &Past<B>,
        end: usize,
        request: &Request<'_>,
        on_event: &mut OnEvent<'_>,
    ) -> Result<Vec<Source<B>>, EngineError> {
        let spans = prepared.prompt.spans.iter();
        let missing = spans.filter(|span| span.end() <= end && !past.has_source(span));
        missing
            .map(|span| {
                let encoded = self.encoded(prepared, span.medium, request, on_event)?;
                Ok(Source::new(*span, &encoded))
            })
            .collect()
    }

    /// Returns the tokens of a medium; chooses them again if their features were dropped from the
    /// cache.
    fn encoded(
        &self,
        prepared: &Prepared<B>,
        medium: usize,
        request: &Request<'_>,
        on_event: &mut OnEvent<'_>,
    ) -> Result<Encoded<B>, EngineError> {
        let Some(choice) = &prepared.choices[medium] else {
            return self.output(prepared, medium, request, on_event);
        };
        if let Some(held) = self.held(prepared, choice.key) {
            return Ok(held);
        }
        let output = self.output(prepared, medium, request, on_event)?;
        let kind = request.media[medium].kind();
        let options = &prepared.options[medium];
        Ok(self.choose_for_prompt(output, choice, kind, options, on_event)?)
    }

    /// Returns the features under a key that this request made or the cache has.
    fn held(&self, prepared: &Prepared<B>, key: MediumKey) -> Option<Encoded<B>> {
        let fresh = prepared.encoded.iter().find(|(new, _)| *new == key);
        let fresh = fresh.map(|(_, encoded)| encoded.clone());
        fresh.or_else(|| self.features().get(key))
    }

    /// Returns the encoder output of a medium; reads it or encodes it again if its features were
    /// dropped from the cache.
    fn output(
        &self,
        prepared: &Prepared<B>,
        medium: usize,
        request: &Request<'_>,
        on_event: &mut OnEvent<'_>,
    ) -> Result<Encoded<B>, EngineError> {
        let (key, options) = (prepared.output_keys[medium], &prepared.options[medium]);
        let load = || is_stored(options).then(|| self.load_encoded(key)).flatten();
        match self.held(prepared, key).or_else(load) {
            Some(encoded) => Ok(encoded),
            None => {
                let (input, pieces) = {
                    let _stage = stage::top("preprocess");
                    self.prepare_medium(&request.media[medium], options)?
                };
                let medium = &request.media[medium];
                let input = (&input, pieces.as_ref());
                Ok(self.encode(medium, input, options, on_event)?.1)
            }
        }
    }
}

/// Returns the frames of a video and their times.
fn video(medium: &Media) -> Option<(&dyn VideoFrames, &FrameTimes)> {
    let decoded = || match medium.data() {
        MediaData::Video { frames, times } => Some((frames as &dyn VideoFrames, times)),
        _ => None,
    };
    medium.undecoded().or_else(decoded)
}

/// Waits until a video is decoded, after a wait of `waited` for its frames.
#[cfg(feature = "files")]
fn finish(medium: &Media, waited: Duration) -> Result<(), EngineError> {
    Ok(medium.finish_after(waited)?)
}

/// Without files, all media are decoded.
#[cfg(not(feature = "files"))]
fn finish(_medium: &Media, _waited: Duration) -> Result<(), EngineError> {
    Ok(())
}

/// Returns the error of decoding a video that caused an error of encoding it, if there is one.
fn failure(medium: &Media, error: ModelError) -> EngineError {
    #[cfg(feature = "files")]
    if let (ModelError::Undecoded, Some(failure)) = (&error, medium.failure()) {
        return failure.into();
    }
    #[cfg(not(feature = "files"))]
    let _ = medium;
    error.into()
}

/// Returns `true` if the encoder output of a medium is kept in the store, which has no attention.
pub(super) fn is_stored(options: &MediaOptions) -> bool {
    !options.reductions.of_prompt().needs_attention()
}

/// Returns the place of a medium whose encoder drops nothing.
pub(super) fn before_encoding(input: &MediaInput) -> MediumPlace {
    MediumPlace {
        layout: input.layout.clone(),
        steps: Vec::new(),
    }
}

/// Adds up the steps of all media by method.
fn sum_of(places: &[MediumPlace]) -> Vec<ReductionStep> {
    let mut sum: Vec<ReductionStep> = Vec::new();
    for step in places.iter().flat_map(|place| &place.steps) {
        match sum.iter_mut().find(|other| other.method == step.method) {
            Some(other) => other.tokens += step.tokens,
            None => sum.push(*step),
        }
    }
    sum
}

/// Captures the inputs of the model, for comparison with a reference.
fn capture_inputs(media: &[MediaInput], prompt: &Prompt) {
    if !probe::active() {
        return;
    }
    let as_floats = |values: &[u32]| -> Vec<f32> { values.iter().map(|&v| v as f32).collect() };
    probe::capture_values("input_ids", &[prompt.ids.len()], &as_floats(&prompt.ids));
    for axis in 0..3 {
        let axis: Vec<f32> = prompt.positions.iter().map(|p| p[axis] as f32).collect();
        probe::capture_values("position_ids", &[1, axis.len()], &axis);
    }
    let delta = prompt.next_position as f32 - prompt.ids.len() as f32;
    probe::capture_values("rope_delta", &[1, 1], &[delta]);
    for (i, medium) in media.iter().enumerate() {
        if medium.kind != MediaKind::Audio && medium.grid != [0; 3] {
            probe::capture_values("grid_thw", &[1, 3], &medium.grid.map(|n| n as f32));
        }
        let name = match medium.kind {
            // Sounds without padding differ in length, so that they make no tensor together.
            MediaKind::Audio if medium.shape != media[0].shape => format!("input_features_{i}"),
            MediaKind::Audio => "input_features".to_owned(),
            MediaKind::Image | MediaKind::Video => "pixel_values".to_owned(),
        };
        probe::capture_values(&name, &medium.shape, &medium.values);
    }
}
