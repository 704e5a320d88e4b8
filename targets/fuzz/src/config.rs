//! Fuzz targets for the configuration files of a model, as stored in a record.

use edge_lmm::Cpu;
use edge_lmm::generation::{GenerationConfig, Run};
use edge_lmm::sampler::Sampling;
use edge_lmm_models::families;
use edge_lmm_models::family::ModelFiles;
use edge_lmm_models::media::{MediaInput, MediaOptions};
use edge_lmm_models::preprocess::RgbImage;
use edge_lmm_models::weights::Weights;
use edge_lmm_ops::Format;
use serde_json::json;

use crate::mutate::Form;
use crate::{Target, data, errors};

/// Returns the configurations of all test checkpoints.
fn seeds() -> Vec<Vec<u8>> {
    data::checkpoints()
        .iter()
        .map(|name| {
            let json = |file| data::json(&format!("models/tests/data/{name}/{file}.json"));
            let files = json!({
                "config": json("config"),
                "preprocessor": json("preprocessor_config"),
                "generation": json("generation_config"),
            });
            files.to_string().into_bytes()
        })
        .collect()
}

/// Configurations, a model without weights, and the inputs of its encoder.
pub const MODEL_CONFIG: Target = Target {
    name: "model_config",
    form: Form::Json(&[b"null", b"text_config", b"rope_scaling", b"model_type"]),
    seeds,
    run: |input| {
        let Ok(files) = serde_json::from_slice::<ModelFiles>(input) else {
            return;
        };
        let weights = Weights::<Cpu>::new(Default::default(), |_| Ok(Format::Q4));
        let model = match families::build(&files, &weights) {
            Ok(model) => model,
            Err(error) => return errors::check(&error),
        };
        let language = model.language();
        assert!(language.positions(5, 5) <= 10);
        let _ = (
            language.hidden_size(),
            language.vocabulary(),
            language.cache_shape(10),
        );
        assert!(!weights.into_specs().is_empty());
        let image = RgbImage::new(20, 10, vec![128; 600]).expect("an image");
        let options = MediaOptions::default();
        for prepared in [
            model.image(&image, &options),
            model.video(&[image.clone(), image.clone()], &1.0.into(), &options),
            model.audio(&[0.5; 4000], 16_000, &options),
        ] {
            match prepared {
                Ok(medium) => check_medium(&medium),
                Err(error) => errors::check(&error),
            }
        }
    },
};

fn check_medium(medium: &MediaInput) {
    assert_eq!(medium.values.len(), medium.shape.iter().product::<usize>());
    assert!(medium.tokens() > 0);
}

/// Generation settings, applied to a few logits.
pub const GENERATION_CONFIG: Target = Target {
    name: "generation_config",
    form: Form::Json(&[b"null", b"[]", b"[[1, 2]]", b"1e39"]),
    seeds: || {
        let mut seeds = seeds();
        let all = json!({"config": {}, "generation": {
            "sequence_bias": [[[1, 2], 0.5], [[3], -1.0]], "repetition_penalty": 1.2,
            "no_repeat_ngram_size": 2, "bad_words_ids": [[4], [5, 6]], "min_length": 3,
            "min_new_tokens": 2, "forced_bos_token_id": 1, "forced_eos_token_id": [2, 3],
            "exponential_decay_length_penalty": [2, 1.5], "suppress_tokens": [7],
            "begin_suppress_tokens": [8, -1], "num_beams": 4, "guidance_scale": 1.5,
        }});
        seeds.push(all.to_string().into_bytes());
        seeds
    },
    run: |input| {
        let Ok(files) = serde_json::from_slice::<ModelFiles>(input) else {
            return;
        };
        let config = GenerationConfig::new(&files);
        let _ = config.unsupported();
        for prompt in [1, 4] {
            let run = Run {
                prompt,
                max_tokens: 4,
                end_tokens: &[2, 40],
            };
            let mut processors = match config.processors(&Sampling::default(), run) {
                Ok(processors) => processors,
                Err(error) => return errors::check(&error),
            };
            for len in prompt..prompt + 4 {
                let tokens: Vec<u32> = (0..len as u32).map(|id| id * 5 % 40).collect();
                let mut logits = vec![0.25; 16];
                for processor in &mut processors {
                    processor.process(&mut logits, &tokens);
                }
                assert_eq!(logits.len(), 16);
                assert!(!logits.iter().any(|logit| logit.is_nan()), "{logits:?}");
            }
        }
    },
};
