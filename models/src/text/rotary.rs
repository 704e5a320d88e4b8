//! Tables of rotary position embeddings (Su et al. 2021) in one, two or three dimensions, and the
//! frequency scaling for contexts longer than the original one.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData};
use edge_lmm_ops::{Heads, KernelBackend, Mask, rope, rotated_attention};
use serde::Deserialize;
use serde_json::Value;

use crate::error::ModelError;
use crate::layout::Position;
use crate::reduce::anchors::RotaryMeans;
use crate::reduce::rows::indices;

/// Cosines and sines for a sequence of tokens, half a head wide.
#[derive(Debug, Clone)]
pub struct RotaryTable<B: KernelBackend> {
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
}

/// Returns `theta^(-2i / dim)` for `i < dim / 2`.
pub fn inverse_frequencies(theta: f64, dim: usize) -> Vec<f32> {
    (0..dim / 2)
        .map(|i| (1.0 / theta.powf(2.0 * i as f64 / dim as f64)) as f32)
        .collect()
}

/// Returns the mean cosine and mean sine of the `pairs` angles at each position; `None` without pairs.
pub fn rotary_means(
    positions: &[Position],
    pairs: usize,
    angle: impl Fn(Position, usize) -> f32,
) -> Option<Vec<RotaryMeans>> {
    let means = |&position: &Position| {
        let angles = (0..pairs).map(|i| f64::from(angle(position, i)));
        let [cos, sin] = angles.fold([0.0, 0.0], |[cos, sin], angle| {
            [cos + angle.cos(), sin + angle.sin()]
        });
        [cos, sin].map(|sum| (sum / pairs as f64) as f32)
    };
    (pairs > 0).then(|| positions.iter().map(means).collect())
}

impl<B: KernelBackend> RotaryTable<B> {
    /// Computes the table of `tokens` tokens with `half` angles each. Cosines and sines are
    /// multiplied by `scale`.
    pub fn new(
        tokens: usize,
        half: usize,
        scale: f32,
        angle: impl Fn(usize, usize) -> f32,
        device: &B::Device,
    ) -> Self {
        let mut cos = Vec::with_capacity(tokens * half);
        let mut sin = Vec::with_capacity(tokens * half);
        for token in 0..tokens {
            for i in 0..half {
                let (s, c) = angle(token, i).sin_cos();
                cos.push(c * scale);
                sin.push(s * scale);
            }
        }
        let table = |values| Tensor::from_data(TensorData::new(values, [tokens, half]), device);
        Self {
            cos: table(cos),
            sin: table(sin),
        }
    }

    /// Returns the table of the rows at `places`.
    pub(crate) fn select(&self, places: &[usize]) -> Self {
        let rows = indices(places, &self.cos.device());
        Self {
            cos: self.cos.clone().select(0, rows.clone()),
            sin: self.sin.clone().select(0, rows),
        }
    }

    /// Rotates `heads` heads of `head_dim` elements from column `column` on.
    pub fn rotate(
        &self,
        x: Tensor<B, 2>,
        column: usize,
        heads: usize,
        head_dim: usize,
    ) -> Tensor<B, 2> {
        rope(x, column, heads, head_dim, &self.cos, &self.sin)
    }

    /// Rotates queries and keys, appends keys and values to `layer` of the cache, and lets every
    /// token attend to the positions that `visible` selects, or to all up to its own.
    ///
    /// # Shapes
    /// - qkv: `[tokens, (heads + 2 kv_heads) * head_dim]`, result: `[tokens, heads * head_dim]`
    pub fn attend(
        &self,
        qkv: Tensor<B, 2>,
        heads: Heads,
        cache: &mut B::KvCache,
        layer: usize,
        visible: Option<&[Range<usize>]>,
        scale: f32,
    ) -> Tensor<B, 2> {
        let mask = visible.map_or(Mask::Causal, Mask::Ranges);
        let (cos, sin) = (&self.cos, &self.sin);
        rotated_attention(qkv, heads, cos, sin, cache, layer, mask, scale)
    }
}

