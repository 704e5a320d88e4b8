//! Importance of the layers, the feed-forward channels and the attention heads of a language model,
//! and of the layers of a vision encoder, on samples.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use edge_lmm::{Cpu, Engine, one_line};
use edge_lmm_models::families::Registry;
use edge_lmm_ops::observe::{self, Inputs};
use edge_lmm_record::Record;

use crate::calibration::{Samples, prefill_text, spread};
use crate::plan::{ConvertError, Options, Plan};
use crate::progress::Progress;
use crate::rows::read_rows;
use crate::source::Checkpoint;
use crate::temporary_record::TemporaryRecord;

/// Tokens of a window of text.
const WINDOW: usize = 512;
/// Windows of all texts together.
const WINDOWS: usize = 16;
/// The dimension of the layers of a vision encoder.
pub(super) const BLOCKS: &str = "vision.blocks";
/// Elements whose scale is smaller than this share of the largest one say nothing about direction.
const SMALLEST_SCALE: f32 = 1e-3;

/// The importance of the parts of a model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Importance {
    /// For each layer, one minus the mean cosine between its input and its output: the block
    /// influence (Men et al. 2024, section 3.1). Infinite for a layer whose output was not seen.
    pub layers: Vec<f64>,
    /// The same for the layers of the vision encoder. The output of the last one is not seen; without
    /// images among the samples, no output is. Empty if the encoder is not one of equal layers.
    pub vision_layers: Vec<f64>,
    /// For the channels of each layer's feed-forward network, the root mean square of the
    /// activation times the norm of the weights that it is multiplied with.
    pub channels: Vec<Vec<f64>>,
    /// The same for the heads of each layer's attention, each of which has several elements; empty
    /// if heads of the model cannot be pruned.
    pub heads: Vec<Vec<f64>>,
    /// Elements of a head.
    pub head_dim: usize,
}

/// A norm's scales and offsets, which are undone to see the direction of its input.
struct Norm {
    scale: Vec<f32>,
    offset: Option<Vec<f32>>,
}

/// Equal layers, each of which adds to its input.
struct Stack {
    /// The dimension of the layers, with which the names of their weights start.
    dimension: &'static str,
    /// The norm before each layer and, where outputs of the last layer are seen, the one after it.
    norms: Vec<Norm>,
    /// Input of the layer before, `[tokens, width]`, without the norm.
    previous: Option<(usize, Vec<f32>)>,
    /// Sum and number of cosines for each layer.
    cosines: Vec<(f64, usize)>,
}

/// Sums while the samples run.
struct Sums {
    text: Stack,
    vision: Stack,
    /// Squares of the inputs of the weights that channels and heads are multiplied with.
    squares: BTreeMap<String, (Vec<f64>, usize)>,
}

impl Importance {
    /// Runs the samples through the whole model with weights in 8 bits, which are written to the
    /// temporary file `path`.
    ///
    /// # Errors
    /// If the file cannot be written, or the samples do not fit the model.
    pub fn measure(
        plan: &Plan,
        checkpoint: &Arc<Checkpoint>,
        samples: &Samples,
        path: &Path,
        progress: &Progress,
    ) -> Result<Self, ConvertError> {
        let layers = layers(plan)?;
        let blocks = plan.dimensions.get(BLOCKS).copied().unwrap_or(0);
        let eight_bits = plan.in_formats(checkpoint, &Options::eight_bits())?;
        let record = TemporaryRecord::write(&eight_bits, checkpoint, path, progress)?;
        let sums = Rc::new(RefCell::new(Sums {
            text: Stack::new(plan, checkpoint, "text.layers", layers, Some("text.norm"))?,
            vision: Stack::new(plan, checkpoint, BLOCKS, blocks, None)?,
            squares: BTreeMap::new(),
        }));
        let seen = sums.clone();
        let observer = observe::start(move |name, inputs| seen.borrow_mut().add(name, &inputs));
        let outcome = run(&record, samples, &sums, progress);
        drop(observer);
        outcome?;
        let sums = sums.borrow();
        if sums.text.cosines.iter().all(|(_, count)| *count == 0) {
            return Err(prune_error("the samples do not pass the model".into()));
        }
        let of = |weight: &str| -> Result<Vec<Vec<f64>>, ConvertError> {
            let names = (0..layers).map(|layer| format!("text.layers.{layer}.{weight}"));
            names
                .map(|name| columns_of(plan, checkpoint, &sums, &name))
                .collect()
        };
        let heads = plan.dimensions.get("text.layers.0.heads").copied();
        let outputs = heads.map(|_| of("out.weight")).transpose()?;
        let outputs = outputs.unwrap_or_default();
        let head_dim = outputs.first().map_or(0, Vec::len) / heads.unwrap_or(1).max(1);
        let norm = |head: &[f64]| head.iter().map(|x| x * x).sum::<f64>().sqrt();
        let heads_of = |columns: &Vec<f64>| columns.chunks(head_dim.max(1)).map(norm).collect();
        Ok(Self {
            layers: sums.text.influences(),
            vision_layers: sums.vision.influences(),
            channels: of("down.weight")?,
            heads: outputs.iter().map(heads_of).collect(),
            head_dim,
        })
    }
}

