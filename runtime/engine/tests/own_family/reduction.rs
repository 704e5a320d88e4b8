//! Reduction of the pixels inside the language model, against a plain computation of the whole sequence
//! with the dropped tokens masked.

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::{Tensor, TensorData};
use edge_lmm::{Cpu, EngineError, Media, MediaOptions, OutputRows, Request, Session};
use edge_lmm_models::ModelError;
use edge_lmm_models::family::ModelFiles;
use edge_lmm_models::preprocess::RgbImage;
use edge_lmm_models::reduce::{LanguageReduction, Reduction, Reductions, Share};
use edge_lmm_models::text::rotary::inverse_frequencies;
use edge_lmm_models::weights::Weights;
use edge_lmm_ops::{Activation, Format, Heads, Mask, probe, reference};
use serde_json::json;

use super::{
    DEEP_LAYER, HIDDEN, LAYERS, WINDOW, WINDOW_LAYER, WORDS, ask, engine_of, files, go_on,
    registry, values,
};

const HEADS: Heads = Heads {
    heads: 2,
    kv_heads: 1,
    head_dim: 4,
};
/// Error of f32 sums in another order, over three layers, relative to the largest score.
const REORDERED: f32 = 1e-4;

fn share(share: f64) -> Share {
    Share::new(share).expect("a share")
}

/// Returns options with a reduction inside the language model.
fn options(reduction: impl Into<Option<LanguageReduction>>) -> MediaOptions {
    let methods = reduction.into().map(Reduction::Language);
    MediaOptions {
        reductions: Reductions::new(methods.into_iter().collect()).expect("a chain"),
        ..MediaOptions::default()
    }
}

/// An image of 4x4 pixels, none of which is black: two runs of 8 tokens.
fn pixels() -> Vec<u8> {
    (0..48).map(|i| 5 + (i * 89 % 251) as u8).collect()
}

fn image() -> Media {
    Media::image(RgbImage::new(4, 4, pixels()).expect("an image"))
}

/// Settings of the family's configuration.
fn files_with(settings: &[(&str, serde_json::Value)]) -> ModelFiles {
    let mut files = files();
    for (key, value) in settings {
        files.config[*key] = value.clone();
    }
    files
}

fn reduced(session: &mut Session<Cpu>, text: &str, reduction: LanguageReduction) -> Vec<f32> {
    let (messages, media) = (ask(1, text), [image()]);
    let request = Request {
        media: &media,
        options: options(reduction),
        ..Request::new(&messages)
    };
    let prompt = session.prefill(&request, go_on).expect("a prompt");
    assert_eq!(prompt.language_tokens, Some(reduction.share.of(16)));
    prompt.logits.last().to_vec()
}

/// A prompt and what follows it, as the family builds it.
#[derive(Clone)]
struct Sequence {
    ids: Vec<u32>,
    positions: Vec<u32>,
    /// Runs of tokens that stand for pixels.
    runs: Vec<Range<usize>>,
    bidirectional: bool,
    layer: usize,
    /// Tokens that layers from `layer` on do not see.
    dropped: Vec<usize>,
    /// Rotates by the angles of long sequences.
    long: bool,
}

impl Sequence {
    /// Takes the prompt from captured values.
    fn captured(found: &BTreeMap<String, probe::Captured>, layer: usize) -> Self {
        let whole = |name: &str| -> Vec<u32> {
            let values = &found[name].values;
            values.iter().map(|&value| value as u32).collect()
        };
        let ids = whole("input_ids");
        let starts = (0..ids.len()).filter(|&i| ids[i] == 0 && (i == 0 || ids[i - 1] != 0));
        Self {
            // The first of the three axes.
            positions: whole("position_ids")[..ids.len()].to_vec(),
            runs: starts.map(|start| start..start + 8).collect(),
            bidirectional: false,
            layer,
            dropped: found["language_dropped"]
                .values
                .iter()
                .map(|&at| at as usize)
                .collect(),
            long: false,
            ids,
        }
    }