/// Scaling of frequencies, as in `rope_scaling` of a configuration. The reference is
/// `modeling_rope_utils.py` of `transformers`.
#[derive(Debug, Clone, PartialEq)]
pub enum RotaryScaling {
    /// No scaling.
    None,
    /// All frequencies divided by a factor (Chen et al. 2023).
    Linear(f32),
    /// Low frequencies divided, high ones kept, those between interpolated (Llama 3.1).
    Llama3(Llama3Scaling),
    /// Each frequency divided by its own factor, with two sets of factors (Ding et al. 2024).
    LongRope(LongRope),
}

/// Parameters of Llama 3.1's scaling.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Llama3Scaling {
    /// Divisor of low frequencies.
    pub factor: f32,
    /// Frequencies with fewer turns than this in the original context are low.
    pub low_freq_factor: f32,
    /// Frequencies with more turns than this in the original context are high.
    pub high_freq_factor: f32,
    /// The original context length.
    pub original_max_position_embeddings: f32,
}

/// Parameters of LongRoPE.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// Divisors for sequences of up to [`Self::border`] tokens.
    pub short: Vec<f32>,
    /// Divisors for longer ones.
    pub long: Vec<f32>,
    /// Longest sequence that uses the short factors.
    pub border: usize,
    /// Factor of cosines and sines, for short and long sequences.
    pub attention_factor: f32,
}

/// Parts of a configuration that scaling depends on.
#[derive(Debug, Clone, Copy)]
pub struct RotaryContext {
    /// Rotated elements of a head.
    pub dim: usize,
    /// Context length.
    pub positions: usize,
    /// Original context length, if stated outside of `rope_scaling`.
    pub original: Option<usize>,
}

impl RotaryScaling {
    /// Reads `rope_scaling` of a configuration.
    ///
    /// # Errors
    /// If the kind is unknown or its parameters are missing or invalid.
    pub fn parse(scaling: Option<&Value>, context: RotaryContext) -> Result<Self, ModelError> {
        let Some(scaling) = scaling.filter(|value| !value.is_null()) else {
            return Ok(Self::None);
        };
        match scaling_kind(scaling)? {
            DEFAULT_KIND => Ok(Self::None),
            "linear" => Ok(Self::Linear(positive(scaling, "factor")?)),
            "llama3" => llama3(scaling),
            "longrope" => long_rope(scaling, context),
            other => Err(ModelError::config(format!(
                "rope_scaling of type {other:?} is not supported; \
                 supported: linear, llama3, longrope, or no rope_scaling"
            ))),
        }
    }

    /// Returns `true` if a sequence of `tokens` tokens uses the frequencies of long ones.
    pub fn is_long(&self, tokens: usize) -> bool {
        matches!(self, Self::LongRope(long_rope) if tokens > long_rope.border)
    }

    /// Returns the inverse frequencies for a long or a short sequence.
    pub fn frequencies(&self, theta: f64, dim: usize, long: bool) -> Vec<f32> {
        let mut frequencies = inverse_frequencies(theta, dim);
        match self {
            Self::None => {}
            Self::Linear(factor) => frequencies.iter_mut().for_each(|f| *f /= factor),
            Self::Llama3(scaling) => frequencies.iter_mut().for_each(|f| *f = scaling.scale(*f)),
            Self::LongRope(long_rope) => {
                let factors = match long {
                    true => &long_rope.long,
                    false => &long_rope.short,
                };
                frequencies
                    .iter_mut()
                    .zip(factors)
                    .for_each(|(f, by)| *f /= by);
            }
        }
        frequencies
    }

    /// Returns the factor of cosines and sines.
    pub fn attention_factor(&self) -> f32 {
        match self {
            Self::LongRope(long_rope) => long_rope.attention_factor,
            _ => 1.0,
        }
    }
}

