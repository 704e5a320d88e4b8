//! Compares the stages of a program for the tiny Qwen2-VL with reference values.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::emulate::Emulator;
use crate::shell;

/// Promised tolerance for f32 records: norm of the difference over the norm of the values.
const STAGE_TOLERANCE: f64 = 1e-3;
/// Promised absolute tolerance for preprocessing.
const PIXEL_TOLERANCE: f64 = 1e-3;
/// Minimum number of stages compared for a question about an image.
const FEWEST_STAGES: usize = 8;

#[derive(Deserialize)]
struct Index {
    samples: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    id: usize,
    media: Vec<String>,
    question: String,
    greedy16: Vec<u32>,
}

#[derive(Deserialize)]
struct Answer {
    tokens: Vec<u32>,
}

fn data() -> PathBuf {
    shell::root().join("models/tests/data")
}

/// Converts the tiny checkpoint without quantization on this machine.
pub fn float_record(folder: &Path) -> anyhow::Result<PathBuf> {
    let record = folder.join("qwen2vl-tiny-f32.bpk");
    // Built with the features of the whole workspace, so that builds of the tests are reused.
    let mut cargo = Command::new("cargo");
    cargo.args([
        "build",
        "--locked",
        "--workspace",
        "--bin",
        "edge-lmm-convert",
    ]);
    shell::run(cargo.current_dir(shell::root()))?;
    shell::run(
        Command::new(shell::target_dir().join("debug/edge-lmm-convert"))
            .arg(data().join("qwen2vl-tiny"))
            .arg("-o")
            .arg(&record)
            .args(["--text-quant", "f32", "--vision-quant", "f32"]),
    )?;
    Ok(record)
}

/// Asks every question about one image, and compares all stages and the answer.
pub fn check(
    emulator: &Emulator,
    program: &Path,
    record: &Path,
    work: &Path,
) -> anyhow::Result<()> {
    let folder = data().join("goldens/qwen2vl-tiny");
    let index = fs::read_to_string(folder.join("index.json"))?;
    let index: Index = serde_json::from_str(&index).context("index.json")?;
    let mut checked = 0;
    let mut worst = (0.0, String::new());
    for sample in index
        .samples
        .iter()
        .filter(|sample| sample.media.len() == 1)
    {
        let dump = work.join("stages.safetensors");
        let tokens = sample.greedy16.len().to_string();
        let answer = shell::output(
            emulator
                .command(program)
                .arg("run")
                .arg(record)
                .args(["--prompt", &sample.question, "--image"])
                .arg(folder.join(&sample.media[0]))
                .args([
                    "--max-tokens",
                    &tokens,
                    "--ignore-eos",
                    "--json",
                    "--dump-stages",
                ])
                .arg(&dump),
        )?;
        let answer: Answer = serde_json::from_str(&answer).context("run --json")?;
        ensure!(
            answer.tokens == sample.greedy16,
            "sample {}: the tokens are {:?}, expected {:?}",
            sample.id,
            answer.tokens,
            sample.greedy16
        );
        let expected = fs::read(folder.join(format!("sample_{}.safetensors", sample.id)))?;
        let error = compare(&fs::read(&dump)?, &expected)
            .with_context(|| format!("sample {}", sample.id))?;
        if error.0 > worst.0 {
            worst = error;
        }
        checked += 1;
    }
    ensure!(checked > 0, "there are no samples in {}", folder.display());
    println!(
        "  {checked} questions: tokens identical, largest difference {:.1e} ({})",
        worst.0, worst.1
    );
    Ok(())
}

/// Returns the largest relative difference of a stage, and its name.
fn compare(found: &[u8], expected: &[u8]) -> anyhow::Result<(f64, String)> {
    let found = SafeTensors::deserialize(found)?;
    let expected = SafeTensors::deserialize(expected)?;
    let mut worst = (0.0, String::new());
    let mut compared = 0;
    for (key, view) in expected.tensors() {
        let stage = key.trim_end_matches("_head");
        let Ok(own) = found.tensor(stage) else {
            continue;
        };
        let (own, view) = (
            values(own.dtype(), own.data())?,
            values(view.dtype(), view.data())?,
        );
        ensure!(
            own.len() >= view.len(),
            "{key} has {} values, expected {}",
            own.len(),
            view.len()
        );
        // A reference may contain only the first values.
        let own = &own[..view.len()];
        let (error, limit) = match stage {
            "input_ids" | "position_ids" | "rope_delta" | "grid_thw" => (largest(own, &view), 0.0),
            "pixel_values" => (largest(own, &view), PIXEL_TOLERANCE),
            _ => (relative(own, &view), STAGE_TOLERANCE),
        };
        ensure!(
            error <= limit,
            "{key} differs by {error:e}, allowed is {limit:e}"
        );
        if stage != "pixel_values" && error > worst.0 {
            worst = (error, stage.to_owned());
        }
        compared += 1;
    }
    ensure!(
        compared >= FEWEST_STAGES,
        "only {compared} stages could be compared"
    );
    Ok(worst)
}

fn values(dtype: Dtype, data: &[u8]) -> anyhow::Result<Vec<f64>> {
    let words = data.as_chunks::<4>().0.iter();
    Ok(match dtype {
        Dtype::F32 => words.map(|w| f64::from(f32::from_le_bytes(*w))).collect(),
        Dtype::I32 => words.map(|w| f64::from(i32::from_le_bytes(*w))).collect(),
        other => bail!("values of type {other:?}, expected F32 or I32"),
    })
}

/// Returns the largest difference of two values; NaN counts as infinite.
fn largest(found: &[f64], expected: &[f64]) -> f64 {
    let differences = found.iter().zip(expected).map(|(f, e)| (f - e).abs());
    differences.fold(0.0, |worst, d| {
        if d.is_nan() {
            f64::INFINITY
        } else {
            worst.max(d)
        }
    })
}

/// Returns the norm of the difference over the norm of the expected values.
fn relative(found: &[f64], expected: &[f64]) -> f64 {
    let difference: f64 = found
        .iter()
        .zip(expected)
        .map(|(f, e)| (f - e).powi(2))
        .sum();
    let norm: f64 = expected.iter().map(|e| e.powi(2)).sum();
    let error = (difference / norm.max(f64::MIN_POSITIVE)).sqrt();
    if error.is_nan() { f64::INFINITY } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_measured() {
        assert_eq!(relative(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert_eq!(relative(&[3.0, 0.0], &[3.0, 4.0]), 0.8);
        assert_eq!(largest(&[1.0, 2.0], &[1.0, 5.0]), 3.0);
    }

    #[test]
    fn what_is_no_number_differs() {
        assert_eq!(relative(&[f64::NAN], &[1.0]), f64::INFINITY);
        assert_eq!(largest(&[f64::NAN, 1.0], &[1.0, 1.0]), f64::INFINITY);
    }
}
