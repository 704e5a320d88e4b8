//! Measurement of a cost model with synthetic media and prompts.

use std::time::Instant;

use edge_lmm_models::ModelError;
use edge_lmm_models::language::{DecoderState, StepInput};
use edge_lmm_models::layout::Position;
use edge_lmm_models::media::{MediaInput, MediaKind, MediaOptions};
use edge_lmm_models::monitor::Monitor;
use edge_lmm_models::preprocess::RgbImage;
use edge_lmm_models::reduce::{EncoderSize, Reductions};
use edge_lmm_ops::KernelBackend;

use super::{CostModel, Curve, Point};
use crate::error::EngineError;
use crate::loaded::LoadedModel;

/// Rows of the first measurement of a stage; the next ones are chosen by its time.
const FIRST_ROWS: usize = 32;
/// Time of the longest measurement of a stage, unless four times as many rows take longer.
const LONGEST_MS: f64 = 500.0;
/// Most rows of a measurement.
const MOST_ROWS: usize = 1024;
/// Time up to which a measurement is repeated.
const SHORT_MS: f64 = 50.0;
/// Width and height of the synthetic image, and its largest number of tokens.
const SIDE: usize = 448;
const MOST_TOKENS: usize = 256;
/// Samples per second of the synthetic sound.
const SAMPLE_RATE: u32 = 16_000;

impl<B: KernelBackend> LoadedModel<B> {
    /// Measures encoders and prefill at a few small sizes.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn measure_costs(&self) -> Result<CostModel, EngineError> {
        let (mut preprocess, mut merging) = (0.0, 1.0);
        let vision = match self.image_measurement() {
            None => None,
            Some(mut image) => {
                preprocess = image.preprocess;
                let curve = image.curve()?;
                if image.mergeable {
                    merging = image.merging(&curve)?;
                }
                Some(curve)
            }
        };
        Ok(CostModel {
            preprocess,
            vision,
            audio: self.measure_audio()?,
            merging,
            prefill: self.measure_prefill()?,
        })
    }

    fn image_measurement(&self) -> Option<ImageMeasurement<'_, B>> {
        let image = noise(SIDE).ok()?;
        let options = MediaOptions {
            image_tokens: self.model.resizes_images().then_some((1, MOST_TOKENS)),
            ..MediaOptions::default()
        };
        let start = Instant::now();
        let input = self.model.image(&image, &options).ok()?;
        let preprocess = elapsed(start) / input.values.len().max(1) as f64;
        let size = self.model.encoder_size(&input);
        Some(ImageMeasurement {
            model: self,
            image,
            options,
            rows: size.parts.iter().sum::<usize>() * size.rows,
            mergeable: size.merges,
            preprocess,
            largest: 0,
        })
    }

    /// Returns the time of a chain of work; the best of several if it is short.
    fn time(&self, mut work: impl FnMut() -> Result<(), EngineError>) -> Result<f64, EngineError> {
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            let start = Instant::now();
            work()?;
            B::sync(&self.device).map_err(|error| EngineError::Compute(error.to_string()))?;
            best = best.min(elapsed(start));
            if best > SHORT_MS {
                break;
            }
        }
        Ok(best.max(1e-6))
    }

    fn encode_time(&self, input: &MediaInput) -> Result<f64, EngineError> {
        self.time(|| {
            let mut go_on = |_| std::ops::ControlFlow::Continue(());
            self.model.encode(input, &mut Monitor::new(&mut go_on))?;
            Ok(())
        })
    }

    fn measure_audio(&self) -> Result<Option<Curve>, EngineError> {
        let options = MediaOptions::default();
        let sound = |seconds: usize| {
            let samples: Vec<f32> = Samples(1)
                .take(seconds * SAMPLE_RATE as usize)
                .map(|sample| f32::from(sample) / 256.0 - 0.5)
                .collect();
            self.model.audio(&samples, SAMPLE_RATE, &options)
        };
        let Ok(first) = sound(1) else { return Ok(None) };
        let rows = |input: &MediaInput| {
            let size = self.model.encoder_size(input);
            (size.parts.iter().sum::<usize>() * size.rows).max(1)
        };
        let per_second = rows(&first);
        let curve = measure(per_second, 16 * per_second, |wanted| {
            let input = sound(wanted.div_ceil(per_second).max(1))?;
            let rows = rows(&input) as f64;
            Ok(Point {
                rows,
                pairs: rows * rows,
                ms: self.encode_time(&input)?,
            })
        })?;
        Ok(Some(curve))
    }

    fn measure_prefill(&self) -> Result<Curve, EngineError> {
        let language = self.model.language();
        let most = language
            .context_length()
            .saturating_sub(1)
            .clamp(1, MOST_ROWS);
        measure(FIRST_ROWS.min(most), most, |tokens| {
            let ids: Vec<u32> = (0..tokens)
                .map(|i| (i % language.vocabulary()) as u32)
                .collect();
            let positions: Vec<Position> = (0..tokens as u32).map(|at| [at; 3]).collect();
            let ms = self.time(|| {
                let capacity = language.positions(tokens, 1);
                let mut state = DecoderState::new(language, capacity, &self.device)
                    .map_err(ModelError::from)?;
                let input = StepInput::new(language.embed(&ids), &positions);
                let mut go_on = |_| std::ops::ControlFlow::Continue(());
                let hidden = language.prefill(input, &mut state, &mut Monitor::new(&mut go_on))?;
                language.logits(hidden);
                Ok(())
            })?;
            let rows = tokens as f64;
            Ok(Point {
                rows,
                pairs: rows * rows,
                ms,
            })
        })
    }
}

