//! Comparison of every stage of every test checkpoint with the reference implementation. The
//! checkpoints are those with a manifest in `models/tests/data/checkpoints`.

mod common;

use std::collections::BTreeSet;

use common::check::check_sample;
use common::manifest::Manifest;
use common::{F32, engine_of, relative};
use edge_lmm_models::media::{AudioPadding, MediaOptions};
use libtest_mimic::{Arguments, Trial};

fn padding(audio_padding: AudioPadding) -> MediaOptions {
    MediaOptions {
        audio_padding,
        ..MediaOptions::default()
    }
}

fn check(manifest: &Manifest) {
    let mut engine = engine_of(manifest.open(), &F32);
    let mut compared = BTreeSet::new();
    let unpadded = manifest.tolerance("without_padding");
    for mut golden in manifest.goldens() {
        // The reference is padded: the spectrogram is compared only with padding, everything else
        // both ways.
        let options = match unpadded {
            Some(_) => padding(AudioPadding::Window),
            None => MediaOptions::default(),
        };
        let (padded, stages) = check_sample(&mut engine, manifest, &golden, &options);
        compared.extend(stages.into_iter().map(|compared| compared.stage));
        let Some(tolerance) = unpadded else { continue };
        golden.tensors.retain(|key, _| !is_spectrogram(key));
        let options = padding(AudioPadding::None);
        let (found, _) = check_sample(&mut engine, manifest, &golden, &options);
        for stage in ["vision_out", "projector_out", "lm_hidden_last"] {
            let error = relative(&found[stage].values, &padded[stage].values);
            println!("{}: {stage} without padding {error:.1e}", golden.name);
            assert!(
                error <= tolerance,
                "{}: {stage} differs by {error}",
                golden.name
            );
        }
    }
    for stage in &manifest.stages {
        assert!(
            compared.contains(stage),
            "{stage} of no sample was compared"
        );
    }
}

fn is_spectrogram(key: &str) -> bool {
    key.starts_with("mel_") || key == "input_features"
}

fn main() {
    let trials = Manifest::all()
        .into_iter()
        .map(|manifest| {
            let name = manifest.name.clone();
            Trial::test(name, move || {
                check(&manifest);
                Ok(())
            })
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
