//! Options of the media of a request: their reduction is given, or chosen for a time limit.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::Duration;

use edge_lmm_models::media::{MediaInput, MediaOptions};
use edge_lmm_models::reduce::Reductions;
use edge_lmm_ops::KernelBackend;

use super::past::PastToken;
use super::prepare::{before_encoding, tokens_of};
use crate::cost::{CostModel, Work, choose};
use crate::error::EngineError;
use crate::features::{MediumKey, MediumPlace, medium_key};
use crate::loaded::LoadedModel;
use crate::request::Request;

/// Number of media whose chains are remembered.
const MOST_CHOSEN: usize = 4096;

/// Options and keys of the media of a request.
pub(super) struct Plan {
    /// Options of each medium.
    pub options: Vec<MediaOptions>,
    /// Key of each medium with its options.
    pub keys: Vec<MediumKey>,
    /// Media that were preprocessed for the choice.
    pub inputs: HashMap<MediumKey, MediaInput>,
    /// Estimated time to the first token, if there is a cost model.
    pub estimate: Option<Duration>,
}

/// Media of a request before they are encoded: their plan, places and open choices.
struct Outlook {
    plan: Plan,
    /// Places in the prompt, at most.
    places: Vec<MediumPlace>,
    /// Media whose chain is to be chosen.
    free: Vec<usize>,
}

impl<B: KernelBackend> LoadedModel<B> {
    /// Chooses the options of the media of a request. A medium that had a time limit before keeps its
    /// chain, so that its features and the conversation can be continued.
    ///
    /// # Errors
    /// If there is a time limit without a cost model, or a medium cannot be prepared.
    pub(super) fn plan(
        &self,
        request: &Request<'_>,
        past: &[PastToken],
    ) -> Result<Plan, EngineError> {
        let base = self.options(request);
        let Some(budget) = base.first_token_budget else {
            return Ok(Plan::fixed(request, base));
        };
        let costs = self.costs.get().ok_or(EngineError::NoCosts)?;
        let base = MediaOptions {
            first_token_budget: None,
            reductions: Reductions::default(),
            ..base
        };
        let mut outlook = self.outlook(request, &base, budget)?;
        self.choose_chains(request, past, costs, budget, &mut outlook)?;
        Ok(outlook.plan)
    }

    /// Prepares the media that are not known.
    fn outlook(
        &self,
        request: &Request<'_>,
        base: &MediaOptions,
        budget: Duration,
    ) -> Result<Outlook, EngineError> {
        let mut plan = Plan::fixed(request, base.clone());
        let mut places = Vec::with_capacity(plan.keys.len());
        let mut free = Vec::new();
        for (i, medium) in request.media.iter().enumerate() {
            let chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
            let before = chosen.get(&(plan.keys[i], budget)).cloned();
            drop(chosen);
            match before {
                None => free.push(i),
                Some(chain) => plan.set_chain(i, medium_chain(base, chain), request),
            }
            let key = plan.keys[i];
            let known = self.known_place(key).filter(|_| !free.contains(&i));
            places.push(match known {
                Some(place) => place,
                None => {
                    if !plan.inputs.contains_key(&key) {
                        let input = medium.prepare(&*self.model, &plan.options[i])?;
                        plan.inputs.insert(key, input);
                    }
                    before_encoding(&plan.inputs[&key])
                }
            });
        }
        Ok(Outlook { plan, places, free })
    }

    /// Chooses the chain of the media that had none so far, the same one for all.
    fn choose_chains(
        &self,
        request: &Request<'_>,
        past: &[PastToken],
        costs: &CostModel,
        budget: Duration,
        outlook: &mut Outlook,
    ) -> Result<(), EngineError> {
        let Outlook { plan, places, free } = outlook;
        let prompt = self.prompt(request, places)?;
        let all = tokens_of(&prompt, &plan.keys);
        let held = past.iter().zip(&all).take_while(|(a, b)| a == b).count();
        let mut tokens = all.len() - held;
        let work = |key: &MediumKey| {
            let input = &plan.inputs[key];
            Work {
                input,
                size: self.model.encoder_size(input),
            }
        };
        let mut free_keys: Vec<MediumKey> = free.iter().map(|&i| plan.keys[i]).collect();
        free_keys.sort_unstable();
        free_keys.dedup();
        let mut other = 0.0;
        for (key, input) in &plan.inputs {
            if !free_keys.contains(key) {
                let (schedule, ms) = costs.medium(&work(key), &input.reduction.methods);
                tokens = tokens.saturating_sub(input.tokens() - schedule.tokens);
                other += ms;
            }
        }
        let works: Vec<Work<'_>> = free_keys.iter().map(work).collect();
        let budget_ms = budget.as_secs_f64() * 1e3;
        let choice = choose(costs, &works, tokens, other, budget_ms);
        if choice.ms > budget_ms {
            log::warn!(
                "the first token takes about {:.0} ms, more than the limit of \
                 {budget_ms:.0} ms: use smaller images, fewer frames or a shorter prompt",
                choice.ms
            );
        }
        plan.estimate = Duration::try_from_secs_f64(choice.ms / 1e3).ok();
        self.remember(&free_keys, budget, &choice.chain);
        for &mut i in free {
            let (key, options) = (
                plan.keys[i],
                medium_chain(&plan.options[i], choice.chain.clone()),
            );
            plan.set_chain(i, options, request);
            if let Some(mut input) = plan.inputs.remove(&key) {
                // No chain to choose from drops units before the encoder.
                input.reduction.methods = choice.chain.clone();
                plan.inputs.insert(plan.keys[i], input);
            }
        }
        Ok(())
    }

    /// Remembers the chain of media, so that later requests use it, too.
    fn remember(&self, media: &[MediumKey], budget: Duration, chain: &Reductions) {
        let mut chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        if chosen.len() >= MOST_CHOSEN {
            chosen.clear();
        }
        chosen.extend(media.iter().map(|&key| ((key, budget), chain.clone())));
    }
}

impl Plan {
    /// Prepares all media with the same options.
    fn fixed(request: &Request<'_>, options: MediaOptions) -> Self {
        let keys = request.media.iter();
        Self {
            keys: keys.map(|medium| medium_key(medium, &options)).collect(),
            options: vec![options; request.media.len()],
            inputs: HashMap::new(),
            estimate: None,
        }
    }

    fn set_chain(&mut self, medium: usize, options: MediaOptions, request: &Request<'_>) {
        self.keys[medium] = medium_key(&request.media[medium], &options);
        self.options[medium] = options;
    }
}

fn medium_chain(options: &MediaOptions, reductions: Reductions) -> MediaOptions {
    MediaOptions {
        reductions,
        ..options.clone()
    }
}
