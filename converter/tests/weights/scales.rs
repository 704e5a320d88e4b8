//! Scales that a calibration chooses and folds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edge_lmm::output::Output;
use edge_lmm::{Cpu, Engine, Record};
use edge_lmm_convert::calibration::{Calibration, Method, Samples};
use edge_lmm_convert::{Options, Plan, write_calibrated};
use edge_lmm_models::weights::Storage;
use edge_lmm_ops::Format;

use crate::common::manifest::Manifest;
use crate::common::{F32, Golden, data, engine_of, relative};
use crate::stages;

const Q4: Options = Options {
    text: Format::Q4,
    vision: Format::Q4,
    audio: Format::Q4,
    head: Some(Format::Q8),
    weights: BTreeMap::new(),
};

/// Writes a short text, and a few questions about images and sounds, of which each family uses what it
/// supports.
fn samples(folder: &Path) -> Samples {
    let (text, questions) = (folder.join("text.txt"), folder.join("questions.csv"));
    let about = std::fs::read_to_string(data().join("README.md")).expect("a text");
    let lines: Vec<&str> = about.lines().take(10).collect();
    std::fs::write(&text, lines.join("\n")).expect("a file");
    let images = (0..4).map(|i| data().join(format!("questions/images/color_{:03}.png", 20 * i)));
    let sounds = (0..2).map(|i| data().join(format!("goldens/qwen2audio-tiny/sample_{i}.wav")));
    let row = |(id, medium): (usize, PathBuf)| {
        assert!(medium.exists(), "{}", medium.display());
        format!("{id},{},what is it?,a circle,color\n", medium.display())
    };
    let rows: String = images.chain(sounds).enumerate().map(row).collect();
    let table = format!("id,media_path,question,answer,task\n{rows}");
    std::fs::write(&questions, table).expect("a file");
    Samples::read(&[text, questions]).expect("samples")
}

/// A record of a method, and what the tests compare of it.
struct Calibrated {
    logits: Vec<f32>,
    /// The bytes of the norms and biases.
    vectors: Vec<Vec<u8>>,
}

fn calibrated(manifest: &Manifest, method: Method, folder: &Path, golden: &Golden) -> Calibrated {
    let checkpoint = Arc::new(manifest.open());
    let plan = Plan::new(&checkpoint, &Q4).expect("a plan");
    let path = folder.join("model.bpk");
    let calibration = Calibration::new(method, samples(folder), path.with_extension("calibration"));
    let output = Output::create(&path, true).expect("an output");
    write_calibrated(output, &plan, checkpoint, Some(calibration), |_, _| {}).expect("a record");
    let record = Record::open(&path).expect("the record opens");
    let dense = (plan.weights.iter()).filter(|w| matches!(w.spec.storage, Storage::Dense { .. }));
    let bytes = |name: &str| record.bytes_of(name).expect(name).to_vec();
    let vectors = dense.map(|weight| bytes(&weight.spec.name)).collect();
    let engine = Engine::<Cpu>::load(&record, Default::default()).expect("the model loads");
    let (_, mut stages) = stages(&mut engine.session(), golden);
    Calibrated {
        logits: stages.remove("logits_first").expect("logits").values,
        vectors,
    }
}

/// Relative error of logits below which single roundings decide which method is better; that of a wrong
/// scale is about one.
const CHANCE: f64 = 0.02;

/// A scale that is not divided out changes the outputs of a module by up to the factor 32. With right
/// scales the error is that of another rounding, whose logits differ by a third by chance.
#[test]
fn chosen_scales_cancel_in_every_family() {
    let folder = tempfile::tempdir().expect("a folder");
    for manifest in Manifest::of_the_hub() {
        let golden = manifest.golden_of_all_encoders();
        let (_, float) = stages(&mut engine_of(manifest.open(), &F32), &golden);
        let float = &float["logits_first"].values;
        let [weighted, awq] = [Method::Weighted, Method::Awq]
            .map(|method| calibrated(&manifest, method, folder.path(), &golden));
        let scaled = weighted.vectors != awq.vectors;
        assert!(scaled, "{}: no scale", manifest.name);
        let [of_weighted, of_awq] = [&weighted, &awq].map(|r| relative(&r.logits, float));
        assert!(
            of_awq < 1.5 * of_weighted.max(CHANCE),
            "{}: {of_awq}, {of_weighted}",
            manifest.name
        );
    }
}
