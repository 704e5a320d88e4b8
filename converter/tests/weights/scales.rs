//! Scales that a calibration chooses and folds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use edge_lmm::Record;
use edge_lmm::output::Output;
use edge_lmm_convert::calibration::{Calibration, Method, Samples, SavedStatistics};
use edge_lmm_convert::source::Checkpoint;
use edge_lmm_convert::{Options, Plan, PlannedWeight, write_calibrated, write_record};
use edge_lmm_kernels::Matrix;
use edge_lmm_models::weights::{Fold, Storage};
use edge_lmm_ops::{Format, MatrixShape};
use safetensors::tensor::{Dtype, TensorView};

use crate::common::manifest::Manifest;
use crate::common::{F32, data};

const Q8: Options = Options {
    text: Format::Q8,
    vision: Format::Q8,
    audio: Format::Q8,
    head: None,
    weights: BTreeMap::new(),
};

/// Returns the weights of a module.
fn module<'a>(plan: &'a Plan, fold: &'a Fold) -> impl Iterator<Item = &'a PlannedWeight> {
    let weights = plan.weights.iter();
    weights.filter(|weight| fold.scales(&weight.spec.name))
}

/// Returns the layers that take scales, by the module that these go to. The calibration gives none to
/// the inputs of an output head.
fn consumers(plan: &Plan) -> BTreeMap<&str, Vec<&PlannedWeight>> {
    let mut all: BTreeMap<&str, Vec<&PlannedWeight>> = BTreeMap::new();
    for weight in &plan.weights {
        if let Some(fold) = &weight.spec.folds_into {
            all.entry(&fold.module).or_default().push(weight);
        }
    }
    all.retain(|_, layers| layers.iter().all(|layer| !layer.spec.is_vocabulary()));
    all
}

/// Returns formats with 4 bits for the layers behind some modules: of the modules that differ by numbers
/// only, such as the norms of a tower, the first one. The rest has 8 bits, which need no scales.
fn formats(checkpoint: &Checkpoint, is_chosen: impl Fn(Behind) -> bool) -> Options {
    let plan = Plan::new(checkpoint, &Q8).expect("a plan");
    let mut kinds = BTreeSet::new();
    let mut weights = BTreeMap::new();
    for (name, layers) in consumers(&plan) {
        let fold = layers[0].spec.folds_into.as_ref().expect("it takes scales");
        let behind = match module(&plan, fold).all(|weight| weight.format.is_none()) {
            true => Behind::Norm,
            false => Behind::Layer,
        };
        let kind = name.replace(|c: char| c.is_ascii_digit(), "");
        if is_chosen(behind) && kinds.insert(kind) {
            weights.extend(
                layers
                    .iter()
                    .map(|layer| (layer.spec.name.clone(), Format::Q4)),
            );
        }
    }
    Options { weights, ..Q8 }
}

/// The module that computes the inputs of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Behind {
    Norm,
    Layer,
}

/// Returns the mean square of an output of a module as an input of the layers behind it, from 2^-8 to
/// 2^7. All layers behind a module have the same inputs.
fn mean_square(module: &str, output: usize) -> f32 {
    let mixed = module.bytes().map(u64::from).chain([output as u64]);
    let mixed = mixed.fold(7u64, |hash, x| {
        (hash ^ x)
            .wrapping_mul(6_364_136_223_846_793_005)
            .rotate_left(23)
    });
    2f32.powf((mixed >> 40) as f32 / (1 << 20) as f32 - 8.0)
}

fn mean_squares(layer: &PlannedWeight) -> Vec<f32> {
    let columns = 0..layer.spec.cols();
    match &layer.spec.folds_into {
        Some(fold) => columns
            .map(|column| mean_square(&fold.module, fold.row(column)))
            .collect(),
        None => vec![1.0; columns.len()],
    }
}

