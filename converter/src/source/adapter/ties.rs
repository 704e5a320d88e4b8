//! Output heads that share the weights of the embeddings.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::view::View;
use super::super::{Checkpoint, Tensor};

/// Fields of a configuration that say it.
const KEYS: [&str; 2] = ["tie_word_embeddings", "tie_embedding"];
/// Sections of a configuration that may hold the language model's.
const SECTIONS: [&str; 2] = ["thinker_config", "text_config"];
/// End of the name of a table of embeddings.
const TABLE: &str = "embed_tokens.weight";
/// End of the name of an output head.
const HEAD: &str = "lm_head.weight";

/// Returns `true` for the name of a table of embeddings or an output head.
pub(super) fn may_share(name: &str) -> bool {
    [TABLE, HEAD].iter().any(|end| name.ends_with(end))
}

/// Returns `true` if the checkpoint's output head is its table of embeddings.
pub(super) fn is_tied(checkpoint: &Checkpoint) -> bool {
    stated(&checkpoint.config).unwrap_or_else(|| {
        let mut names = checkpoint.tensors.keys();
        !names.any(|name| name.ends_with(HEAD))
    })
}

/// Returns what the language model's section says, or the whole configuration.
fn stated(config: &Value) -> Option<bool> {
    let nested = SECTIONS.iter().find_map(|key| stated(config.get(key)?));
    let own = || KEYS.iter().find_map(|key| config.get(key)?.as_bool());
    nested.or_else(own)
}

/// Gives the output head weights of its own, which are those of the embeddings, and changes the
/// configuration accordingly. Returns `false` if there is not exactly one table of embeddings.
pub(super) fn untie(checkpoint: &mut Checkpoint) -> bool {
    let mut tables = checkpoint
        .tensors
        .keys()
        .filter(|name| name.ends_with(TABLE));
    let (Some(table), None) = (tables.next().cloned(), tables.next()) else {
        return false;
    };
    let Some(Tensor { info, view }) = checkpoint.tensors.remove(&table) else {
        return false;
    };
    let view = Arc::new(view);
    let outer = ["language_model", "thinker"];
    let outer = outer
        .iter()
        .find(|outer| table.starts_with(&format!("{outer}.model.")));
    let head = outer.map_or(HEAD.to_owned(), |outer| format!("{outer}.{HEAD}"));
    for name in [table, head] {
        let (info, view) = (info.clone(), View::Shared(view.clone()));
        checkpoint.tensors.insert(name, Tensor { info, view });
    }
    set_untied(&mut checkpoint.config);
    true
}

fn set_untied(config: &mut Value) {
    for key in KEYS.iter().skip(1) {
        if let Some(field) = config.get_mut(key) {
            *field = json!(false);
        }
    }
    if config.is_object() {
        config[KEYS[0]] = json!(false);
    }
    for key in SECTIONS {
        if let Some(section) = config.get_mut(key) {
            set_untied(section);
        }
    }
}