fn prune_error(reason: String) -> ConvertError {
    ConvertError::Prune { reason }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> ConvertError {
    prune_error(format!("the samples cannot be run: {}", one_line(error)))
}

/// Returns the number of layers of the decoder.
fn layers(plan: &Plan) -> Result<usize, ConvertError> {
    let layers = plan.dimensions.get("text.layers");
    layers.copied().ok_or_else(|| {
        prune_error(format!(
            "the language model of {} is not a decoder with layers of one kind",
            plan.family.title
        ))
    })
}

impl Stack {
    /// Reads the norms of `count` layers, and the one after the last layer.
    fn new(
        plan: &Plan,
        checkpoint: &Checkpoint,
        dimension: &'static str,
        count: usize,
        last: Option<&str>,
    ) -> Result<Self, ConvertError> {
        let read = |name: String| -> Result<Option<Vec<f32>>, ConvertError> {
            let Some(weight) = plan.weights.iter().find(|w| w.spec.name == name) else {
                return Ok(None);
            };
            let mut values = Vec::new();
            read_rows(checkpoint, weight, 0..weight.spec.rows(), &mut values)?;
            Ok(Some(values))
        };
        let norm = |name: String| -> Result<Norm, ConvertError> {
            let scale = read(format!("{name}.gamma"))?;
            Ok(Norm {
                scale: scale.ok_or_else(|| prune_error(format!("there is no weight {name}")))?,
                offset: read(format!("{name}.beta"))?,
            })
        };
        let names = (0..count).map(|layer| format!("{dimension}.{layer}.attention_norm"));
        Ok(Self {
            dimension,
            norms: (names.chain(last.map(str::to_owned)))
                .map(norm)
                .collect::<Result<_, _>>()?,
            previous: None,
            cosines: vec![(0.0, 0); count],
        })
    }

    /// Splits the name of a weight into the number of its layer and the rest.
    fn layer_of<'a>(&self, name: &'a str) -> Option<(usize, &'a str)> {
        let rest = name.strip_prefix(self.dimension)?.strip_prefix('.')?;
        let (layer, weight) = rest.split_once('.')?;
        Some((layer.parse().ok()?, weight))
    }

    /// Compares the input of a layer, which is the output of the one before, with the input of that.
    fn add(&mut self, layer: usize, normed: &[f32]) {
        let Some(norm) = self.norms.get(layer) else {
            return;
        };
        let (x, width) = (norm.undo(normed), norm.scale.len());
        if let Some((before, y)) = &self.previous
            && before + 1 == layer
            && y.len() == x.len()
        {
            let sum = &mut self.cosines[*before];
            for (x, y) in x.chunks_exact(width).zip(y.chunks_exact(width)) {
                sum.0 += cosine(x, y);
                sum.1 += 1;
            }
        }
        self.previous = Some((layer, x));
    }

    /// Returns the block influence of each layer.
    fn influences(&self) -> Vec<f64> {
        let influence = |&(sum, count): &(f64, usize)| match count {
            0 => f64::INFINITY,
            _ => 1.0 - sum / count as f64,
        };
        self.cosines.iter().map(influence).collect()
    }
}

fn run(
    record: &Record,
    samples: &Samples,
    sums: &RefCell<Sums>,
    progress: &Progress,
) -> Result<(), ConvertError> {
    let (mut model, _) = record
        .skeleton::<Cpu>(&Registry::default(), &Default::default())
        .map_err(|error| failed(&error))?;
    model
        .load(&mut record.store())
        .map_err(|error| failed(&error))?;
    let engine = Engine::<Cpu>::load(record, Default::default()).map_err(|error| failed(&error))?;
    let window = WINDOW.min(model.language().context_length());
    let windows = windows(&engine, samples, window)?;
    let examples = samples.examples(&*model);
    let all = windows.len() + examples.len();
    let report = |done| progress.report("running the samples", done, all);
    for (done, ids) in windows.iter().enumerate() {
        report(done);
        let hidden = prefill_text(model.language(), ids).map_err(|error| failed(&error))?;
        let hidden: Vec<f32> = hidden.into_data().into_vec().unwrap_or_default();
        let mut sums = sums.borrow_mut();
        let last = sums.text.cosines.len();
        sums.text.add(last, &hidden);
        sums.text.previous = None;
    }
    for (done, example) in (windows.len()..).zip(examples) {
        report(done);
        example.run(&engine).map_err(|error| failed(&error))?;
        sums.borrow_mut().text.previous = None;
    }
    Ok(())
}