fn statistics(plan: &Plan, path: &Path) -> SavedStatistics {
    let products = plan.weights.iter().filter(|weight| weight.format.is_some());
    let values: Vec<(&str, Vec<u8>)> = products
        .map(|weight| {
            let bytes = mean_squares(weight).into_iter().flat_map(f32::to_le_bytes);
            (&*weight.spec.name, bytes.collect())
        })
        .collect();
    let views = values.iter().map(|(name, bytes)| {
        let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes);
        (*name, view.expect("a tensor"))
    });
    let bytes = safetensors::serialize(views, None).expect("safetensors");
    std::fs::write(path, bytes).expect("a file");
    SavedStatistics::read(path).expect("statistics")
}

/// A record and its plan.
struct Written {
    record: Record,
    plan: Plan,
}

impl Written {
    fn new(checkpoint: &Arc<Checkpoint>, options: &Options, method: Method, folder: &Path) -> Self {
        let plan = Plan::new(checkpoint, options).expect("a plan");
        let path = folder.join(format!("{}.bpk", method.name()));
        match method {
            Method::Nearest => {
                write_record(&plan, checkpoint.clone(), &path, |_, _| {}).expect("a record");
            }
            _ => {
                let saved = statistics(&plan, &path.with_extension("statistics"));
                let weights = path.with_extension("calibration");
                let calibration = Calibration::with_statistics(method, saved, weights);
                return Self::calibrated(checkpoint, options, calibration, &path);
            }
        }
        let record = Record::open(&path).expect("the record opens");
        Self { record, plan }
    }

    fn calibrated(
        checkpoint: &Arc<Checkpoint>,
        options: &Options,
        calibration: Calibration,
        path: &Path,
    ) -> Self {
        let plan = Plan::new(checkpoint, options).expect("a plan");
        let output = Output::create(path, true).expect("an output");
        let checkpoint = checkpoint.clone();
        write_calibrated(output, &plan, checkpoint, Some(calibration), |_, _| {})
            .expect("a record");
        let record = Record::open(path).expect("the record opens");
        Self { record, plan }
    }

    fn weight(&self, name: &str) -> &PlannedWeight {
        let mut weights = self.plan.weights.iter();
        weights.find(|weight| weight.spec.name == name).expect(name)
    }

    /// Returns the values of a weight: `[rows, cols]`.
    fn values(&self, name: &str) -> Vec<f32> {
        let weight = self.weight(name);
        let bytes = self.record.bytes_of(name).expect(name);
        let (rows, cols) = (weight.spec.rows(), weight.spec.cols());
        match (weight.format, &weight.spec.storage) {
            (Some(format), Storage::Packed { .. }) => {
                let shape = MatrixShape::new(format, rows, cols);
                let matrix = Matrix::new(shape, bytes).expect(name);
                let mut values = vec![0.0; rows * cols];
                for (row, values) in values.chunks_exact_mut(cols).enumerate() {
                    matrix.row_into(row, values);
                }
                values
            }
            _ => {
                let (words, _) = bytes.as_chunks::<4>();
                words.iter().map(|word| f32::from_le_bytes(*word)).collect()
            }
        }
    }
}

/// Unit roundoff of single precision.
const SINGLE: f64 = 1.0 / (1 << 24) as f64;
/// Unit roundoff of half precision, in which the quantized formats keep the scales of groups.
const HALF: f64 = 1.0 / (1 << 11) as f64;

