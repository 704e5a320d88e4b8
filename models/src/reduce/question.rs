//! Diverse tokens that are relevant to the question (CDPruner, Zhang et al. 2025,
//! [arXiv:2506.10967](https://arxiv.org/abs/2506.10967)): the greedy choice of a determinantal point
//! process whose weights are the relevances.
//!
//! The relevance of a token is the similarity of its features with the embeddings of the question's
//! tokens in the input space of the language model, which every family has.

use burn::tensor::Tensor;
use edge_lmm_ops::KernelBackend;

use super::determinant::most_likely;
use super::rows::{Directions, cosine};
use crate::error::ModelError;
use crate::monitor::Monitor;

/// Relevance of the least relevant token, so that it can be chosen by its direction at all.
const LEAST: f32 = 1e-6;

/// Returns `count` rows of `features`, sorted, `first` among them. Without tokens in `question`, only
/// the directions of the rows decide.
///
/// # Shapes
/// - features: `[tokens, width]`
/// - question: `[words, width]`
///
/// # Errors
/// If `monitor` cancels.
pub fn relevant<B: KernelBackend>(
    features: &Tensor<B, 2>,
    question: Option<&Tensor<B, 2>>,
    count: usize,
    first: &[usize],
    monitor: &mut Monitor<'_>,
) -> Result<Vec<usize>, ModelError> {
    let rows = Directions::of(features.clone())?;
    let weights = match question {
        Some(question) => relevance(&rows, &Directions::of(question.clone())?),
        None => vec![1.0; rows.len()],
    };
    most_likely(&rows, &weights, count, first, monitor)
}

/// Returns the relevance of each row, from about 0 for the least to 1 for the most relevant one.
fn relevance(rows: &Directions, question: &Directions) -> Vec<f32> {
    let distances = question.distances_to(0..question.len(), rows);
    let mut scores = vec![0.0f32; rows.len()];
    let mode = std::env::var("QMODE").unwrap_or_default();
    if mode == "max" { scores.fill(f32::NEG_INFINITY); }
    for of_word in distances.chunks_exact(rows.len().max(1)) {
        for (score, &distance) in scores.iter_mut().zip(of_word) {
            if mode == "max" {
                *score = score.max(cosine(distance));
            } else if mode == "neg" {
                *score -= cosine(distance);
            } else if mode == "abs" {
                *score += cosine(distance).abs();
            } else {
            *score += cosine(distance);
            }
        }
    }
    let least = scores.iter().copied().fold(f32::INFINITY, f32::min);
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let power: f32 = std::env::var("QPOW").ok().and_then(|p| p.parse().ok()).unwrap_or(1.0);
    let scale = |score: f32| match most > least {
        true => ((score - least + LEAST) / (most - least)).powf(power),
        false => 1.0,
    };
    scores.into_iter().map(scale).collect()
}
