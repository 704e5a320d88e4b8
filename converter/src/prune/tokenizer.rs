//! A tokenizer with a part of its vocabulary.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// The parsed text of `tokenizer.json`.
pub(super) struct Vocabulary {
    json: Value,
    kind: Kind,
    /// Ids of the model's tokens and of those added to it.
    ids: BTreeMap<String, u32>,
    /// Ids of added tokens.
    added: BTreeMap<String, u32>,
}

/// The algorithm of a tokenizer.
enum Kind {
    /// Pairs of tokens that are merged (Sennrich et al. 2016).
    Bpe(Vec<(String, String)>),
    /// Pieces with scores, of which the likeliest sequence is taken (Kudo 2018).
    Unigram,
}

impl Vocabulary {
    /// Parses the text of `tokenizer.json`.
    ///
    /// # Errors
    /// If its algorithm is not known, or a field is not as expected; the message says which.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let json: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let model = &json["model"];
        let (kind, mut ids) = match model["type"].as_str() {
            Some("Unigram") => (Kind::Unigram, pieces(&model["vocab"])?),
            Some("BPE") | None if model["merges"].is_array() => (
                Kind::Bpe(merges(&model["merges"])?),
                table(&model["vocab"])?,
            ),
            other => {
                return Err(format!(
                    "its algorithm is {}, expected BPE or Unigram",
                    other.unwrap_or("not named")
                ));
            }
        };
        let mut added = BTreeMap::new();
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let (Some(content), Some(id)) = (token["content"].as_str(), id_of(&token["id"])) else {
                return Err("an added token has no content or id".into());
            };
            added.insert(content.to_owned(), id);
        }
        ids.extend(added.iter().map(|(token, &id)| (token.clone(), id)));
        Ok(Self {
            json,
            kind,
            ids,
            added,
        })
    }

    /// Returns the ids of tokens that are kept in any case: those that every text can be split into
    /// (bytes or, if there are none, characters), and control tokens, except those without a
    /// purpose.
    pub(super) fn indispensable(&self) -> impl Iterator<Item = u32> {
        let has_bytes = self.ids.contains_key("<0x00>");
        let basic = move |token: &str| match has_bytes {
            true => token.len() == 6 && token.starts_with("<0x") && token.ends_with('>'),
            false => token.trim_start_matches('▁').chars().count() <= 1,
        };
        let control = (self.added.iter())
            .filter(|(token, _)| !token.contains("unused") && !token.contains("reserved"))
            .map(|(_, &id)| id);
        let unknown = self.json["model"]["unk_token"].as_str();
        let unknown = unknown.and_then(|token| self.ids.get(token).copied());
        let basic = (self.ids.iter())
            .filter(move |(token, _)| basic(token))
            .map(|(_, &id)| id);
        let unknown_piece = id_of(&self.json["model"]["unk_id"]);
        control.chain(basic).chain(unknown).chain(unknown_piece)
    }

    /// Adds the tokens that are merged on the way to a kept token.
    pub(super) fn close(&self, kept: &mut BTreeSet<u32>) {
        let Kind::Bpe(merges) = &self.kind else {
            return;
        };
        let mut parts: BTreeMap<u32, Vec<[u32; 2]>> = BTreeMap::new();
        for (left, right) in merges {
            let id = |token: &str| self.ids.get(token).copied();
            let whole = id(&format!("{left}{right}"));
            if let (Some(left), Some(right), Some(whole)) = (id(left), id(right), whole) {
                parts.entry(whole).or_default().push([left, right]);
            }
        }
        let mut open: Vec<u32> = kept.iter().copied().collect();
        while let Some(id) = open.pop() {
            let ways = parts.get(&id).into_iter().flatten().flatten();
            open.extend(ways.copied().filter(|&part| kept.insert(part)));
        }
    }

    /// Returns the text of the tokenizer with the tokens that `new` gives an id.
    pub(super) fn keep(mut self, new: &BTreeMap<u32, u32>) -> String {
        let model = &mut self.json["model"];
        match &self.kind {
            Kind::Unigram => keep_pieces(model, new),
            Kind::Bpe(merges) => keep_merges(model, merges, &self.ids, new),
        }
        if let Some(tokens) = self.json["added_tokens"].as_array_mut() {
            tokens.retain_mut(|token| renumber(&mut token["id"], new));
        }
        renumber_processor(&mut self.json["post_processor"], new);
        self.json.to_string()
    }
}