/// Returns the number by which each output of a module was divided, and the largest relative error of
/// these numbers.
///
/// In single precision, the inverse of the scale and the product with it are rounded. In 8 bits, each
/// row has the same quants with and without the scale, and each of its group scales, multiplied by the
/// inverse, is rounded to half precision; the mean ratio of the rows' values is as exact as each.
fn scales(fold: &Fold, without: &Written, with: &Written) -> (Vec<f64>, f64) {
    let is_packed = module(&with.plan, fold).any(|weight| weight.format.is_some());
    let error = if is_packed { HALF } else { 0.0 } + 3.0 * SINGLE;
    let mut scales: Vec<Option<f64>> = Vec::new();
    for weight in module(&with.plan, fold) {
        let (name, rows) = (&*weight.spec.name, weight.spec.rows());
        scales.resize(scales.len().max(rows), None);
        let (a, b) = (without.values(name), with.values(name));
        let cols = a.len() / rows;
        let pairs = a.chunks_exact(cols).zip(b.chunks_exact(cols));
        for ((a, b), scale) in pairs.zip(&mut scales) {
            let Some(found) = ratio(a, b) else {
                continue;
            };
            // All weights of a module, such as a matrix and its bias, have the same scales.
            let scale = *scale.get_or_insert(found);
            for (a, b) in a.iter().zip(b) {
                let (a, b) = (f64::from(*a), f64::from(*b));
                let limit = 2.0 * error * a.abs();
                assert!((b * scale - a).abs() <= limit, "{name}: {a} {b} {scale}");
            }
        }
    }
    let known = scales.into_iter().map(|scale| scale.unwrap_or(1.0));
    (known.collect(), error)
}

/// Returns the mean ratio of `a` to `b`, `None` if `b` is zero.
fn ratio(a: &[f32], b: &[f32]) -> Option<f64> {
    let sum = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    };
    let (product, square) = (sum(a, b), sum(b, b));
    (square > 0.0).then(|| product / square)
}

/// Returns the rows of a layer that the search for scales rounds: runs of 8 at equal distances.
fn searched(rows: usize) -> impl Iterator<Item = usize> {
    let runs = rows.div_ceil(8);
    let count = runs.min(32);
    let first = (0..count).map(move |run| run * runs / count * 8);
    first.flat_map(move |first| first..(first + 8).min(rows))
}

/// Returns the root of the expected squared error of the outputs of `layers` if their inputs are divided
/// by `scales`, and that of the squared outputs themselves.
fn output_error(
    layers: &[&PlannedWeight],
    scales: &[f64],
    written: &Written,
    float: &Written,
) -> (f64, f64) {
    let (mut error, mut size) = (0.0, 0.0);
    for layer in layers {
        let (name, cols) = (&*layer.spec.name, layer.spec.cols());
        let fold = layer.spec.folds_into.as_ref().expect("it takes scales");
        let squares = mean_squares(layer);
        let (rounded, exact) = (written.values(name), float.values(name));
        for row in searched(layer.spec.rows()) {
            for (column, square) in squares.iter().enumerate() {
                let at = row * cols + column;
                let value = f64::from(rounded[at]) / scales[fold.row(column)];
                let square = f64::from(*square);
                error += square * (value - f64::from(exact[at])).powi(2);
                size += square * value.powi(2);
            }
        }
    }
    (error.sqrt(), size.sqrt())
}

/// Inputs of a group, whose errors the rounding of a row adds up in single precision.
const GROUP: f64 = 256.0;

/// Compares a record in single precision, one without scales and one with them. Returns the number of
/// modules with scales.
fn check([float, without, with]: [&Written; 3]) -> usize {
    let mut scaled = 0;
    for (module, layers) in consumers(&with.plan) {
        if layers.iter().any(|layer| layer.format != Some(Format::Q4)) {
            continue;
        }
        let fold = layers[0].spec.folds_into.as_ref().expect("it takes scales");
        let (scales, error_of_scales) = scales(fold, without, with);
        scaled += usize::from(scales.iter().any(|scale| (scale - 1.0).abs() > 0.01));
        let ones = vec![1.0; scales.len()];
        let (before, _) = output_error(&layers, &ones, without, float);
        let (after, size) = output_error(&layers, &scales, with, float);
        let limit = before * (1.0 + GROUP * SINGLE) + error_of_scales * size;
        assert!(
            after <= limit,
            "{module}: {after}, {before}, at most {limit}"
        );
    }
    scaled
}

