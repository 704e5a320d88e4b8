//! The error of q4 on trained weights, compared with that of llama.cpp's Q4_0, which uses more
//! bits.

mod common;

use common::manifest::Manifest;
use edge_lmm_kernels::{Format, Matrix, MatrixShape, pack_rows};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

/// Squared error and squared norm of a matrix.
#[derive(Clone, Copy, Default)]
struct Error {
    error: f64,
    norm: f64,
}

impl Error {
    fn add(&mut self, found: &[f32], exact: &[f32]) {
        for (found, exact) in found.iter().zip(exact) {
            self.error += f64::from(found - exact).powi(2);
            self.norm += f64::from(*exact).powi(2);
        }
    }

    fn relative(self) -> f64 {
        (self.error / self.norm).sqrt()
    }
}

/// Quantizes to Q4_0: blocks of 32 with a half-precision scale; the weight of largest magnitude
/// becomes -8.
fn q4_0(weights: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(weights.len());
    for block in weights.chunks(32) {
        let max = block
            .iter()
            .fold(0f32, |m, w| if w.abs() > m.abs() { *w } else { m });
        let scale = max / -8.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let stored = f16::from_f32(scale).to_f32();
        // Adds a half and truncates, as llama.cpp does.
        out.extend(
            block
                .iter()
                .map(|w| (((w * inverse + 8.5) as u8).min(15) as f32 - 8.0) * stored),
        );
    }
    out
}

fn q4(weights: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let shape = MatrixShape::new(Format::Q4, rows, cols);
    let mut bytes = Vec::new();
    pack_rows(shape, weights, &mut bytes).expect("finite weights");
    let matrix = Matrix::new(shape, &bytes).expect("whole panels");
    let mut out = vec![0.0; rows * cols];
    for (row, out) in out.chunks_mut(cols).enumerate() {
        matrix.row_into(row, out);
    }
    out
}

fn numbers(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let (pairs, fours) = (bytes.as_chunks().0.iter(), bytes.as_chunks().0.iter());
    match dtype {
        Dtype::BF16 => pairs.map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F16 => pairs.map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F32 => fours.map(|b| f32::from_le_bytes(*b)).collect(),
        other => panic!("{other:?} in a test checkpoint"),
    }
}

#[test]
fn q4_is_closer_to_trained_weights_than_q4_0() {
    // The checkpoints with a question set are trained.
    let trained = Manifest::of_the_hub()
        .into_iter()
        .filter(|manifest| manifest.questions.is_some());
    println!("| model | matrices | q4 | Q4_0 | worse in |");
    for Manifest { name, weights, .. } in trained {
        let file = std::fs::read(common::data().join(weights).join("model.safetensors"))
            .expect("a test checkpoint");
        let tensors = SafeTensors::deserialize(&file).expect("a whole file");
        // Means over the matrices: the rows of an embedding that training has not reached still have
        // the uniform distribution of their initialization, for which equal levels are best, and the
        // largest norm.
        let (mut ours, mut plain) = (0.0, 0.0);
        let (mut matrices, mut worse) = (0, 0);
        for (_, tensor) in tensors.tensors() {
            // Q4_0 requires rows of whole blocks.
            let [rows, cols] = tensor.shape() else {
                continue;
            };
            if cols % 32 != 0 {
                continue;
            }
            let weights = numbers(tensor.dtype(), tensor.data());
            let (mut of_ours, mut of_plain) = (Error::default(), Error::default());
            of_ours.add(&q4(&weights, *rows, *cols), &weights);
            of_plain.add(&q4_0(&weights), &weights);
            matrices += 1;
            worse += usize::from(of_ours.error > of_plain.error);
            ours += of_ours.relative();
            plain += of_plain.relative();
        }
        assert!(matrices > 10, "{name}: {matrices} matrices");
        let [ours, plain] = [ours, plain].map(|sum| sum / f64::from(matrices));
        println!("| {name} | {matrices} | {ours:.4} | {plain:.4} | {worse} |");
        assert!(ours < 0.93 * plain, "{name}: {ours} and {plain}");
        assert!(worse <= 1, "{name}: {worse} matrices");
    }
}
