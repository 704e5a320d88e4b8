//! Speculative decoding (Leviathan et al. 2023, [arXiv:2211.17192](https://arxiv.org/abs/2211.17192)):
//! likely tokens are drafted, and one step of the model computes the scores after each of them.
//!
//! Drafts come from the tokens so far ([`lookup`]; Saxena 2023, prompt lookup decoding), from a second,
//! smaller model ([`draft_model`]), or from a layer of the model that predicts further tokens
//! ([`edge_lmm_models::mtp`]). A draft is a plain list of tokens without
//! probabilities, so that verification needs no rule of its own: the sampler picks from the scores
//! at each position in turn, and a drafted token is accepted if it is the one that was picked. The
//! answer is the one without speculation, with sampling as well.

mod draft_model;
mod lookup;
mod pace;
mod steps;

use std::str::FromStr;

use serde::Serialize;

use crate::device::Device;

use edge_lmm_ops::KernelBackend;

pub(super) use draft_model::DraftModel;
pub(super) use pace::Pace;
pub(super) use steps::{Scores, Steps};

/// Number of tokens that a step verifies ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Speculation {
    /// Every step computes one token.
    #[default]
    Off,
    /// Drafts as many tokens as the acceptance of earlier drafts and the times of earlier steps
    /// suggest, and none where speculation would take longer.
    Auto,
    /// Always drafts this many tokens if possible, at most [`Speculation::MOST`].
    Fixed(usize),
}

impl Speculation {
    /// Largest number of drafted tokens per step.
    pub const MOST: usize = 15;
    /// Largest number that [`Auto`](Self::Auto) drafts: with the last token, as many as the
    /// products with quantized weights take at the cost of reading the weights once.
    const MOST_AUTO: usize = edge_lmm_kernels::workload::FEW_TOKENS - 1;

    /// Returns the mode of programs on `device` that were not told another one: [`Auto`](Self::Auto)
    /// on the processor, where answers stay bitwise the same, and [`Off`](Self::Off) on GPUs.
    pub fn default_on(device: Device) -> Self {
        match device {
            Device::Cpu => Self::Auto,
            Device::Cuda(_) | Device::Vulkan => Self::Off,
        }
    }

    /// Returns the largest number of drafted tokens per step.
    fn most(self) -> usize {
        match self {
            Self::Off => 0,
            Self::Auto => Self::MOST_AUTO,
            Self::Fixed(count) => count.min(Self::MOST),
        }
    }
}

/// The text is not the name of a [`Speculation`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected off, auto or a number of tokens from 1 to {}",
    Speculation::MOST
)]
pub struct UnknownSpeculation;

impl FromStr for Speculation {
    type Err = UnknownSpeculation;

    /// Parses `off`, `auto` or a number of tokens.
    fn from_str(text: &str) -> Result<Self, UnknownSpeculation> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            count => match count.parse() {
                Ok(count @ 1..=Self::MOST) => Ok(Self::Fixed(count)),
                _ => Err(UnknownSpeculation),
            },
        }
    }
}

/// Draft model and measured times of a session, which all of its answers share.
pub(super) struct Drafting<B: KernelBackend> {
    /// Times of steps and acceptance of drafts so far.
    pub pace: Pace,
    /// Draft model, once an answer has used speculation.
    pub model: Option<DraftModel<B>>,
}

impl<B: KernelBackend> Default for Drafting<B> {
    fn default() -> Self {
        Self {
            pace: Pace::default(),
            model: None,
        }
    }
}

/// Counts of the speculation of one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct SpeculationCounts {
    /// Steps of the model that decoded the answer, with and without drafted tokens.
    pub steps: usize,
    /// Drafted tokens.
    pub drafted: usize,
    /// Drafted tokens that became part of the answer.
    pub accepted: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_parsed() {
        assert_eq!("off".parse(), Ok(Speculation::Off));
        assert_eq!("auto".parse(), Ok(Speculation::Auto));
        assert_eq!("15".parse(), Ok(Speculation::Fixed(15)));
        for text in ["0", "16", "on", ""] {
            let error = text.parse::<Speculation>().unwrap_err();
            assert!(error.to_string().ends_with("from 1 to 15"), "{error}");
        }
    }
}
