//! Encoder outputs kept by the content of their medium.

use std::collections::HashMap;

use edge_lmm_models::layout::{Layout, Position};
use edge_lmm_models::media::MediaOptions;
use edge_lmm_models::model::Encoded;
use edge_lmm_models::reduce::{ReductionStep, Reductions};
use edge_lmm_ops::KernelBackend;
use xxhash_rust::xxh3::Xxh3;

use crate::media::Media;

/// Bytes of features that are kept beyond those of the current request.
pub const FEATURE_CACHE_BYTES: usize = 128 << 20;

/// Number of media whose layout is kept after their features were dropped.
const LAYOUTS: usize = 4096;

/// Identifies a decoded medium and the options that it is prepared with.
pub type MediumKey = u128;

/// Place of an encoded medium in a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct MediumPlace {
    /// Its tokens.
    pub layout: Layout,
    /// Tokens left after each method of reduction.
    pub steps: Vec<ReductionStep>,
}

/// Encoded media, the least recently used ones dropped first.
pub struct FeatureCache<B: KernelBackend> {
    entries: HashMap<MediumKey, Entry<B>>,
    limit: usize,
    clock: u64,
}

struct Entry<B: KernelBackend> {
    place: MediumPlace,
    /// `None` after the features were dropped. The layout is still known, so that a conversation
    /// that has the medium in its state does not need them.
    encoded: Option<Encoded<B>>,
    used: u64,
}

impl<B: KernelBackend> FeatureCache<B> {
    /// Creates an empty cache of up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            entries: HashMap::new(),
            limit,
            clock: 0,
        }
    }

    /// Returns the place of a medium that was encoded before.
    pub fn place(&self, key: MediumKey) -> Option<MediumPlace> {
        self.entries.get(&key).map(|entry| entry.place.clone())
    }

    /// Returns an encoded medium if its features are cached.
    pub fn get(&mut self, key: MediumKey) -> Option<Encoded<B>> {
        self.clock += 1;
        let entry = self.entries.get_mut(&key)?;
        entry.used = self.clock;
        entry.encoded.clone()
    }

    /// Stores an encoded medium until [`trim`](Self::trim) drops it.
    pub fn insert(&mut self, key: MediumKey, encoded: Encoded<B>) {
        self.clock += 1;
        let entry = Entry {
            place: MediumPlace::of(&encoded),
            encoded: Some(encoded),
            used: self.clock,
        };
        self.entries.insert(key, entry);
    }

    /// Stores the place of a medium whose features are not known.
    pub fn insert_place(&mut self, key: MediumKey, place: MediumPlace) {
        self.clock += 1;
        let used = self.clock;
        self.entries.entry(key).or_insert(Entry {
            place,
            encoded: None,
            used,
        });
    }

    /// Drops the least recently used features until the rest fits the limit; those in `needed`
    /// stay.
    pub fn trim(&mut self, needed: &[MediumKey]) {
        let mut oldest: Vec<(u64, MediumKey)> = self
            .entries
            .iter()
            .filter(|(key, _)| !needed.contains(key))
            .map(|(key, entry)| (entry.used, *key))
            .collect();
        oldest.sort_unstable();
        let mut bytes = self.bytes();
        for (_, key) in &oldest {
            if bytes <= self.limit {
                break;
            }
            if let Some(entry) = self.entries.get_mut(key) {
                bytes -= entry.bytes();
                entry.encoded = None;
            }
        }
        let forgotten = self.entries.len().saturating_sub(LAYOUTS);
        for (_, key) in oldest.iter().take(forgotten) {
            self.entries.remove(key);
        }
    }

    /// Returns the size of the cached features in bytes.
    pub fn bytes(&self) -> usize {
        self.entries.values().map(Entry::bytes).sum()
    }

    /// Removes all entries.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
}

impl MediumPlace {
    /// Returns the place of an encoded medium.
    pub fn of<B: KernelBackend>(encoded: &Encoded<B>) -> Self {
        Self {
            layout: encoded.layout.clone(),
            steps: encoded.steps.clone(),
        }
    }
}

impl<B: KernelBackend> Entry<B> {
    fn bytes(&self) -> usize {
        self.encoded.as_ref().map_or(0, Encoded::bytes)
    }
}

/// Computes the key of a medium from its decoded content and the options that change its
/// preprocessing. While a video is decoded, the key is one that no other medium has at the same
/// time, and that no entry may be stored under.
pub fn medium_key(medium: &Media, options: &MediaOptions) -> MediumKey {
    let mut hasher = Xxh3::new();
    match medium.undecoded() {
        None => hasher.update(&medium.content_hash().to_le_bytes()),
        Some(_) => hasher.update(&medium.address().to_le_bytes()),
    }
    let later = options.reductions.of_prompt();
    // The encoder reports attention only if a method needs it.
    hasher.update(&[u8::from(later.needs_attention())]);
    // The reduction within the language model does not change the encoder's output.
    let options = MediaOptions {
        reductions: options.reductions.before_prompt(),
        ..options.clone()
    };
    hasher.update(format!("{options:?}").as_bytes());
    hasher.digest128()
}

