//! `edge-lmm inspect`: a description of a record.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;
use comfy_table::{Table, presets};
use edge_lmm::estimate::{ResourceEstimate, Scenario, cache_bytes};
use edge_lmm::target::{TargetReport, parse_size};
use edge_lmm::units::bytes;
use edge_lmm::{Cpu, Record};
use edge_lmm_models::families::{self, Registry};
use edge_lmm_models::language::LanguageModel;
use edge_lmm_models::weights::WeightSpec;
use serde::Serialize;

use crate::models;

use super::options::print_now;

/// Context length of the estimate.
pub const DEFAULT_CONTEXT: usize = 4096;

/// Image size of the estimate, the one that `--image-size` documents.
const DEFAULT_IMAGE: (usize, usize) = (448, 448);

/// Describes a record: family, parts, formats, size, and the memory estimate for a context length.
#[derive(Args)]
pub struct Cmd {
    /// Record to describe, or name of a model
    #[arg(value_parser = models::argument())]
    model: PathBuf,
    /// Context length of the key-value cache in the estimate
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CONTEXT)]
    context: usize,
    /// Verify the checksum of every weight (reads the whole file)
    #[arg(long)]
    verify: bool,
    /// List every weight
    #[arg(long)]
    tensors: bool,
    /// Check that it fits a device (exit code 1 if not) and estimate its best speed:
    /// raspberry-pi-5, raspberry-pi-5-8gb, jetson-orin-nano, host, ...
    #[arg(long, value_name = "DEVICE")]
    target: Option<String>,
    /// Image size in the estimate
    #[arg(long, value_name = "WIDTHxHEIGHT", default_value = "448x448", value_parser = parse_size)]
    image_size: (usize, usize),
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    family: String,
    model_type: String,
    file_bytes: usize,
    parts: BTreeMap<String, PartReport>,
    context_length: usize,
    context: usize,
    kv_cache_bytes: usize,
    converter: String,
    sources: Vec<edge_lmm::record::SourceFile>,
    verified: bool,
    config: serde_json::Value,
    target: Option<TargetReport>,
    tensors: Vec<TensorReport>,
}

#[derive(Default, Serialize)]
struct PartReport {
    weights: usize,
    parameters: usize,
    bytes: usize,
    formats: BTreeMap<String, usize>,
}

#[derive(Serialize)]
struct TensorReport {
    name: String,
    part: String,
    rows: usize,
    cols: usize,
    format: String,
    bytes: usize,
}

impl Cmd {
    /// The description of a record without options.
    pub fn of(model: PathBuf) -> Self {
        Self {
            model,
            context: DEFAULT_CONTEXT,
            verify: false,
            tensors: false,
            target: None,
            image_size: DEFAULT_IMAGE,
            json: false,
        }
    }

    /// Returns the description of the record as JSON.
    ///
    /// # Errors
    /// If the record cannot be read.
    pub fn describe(&self) -> anyhow::Result<serde_json::Value> {
        let record = Record::open(&self.model)?;
        Ok(serde_json::to_value(self.report(&record)?)?)
    }

    pub fn run(self) -> anyhow::Result<()> {
        let record = Record::open(&self.model)?;
        if self.verify {
            record.verify()?;
        }
        let mut report = self.report(&record)?;
        report.target = self.target_report(&record)?;
        let text = if self.json {
            serde_json::to_string(&report)?
        } else {
            self.text(&report)
        };
        print_now(&format!("{text}\n"))?;
        report.target.as_ref().map_or(Ok(()), check_fit)
    }

    fn target_report(&self, record: &Record) -> anyhow::Result<Option<TargetReport>> {
        let Some(name) = &self.target else {
            return Ok(None);
        };
        let device = edge_lmm::targets::device(name)?;
        let scenario = Scenario {
            context: self.context,
            image_size: Some(self.image_size),
            drafts: true,
        };
        let estimate = ResourceEstimate::of_record(record, &scenario)?;
        Ok(Some(TargetReport::new(device, estimate, self.image_size)))
    }