    fn push(&mut self, id: u32) {
        self.ids.push(id);
        self.positions
            .push(self.positions[self.positions.len() - 1] + 1);
    }

    fn holds(&self, layer: usize, token: usize) -> bool {
        layer < self.layer || !self.dropped.contains(&token)
    }

    /// Returns `true` if `query` attends to `key`. A window counts the tokens that the layer holds.
    fn sees(&self, layer: usize, query: usize, key: usize) -> bool {
        let both_ways = |run: &Range<usize>| run.contains(&query) && run.contains(&key);
        let between = (key + 1..=query).filter(|&token| self.holds(layer, token));
        let near = layer != WINDOW_LAYER || between.count() < WINDOW;
        let visible =
            (key <= query && near) || (self.bidirectional && self.runs.iter().any(both_ways));
        // The outputs of dropped tokens are not used.
        query == key || (visible && self.holds(layer, key))
    }
}

/// The weights by name, as matrices.
struct Plain(BTreeMap<String, Tensor<Cpu, 2>>);

impl Plain {
    fn new() -> Self {
        let weights = Weights::<Cpu>::new(Default::default(), |_| Ok(Format::F32));
        registry().build(&files(), &weights).expect("a model");
        let specs = weights.into_specs();
        let matrix = |spec: &super::WeightSpec| {
            let data = TensorData::new(values(spec), [spec.rows(), spec.cols()]);
            Tensor::from_data(data, &Default::default())
        };
        Self(
            specs
                .iter()
                .map(|spec| (spec.name.clone(), matrix(spec)))
                .collect(),
        )
    }

    fn product(&self, name: &str, x: Tensor<Cpu, 2>) -> Tensor<Cpu, 2> {
        let weight = self.0[&format!("{name}.weight")].clone();
        reference::linear(x, weight, None, Activation::None, None)
    }

    fn norm(x: Tensor<Cpu, 2>) -> Tensor<Cpu, 2> {
        reference::rms_norm(x, Tensor::ones([HIDDEN], &Default::default()), 1e-6)
    }

    /// Embeddings of text, or features of the pixels, and the features for the deeper layer.
    fn inputs(&self, sequence: &Sequence) -> [Tensor<Cpu, 2>; 2] {
        let colors: Vec<f32> = pixels().iter().map(|&v| f32::from(v) / 128.0).collect();
        let colors = TensorData::new(colors, [16, 3]);
        let colors = Tensor::<Cpu, 2>::from_data(colors, &Default::default());
        let (near, deep) = (
            self.product("projector", colors.clone()),
            self.product("deep", colors),
        );
        let table = &self.0["text.embedding.weight"];
        let (mut pixel, mut rows, mut deeper) = (0, Vec::new(), Vec::new());
        for &id in &sequence.ids {
            if id == 0 {
                rows.push(near.clone().narrow(0, pixel, 1));
                deeper.push(deep.clone().narrow(0, pixel, 1));
                pixel += 1;
            } else {
                rows.push(table.clone().narrow(0, id as usize, 1));
                deeper.push(Tensor::zeros([1, HIDDEN], &Default::default()));
            }
        }
        [Tensor::cat(rows, 0), Tensor::cat(deeper, 0)]
    }

