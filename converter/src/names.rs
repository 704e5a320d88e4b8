//! Tensor names of newer checkpoints.
//!
//! Since version 4.52, `transformers` nests the parts of a multimodal model in `model`. Its
//! `save_pretrained` restores the published names, but trainers that save parameters directly keep
//! the nested ones. Families use the published names; a tensor that is missing under its published
//! name is looked up under the newer one. Adapters have either kind of names.

use crate::source::Checkpoint;

/// Published prefixes and their newer equivalents.
const NEWER_PREFIXES: [(&str, &str); 9] = [
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", "model.vision_tower."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("model.vision_tower.vision_model.", "model.vision_tower."),
    ("audio_tower.", "model.audio_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("model.", "model.language_model."),
    ("visual.", "model.visual."),
];

/// Returns the name under which `checkpoint` stores the tensor published as `name`, or `name`
/// itself if there is no such tensor.
pub(crate) fn stored(name: &str, checkpoint: &Checkpoint) -> String {
    if checkpoint.tensor(name).is_some() {
        return name.to_owned();
    }
    newer_names(name)
        .find(|newer| checkpoint.tensor(newer).is_some())
        .unwrap_or_else(|| name.to_owned())
}

/// Returns the name under which `checkpoint` stores a tensor, given its published or its newer name.
pub(crate) fn found(name: &str, checkpoint: &Checkpoint) -> Option<String> {
    std::iter::once(name.to_owned())
        .chain(newer_names(name))
        .chain(published_names(name))
        .find(|name| checkpoint.tensor(name).is_some())
}

fn published_names(name: &str) -> impl Iterator<Item = String> {
    NEWER_PREFIXES.iter().filter_map(move |(published, newer)| {
        let rest = name.strip_prefix(newer)?;
        Some(format!("{published}{rest}"))
    })
}

fn newer_names(name: &str) -> impl Iterator<Item = String> {
    NEWER_PREFIXES.iter().filter_map(move |(published, newer)| {
        let rest = name.strip_prefix(published)?;
        Some(format!("{newer}{rest}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_nested_in_newer_files() {
        let newer = |name: &str| newer_names(name).collect::<Vec<_>>();
        assert_eq!(
            newer("language_model.model.norm.weight"),
            ["model.language_model.norm.weight"]
        );
        assert_eq!(newer("language_model.lm_head.weight"), ["lm_head.weight"]);
        assert_eq!(
            newer("visual.merger.ln_q.weight"),
            ["model.visual.merger.ln_q.weight"]
        );
        assert!(newer("lm_head.weight").is_empty());
    }

    #[test]
    fn newer_names_lead_back_to_published_ones() {
        let names: Vec<_> = published_names("model.language_model.norm.weight").collect();
        assert_eq!(
            names,
            ["language_model.model.norm.weight", "model.norm.weight"]
        );
    }
}
