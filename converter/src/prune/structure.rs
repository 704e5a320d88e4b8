//! Choice of the layers, feed-forward channels and attention heads of a language model that are left,
//! and of the layers of a vision encoder.

use serde_json::{Value, json};

use super::measure::{BLOCKS, Importance};
use crate::plan::{ConvertError, Pruning};

/// Leaves out the share `ratio` of the layers of the language model, those with the smallest block
/// influence. Layers that take features of the vision encoder stay. Returns the numbers of the
/// layers left out.
///
/// # Errors
/// If nothing would be left.
pub fn prune_layers(
    pruning: &mut Pruning,
    importance: &Importance,
    ratio: f64,
) -> Result<Vec<usize>, ConvertError> {
    let count = importance.layers.len();
    let protected: Vec<usize> = (0..first_layers(&mut pruning.config)).collect();
    let removed = least_influential(&importance.layers, &protected, ratio)?;
    if removed.is_empty() {
        return Ok(removed);
    }
    let kept = others(count, &removed);
    pruning.selection.keep("text.layers", count, &kept)?;
    let text = text_section(&mut pruning.config);
    keep_layer_types(text, count, &kept);
    text["num_hidden_layers"] = json!(kept.len());
    if let Some(first) = text.get("max_window_layers").and_then(Value::as_u64) {
        let before = kept
            .iter()
            .filter(|&&layer| u64::from(layer) < first)
            .count();
        text["max_window_layers"] = json!(before);
    }
    Ok(removed)
}

/// Leaves out the share `ratio` of the layers of the vision encoder, those with the smallest block
/// influence. The last layer stays, and those whose outputs the language model gets (DeepStack).
/// Returns the numbers of the layers left out.
///
/// # Errors
/// If nothing would be left, no sample has an image, or the encoder's number of layers is not in the
/// configuration.
pub fn prune_vision_layers(
    pruning: &mut Pruning,
    importance: &Importance,
    ratio: f64,
) -> Result<Vec<usize>, ConvertError> {
    let invalid = |reason: &str| ConvertError::Prune {
        reason: reason.to_owned(),
    };
    let count = importance.vision_layers.len();
    write_out_blocks(&mut pruning.config);
    let kind = pruning.config["model_type"].as_str().unwrap_or_default();
    let count_key = match kind.starts_with("qwen") {
        true => "depth",
        false => "num_hidden_layers",
    };
    let vision = thinker(&mut pruning.config).get_mut("vision_config");
    let Some(vision) = vision.filter(|vision| vision.is_object() && count > 0) else {
        return Err(invalid(
            "the layers of the vision encoder are not in the configuration",
        ));
    };
    if importance.vision_layers.iter().all(|x| x.is_infinite()) {
        return Err(invalid(
            "the samples have no images; --calibration takes a question set (.csv) with images",
        ));
    }
    let indexes = |list: &Value| -> Option<Vec<usize>> {
        let list = list.as_array()?.iter();
        list.map(|index| Some(index.as_u64()? as usize)).collect()
    };
    let mut protected = indexes(&vision["deepstack_visual_indexes"]).unwrap_or_default();
    protected.push(count - 1);
    let removed = least_influential(&importance.vision_layers, &protected, ratio)?;
    let kept = others(count, &removed);
    for key in ["deepstack_visual_indexes", "fullatt_block_indexes"] {
        if let Some(old) = indexes(&vision[key]) {
            let place = |&index: &usize| kept.iter().position(|&layer| layer as usize == index);
            vision[key] = json!(old.iter().filter_map(place).collect::<Vec<_>>());
        }
    }
    vision[count_key] = json!(kept.len());
    // The layers after the one whose outputs are taken are not part of the model.
    if let Some(layer) = pruning.config.get_mut("vision_feature_layer") {
        *layer = json!(-1);
    }
    pruning.selection.keep(BLOCKS, count, &kept)?;
    Ok(removed)
}