    /// Returns the scores after the last token, and the attention of token `asked` in the layer that
    /// ranks the pixels.
    fn run(&self, sequence: &Sequence, asked: usize) -> (Vec<f32>, Vec<f32>) {
        let tokens = sequence.ids.len();
        let factor = if sequence.long { 4.0 } else { 1.0 };
        let angles: Vec<f32> = sequence
            .positions
            .iter()
            .flat_map(|&at| {
                inverse_frequencies(1e4, 4)
                    .into_iter()
                    .map(move |f| at as f32 * f / factor)
            })
            .collect();
        let angles =
            Tensor::<Cpu, 2>::from_data(TensorData::new(angles, [tokens, 2]), &Default::default());
        let (cos, sin) = (angles.clone().cos(), angles.sin());
        let [mut x, deep] = self.inputs(sequence);
        let mut attention = Vec::new();
        for layer in 0..LAYERS {
            let name = |part: &str| format!("text.layers.{layer}.{part}");
            if layer == DEEP_LAYER {
                x = x + deep.clone();
            }
            let qkv = self.product(&name("qkv"), Self::norm(x.clone()));
            let part = |first: usize, heads: usize| qkv.clone().narrow(1, 4 * first, 4 * heads);
            let rotate = |x, heads| reference::rope(x, heads, 4, cos.clone(), sin.clone());
            let (q, k, v) = (rotate(part(0, 2), 2), rotate(part(2, 1), 1), part(3, 1));
            if layer + 1 == sequence.layer {
                let seen: Vec<usize> = (0..tokens)
                    .filter(|&key| sequence.sees(layer, asked, key))
                    .collect();
                let (first, q) = (seen[0], q.clone().narrow(0, asked, 1));
                let k = k.clone().narrow(0, first, seen.len());
                let row = reference::attention_row(q, k, HEADS, 0.5).into_data();
                attention = vec![0.0; first];
                attention.extend(row.into_vec::<f32>().expect("floats"));
            }
            let bias: Vec<f32> = (0..tokens * tokens)
                .map(|at| match sequence.sees(layer, at / tokens, at % tokens) {
                    true => 0.0,
                    false => f32::NEG_INFINITY,
                })
                .collect();
            let bias = TensorData::new(bias.repeat(2), [2, tokens, tokens]);
            let bias = Some(Tensor::from_data(bias, &Default::default()));
            let attended = reference::attention(q, k, v, HEADS, Mask::Full, bias, 0.5);
            x = x + self.product(&name("out"), attended);
            let up = self.product(&name("gate_up"), Self::norm(x.clone()));
            x = x + self.product(&name("down"), reference::gated(up, Activation::Silu));
        }
        let last = x.narrow(0, tokens - 1, 1);
        let scores = self.product("text.head", Self::norm(last)).into_data();
        (scores.into_vec().expect("floats"), attention)
    }
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), WORDS.len());
    let size = expected.iter().fold(0f32, |size, x| size.max(x.abs()));
    let errors = found.iter().zip(expected).map(|(f, e)| (f - e).abs());
    let error = errors.fold(0f32, f32::max);
    assert!(
        error <= REORDERED * size,
        "{found:?}, expected {expected:?}"
    );
}

/// The pixels that stay are those that the last token attends to most, and the scores of prompt and
/// steps are those of a sequence whose other pixels are masked in the later layers: with features for
/// a deeper layer, a window that counts the tokens that are left, and runs in both directions.
#[test]
fn dropped_tokens_are_as_if_masked() {
    let plain = Plain::new();
    for (layer, ratio, bidirectional) in [
        (1, 0.5, false),
        (1, 0.2, true),
        (2, 0.5, false),
        (2, 0.7, true),
        (1, 0.01, false),
    ] {
        let files = files_with(&[("bidirectional", json!(bidirectional))]);
        let mut session = engine_of(files, |_, _| {}).session();
        let reduction = LanguageReduction {
            layer,
            share: share(ratio),
        };
        probe::start();
        let scores = reduced(&mut session, "what is this", reduction);
        let mut sequence = Sequence {
            bidirectional,
            ..Sequence::captured(&probe::finish(), layer)
        };
        let asked = sequence.ids.len() - 1;
        let (expected, attention) = plain.run(&sequence, asked);
        assert_close(&scores, &expected);
        let mut pixels: Vec<usize> = sequence.runs.iter().cloned().flatten().collect();
        pixels.sort_by(|&a, &b| attention[b].total_cmp(&attention[a]));
        let mut dropped = pixels.split_off(reduction.share.of(16));
        dropped.sort_unstable();
        assert_eq!(sequence.dropped, dropped, "{reduction:?}");
        for id in [5, 6, 3, 4, 2, 1] {
            sequence.push(id);
            let scores = session.step(&[id], OutputRows::Last).expect("scores");
            assert_close(scores.last(), &plain.run(&sequence, asked).0);
        }
    }
}

