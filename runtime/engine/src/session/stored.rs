//! Encoder outputs and prefixes in the store of a model.

use std::io::{self, Write};

use burn::tensor::{Tensor, TensorData};
use edge_lmm_models::media::MediaOptions;
use edge_lmm_models::model::Encoded;
use edge_lmm_ops::{KernelBackend, KvStore, probe, stage};
use xxhash_rust::xxh3::Xxh3;

use super::past::{Past, PastToken};
use super::prepare::{Prepared, is_stored};
use super::state::Session;
use crate::features::{MediumKey, MediumPlace};
use crate::loaded::LoadedModel;
use crate::store::{EntryError, Features, Kind, Prefix, Store};

/// A prefix that is ready to be written.
pub(super) struct PrefixBody<'a, B: KernelBackend> {
    past: &'a Past<B>,
    len: usize,
    head: Vec<u8>,
    /// Bytes of head, keys and values.
    pub bytes: usize,
    /// Hash of the tokens.
    pub key: u128,
}

impl<B: KernelBackend> PrefixBody<'_, B> {
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.head)?;
        self.past.state.cache.export(self.len, out)
    }
}

impl<B: KernelBackend> LoadedModel<B> {
    /// Returns the store, unless tensors are captured: a capture shows what is computed.
    fn store(&self) -> Option<&Store> {
        self.store.get().filter(|_| !probe::active())
    }

    /// Returns `true` if stored results are used.
    pub(super) fn reads_store(&self) -> bool {
        self.store().is_some()
    }

    /// Takes the stored encoder outputs of media into memory that are not there.
    pub(super) fn load_features(&self, keys: &[MediumKey], options: &[MediaOptions]) {
        for (&key, options) in keys.iter().zip(options) {
            let is_known = self.features().place(key).is_some();
            if !is_known && is_stored(options) {
                self.load_encoded(key);
            }
        }
    }

    /// Takes a stored encoder output into memory (stage `cache`).
    pub(super) fn load_encoded(&self, key: MediumKey) -> Option<Encoded<B>> {
        let store = self.store()?;
        let _stage = stage::top("cache");
        let stored = store.load(&self.origin, Kind::Features, key)?;
        match Features::parse(&stored).and_then(|features| self.to_encoded(features)) {
            Ok(encoded) => {
                self.features().insert(key, encoded.clone());
                Some(encoded)
            }
            Err(error) => {
                store.discard(&self.origin, Kind::Features, key, &error);
                None
            }
        }
    }

    fn to_encoded(&self, stored: Features) -> Result<Encoded<B>, EntryError> {
        let (rows, width) = (stored.place.layout.tokens(), stored.width);
        if width != self.model.language().hidden_size() {
            return Err(EntryError::Damaged("its features have another width"));
        }
        let tensor = |values: Vec<f32>| -> Tensor<B, 2> {
            Tensor::from_data(TensorData::new(values, [rows, width]), &self.device)
        };
        let deep = stored.deep.into_iter();
        Ok(Encoded {
            layout: stored.place.layout,
            features: tensor(stored.features),
            deep: deep.map(|(layer, x)| (layer, tensor(x))).collect(),
            attention: None,
            steps: stored.place.steps,
        })
    }

    /// Stores an encoder output (stage `cache`).
    pub(super) fn store_features(&self, key: MediumKey, encoded: &Encoded<B>) {
        let Some(store) = self.store() else { return };
        let _stage = stage::top("cache");
        let read = |x: &Tensor<B, 2>| -> Option<Vec<f32>> {
            // A failure of the device is reported when its results are used.
            x.clone().try_into_data().ok()?.into_vec().ok()
        };
        let deep = encoded.deep.iter();
        let deep = deep.map(|(layer, x)| Some((*layer, read(x)?))).collect();
        let (Some(features), Some(deep)) = (read(&encoded.features), deep) else {
            return;
        };
        let [_, width] = encoded.features.dims();
        let body = Features {
            place: MediumPlace::of(encoded),
            width,
            features,
            deep,
        };
        let body = body.bytes();
        let write = |out: &mut dyn Write| out.write_all(&body);
        store.save(&self.origin, Kind::Features, key, body.len(), write);
    }

