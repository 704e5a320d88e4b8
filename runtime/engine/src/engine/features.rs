//! Encoder outputs kept by the content of their medium.

use std::collections::HashMap;

use burn::tensor::Tensor;
use edge_lmm_models::model::{MediaInput, MediaOptions};
use edge_lmm_ops::KernelBackend;
use xxhash_rust::xxh3::Xxh3;

use crate::media::Media;

/// Bytes of features that are kept beyond those of the current request.
pub const FEATURE_CACHE_BYTES: usize = 128 << 20;

/// Identifies a decoded medium and the options that it is prepared with.
pub type MediumKey = u128;

/// Features of media, the least recently used ones dropped first.
pub struct FeatureCache<B: KernelBackend> {
    entries: HashMap<MediumKey, Entry<B>>,
    limit: usize,
    clock: u64,
}

struct Entry<B: KernelBackend> {
    /// The prepared medium without its values, which only the encoder needs.
    input: MediaInput,
    features: Tensor<B, 2>,
    used: u64,
}

impl<B: KernelBackend> FeatureCache<B> {
    /// An empty cache that keeps up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            entries: HashMap::new(),
            limit,
            clock: 0,
        }
    }

    /// The prepared medium, without its values, if its features are held.
    pub fn input(&self, key: MediumKey) -> Option<MediaInput> {
        self.entries.get(&key).map(|entry| entry.input.clone())
    }

    /// The features of a medium: `[tokens, hidden_size]`.
    pub fn get(&mut self, key: MediumKey) -> Option<Tensor<B, 2>> {
        self.clock += 1;
        let entry = self.entries.get_mut(&key)?;
        entry.used = self.clock;
        Some(entry.features.clone())
    }

    /// Keeps the features of a medium until [`trim`](Self::trim) drops them.
    pub fn insert(&mut self, key: MediumKey, input: &MediaInput, features: Tensor<B, 2>) {
        self.clock += 1;
        let input = MediaInput {
            values: Vec::new(),
            shape: input.shape.clone(),
            ..*input
        };
        let entry = Entry {
            input,
            features,
            used: self.clock,
        };
        self.entries.insert(key, entry);
    }

    /// Drops the least recently used entries until the rest fits the limit; those in `needed` stay.
    pub fn trim(&mut self, needed: &[MediumKey]) {
        let mut oldest: Vec<(u64, MediumKey)> = self
            .entries
            .iter()
            .filter(|(key, _)| !needed.contains(key))
            .map(|(key, entry)| (entry.used, *key))
            .collect();
        oldest.sort_unstable();
        let mut bytes = self.bytes();
        for (_, key) in oldest {
            if bytes <= self.limit {
                break;
            }
            if let Some(entry) = self.entries.remove(&key) {
                bytes -= entry.bytes();
            }
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.entries.values().map(Entry::bytes).sum()
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
}

impl<B: KernelBackend> Entry<B> {
    fn bytes(&self) -> usize {
        self.features.shape().num_elements() * size_of::<f32>()
    }
}

/// Hashes the decoded content of a medium together with the options that change its preparation.
pub fn medium_key(medium: &Media, options: &MediaOptions) -> MediumKey {
    let mut hasher = Xxh3::new();
    hasher.update(medium.kind().as_str().as_bytes());
    hasher.update(format!("{options:?}").as_bytes());
    match medium {
        Media::Image(image) => hash_image(&mut hasher, image),
        Media::Video {
            frames,
            frames_per_second,
        } => {
            hasher.update(&frames_per_second.to_le_bytes());
            for frame in frames {
                hash_image(&mut hasher, frame);
            }
        }
        Media::Audio {
            samples,
            sample_rate,
        } => {
            hasher.update(&sample_rate.to_le_bytes());
            for chunk in samples.chunks(1024) {
                let bytes: Vec<u8> = chunk.iter().flat_map(|v| v.to_le_bytes()).collect();
                hasher.update(&bytes);
            }
        }
    }
    hasher.digest128()
}

fn hash_image(hasher: &mut Xxh3, image: &edge_lmm_models::preprocess::RgbImage) {
    for size in [image.width(), image.height()] {
        hasher.update(&size.to_le_bytes());
    }
    hasher.update(image.pixels());
}

#[cfg(test)]
mod tests {
    use edge_lmm_models::model::MediaKind;

    use super::*;
    use crate::Cpu;

    fn input() -> MediaInput {
        MediaInput {
            kind: MediaKind::Image,
            values: vec![0.0; 4],
            shape: vec![1, 4],
            grid: [1, 1, 1],
            time_step: 1,
            tokens: 1,
        }
    }

    #[test]
    fn the_least_recently_used_features_go_first() {
        let features = || Tensor::<Cpu, 2>::zeros([2, 8], &Default::default());
        let mut cache = FeatureCache::new(2 * 64);
        for key in 0..3 {
            cache.insert(key, &input(), features());
        }
        assert!(cache.get(0).is_some());
        cache.trim(&[2]);
        assert_eq!(cache.bytes(), 128);
        assert!(cache.input(1).is_none());
        assert!(cache.input(0).is_some_and(|input| input.values.is_empty()));
        // What the current request needs stays, even beyond the limit.
        cache.insert(3, &input(), features());
        cache.trim(&[0, 2, 3]);
        assert_eq!(cache.bytes(), 3 * 64);
    }

    #[test]
    fn content_and_options_make_the_key() {
        let image = |value: u8| {
            let pixels = vec![value; 12];
            let image = edge_lmm_models::preprocess::RgbImage::new(2, 2, pixels);
            Media::Image(image.expect("an image"))
        };
        let key = |medium: &Media| medium_key(medium, &MediaOptions::default());
        assert_eq!(key(&image(1)), key(&image(1)));
        assert_ne!(key(&image(1)), key(&image(2)));
        let fewer = MediaOptions {
            image_tokens: Some((1, 4)),
            ..MediaOptions::default()
        };
        assert_ne!(key(&image(1)), medium_key(&image(1), &fewer));
    }
}
