//! Checks for tensors that the model leaves unused and for weights that would be quantized twice.

use std::collections::BTreeSet;

use edge_lmm_ops::Format;

use crate::planned_weight::PlannedWeight;
use crate::source::{Checkpoint, SourceError};

/// Tensor types of about four bits per weight or fewer.
const LOW_BIT: [&str; 25] = [
    "Q1_0", "Q2_0", "Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS",
    "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0", "AWQ",
    "GPTQ2", "GPTQ4", "INT4", "NF4",
];

/// Rejects a checkpoint in which a used tensor has an unused companion. The stored values then do
/// not have their usual meaning; they may be integers that a scale multiplies. A bias that the
/// configuration disables only causes a warning.
pub(crate) fn check(checkpoint: &Checkpoint, weights: &[PlannedWeight]) -> Result<(), SourceError> {
    let used: BTreeSet<&str> = weights
        .iter()
        .flat_map(|weight| &weight.spec.sources)
        .map(|source| source.tensor.as_str())
        .collect();
    for tensor in &used {
        let module = tensor.strip_suffix(".weight");
        let scope = module.map(|module| format!("{module}."));
        let scope = scope.as_deref().unwrap_or(tensor);
        let Some(companion) = checkpoint
            .names_from(scope)
            .find(|name| !used.contains(name) && belongs(name, scope, tensor))
        else {
            continue;
        };
        if companion.ends_with(".bias") {
            log::warn!("{companion} is ignored: the configuration says that {tensor} has no bias");
            continue;
        }
        return Err(SourceError::Unsupported {
            file: checkpoint.weights_file(),
            what: format!("tensor {tensor} with a companion"),
            found: companion.to_owned(),
            supported: "weights without companion tensors; if the checkpoint is quantized, \
                        use the original checkpoint"
                .into(),
        });
    }
    Ok(())
}

/// Returns `true` if a tensor belongs directly to the module of `tensor`, not to a submodule.
/// `scope` is the module name with a trailing dot, or `tensor` itself if that is not a `.weight`.
fn belongs(name: &str, scope: &str, tensor: &str) -> bool {
    let rest = &name[scope.len()..];
    match scope.strip_suffix('.') {
        // `m.weight_scale`, `m.scales`, but also `m.weight.absmax`.
        Some(_) => !rest.contains('.') || name.starts_with(&format!("{tensor}.")),
        None => rest.starts_with(['_', '.', ':']),
    }
}

/// Warns once about weights that are stored in few bits and quantized to few bits again.
pub(crate) fn warn_of_low_bit_sources(checkpoint: &Checkpoint, weights: &[PlannedWeight]) {
    let low_bit = |tensor: &str| {
        let dtype = &checkpoint.tensor(tensor)?.dtype;
        dtype
            .split('+')
            .find(|part| LOW_BIT.contains(part))
            .map(str::to_owned)
    };
    let mut types = BTreeSet::new();
    let mut count = 0;
    for weight in weights.iter().filter(|w| w.format.is_some_and(is_low_bit)) {
        let found: Vec<String> = weight
            .spec
            .sources
            .iter()
            .filter_map(|source| low_bit(&source.tensor))
            .collect();
        count += usize::from(!found.is_empty());
        types.extend(found);
    }
    if count > 0 {
        let types: Vec<String> = types.into_iter().collect();
        log::warn!(
            "{count} weights are stored as {} and are quantized to q4 a second time, which loses \
             more accuracy than one step; convert the F16, BF16 or Q8_0 file or the original \
             checkpoint instead, or keep these weights as they are with --text-quant q8 \
             (twice as large)",
            types.join(", ")
        );
    }
}

/// Returns `true` if a format has about four bits per weight or fewer.
fn is_low_bit(format: Format) -> bool {
    match format {
        Format::F32 | Format::F16 | Format::Q8 => false,
        Format::Q4 => true,
    }
}

#[cfg(test)]
mod tests {
    use super::belongs;

    #[test]
    fn companions_share_the_module() {
        let near = |name: &str| belongs(name, "a.q_proj.", "a.q_proj.weight");
        for name in [
            "a.q_proj.weight_scale",
            "a.q_proj.scales",
            "a.q_proj.bias",
            "a.q_proj.weight.absmax",
            "a.q_proj.weight.quant_state.nf4",
        ] {
            assert!(near(name), "{name}");
        }
        assert!(!near("a.q_proj.rotary_emb.inv_freq"));
        let near = |name: &str| belongs(name, "query_tokens", "query_tokens");
        assert!(near("query_tokens_scale"));
        assert!(!near("query_tokens2"));
    }
}
