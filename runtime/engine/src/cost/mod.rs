//! Times of a model on this machine, from a few measurements.
//!
//! A [`CostModel`] predicts the time to the first token before anything runs.
//! [`Engine::measure_costs`](crate::Engine::measure_costs) measures it within seconds, a
//! [`CostFolder`] keeps it for later processes, and with
//! [`Engine::use_costs`](crate::Engine::use_costs) requests can have a
//! [`first_token_budget`](crate::MediaOptions::first_token_budget).

mod choice;
mod curve;
mod file;
mod measure;

use edge_lmm_models::media::{MediaInput, MediaKind};
use edge_lmm_models::reduce::{EncoderSize, LanguageReduction, Reductions, Schedule};
use serde::{Deserialize, Serialize};

pub(crate) use choice::{Work, choose};
pub use curve::{Curve, Point};
pub use file::{CostFolder, CostKey};

/// Share of a layer's matrix products that come before it merges units: those of attention.
const BEFORE_MERGING: f64 = 1.0 / 3.0;

/// Times of the stages of a model, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostModel {
    /// Preprocessing of an image, for each value that enters the encoder.
    pub preprocess: f64,
    /// Vision encoder and projector by rows (patches); `None` if the model takes no images.
    pub vision: Option<Curve>,
    /// Audio encoder and projector by positions; `None` if the model takes no sounds.
    pub audio: Option<Curve>,
    /// Factor of an encoder that merges units, for the search of pairs.
    pub merging: f64,
    /// Prefill by tokens of the prompt.
    pub prefill: Curve,
}

/// Tokens that only the first layers of a language model process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LanguageCut {
    /// Tokens that the other layers do not process.
    pub dropped: usize,
    /// The first layers.
    pub layer: usize,
    /// All layers.
    pub layers: usize,
}

impl LanguageCut {
    /// Describes a reduction of `media` tokens in a language model of `layers` layers.
    pub fn new(reduction: LanguageReduction, media: usize, layers: usize) -> Self {
        Self {
            dropped: media - reduction.share.of(media),
            layer: reduction.layer.min(layers),
            layers,
        }
    }
}

impl CostModel {
    /// Returns `true` if all times are possible.
    pub fn is_valid(&self) -> bool {
        let curves = [self.vision, self.audio, Some(self.prefill)];
        let curves = curves.into_iter().flatten().all(|curve| curve.is_valid());
        let time = |ms: f64| ms.is_finite() && ms >= 0.0;
        curves && time(self.preprocess) && time(self.merging) && self.merging > 0.0
    }

    /// Returns the time to preprocess a medium; that of sounds is small.
    pub fn preprocessing(&self, input: &MediaInput) -> f64 {
        match input.kind {
            MediaKind::Audio => 0.0,
            _ => self.preprocess * input.values.len() as f64,
        }
    }

    /// Returns the time to encode a medium, 0 if the model does not take its kind.
    pub fn encoding(&self, kind: MediaKind, size: &EncoderSize, schedule: &Schedule) -> f64 {
        let curve = match kind {
            MediaKind::Audio => self.audio,
            MediaKind::Image | MediaKind::Video => self.vision,
        };
        let Some(curve) = curve else { return 0.0 };
        let rows = |parts: &[usize]| (parts.iter().sum::<usize>() * size.rows) as f64;
        let squares = |parts: &[usize]| {
            let square = |&units: &usize| ((units * size.rows) as f64).powi(2);
            parts.iter().map(square).sum::<f64>()
        };
        let layers = schedule.layers.windows(2);
        let of_layer = |pair: &[Vec<usize>]| {
            let [before, after] = [&pair[0], &pair[1]];
            let linear = BEFORE_MERGING * rows(before) + (1.0 - BEFORE_MERGING) * rows(after);
            (linear, squares(before))
        };
        let count = layers.len().max(1) as f64;
        let (linear, square) = layers
            .map(of_layer)
            .fold((0.0, 0.0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1));
        let merges = schedule.layers.first() != schedule.layers.last();
        let factor = if merges { self.merging } else { 1.0 };
        factor * curve.ms(linear / count, square / count)
    }

    /// Returns the time to process the tokens of a prompt.
    pub fn prefilling(&self, tokens: usize, cut: Option<LanguageCut>) -> f64 {
        let ms = |tokens: usize| self.prefill.ms(tokens as f64, (tokens as f64).powi(2));
        let Some(cut) = cut.filter(|cut| cut.layers > 0) else {
            return ms(tokens);
        };
        let first = cut.layer as f64 / cut.layers as f64;
        first * ms(tokens) + (1.0 - first) * ms(tokens.saturating_sub(cut.dropped))
    }

    /// Returns the counts of a medium under a chain and the time until its features are known.
    pub(crate) fn medium(&self, work: &Work<'_>, chain: &Reductions) -> (Schedule, f64) {
        let Work { input, size } = work;
        let schedule = size.schedule(input, chain);
        let ms = self.preprocessing(input) + self.encoding(input.kind, size, &schedule);
        (schedule, ms)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One millisecond for each row and each token, and attention on top.
    pub const COSTS: CostModel = CostModel {
        preprocess: 0.0,
        vision: Some(Curve {
            fixed: 10.0,
            linear: 1.0,
            quadratic: 0.01,
        }),
        audio: None,
        merging: 1.0,
        prefill: Curve {
            fixed: 0.0,
            linear: 2.0,
            quadratic: 0.0,
        },
    };

    /// Worked by hand: layers of 4, 3 and 2 units of 2 rows.
    #[test]
    fn an_encoder_is_the_mean_of_its_layers() {
        let size = EncoderSize {
            parts: vec![4],
            rows: 2,
            layers: 2,
            merges: true,
            units_are_tokens: true,
        };
        let schedule = |layers: [usize; 3]| Schedule {
            layers: layers.map(|units| vec![units]).to_vec(),
            steps: Vec::new(),
            tokens: 4,
        };
        let ms = |layers| COSTS.encoding(MediaKind::Image, &size, &schedule(layers));
        assert!((ms([4, 4, 4]) - (10.0 + 8.0 + 0.64)).abs() < 1e-9);
        let linear = ((8.0 + 2.0 * 6.0) / 3.0 + (6.0 + 2.0 * 4.0) / 3.0) / 2.0;
        let merged = 10.0 + linear + 0.01 * (64.0 + 36.0) / 2.0;
        assert!((ms([4, 3, 2]) - merged).abs() < 1e-9);
        let sound = COSTS.encoding(MediaKind::Audio, &size, &schedule([4, 4, 4]));
        assert_eq!(sound, 0.0);
    }

    #[test]
    fn later_layers_process_fewer_tokens() {
        let cut = LanguageCut {
            dropped: 60,
            layer: 1,
            layers: 4,
        };
        assert_eq!(COSTS.prefilling(100, None), 200.0);
        assert_eq!(COSTS.prefilling(100, Some(cut)), 50.0 + 60.0);
    }
}