    fn report(&self, record: &Record) -> anyhow::Result<Report> {
        let info = record.info();
        let (model, specs) = record.skeleton::<Cpu>(&Registry::default(), &Default::default())?;
        let entries: BTreeMap<&str, usize> = record
            .tensors()
            .map(|(name, entry)| (name, entry.len))
            .collect();
        let tensors: Vec<TensorReport> = specs
            .iter()
            .map(|spec| tensor_report(spec, record, entries[spec.name.as_str()]))
            .collect();
        let language: &dyn LanguageModel<Cpu> = model.language();
        let context = self.context.min(language.context_length());
        let family = families::info(&info.files)?;
        Ok(Report {
            family: family.title.to_owned(),
            model_type: family.model_type.to_owned(),
            file_bytes: record.len(),
            parts: parts(&tensors),
            context_length: language.context_length(),
            context,
            kv_cache_bytes: cache_bytes(language, context, true),
            converter: info.converter.clone(),
            sources: info.sources.clone(),
            verified: self.verify,
            config: info.files.config.clone(),
            target: None,
            tensors,
        })
    }

    fn text(&self, report: &Report) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_header([
            "part",
            "weights",
            "parameters",
            "bytes",
            "formats",
        ]);
        for (name, part) in &report.parts {
            let formats: Vec<String> = part
                .formats
                .iter()
                .map(|(format, n)| format!("{n} {format}"))
                .collect();
            table.add_row([
                name.clone(),
                part.weights.to_string(),
                part.parameters.to_string(),
                bytes(part.bytes),
                formats.join(", "),
            ]);
        }
        let mut text = format!(
            "{} ({}), {}, written by converter {}\n{table}\n\
             key-value cache for {} of at most {} positions: {}\n\
             memory estimate: about {} plus activations",
            report.family,
            report.model_type,
            bytes(report.file_bytes),
            report.converter,
            report.context,
            report.context_length,
            bytes(report.kv_cache_bytes),
            bytes(report.file_bytes + report.kv_cache_bytes),
        );
        for source in &report.sources {
            text += &format!(
                "\nfrom {} ({}, xxh3 {})",
                source.name,
                bytes(source.bytes as usize),
                source.xxh3
            );
        }
        if let Some(target) = &report.target {
            text += &format!("\n{target}");
        }
        if report.verified {
            text += "\nall checksums are correct";
        }
        if self.tensors {
            for tensor in &report.tensors {
                text += &format!(
                    "\n{:9} {:44} {} x {} {} {}",
                    tensor.part,
                    tensor.name,
                    tensor.rows,
                    tensor.cols,
                    tensor.format,
                    bytes(tensor.bytes)
                );
            }
        }
        text
    }
}

fn tensor_report(spec: &WeightSpec, record: &Record, bytes: usize) -> TensorReport {
    let format = record.info().formats.get(&spec.name);
    TensorReport {
        name: spec.name.clone(),
        part: spec.part.to_string(),
        rows: spec.rows(),
        cols: spec.cols(),
        format: format.map_or_else(|| "dense f32".to_owned(), |format| format.0.to_string()),
        bytes,
    }
}

fn parts(tensors: &[TensorReport]) -> BTreeMap<String, PartReport> {
    let mut parts: BTreeMap<String, PartReport> = BTreeMap::new();
    for tensor in tensors {
        let part = parts.entry(tensor.part.clone()).or_default();
        part.weights += 1;
        part.parameters += tensor.rows * tensor.cols;
        part.bytes += tensor.bytes;
        *part.formats.entry(tensor.format.clone()).or_default() += 1;
    }
    parts
}

/// Returns an error for a record that does not fit its device, for the exit code.
fn check_fit(target: &TargetReport) -> anyhow::Result<()> {
    ensure!(target.fit.fits, "{}", target.verdict());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_does_not_fit_its_device_is_a_failure() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../models/demo/qwen2vl-tiny.bpk"
        );
        let record = Record::open(path).expect("the demo's record opens");
        let report = |memory_bytes: u64| {
            let scenario = Scenario {
                context: 512,
                image_size: None,
                drafts: true,
            };
            let estimate = ResourceEstimate::of_record(&record, &scenario).expect("an estimate");
            let mut device = edge_lmm::targets::device("raspberry-pi-5").expect("a device");
            device.memory_bytes = memory_bytes;
            TargetReport::new(device, estimate, (0, 0))
        };
        assert!(check_fit(&report(4 << 30)).is_ok());
        let error = check_fit(&report(1 << 20)).expect_err("it is too large");
        assert!(error.to_string().contains("does not fit"), "{error}");
    }
}