/// Leaves out the share `ratio` of the feed-forward channels of each layer of the language model,
/// those of the smallest importance, and the layer that predicts further tokens. Returns the number of
/// channels before and after.
///
/// # Errors
/// If nothing would be left.
pub fn prune_channels(
    pruning: &mut Pruning,
    importance: &Importance,
    removed_layers: &[usize],
    ratio: f64,
) -> Result<(usize, usize), ConvertError> {
    let layers = (0..importance.channels.len()).filter(|layer| !removed_layers.contains(layer));
    let count = importance.channels.first().map_or(0, Vec::len);
    let left = count - (count as f64 * ratio).round() as usize;
    if left == 0 {
        return Err(ConvertError::Prune {
            reason: format!("none of {count} channels would be left"),
        });
    }
    for (place, layer) in layers.enumerate() {
        let channels = &importance.channels[layer];
        let mut order: Vec<u32> = (0..count as u32).collect();
        order.sort_by(|&a, &b| channels[b as usize].total_cmp(&channels[a as usize]));
        let mut kept = order[..left].to_vec();
        kept.sort_unstable();
        let name = format!("text.layers.{place}.ffn");
        pruning.selection.keep(&name, count, &kept)?;
    }
    let text = text_section(&mut pruning.config);
    let key = channels_key(text);
    text[key] = json!(left);
    // The layer that predicts further tokens has the width of the others, and no sample passes it.
    if let Some(further) = text.get_mut("mtp_num_hidden_layers") {
        *further = json!(0);
    }
    Ok((count, left))
}

/// Leaves out the share `ratio` of the attention heads of each layer of the language model, those of
/// the smallest importance. Of query heads that share keys and values, as many are left in every
/// group; otherwise the keys and values of a head go with it. Returns the number of heads before and
/// after.
///
/// # Errors
/// If nothing would be left, or the language model has no heads that can be pruned.
pub fn prune_heads(
    pruning: &mut Pruning,
    importance: &Importance,
    removed_layers: &[usize],
    ratio: f64,
) -> Result<(usize, usize), ConvertError> {
    let invalid = |reason: String| ConvertError::Prune { reason };
    let layers = (0..importance.heads.len()).filter(|layer| !removed_layers.contains(layer));
    let count = importance.heads.first().map_or(0, Vec::len);
    if count == 0 {
        return Err(invalid(
            "heads of this language model stay whole".to_owned(),
        ));
    }
    let groups = key_value_heads(&pruning.config, count);
    let text = text_section(&mut pruning.config);
    let is_grouped = groups < count;
    let (groups, size) = match is_grouped {
        true => (groups, count / groups.max(1)),
        false => (1, count),
    };
    let left = size - (size as f64 * ratio).round() as usize;
    if left == 0 {
        return Err(invalid(format!("none of {size} heads would be left")));
    }
    text["head_dim"] = json!(importance.head_dim);
    text["num_attention_heads"] = json!(groups * left);
    if !is_grouped {
        text["num_key_value_heads"] = json!(left);
    }
    for (place, layer) in layers.enumerate() {
        let heads = &importance.heads[layer];
        let mut kept = Vec::new();
        for group in 0..groups {
            let mut order: Vec<usize> = (group * size..(group + 1) * size).collect();
            order.sort_by(|&a, &b| heads[b].total_cmp(&heads[a]));
            kept.extend(order[..left].iter().map(|&head| head as u32));
        }
        kept.sort_unstable();
        let mut keep = |name| {
            let name = format!("text.layers.{place}.{name}");
            pruning.selection.keep(&name, count, &kept)
        };
        keep("heads")?;
        if !is_grouped {
            keep("kv_heads")?;
        }
    }
    Ok((count, groups * left))
}

/// Returns the share `ratio` of the layers, those with the smallest influence that are not protected,
/// in their order.
///
/// # Errors
/// If too few layers are not protected, or none would be left.
fn least_influential(
    influence: &[f64],
    protected: &[usize],
    ratio: f64,
) -> Result<Vec<usize>, ConvertError> {
    let count = influence.len();
    let mut order: Vec<usize> = (0..count).filter(|i| !protected.contains(i)).collect();
    order.sort_by(|&a, &b| influence[a].total_cmp(&influence[b]));
    let remove = (count as f64 * ratio).round() as usize;
    if remove > order.len() || remove == count {
        return Err(ConvertError::Prune {
            reason: format!(
                "{remove} of {count} layers cannot be left out, {} at most",
                order.len().min(count - 1)
            ),
        });
    }
    order.truncate(remove);
    order.sort_unstable();
    Ok(order)
}

