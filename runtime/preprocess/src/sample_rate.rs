//! Sample rate conversion.
//!
//! Band-limited interpolation (Smith, "Digital Audio Resampling",
//! <https://ccrma.stanford.edu/~jos/resample/>): every output sample is a sum of input samples
//! weighted by a Kaiser-windowed sinc function. The function is tabulated finely and interpolated
//! linearly, so all pairs of rates use the same code.

use super::error::{PreprocessError, allocate};
use super::mel::check_samples;

/// Zero crossings of the sinc function on each side.
const CROSSINGS: usize = 32;
/// Table entries between zero crossings. The error of linear interpolation of a sinc is then at
/// most pi^2 / 3 / 8 / 512^2 = 1.6e-6 of its peak.
const STEPS: usize = 512;
/// Shape of the Kaiser window: stopband attenuation of about 90 dB.
const BETA: f64 = 9.0;
/// Center of the transition band, relative to half the lower rate. With this window the transition
/// is 0.18 wide: 85 % of the band is unchanged.
const CUTOFF: f64 = 0.945;
/// Maximum rate in samples per second.
const MAX_RATE: u32 = 1 << 20;
/// Maximum samples of a result, 4 hours at 16 kHz.
const MAX_SAMPLES: u64 = 1 << 28;

/// Converts mono audio from one rate to another, in samples per second. The result has
/// `samples.len() * to / from` samples, rounded up; the audio is silent beyond its ends.
///
/// # Errors
/// If there are no samples, one is not finite, a rate is 0 or more than 1 MHz, or the result is too
/// long.
pub fn resample(samples: &[f32], from: u32, to: u32) -> Result<Vec<f32>, PreprocessError> {
    check_samples(samples)?;
    for rate in [from, to] {
        if rate == 0 || rate > MAX_RATE {
            return Err(PreprocessError::SampleRate {
                found: rate,
                limit: MAX_RATE,
            });
        }
    }
    if from == to {
        return Ok(samples.to_vec());
    }
    // Rates are below 2^21 and lengths below 2^43, so products fit.
    let len = (samples.len() as u64 * u64::from(to)).div_ceil(u64::from(from));
    if len > MAX_SAMPLES {
        return Err(PreprocessError::TooLong {
            samples: len,
            limit: MAX_SAMPLES,
        });
    }
    let mut resampled = allocate(len as usize)?;
    let mut kernel = Kernel::new(from, to);
    resampled.extend((0..len).map(|i| {
        let position = i * u64::from(from);
        let (whole, part) = (position / u64::from(to), position % u64::from(to));
        kernel.sample(samples, whole as usize, part as u32)
    }));
    Ok(resampled)
}

/// The filter and its weights at the occurring positions between two input samples.
struct Kernel {
    /// One side of the filter.
    table: Vec<f32>,
    /// Table entries per input sample.
    density: f64,
    /// Input samples on each side.
    reach: usize,
    /// Output samples per second.
    to: u32,
    /// Positions are multiples of this fraction of `to`.
    step: u32,
    /// Weights per position; only of the last one if there are too many to keep.
    weights: Vec<Vec<f32>>,
}

/// Maximum number of positions whose weights are kept.
const MAX_PLACES: u32 = 1024;

impl Kernel {
    fn new(from: u32, to: u32) -> Self {
        let band = CUTOFF * (f64::from(to) / f64::from(from)).min(1.0);
        let entry = |i: usize| {
            let x = i as f64 / STEPS as f64;
            // `band` makes the weights sum to one.
            (band * sinc(x) * kaiser(x / CROSSINGS as f64)) as f32
        };
        let step = greatest_common_divisor(from, to);
        let mut kernel = Self {
            // One extra zero entry for interpolation.
            table: (0..=CROSSINGS * STEPS + 1).map(entry).collect(),
            density: band * STEPS as f64,
            reach: (CROSSINGS as f64 / band).ceil() as usize,
            to,
            step,
            weights: Vec::new(),
        };
        if to / step <= MAX_PLACES {
            let places = (0..to / step).map(|place| kernel.weights_at(place * step));
            kernel.weights = places.collect();
        }
        kernel
    }

    /// Returns the signal `part / to` after the input sample `whole`.
    fn sample(&mut self, samples: &[f32], whole: usize, part: u32) -> f32 {
        let place = if self.to / self.step <= MAX_PLACES {
            (part / self.step) as usize
        } else {
            self.weights = vec![self.weights_at(part)];
            0
        };
        // At the start, the first weights apply to samples before the audio.
        let before = self.reach.saturating_sub(whole);
        let first = whole.saturating_sub(self.reach).min(samples.len());
        dot(&samples[first..], &self.weights[place][before..])
    }

    /// Returns the weights of the samples from `reach` before to `reach + 1` after the position.
    fn weights_at(&self, part: u32) -> Vec<f32> {
        let center = self.reach as f64 + f64::from(part) / f64::from(self.to);
        let weight = |i: usize| self.weight((i as f64 - center).abs());
        (0..2 * self.reach + 2).map(weight).collect()
    }

    fn weight(&self, distance: f64) -> f32 {
        let at = distance * self.density;
        let (entry, part) = (at as usize, at.fract() as f32);
        match self.table.get(entry..entry + 2) {
            Some(&[a, b]) => a + (b - a) * part,
            _ => 0.0,
        }
    }
}

/// Returns the dot product over the shorter length, in eight independent sums.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let len = a.len().min(b.len());
    let ((a, a_rest), (b, b_rest)) = (a[..len].as_chunks::<8>(), b[..len].as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
    sums.iter().sum::<f32>() + rest.sum::<f32>()
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        1.0
    } else {
        let x = x * std::f64::consts::PI;
        x.sin() / x
    }
}

/// Evaluates the Kaiser window from its center, 0, to its end, 1.
fn kaiser(x: f64) -> f64 {
    if x > 1.0 {
        return 0.0;
    }
    bessel_i0(BETA * (1.0 - x * x).sqrt()) / bessel_i0(BETA)
}

/// Evaluates the modified Bessel function of order 0 by its power series.
fn bessel_i0(x: f64) -> f64 {
    let square = x * x / 4.0;
    let terms = (1..60).scan(1.0, |term, k| {
        *term *= square / f64::from(k * k);
        Some(*term)
    });
    1.0 + terms.sum::<f64>()
}