/// Measurements of the vision encoder.
struct ImageMeasurement<'m, B: KernelBackend> {
    model: &'m LoadedModel<B>,
    image: RgbImage,
    options: MediaOptions,
    /// Rows of the whole image.
    rows: usize,
    mergeable: bool,
    /// Time for each value.
    preprocess: f64,
    /// Rows of the largest measurement.
    largest: usize,
}

impl<B: KernelBackend> ImageMeasurement<'_, B> {
    fn curve(&mut self) -> Result<Curve, EngineError> {
        let most = self.rows.min(MOST_ROWS);
        // Units are left out to make the image smaller, where the encoder can do without them.
        let first = if self.mergeable {
            FIRST_ROWS.min(most)
        } else {
            most
        };
        measure(first, most, |rows| {
            self.largest = rows;
            self.point(rows, "")
        })
    }

    /// Returns how much longer merging takes than the number of rows explains.
    fn merging(&self, curve: &Curve) -> Result<f64, EngineError> {
        let input = self.input(self.largest, ",merge:0.5")?;
        let size = self.model.model.encoder_size(&input);
        let schedule = size.schedule(&input, &input.reduction.methods);
        let plain = CostModel {
            preprocess: 0.0,
            vision: Some(*curve),
            audio: None,
            merging: 1.0,
            prefill: Curve::default(),
        };
        let expected = plain.encoding(MediaKind::Image, &size, &schedule);
        let found = self.model.encode_time(&input)?;
        Ok((found / expected.max(1e-6)).clamp(0.5, 10.0))
    }

    fn point(&self, rows: usize, chain: &str) -> Result<Point, EngineError> {
        let input = self.input(rows, chain)?;
        let size: EncoderSize = self.model.model.encoder_size(&input);
        let parts = size.parts.iter().map(|units| (units * size.rows) as f64);
        Ok(Point {
            rows: parts.clone().sum(),
            pairs: parts.map(|rows| rows * rows).sum(),
            ms: self.model.encode_time(&input)?,
        })
    }

    /// Prepares about `rows` rows of the image, to be encoded with a further chain of methods.
    fn input(&self, rows: usize, chain: &str) -> Result<MediaInput, ModelError> {
        let percent = (100.0 * rows as f64 / self.rows.max(1) as f64).clamp(1e-3, 100.0);
        let chain = match self.mergeable {
            true => format!("duplicates:{percent}%{chain}").parse(),
            false => Ok(Reductions::default()),
        };
        let options = MediaOptions {
            reductions: chain.expect("a chain of methods"),
            ..self.options.clone()
        };
        self.model.model.image(&self.image, &options)
    }
}

/// Measures a stage at up to three sizes from `first` to `most` rows and fits its curve.
fn measure(
    first: usize,
    most: usize,
    mut point: impl FnMut(usize) -> Result<Point, EngineError>,
) -> Result<Curve, EngineError> {
    // The first pass reads weights and compiles kernels.
    point(first)?;
    let mut points = vec![point(first)?];
    let within = LONGEST_MS / points[0].ms * first as f64;
    let last = (within as usize)
        .clamp(4 * first, most.max(4 * first))
        .min(most);
    let middle = ((first * last) as f64).sqrt() as usize;
    for rows in [middle, last] {
        if rows > first {
            points.push(point(rows)?);
        }
    }
    Ok(Curve::fit(&points))
}

fn elapsed(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// Random samples, the same on every machine.
struct Samples(u32);

impl Iterator for Samples {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((self.0 >> 24) as u8)
    }
}

fn noise(side: usize) -> Result<RgbImage, ModelError> {
    Ok(RgbImage::new(
        side,
        side,
        Samples(1).take(side * side * 3).collect(),
    )?)
}
