//! Reduction within the language model (FastV, Chen et al. 2024,
//! [arXiv:2403.06764](https://arxiv.org/abs/2403.06764)).

use std::fmt;
use std::str::FromStr;

use super::share::Share;

/// Keeps the tokens of media that the last token of the prompt attends to most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LanguageReduction {
    /// Number of layers that see all tokens, at least one. The attention is that of the last of
    /// them.
    pub layer: usize,
    /// Share of the tokens that the later layers see.
    pub share: Share,
}

impl fmt::Display for LanguageReduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.layer, self.share)
    }
}

impl FromStr for LanguageReduction {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (layer, share) = text.split_once(':').ok_or(())?;
        let layer = layer.parse().map_err(|_| ())?;
        let share = share.parse()?;
        (layer > 0).then_some(Self { layer, share }).ok_or(())
    }
}