impl Llama3Scaling {
    fn scale(&self, frequency: f32) -> f32 {
        let turns = self.original_max_position_embeddings * frequency / std::f32::consts::TAU;
        if turns < self.low_freq_factor {
            frequency / self.factor
        } else if turns > self.high_freq_factor {
            frequency
        } else {
            let share =
                (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
            (1.0 - share) * frequency / self.factor + share * frequency
        }
    }
}

/// The kind without scaling.
pub(crate) const DEFAULT_KIND: &str = "default";

/// Returns the kind of scaling in `rope_scaling`, under its newer or older key. Synonyms are
/// replaced; `mrope` only describes positions, so it is the default kind.
///
/// # Errors
/// If there are factors but no kind, or the keys name different kinds.
pub(crate) fn scaling_kind(scaling: &Value) -> Result<&str, ModelError> {
    let factors = ["factor", "short_factor", "long_factor"];
    let factor = factors.into_iter().find(|key| scaling.get(key).is_some());
    // The first files of Phi-3 call LongRoPE yarn.
    let has_short_factors = scaling.get("short_factor").is_some();
    let standard = |kind: &Value| match kind.as_str() {
        Some("none" | "mrope" | DEFAULT_KIND) => Some(DEFAULT_KIND),
        Some("su") => Some("longrope"),
        Some("yarn") if has_short_factors => Some("longrope"),
        _ => None,
    };
    let mut kinds = ["rope_type", "type"].into_iter().filter_map(|key| {
        let named = scaling.get(key)?;
        Some(standard(named).or(named.as_str()).unwrap_or_default())
    });
    let kind = match (kinds.next(), factor) {
        (None | Some(""), Some(_)) => {
            return Err(ModelError::config(format!(
                "rope_scaling is {scaling}, expected an object with a \"rope_type\""
            )));
        }
        (kind, _) => kind.unwrap_or(DEFAULT_KIND),
    };
    if let Some(other) = kinds.find(|other| *other != kind) {
        return Err(ModelError::config(format!(
            "rope_scaling has rope_type {kind:?} and type {other:?}, expected one kind"
        )));
    }
    if let (DEFAULT_KIND, Some(factor)) = (kind, factor) {
        log::warn!("rope_scaling.{factor} is ignored: rope_type is \"default\"");
    }
    Ok(kind)
}

fn positive(scaling: &Value, key: &str) -> Result<f32, ModelError> {
    let found = scaling.get(key).and_then(Value::as_f64);
    match found.map(|value| value as f32) {
        Some(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err(ModelError::config(format!(
            "rope_scaling.{key} is {}, expected a positive number",
            scaling.get(key).unwrap_or(&Value::Null)
        ))),
    }
}

fn llama3(scaling: &Value) -> Result<RotaryScaling, ModelError> {
    let parameters = Llama3Scaling {
        factor: positive(scaling, "factor")?,
        low_freq_factor: positive(scaling, "low_freq_factor")?,
        high_freq_factor: positive(scaling, "high_freq_factor")?,
        original_max_position_embeddings: positive(scaling, "original_max_position_embeddings")?,
    };
    if parameters.low_freq_factor >= parameters.high_freq_factor {
        return Err(ModelError::config(format!(
            "rope_scaling: low_freq_factor {} is not below high_freq_factor {}",
            parameters.low_freq_factor, parameters.high_freq_factor
        )));
    }
    Ok(RotaryScaling::Llama3(parameters))
}

fn long_rope(scaling: &Value, context: RotaryContext) -> Result<RotaryScaling, ModelError> {
    // Without the original length the reference uses `factor` as the ratio.
    let (border, ratio) = match context.original {
        Some(original) => (original, context.positions as f64 / original as f64),
        None => {
            let ratio = positive(scaling, "factor")?;
            (context.positions, f64::from(ratio))
        }
    };
    if border < 2 {
        return Err(ModelError::config(format!(
            "original_max_position_embeddings is {border}, expected at least 2"
        )));
    }
    let attention_factor = match scaling.get("attention_factor") {
        Some(value) if !value.is_null() => positive(scaling, "attention_factor")?,
        _ if ratio <= 1.0 => 1.0,
        _ => (1.0 + ratio.ln() / (border as f64).ln()).sqrt() as f32,
    };
    Ok(RotaryScaling::LongRope(LongRope {
        short: factors(scaling, "short_factor", context.dim / 2)?,
        long: factors(scaling, "long_factor", context.dim / 2)?,
        border,
        attention_factor,
    }))
}

fn factors(scaling: &Value, key: &str, count: usize) -> Result<Vec<f32>, ModelError> {
    let list: &[Value] = scaling
        .get(key)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice);
    let factors: Vec<f32> = list
        .iter()
        .filter_map(|value| value.as_f64().map(|value| value as f32))
        .filter(|factor| factor.is_finite() && *factor > 0.0)
        .collect();
    if factors.len() != count || list.len() != count {
        return Err(ModelError::config(format!(
            "rope_scaling.{key} has {} entries, {} of them positive numbers; \
             expected {count}, one for each pair of rotated elements",
            list.len(),
            factors.len()
        )));
    }
    Ok(factors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CONTEXT: RotaryContext = RotaryContext {
        dim: 4,
        positions: 131_072,
        original: Some(4096),
    };

    fn parse(scaling: Value) -> Result<RotaryScaling, ModelError> {
        RotaryScaling::parse(Some(&scaling), CONTEXT)
    }

    #[test]
    fn unknown_kinds_are_refused_by_name() {
        let error = parse(json!({"rope_type": "dynamic", "factor": 2.0})).unwrap_err();
        assert!(error.to_string().contains("\"dynamic\""), "{error}");
        let error = parse(json!({"rope_type": "yarn", "factor": 2.0})).unwrap_err();
        assert!(error.to_string().contains("\"yarn\""), "{error}");
        let both = json!({"rope_type": "default", "type": "yarn", "factor": 2.0});
        let error = parse(both).unwrap_err();
        assert!(error.to_string().contains("\"yarn\""), "{error}");
    }

    #[test]
    fn kinds_without_scaling_are_known() {
        for scaling in [
            json!({"rope_theta": 1e6}),
            json!({"rope_type": "default", "type": "mrope", "mrope_section": [1, 1, 0]}),
            json!({"type": "none"}),
        ] {
            assert_eq!(parse(scaling).unwrap(), RotaryScaling::None);
        }
    }

    #[test]
    fn useless_parameters_are_refused() {
        for scaling in [
            json!({"type": "linear"}),
            json!({"type": "linear", "factor": 0}),
            json!({"type": "longrope", "short_factor": [1, 1], "long_factor": [1]}),
            json!({"type": "longrope", "short_factor": [1, -1], "long_factor": [1, 1]}),
            json!({"factor": 2}),
        ] {
            assert!(parse(scaling.clone()).is_err(), "{scaling}");
        }
    }

    /// The published values of Phi-3.5: 131072 positions, 4096 originally; the factor is `sqrt(1 +
    /// ln 32 / ln 4096)`.
    #[test]
    fn long_rope_changes_its_factors_at_the_border() {
        let scaling = json!({"type": "su", "short_factor": [1, 2], "long_factor": [4, 8]});
        let scaling = parse(scaling).unwrap();
        assert!((scaling.attention_factor() - 1.190_238).abs() < 1e-6);
        assert!(!scaling.is_long(4096) && scaling.is_long(4097));
        assert_eq!(scaling.frequencies(100.0, 4, false), [1.0, 0.05]);
        assert_eq!(scaling.frequencies(100.0, 4, true), [0.25, 0.0125]);
    }

    /// One frequency of each band, by the formula of the reference: wavelengths 2 pi (high),
    /// 2 pi * 1000 (between, 8192 / 6283.2 = 1.3038 turns), 2 pi * 1e6 (low).
    #[test]
    fn llama3_scales_low_frequencies_only() {
        let scaling = Llama3Scaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        assert_eq!(scaling.scale(1.0), 1.0);
        assert_eq!(scaling.scale(1e-6), 1e-6 / 8.0);
        let share = (8192.0 * 1e-3 / std::f64::consts::TAU - 1.0) / 3.0;
        let expected = (1.0 - share) * 1e-3 / 8.0 + share * 1e-3;
        assert!((f64::from(scaling.scale(1e-3)) - expected).abs() < 1e-9);
    }
}
