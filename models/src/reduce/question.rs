//! Diverse tokens that are relevant to the question (CDPruner, Zhang et al. 2025,
//! [arXiv:2506.10967](https://arxiv.org/abs/2506.10967)): the greedy choice of a determinantal point
//! process whose weights are the relevances.
//!
//! The relevance of a token comes from the similarity of its features with the embeddings of the
//! question's tokens in the input space of the language model, which every family has.

use burn::tensor::Tensor;
use edge_lmm_ops::KernelBackend;

use super::determinant::most_likely;
use super::rows::{Directions, cosine};
use crate::error::ModelError;
use crate::monitor::Monitor;

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
        Some(question) => weights(&rows, &Directions::of(question.clone())?),
        None => vec![1.0; rows.len()],
    };
    most_likely(&rows, &weights, count, first, monitor)
}

/// Returns the weight of each row, from 0.5 for the least to 1 for the most relevant one. As in the
/// published implementation, relevance is the negative mean similarity: rows that resemble any text
/// say little. Its weights begin at 0, with which questions about a whole image lose the rest of it.
fn weights(rows: &Directions, question: &Directions) -> Vec<f32> {
    let distances = question.distances_to(0..question.len(), rows);
    let mut relevance = vec![0.0f64; rows.len()];
    for of_word in distances.chunks_exact(rows.len().max(1)) {
        for (relevance, &distance) in relevance.iter_mut().zip(of_word) {
            *relevance -= f64::from(cosine(distance));
        }
    }
    let least = relevance.iter().copied().fold(f64::INFINITY, f64::min);
    let most = relevance.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weight = |relevance: f64| match most > least {
        true => 0.5 + 0.5 * (relevance - least) / (most - least),
        false => 1.0,
    };
    relevance
        .into_iter()
        .map(|relevance| weight(relevance) as f32)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use burn::tensor::TensorData;
    use serde::Deserialize;

    use super::*;

    type Cpu = burn_ndarray::NdArray<f32, i64, i8>;

    /// Features, embeddings of a question, and choices of an implementation in double precision
    /// (`models/tests/oracle/question.py`).
    #[derive(Deserialize)]
    struct Golden {
        features: Vec<Vec<f32>>,
        question: Vec<Vec<f32>>,
        weights: Vec<f32>,
        choices: Vec<GoldenChoice>,
    }

    #[derive(Deserialize)]
    struct GoldenChoice {
        asked: bool,
        count: usize,
        first: Vec<usize>,
        kept: Vec<usize>,
    }

    fn tensor(rows: &[Vec<f32>]) -> Tensor<Cpu, 2> {
        let shape = [rows.len(), rows[0].len()];
        Tensor::from_data(TensorData::new(rows.concat(), shape), &Default::default())
    }

    fn choose(
        features: &Tensor<Cpu, 2>,
        question: Option<&Tensor<Cpu, 2>>,
        count: usize,
        first: &[usize],
    ) -> Vec<usize> {
        let mut report = |_| ControlFlow::Continue(());
        let monitor = &mut Monitor::new(&mut report);
        relevant(features, question, count, first, monitor).expect("no cancellation")
    }

    #[test]
    fn choices_equal_those_in_double_precision() {
        let golden: Golden =
            serde_json::from_str(include_str!("../../tests/data/goldens/question.json")).unwrap();
        let (features, question) = (tensor(&golden.features), tensor(&golden.question));
        let directions = |x: &Tensor<Cpu, 2>| Directions::of(x.clone()).unwrap();
        let found = weights(&directions(&features), &directions(&question));
        for (found, expected) in found.iter().zip(&golden.weights) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
        assert!(golden.choices.len() > 5);
        for choice in &golden.choices {
            let asked = choice.asked.then_some(&question);
            let kept = choose(&features, asked, choice.count, &choice.first);
            assert_eq!(kept, choice.kept, "{} of {:?}", choice.count, choice.first);
        }
    }

    #[test]
    fn a_question_changes_the_choice_and_broken_rows_do_not_stop_it() {
        let mut rows: Vec<Vec<f32>> = (0..9)
            .map(|i| (0..4).map(|j| ((3 * i + 7 * j * j) as f32).sin()).collect())
            .collect();
        let text = |row: &Vec<f32>| tensor(std::slice::from_ref(row));
        let features = tensor(&rows);
        let chosen = |row: usize| choose(&features, Some(&text(&rows[row])), 3, &[]);
        assert!((1..9).any(|row| chosen(row) != chosen(0)));
        // The row that is like the question is the least relevant one.
        let like = weights(
            &Directions::of(features.clone()).unwrap(),
            &Directions::of(text(&rows[2])).unwrap(),
        );
        assert_eq!(like[2], 0.5);
        rows[4][0] = f32::NAN;
        rows[5] = vec![0.0; 4];
        let broken = tensor(&rows);
        for count in 1..9 {
            assert_eq!(
                choose(&broken, Some(&text(&rows[4])), count, &[4]).len(),
                count
            );
        }
    }
}