/// Cuts the texts into windows of at most `window` tokens, at equal distances in long ones.
fn windows(
    engine: &Engine<Cpu>,
    samples: &Samples,
    window: usize,
) -> Result<Vec<Vec<u32>>, ConvertError> {
    let most = WINDOWS.div_ceil(samples.texts().count().max(1));
    let mut windows = Vec::new();
    for text in samples.texts() {
        let ids = engine.text().encode_text(text)?;
        let all: Vec<&[u32]> = ids.chunks(window.max(1)).collect();
        windows.extend(spread(&all, most).into_iter().map(<[u32]>::to_vec));
    }
    Ok(windows)
}

impl Sums {
    /// Adds the inputs of a weight.
    fn add(&mut self, name: &str, inputs: &Inputs<'_>) {
        if let Some((layer, "qkv.weight")) = self.vision.layer_of(name) {
            self.vision.add(layer, inputs.values);
        }
        let Some((layer, weight)) = self.text.layer_of(name) else {
            return;
        };
        match weight {
            "qkv.weight" | "attention.qkv.weight" | "delta.input.weight" => {
                self.text.add(layer, inputs.values);
            }
            "down.weight" | "out.weight" => {
                let new = || (vec![0.0; inputs.width], 0);
                let (sums, tokens) = self.squares.entry(name.to_owned()).or_insert_with(new);
                for row in inputs.values.chunks_exact(inputs.width) {
                    let squares = row.iter().map(|&x| f64::from(x) * f64::from(x));
                    sums.iter_mut().zip(squares).for_each(|(sum, x)| *sum += x);
                }
                *tokens += inputs.tokens();
            }
            _ => {}
        }
    }
}

impl Norm {
    /// Returns the direction of the norm's inputs.
    fn undo(&self, normed: &[f32]) -> Vec<f32> {
        let largest = self
            .scale
            .iter()
            .fold(0f32, |most, scale| most.max(scale.abs()));
        let undo = |(i, &x): (usize, &f32)| {
            let i = i % self.scale.len();
            let offset = self.offset.as_ref().map_or(0.0, |offset| offset[i]);
            match self.scale[i] {
                scale if scale.abs() < SMALLEST_SCALE * largest => 0.0,
                scale => (x - offset) / scale,
            }
        };
        normed.iter().enumerate().map(undo).collect()
    }
}

fn cosine(x: &[f32], y: &[f32]) -> f64 {
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (&x, &y) in x.iter().zip(y) {
        let (x, y) = (f64::from(x), f64::from(y));
        xy += x * y;
        xx += x * x;
        yy += y * y;
    }
    xy / (xx * yy).sqrt().max(f64::MIN_POSITIVE)
}

/// Returns the importance of the columns of a weight.
fn columns_of(
    plan: &Plan,
    checkpoint: &Checkpoint,
    sums: &Sums,
    name: &str,
) -> Result<Vec<f64>, ConvertError> {
    let weight = plan.weights.iter().find(|weight| weight.spec.name == name);
    let (Some(weight), Some((squares, tokens))) = (weight, sums.squares.get(name)) else {
        return Err(prune_error(format!("there is no weight {name}")));
    };
    let (rows, cols) = (weight.spec.rows(), weight.spec.cols());
    let mut norms = vec![0f64; cols];
    let mut values = Vec::with_capacity(cols);
    for row in 0..rows {
        values.clear();
        read_rows(checkpoint, weight, row..row + 1, &mut values)?;
        let squares = values.iter().map(|&x| f64::from(x) * f64::from(x));
        norms.iter_mut().zip(squares).for_each(|(sum, x)| *sum += x);
    }
    let tokens = (*tokens).max(1) as f64;
    let importance = |(norm, square): (f64, &f64)| (norm * square / tokens).sqrt();
    Ok(norms.into_iter().zip(squares).map(importance).collect())
}
