//! Choice of tokens after the projector.

use super::diverse::diverse;
use super::plan::{Reduction, Reductions};
use super::rows::indices;
use super::sampling::{largest, random, stride};
use super::share::Share;
use crate::error::ModelError;
use crate::media::MediaKind;
use crate::model::Encoded;
use crate::monitor::Monitor;
use edge_lmm_ops::KernelBackend;

/// Applies the methods after the projector to an encoded image or video; sounds are not reduced.
///
/// # Errors
/// If the family does not support a method before or within its encoder, or does not report the
/// attention that a method needs, or `monitor` cancels.
pub fn select<B: KernelBackend>(
    mut encoded: Encoded<B>,
    kind: MediaKind,
    reductions: &Reductions,
    seed: u64,
    monitor: &mut Monitor<'_>,
) -> Result<Encoded<B>, ModelError> {
    if kind == MediaKind::Audio {
        return Ok(encoded);
    }
    for method in reductions.methods() {
        let done = |name| encoded.steps.iter().any(|step| step.method == name);
        let applies = match method {
            Reduction::Duplicates(_) | Reduction::Merge(_) => true,
            Reduction::Still(_) => kind == MediaKind::Video,
            _ => false,
        };
        if applies && !done(method.name()) {
            return Err(ModelError::CannotReduce {
                method: method.name(),
            });
        }
    }
    for method in reductions.methods() {
        let [tokens, _] = encoded.features.dims();
        let kept = match method {
            Reduction::Diverse(share) => diverse(&encoded.features, share.of(tokens), monitor)?,
            Reduction::Attention(share) => match &encoded.attention {
                _ if *share == Share::ALL => (0..tokens).collect(),
                Some(received) => largest(received, share.of(tokens)),
                None => return Err(ModelError::NoAttention),
            },
            Reduction::Random(share) => random(tokens, share.of(tokens), seed),
            Reduction::Stride(share) => stride(tokens, share.of(tokens)),
            _ => continue,
        };
        if kept.len() < tokens {
            encoded = keep(encoded, &kept);
        }
        encoded.steps.push(method.left(kept.len()));
    }
    Ok(encoded)
}

/// Returns the medium with only the tokens `kept`.
fn keep<B: KernelBackend>(encoded: Encoded<B>, kept: &[usize]) -> Encoded<B> {
    let rows = indices(kept, &encoded.features.device());
    let deep = encoded.deep.into_iter();
    Encoded {
        layout: encoded.layout.keep(kept),
        deep: deep
            .map(|(layer, features)| (layer, features.select(0, rows.clone())))
            .collect(),
        attention: encoded
            .attention
            .map(|received| kept.iter().map(|&token| received[token]).collect()),
        features: encoded.features.select(0, rows),
        steps: encoded.steps,
    }
}
