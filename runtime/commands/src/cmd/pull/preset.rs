//! Settings for a device: formats, context length and image tokens.
//!
//! The converter plans the record for each candidate and compares its memory estimate with the
//! device's profile, as `edge-lmm inspect --target` does; the first one that fits is taken.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, bail};
use edge_lmm::Record;
use edge_lmm::estimate::{ResourceEstimate, Scenario};
use edge_lmm::target::TargetReport;

use crate::models::description::Preset;

use super::convert::Converter;

/// Format of the encoders and context length, preferred ones first. The language model has 4 bits.
const CANDIDATES: [(&str, usize); 5] = [
    ("q8", 8192),
    ("q8", 4096),
    ("q8", 2048),
    ("q4", 2048),
    ("q4", 1024),
];

/// Sides of square images, largest first.
const IMAGES: [usize; 6] = [1344, 896, 672, 448, 336, 224];

/// Time to the first token of an answer about an image, at best, that a preset allows.
const FIRST_TOKEN_SECONDS: f64 = 4.0;

/// The settings of a conversion.
pub struct Choice {
    target: String,
    encoders: &'static str,
    context: usize,
}

/// Chooses the settings of a conversion with these arguments.
///
/// # Errors
/// If nothing fits, or the conversion is impossible.
pub fn choose(
    converter: &Converter,
    target: &str,
    arguments: &[OsString],
) -> anyhow::Result<Choice> {
    let mut last = String::new();
    for (encoders, context) in CANDIDATES {
        let choice = Choice {
            target: target.to_owned(),
            encoders,
            context,
        };
        let planned = arguments.iter().cloned().chain(choice.arguments());
        match converter.plan(&planned.collect::<Vec<_>>())? {
            None => return Ok(choice),
            Some(message) if message.contains("does not fit") => last = message,
            Some(message) => bail!("the checkpoint cannot be converted: {message}"),
        }
    }
    bail!("{last}")
}

impl Choice {
    /// Returns the options of the converter.
    pub fn arguments(&self) -> Vec<OsString> {
        let context = self.context.to_string();
        let image = IMAGES[IMAGES.len() - 1];
        [
            "--vision-quant",
            self.encoders,
            "--audio-quant",
            self.encoders,
            "--target",
            &self.target,
            "--target-context",
            &context,
            "--target-image-size",
            &format!("{image}x{image}"),
        ]
        .map(OsString::from)
        .into()
    }

    /// Returns the preset of the finished record.
    ///
    /// # Errors
    /// If the record cannot be read.
    pub fn preset(self, record: &Path) -> anyhow::Result<Preset> {
        let record = Record::open(record)?;
        Ok(Preset {
            image_tokens: self.image_tokens(&record)?,
            target: self.target,
            context: self.context,
        })
    }

    /// Returns the range of tokens of an image; `None` for models without images or with images of
    /// one size.
    fn image_tokens(&self, record: &Record) -> anyhow::Result<Option<(usize, usize)>> {
        let device = edge_lmm::targets::device(&self.target)?;
        let reports = IMAGES.map(|side| {
            let scenario = Scenario {
                context: self.context,
                image_size: Some((side, side)),
                drafts: true,
            };
            let estimate = ResourceEstimate::of_record(record, &scenario)?;
            Ok(TargetReport::new(device.clone(), estimate, (side, side)))
        });
        let reports: Vec<TargetReport> = reports.into_iter().collect::<anyhow::Result<_>>()?;
        let least = reports.last().context("no image sizes")?;
        let most = reports
            .iter()
            .find(|report| is_suitable(report))
            .unwrap_or(least);
        let grows = reports
            .iter()
            .any(|report| report.visual_tokens > least.visual_tokens);
        Ok(grows.then_some((least.visual_tokens.min(64), most.visual_tokens)))
    }
}

/// Returns `true` if an image fits into memory and its answer begins soon.
fn is_suitable(report: &TargetReport) -> bool {
    let stages = report.estimates.iter();
    let first_token = stages.filter(|estimate| estimate.work.stage != "decode");
    let seconds: f64 = first_token.map(edge_lmm::targets::Estimate::seconds).sum();
    report.fit.fits && seconds <= FIRST_TOKEN_SECONDS
}