/// Gives an id its new number; returns `false` if it has none.
fn renumber(value: &mut Value, new: &BTreeMap<u32, u32>) -> bool {
    let number = id_of(value).and_then(|id| new.get(&id));
    if let Some(&number) = number {
        *value = number.into();
    }
    number.is_some()
}

fn id_of(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// Returns the tokens of a table of ids.
fn table(vocabulary: &Value) -> Result<BTreeMap<String, u32>, String> {
    let fields = vocabulary.as_object().ok_or("model.vocab is not a table")?;
    (fields.iter())
        .map(|(token, id)| Some((token.clone(), id_of(id)?)))
        .collect::<Option<_>>()
        .ok_or_else(|| "an id of model.vocab is not a number".into())
}

/// Returns the tokens of a list of pieces with scores, whose ids are their places.
fn pieces(vocabulary: &Value) -> Result<BTreeMap<String, u32>, String> {
    let pieces = vocabulary.as_array().ok_or("model.vocab is not a list")?;
    (pieces.iter().enumerate())
        .map(|(id, piece)| Some((piece[0].as_str()?.to_owned(), id as u32)))
        .collect::<Option<_>>()
        .ok_or_else(|| "a piece of model.vocab has no text".into())
}

/// Returns the merges, which are texts with a space or pairs.
fn merges(list: &Value) -> Result<Vec<(String, String)>, String> {
    let pair = |merge: &Value| match merge {
        Value::String(pair) => pair.split_once(' ').map(|(l, r)| (l.into(), r.into())),
        pair => Some((pair[0].as_str()?.into(), pair[1].as_str()?.into())),
    };
    let list = list.as_array().into_iter().flatten();
    list.map(pair)
        .collect::<Option<_>>()
        .ok_or_else(|| "an entry of model.merges is not a pair".into())
}

fn keep_pieces(model: &mut Value, new: &BTreeMap<u32, u32>) {
    if let Some(pieces) = model["vocab"].as_array_mut() {
        let mut id = 0;
        pieces.retain(|_| {
            id += 1;
            new.contains_key(&(id - 1))
        });
    }
    if model["unk_id"].is_number() {
        renumber(&mut model["unk_id"], new);
    }
}

fn keep_merges(
    model: &mut Value,
    merges: &[(String, String)],
    ids: &BTreeMap<String, u32>,
    new: &BTreeMap<u32, u32>,
) {
    let is_kept = |token: &str| ids.get(token).is_some_and(|id| new.contains_key(id));
    if let Some(list) = model["merges"].as_array_mut() {
        let mut pairs = merges.iter();
        list.retain(|_| {
            pairs.next().is_some_and(|(left, right)| {
                is_kept(left) && is_kept(right) && is_kept(&format!("{left}{right}"))
            })
        });
    }
    if let Some(fields) = model["vocab"].as_object_mut() {
        let old = std::mem::take(fields);
        fields.extend(old.into_iter().filter_map(|(token, mut id)| {
            let kept = renumber(&mut id, new);
            kept.then_some((token, id))
        }));
    }
}

/// Renumbers the ids of tokens that a post-processor adds.
fn renumber_processor(processor: &mut Value, new: &BTreeMap<u32, u32>) {
    let renumber_all = |ids: &mut Value| {
        for id in ids.as_array_mut().into_iter().flatten() {
            renumber(id, new);
        }
    };
    let none = &mut Map::new();
    let fields = processor.as_object_mut().unwrap_or(none);
    for (key, value) in fields {
        match &**key {
            "special_tokens" => {
                for token in value.as_object_mut().into_iter().flat_map(Map::values_mut) {
                    renumber_all(&mut token["ids"]);
                }
            }
            "sep" | "cls" => renumber_all(value),
            "processors" => {
                for part in value.as_array_mut().into_iter().flatten() {
                    renumber_processor(part, new);
                }
            }
            _ => {}
        }
    }
}