    /// Prepares the first `len` tokens of a state to be written; `None` if the state has other parts
    /// than keys and values, is reduced, or the layout of a medium is not known any more.
    pub(super) fn prefix_body<'a>(
        &self,
        past: &'a Past<B>,
        len: usize,
    ) -> Option<PrefixBody<'a, B>> {
        let state = &past.state;
        if !state.cross.is_empty() || !state.recurrent.is_empty() || past.reduction.is_some() {
            return None;
        }
        let keys = state.cache.stored(len)?.bytes()?;
        let tokens = past.tokens.get(..len)?;
        let mut shown: Vec<MediumKey> = tokens.iter().filter_map(|token| token.medium).collect();
        shown.sort_unstable();
        shown.dedup();
        let places = shown.into_iter();
        let places = places.map(|key| Some((key, self.features().place(key)?)));
        let places: Vec<(MediumKey, MediumPlace)> = places.collect::<Option<_>>()?;
        let head = Prefix::head(&places, tokens, state.long);
        Some(PrefixBody {
            past,
            len,
            bytes: head.len() + keys,
            head,
            key: prefix_key(tokens, state.long),
        })
    }
}

impl<B: KernelBackend> Session<B> {
    /// Reads the longest stored prefix of the prompt that ends with a medium and is longer than
    /// `known` (stage `cache`).
    pub(super) fn load_prefix(
        &self,
        prepared: &Prepared<B>,
        tokens: &[PastToken],
        known: usize,
        needed: usize,
    ) -> Option<Past<B>> {
        let store = self.shared.store()?;
        let language = self.language();
        let _stage = stage::top("cache");
        let long = language.is_long(tokens.len());
        let ends = prepared.media_ends().into_iter().rev();
        let usable =
            ends.filter(|&end| end > known && end < tokens.len() && language.reusable(end) == end);
        usable
            .map(|end| &tokens[..end])
            .find_map(|tokens| self.load_tokens(store, tokens, long, needed))
    }

    fn load_tokens(
        &self,
        store: &Store,
        tokens: &[PastToken],
        long: bool,
        needed: usize,
    ) -> Option<Past<B>> {
        let (origin, key) = (&self.shared.origin, prefix_key(tokens, long));
        let stored = store.load(origin, Kind::Prefix, key)?;
        let prefix = match Prefix::parse(&stored) {
            Ok(prefix) if prefix.tokens == tokens && prefix.long == long => prefix,
            found => {
                let error = found.err().unwrap_or(EntryError::OtherContent);
                store.discard(origin, Kind::Prefix, key, &error);
                return None;
            }
        };
        // Without memory, the prefix is computed in the state that there is.
        let past = Past::new(self.new_state(needed).ok()?);
        match past.with_prefix(&prefix) {
            Ok(past) => past,
            Err(error) => {
                store.discard(origin, Kind::Prefix, key, &error);
                None
            }
        }
    }

    /// Stores the first `len` tokens of the state (stage `cache`), unless they are stored.
    pub(super) fn store_prefix(&self, len: usize) {
        let (Some(store), Some(past)) = (self.shared.store(), &self.past) else {
            return;
        };
        let _stage = stage::top("cache");
        if len == 0 {
            return;
        }
        if let Some(body) = self.shared.prefix_body(past, len) {
            let write = |out: &mut dyn Write| body.write(out);
            store.save(
                &self.shared.origin,
                Kind::Prefix,
                body.key,
                body.bytes,
                write,
            );
        }
    }
}

impl<B: KernelBackend> Past<B> {
    /// Fills an empty state with a prefix. Returns `None` if the state has other parts than keys and
    /// values.
    ///
    /// # Errors
    /// If the keys and values are those of a cache of another shape, or too many.
    pub(super) fn with_prefix(
        mut self,
        prefix: &Prefix<'_>,
    ) -> Result<Option<Self>, edge_lmm_ops::CacheError> {
        if !self.state.recurrent.is_empty() {
            return Ok(None);
        }
        self.state.cache.import(prefix.keys)?;
        self.state.long = prefix.long;
        self.tokens.clone_from(&prefix.tokens);
        self.loaded = true;
        Ok(Some(self))
    }
}

/// Hashes the tokens of a prefix.
fn prefix_key(tokens: &[PastToken], long: bool) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(&Prefix::head(&[], tokens, long));
    hasher.digest128()
}
