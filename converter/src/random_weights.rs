//! Checkpoints with random weights, to measure the time and memory of a model without its weights.

use std::path::Path;

use edge_lmm::Cpu;
use edge_lmm_models::families;
use edge_lmm_models::family::ModelFiles;
use edge_lmm_models::weights::Weights;
use edge_lmm_ops::Format;

use crate::plan::ConvertError;
use crate::source::Checkpoint;

/// Largest deviation of a vector's values from 1 (scales of norms) or 0 (biases).
const VECTOR_SPREAD: f32 = 0.02;

/// Opens a Hugging Face directory without its weights and fills the tensors that the model needs
/// with random values. Matrices have a variance of one over their number of columns, so that
/// activations keep their magnitude.
///
/// # Errors
/// If a JSON file is missing or damaged, or the family is unknown.
pub fn random_checkpoint(directory: &Path, seed: u64) -> Result<Checkpoint, ConvertError> {
    let mut checkpoint = Checkpoint::open_without_weights(directory)?;
    let files = ModelFiles {
        config: checkpoint.config.clone(),
        preprocessor: checkpoint.preprocessor_config.clone(),
        video_preprocessor: checkpoint.video_preprocessor_config.clone(),
        generation: checkpoint.generation_config.clone(),
    };
    let declared = Weights::<Cpu>::new(Default::default(), |_| Ok(Format::F32));
    families::build(&files, &declared)?;
    for spec in declared.into_specs() {
        let cols = spec.columns.source_len();
        for source in &spec.sources {
            let rows = source.rows.source_len();
            let is_scale = source.tensor.ends_with("weight") && !spec.zero_centered;
            let matrix_spread = (3.0 / cols as f32).sqrt();
            let (shape, center, spread) = match cols {
                1 => (vec![rows], f32::from(is_scale), VECTOR_SPREAD),
                _ if spec.transposed => (vec![cols, rows], 0.0, matrix_spread),
                _ => (vec![rows, cols], 0.0, matrix_spread),
            };
            checkpoint.add_random(&source.tensor, shape, seed, center, spread);
        }
    }
    Ok(checkpoint)
}