/// Computes the key of a medium whose tokens are chosen for a prompt, from the key of its encoder
/// output and what the choice depends on: the tokens of the question, or the positions of the
/// medium's tokens.
pub fn choice_key(
    medium: MediumKey,
    methods: &Reductions,
    question: &[u32],
    positions: &[Position],
) -> MediumKey {
    let mut hasher = Xxh3::new();
    hasher.update(&medium.to_le_bytes());
    hasher.update(methods.to_string().as_bytes());
    if methods.asks_question() {
        question
            .iter()
            .for_each(|id| hasher.update(&id.to_le_bytes()));
    }
    if methods.anchors().is_some() {
        let axes = positions.iter().flatten();
        axes.for_each(|axis| hasher.update(&axis.to_le_bytes()));
    }
    hasher.digest128()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;
    use edge_lmm_models::layout::Run;
    use edge_lmm_models::preprocess::RgbImage;

    use super::*;
    use crate::Cpu;

    /// Returns 64 bytes of features.
    fn encoded() -> Encoded<Cpu> {
        Encoded {
            layout: Run::sequence(2).into(),
            features: Tensor::zeros([2, 8], &Default::default()),
            deep: Vec::new(),
            attention: None,
            steps: Vec::new(),
        }
    }

    #[test]
    fn the_least_recently_used_features_go_first() {
        let mut cache = FeatureCache::new(2 * 64);
        for key in 0..3 {
            cache.insert(key, encoded());
        }
        assert!(cache.get(0).is_some());
        cache.trim(&[2]);
        assert_eq!(cache.bytes(), 128);
        // The place in the prompt is still known.
        assert!(cache.get(1).is_none() && cache.place(1).is_some());
        assert!(cache.get(0).is_some());
        // What the current request needs stays, even beyond the limit.
        cache.insert(3, encoded());
        cache.trim(&[0, 2, 3]);
        assert_eq!(cache.bytes(), 3 * 64);
    }

    #[test]
    fn places_of_old_media_are_forgotten() {
        let mut cache = FeatureCache::new(0);
        for key in 0..LAYOUTS as u128 + 5 {
            cache.insert(key, encoded());
        }
        cache.trim(&[0]);
        assert_eq!(cache.entries.len(), LAYOUTS);
        assert!(cache.place(0).is_some() && cache.place(1).is_none());
    }

    #[test]
    fn content_and_options_make_the_key() {
        let image = |value: u8| {
            let image = RgbImage::new(2, 2, vec![value; 12]);
            Media::image(image.expect("an image"))
        };
        let key = |medium: &Media| medium_key(medium, &MediaOptions::default());
        assert_eq!(key(&image(1)), key(&image(1)));
        assert_ne!(key(&image(1)), key(&image(2)));
        let fewer = MediaOptions {
            image_tokens: Some((1, 4)),
            ..MediaOptions::default()
        };
        assert_ne!(key(&image(1)), medium_key(&image(1), &fewer));
        let reduced = |chain: &str| {
            let options = MediaOptions {
                reductions: chain.parse().expect("a chain"),
                ..MediaOptions::default()
            };
            medium_key(&image(1), &options)
        };
        assert_ne!(key(&image(1)), reduced("diverse:0.5"));
        assert_eq!(key(&image(1)), reduced("language:1:0.5"));
        // What depends on the prompt is chosen from the same encoder output.
        assert_eq!(key(&image(1)), reduced("question:0.5"));
        assert_eq!(key(&image(1)), reduced("diverse:0.5,anchors"));
        assert_ne!(key(&image(1)), reduced("attention:0.5,anchors"));
    }

    #[test]
    fn question_and_positions_make_the_key_of_a_choice() {
        let key = |chain: &str, question: u32, position: u32| {
            let chain = chain.parse().expect("a chain");
            choice_key(1, &chain, &[question], &[[position; 3]])
        };
        assert_eq!(key("question:0.5", 1, 1), key("question:0.5", 1, 2));
        assert_ne!(key("question:0.5", 1, 1), key("question:0.5", 2, 1));
        assert_ne!(key("question:0.5", 1, 1), key("question:0.25", 1, 1));
        let anchored = "diverse:0.5,anchors";
        assert_eq!(key(anchored, 1, 1), key(anchored, 2, 1));
        assert_ne!(key(anchored, 1, 1), key(anchored, 1, 2));
    }
}
