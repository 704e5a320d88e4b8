//! Records with mixed precision.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use common::manifest::Manifest;
use common::samples;
use edge_lmm_convert::calibration::{Calibration, Method};
use edge_lmm_convert::compare::{Scorer, Windows, predict};
use edge_lmm_convert::mixed::{Budget, Mixed, Search};
use edge_lmm_convert::{ConvertError, Options, Plan, Progress, write_record};
use edge_lmm_ops::Format;

/// Mean divergences of records of the tiny model from the first one, on the questions as a text.
fn divergences(folder: &Path, all: &[&Options]) -> Vec<f64> {
    let text = samples::write_text(folder);
    let mut models = Vec::new();
    for (number, options) in all.iter().enumerate() {
        let checkpoint = Arc::new(Manifest::named("qwen2vl-tiny").open());
        let plan = Plan::new(&checkpoint, options).expect("a plan");
        let path = folder.join(format!("{number}.bpk"));
        write_record(&plan, checkpoint, &path, |_, _| {}).expect("a record");
        models.push(Scorer::open(&path).expect("a record"));
    }
    let windows = Windows::of_text(&text, models[0].record().tokenizer(), 32).expect("windows");
    let found = predict(&mut models, &windows.first(20), |_| {}).expect("predictions");
    found
        .iter()
        .filter_map(|p| p.divergence.map(|d| d.mean))
        .collect()
}

fn float() -> Options {
    Options {
        text: Format::F32,
        ..Options::default()
    }
}

/// Four bits for all but the head, whose error is larger than that of all layers.
fn four_bits() -> Options {
    Options {
        head: Some(Format::Q8),
        ..Options::default()
    }
}

fn choose(
    budget: Budget,
    folder: &Path,
    rounding: Option<Method>,
) -> Result<(Plan, Mixed), ConvertError> {
    let checkpoint = Arc::new(Manifest::named("qwen2vl-tiny").open());
    let options = four_bits();
    let plan = Plan::new(&checkpoint, &options)?;
    let samples = samples::questions(8);
    let path = folder.join("eight-bits");
    let search = Search {
        plan: &plan,
        options: &options,
        checkpoint: &checkpoint,
        samples: &samples,
        path: &path,
        progress: &Progress::none(),
    };
    let rounded = folder.join("rounded");
    let rounding = rounding.map(|method| Calibration::new(method, samples::questions(8), &rounded));
    let mixed = search.run(budget, rounding)?;
    assert!(
        !path.exists() && !rounded.exists(),
        "a temporary file is left"
    );
    let options = Options {
        weights: mixed.weights.clone(),
        ..options
    };
    Ok((plan.in_formats(&checkpoint, &options)?, mixed))
}

/// Rows that are stored apart give the values that they give with the others.
#[test]
fn values_apart_change_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let apart = Options {
        weights: BTreeMap::from([("text.layers.1.qkv.tail.weight".to_owned(), Format::F32)]),
        ..float()
    };
    assert_eq!(divergences(folder.path(), &[&float(), &apart]), [0.0]);
}

#[test]
fn a_few_weights_in_eight_bits_help_most() {
    let folder = tempfile::tempdir().expect("a folder");
    let (plan, mixed) = choose(Budget::Bits(4.9), folder.path(), None).expect("a plan");
    let layers = plan
        .weights
        .iter()
        .filter(|weight| weight.spec.product && weight.spec.name.starts_with("text.layers."));
    let (mut bytes, mut count) = (0, 0);
    for weight in layers {
        bytes += weight.bytes;
        count += weight.spec.rows() * weight.spec.cols();
    }
    let bits = 8.0 * bytes as f64 / count as f64;
    assert!((4.6..=4.9).contains(&bits), "{bits}");
    let mixed = Options {
        weights: mixed.weights,
        ..four_bits()
    };
    let found = divergences(folder.path(), &[&float(), &four_bits(), &mixed]);
    // Chosen blindly, an eighth of the weights would take an eighth of the divergence.
    assert!(found[1] < 0.8 * found[0], "{found:?}");
}

/// The sensitivities are those of the weights as they will be rounded.
#[test]
fn better_rounding_makes_the_predictions_less_sensitive() {
    let folder = tempfile::tempdir().expect("a folder");
    let [nearest, gptq] = [None, Some(Method::Gptq)].map(|rounding| {
        let (_, mixed) = choose(Budget::Bits(4.9), folder.path(), rounding).expect("a plan");
        let all = mixed.sensitivities.iter();
        all.map(|weight| weight.divergence).sum::<f64>()
    });
    assert!(gptq < 0.8 * nearest, "{gptq} and {nearest}");
}

#[test]
fn a_record_is_not_larger_than_its_budget() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoint = Manifest::named("qwen2vl-tiny").open();
    let plan = Plan::new(&checkpoint, &four_bits()).expect("a plan");
    for (budget, expected) in [
        (Budget::Bytes(plan.bytes() / 2), "bytes, expected at least"),
        (
            Budget::Bits(4.0),
            "4.00 bits per weight, expected at least the 4.",
        ),
    ] {
        let error = choose(budget, folder.path(), None).expect_err("the budget is too small");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let budget = plan.bytes() + (1 << 20);
    let (mixed, _) = choose(Budget::Bytes(budget), folder.path(), None).expect("a plan");
    let allowed = plan.bytes() + 1..=budget;
    assert!(allowed.contains(&mixed.bytes()), "{} bytes", mixed.bytes());
}