/// Returns the numbers below `count` that are not removed.
fn others(count: usize, removed: &[usize]) -> Vec<u32> {
    (0..count)
        .filter(|i| !removed.contains(i))
        .map(|i| i as u32)
        .collect()
}

/// Returns the number of key-value heads of the language model with `heads` query heads.
pub(super) fn key_value_heads(config: &Value, heads: usize) -> usize {
    let groups = text_of(config)["num_key_value_heads"].as_u64();
    groups.map_or(heads, |groups| groups as usize)
}

/// Sets the number of feed-forward channels and heads to that of another configuration of the same model.
pub(crate) fn restore_channels(config: &mut Value, whole: &Value) {
    let whole = text_of(whole);
    let text = text_section(config);
    let heads = ["num_attention_heads", "num_key_value_heads", "head_dim"];
    for key in [channels_key(text)].iter().chain(&heads) {
        match (whole.get(key), text.as_object_mut()) {
            (Some(count), _) => text[key] = count.clone(),
            (None, Some(text)) => drop(text.remove(*key)),
            (None, None) => {}
        }
    }
}

fn channels_key(text: &Value) -> &'static str {
    match text.get("ffn_dim") {
        Some(_) => "ffn_dim",
        None => "intermediate_size",
    }
}

/// Returns the section of the language model, to be read.
fn text_of(config: &Value) -> &Value {
    let config = config.get("thinker_config").unwrap_or(config);
    config.get("text_config").unwrap_or(config)
}

/// Returns the section of the language model.
fn text_section(config: &mut Value) -> &mut Value {
    let config = thinker(config);
    match config.get("text_config").is_some() {
        true => &mut config["text_config"],
        false => config,
    }
}

/// Returns the section of the model that answers, of those that also speak.
fn thinker(config: &mut Value) -> &mut Value {
    match config.get("thinker_config").is_some() {
        true => &mut config["thinker_config"],
        false => config,
    }
}

/// Writes out the numbers of the blocks with full attention that `Qwen2_5_VLVisionConfig` of
/// `transformers` has by default.
fn write_out_blocks(config: &mut Value) {
    let key = "fullatt_block_indexes";
    let has_windows = matches!(
        config["model_type"].as_str(),
        Some("qwen2_5_vl" | "qwen2_5_omni")
    );
    let vision = thinker(config).get_mut("vision_config");
    if let Some(vision) = vision.filter(|vision| vision.is_object() && vision[key].is_null())
        && has_windows
    {
        vision[key] = json!([7, 15, 23, 31]);
    }
}

/// Returns the number of first layers that take features of the vision encoder.
fn first_layers(config: &mut Value) -> usize {
    let indexes = thinker(config)["vision_config"]["deepstack_visual_indexes"].as_array();
    indexes.map_or(0, Vec::len)
}

/// Keeps the kinds of the kept layers. Kinds that follow from the number of the layer are written
/// out.
fn keep_layer_types(text: &mut Value, count: usize, kept: &[u32]) {
    let number = |keys: &[&str]| keys.iter().find_map(|key| text[*key].as_u64());
    let others = match text["model_type"].as_str() {
        Some(kind) if kind.starts_with("gemma3") => {
            let period = number(&["sliding_window_pattern", "_sliding_window_pattern"]);
            Some(("sliding_attention", period.unwrap_or(6)))
        }
        Some("qwen3_5_text") => {
            let interval = number(&["full_attention_interval"]);
            Some(("linear_attention", interval.unwrap_or(4)))
        }
        _ => None,
    };
    if let Some((other, period)) = others.filter(|_| !text["layer_types"].is_array()) {
        let kind = |layer: u64| match (layer + 1).is_multiple_of(period.max(1)) {
            true => "full_attention",
            false => other,
        };
        text["layer_types"] = (0..count as u64).map(kind).collect::<Vec<_>>().into();
    }
    if let Some(types) = text["layer_types"].as_array() {
        let kept = kept
            .iter()
            .filter_map(|&layer| types.get(layer as usize).cloned());
        text["layer_types"] = kept.collect::<Vec<_>>().into();
    }
}