/// Where scales are divided out, the outputs of the layers behind a module have a smaller error than
/// without scales, because the search takes the scales with the smallest error, and 1 is among them. The
/// scale of an output that is left in changes it by up to the factor 32.
///
/// The limit of the error is therefore that without scales, for the rows that the search rounds, but for
/// two things. The search compares sums of up to 256 errors in single precision, each relatively exact
/// to 2^-24; of two equal candidates it may take the worse one. The scales, which are read off the
/// weights of the module, have relative errors of up to 2^-11 in half precision, as have the outputs of
/// the module themselves, so that each weight that is divided by them has that, too.
#[test]
fn chosen_scales_cancel_in_every_family() {
    let folder = tempfile::tempdir().expect("a folder");
    for manifest in families() {
        let checkpoint = Arc::new(manifest.open());
        let written =
            |options: &Options, method| Written::new(&checkpoint, options, method, folder.path());
        let float = written(&F32, Method::Nearest);
        // A layer behind one that takes scales itself is left for the other turn: with 8 bits, its rows are
        // rounded as in the record without scales, so that the scale of each can be read off.
        for behind in [Behind::Norm, Behind::Layer] {
            let options = formats(&checkpoint, |other| other == behind);
            let [without, with] =
                [Method::Weighted, Method::Awq].map(|method| written(&options, method));
            let scaled = check([&float, &without, &with]);
            let name = &manifest.name;
            assert!(scaled > 0, "{name}: no scale behind a {behind:?}");
            println!("{name}: {scaled} modules");
        }
    }
}

/// Returns a checkpoint of each family and tower. The trained ones are of the same families.
fn families() -> Vec<Manifest> {
    let mut all = Manifest::of_the_hub();
    all.retain(|manifest| !manifest.name.ends_with("-tiny"));
    all
}

/// Writes a text, and questions about an image and a sound, of which each family uses what it supports.
fn samples(folder: &Path) -> Samples {
    let (text, questions) = (folder.join("text.txt"), folder.join("questions.csv"));
    std::fs::write(
        &text,
        "A tensor has a shape, and as many values as that says.",
    )
    .expect("a file");
    let media = [
        "questions/images/color_020.png",
        "goldens/qwen2audio-tiny/sample_0.wav",
    ];
    let rows = media.map(|medium| {
        let path = data().join(medium);
        assert!(path.exists(), "{}", path.display());
        format!("{medium},{},what is it?,a circle,color\n", path.display())
    });
    let table = format!("id,media_path,question,answer,task\n{}", rows.concat());
    std::fs::write(&questions, table).expect("a file");
    Samples::read(&[text, questions]).expect("samples")
}

/// The scales depend on samples by the mean squares of the inputs alone, as these are without scales:
/// chosen while the samples pass through the model or afterwards, they are the same, bit by bit. Norms and
/// biases show them. The quants may differ: the statistics were rounded once more.
#[test]
fn samples_and_their_statistics_give_the_same_scales() {
    let folder = tempfile::tempdir().expect("a folder");
    let [path, other, weights, statistics] =
        ["samples.bpk", "saved.bpk", "calibration", "statistics"]
            .map(|name| folder.path().join(name));
    for manifest in families() {
        let name = &manifest.name;
        let checkpoint = Arc::new(manifest.open());
        let options = formats(&checkpoint, |_| true);
        let save = Output::create(&statistics, true).expect("an output");
        let of_samples = Calibration::new(Method::Awq, samples(folder.path()), &weights);
        let of_samples = of_samples.saving_to(save);
        let found = Written::calibrated(&checkpoint, &options, of_samples, &path);
        let saved = SavedStatistics::read(&statistics).expect("statistics");
        let of_saved = Calibration::with_statistics(Method::Awq, saved, &weights);
        let expected = Written::calibrated(&checkpoint, &options, of_saved, &other);
        let plain = Written::new(&checkpoint, &F32, Method::Nearest, folder.path());
        let vectors = found.plan.weights.iter();
        let vectors = vectors.filter(|weight| weight.format.is_none());
        let mut scaled = 0;
        for weight in vectors {
            let vector = &weight.spec.name;
            let values = found.values(vector);
            assert!(values == expected.values(vector), "{name}: {vector}");
            scaled += usize::from(values != plain.values(vector));
        }
        assert!(scaled > 0, "{name}: no scales");
    }
}