/// Neither the tokens that stay nor a bit of the scores depends on the size of the chunks.
#[test]
fn chunks_do_not_change_a_reduction() {
    let long = "this is a pixel ".repeat(10);
    for (layer, bidirectional) in [(1, false), (2, false), (2, true)] {
        let run = |chunk: usize| {
            let settings = [
                ("chunk", json!(chunk)),
                ("bidirectional", json!(bidirectional)),
            ];
            let mut session = engine_of(files_with(&settings), |_, _| {}).session();
            let reduction = LanguageReduction {
                layer,
                share: share(0.4),
            };
            let scores = reduced(&mut session, &long, reduction);
            let steps = session.step(&[5, 6, 3], OutputRows::All).expect("scores");
            (scores, steps)
        };
        let whole = run(512);
        for chunk in [1, 3, 7, 16, 50, 58] {
            assert_eq!(run(chunk), whole, "chunks of {chunk}");
        }
    }
}

/// A sequence that becomes long is computed anew without the tokens that were dropped, also in steps
/// of several tokens; the end of the prompt stays the first place to go back to.
#[test]
fn a_long_sequence_keeps_the_selection() {
    let plain = Plain::new();
    let reduction = LanguageReduction {
        layer: 1,
        share: share(0.5),
    };
    let mut session = engine_of(files_with(&[("border", json!(22))]), |_, _| {}).session();
    probe::start();
    reduced(&mut session, "what is this", reduction);
    let mut sequence = Sequence::captured(&probe::finish(), 1);
    let prompt = sequence.ids.len();
    assert_eq!(prompt, 20);
    let mut together = session.fork().expect("memory");
    let ids = [5, 6, 3, 4];
    let mut last = Vec::new();
    for id in ids {
        sequence.push(id);
        sequence.long = sequence.ids.len() > 22;
        let scores = session.step(&[id], OutputRows::Last).expect("scores");
        assert_close(scores.last(), &plain.run(&sequence, prompt - 1).0);
        last = scores.last().to_vec();
    }
    let scores = together.step(&ids, OutputRows::All).expect("scores");
    assert_eq!(scores.last(), last);
    let error = session.truncate(prompt - 1).unwrap_err();
    let is_expected = matches!(
        error,
        EngineError::Model(ModelError::CannotTruncateReduced { .. })
    );
    assert!(is_expected, "{error}");
    session.truncate(prompt).expect("the prompt is left");
}

/// Recurrent layers would need all tokens.
#[test]
fn a_recurrent_model_refuses_the_reduction() {
    let mut session = engine_of(files_with(&[("convolves", json!(true))]), |_, _| {}).session();
    let (messages, media) = (ask(1, "what is this"), [image()]);
    let request = Request {
        media: &media,
        options: options(LanguageReduction {
            layer: 1,
            share: share(0.5),
        }),
        ..Request::new(&messages)
    };
    let error = session.prefill(&request, go_on).unwrap_err().to_string();
    assert!(error.contains("recurrent"), "{error}");
    assert!(session.is_empty());
}

/// The last token of a prompt is needed, also where it is a pixel that it does not attend to.
#[test]
fn a_prompt_may_end_with_an_image() {
    let mut session = engine_of(files(), |_, _| {}).session();
    let reduction = LanguageReduction {
        layer: 1,
        share: share(0.01),
    };
    probe::start();
    let scores = reduced(&mut session, "", reduction);
    let sequence = Sequence::captured(&probe::finish(), 1);
    let last = sequence.ids.len() - 1;
    assert_eq!(sequence.ids[last], 0);
    assert!(!sequence.dropped.contains(&last));
    assert_close(&scores, &Plain::new().run(&sequence, last).0);
}
