//! Sounds at another rate: band-limited interpolation (Smith, "Digital Audio Resampling", section
//! on the windowed sinc; <https://ccrma.stanford.edu/~jos/resample/>).

use super::error::{PreprocessError, allocate};

/// Zero crossings of the sinc on each side; with the window below, what lies beyond half of the
/// smaller rate is damped by more than 80 dB.
const CROSSINGS: usize = 32;
/// Table entries from one zero crossing to the next; linear interpolation between them is then
/// off by at most (π / STEPS)² / 24, about 2e-6.
const STEPS: usize = 512;
/// Share of the smaller rate's band that passes undamped.
const ROLL_OFF: f64 = 0.945;
/// Shape of the Kaiser window.
const BETA: f64 = 10.0;

/// Highest rate that is taken.
const MAX_RATE: u32 = 1 << 20;

/// `samples` taken `from` times per second, as if taken `to` times per second; at most `limit` of
/// them.
///
/// # Errors
/// If a rate is zero or implausible, or memory is short.
pub fn resample(
    samples: &[f32],
    from: u32,
    to: u32,
    limit: usize,
) -> Result<Vec<f32>, PreprocessError> {
    if from == 0 || from > MAX_RATE || to == 0 || to > MAX_RATE {
        return Err(PreprocessError::Sound(format!(
            "{from} samples per second cannot be turned into {to}, expected 1 to {MAX_RATE}"
        )));
    }
    if from == to {
        return Ok(samples[..samples.len().min(limit)].to_vec());
    }
    let len = (samples.len() as u64 * u64::from(to)).div_ceil(u64::from(from));
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(limit);
    // Rolled off a little below half of the smaller rate, so that nothing is folded back.
    let cutoff = ROLL_OFF * f64::from(to.min(from)) / f64::from(from);
    let table = kernel_table();
    let reach = (CROSSINGS as f64 / cutoff).ceil() as usize;
    let mut resampled = allocate(len)?;
    for i in 0..len as u64 {
        // Whole and fractional part are kept apart, so that long sounds lose no precision.
        let place = i * u64::from(from);
        let whole = (place / u64::from(to)) as usize;
        let fraction = (place % u64::from(to)) as f64 / f64::from(to);
        let first = (whole + 1).saturating_sub(reach);
        let last = (whole + reach + 1).min(samples.len());
        let near = samples.get(first..last).unwrap_or_default();
        let sum: f64 = (first..)
            .zip(near)
            .map(|(j, &sample)| {
                let distance = (j as f64 - whole as f64 - fraction).abs() * cutoff;
                f64::from(sample) * look_up(&table, distance)
            })
            .sum();
        resampled.push((sum * cutoff) as f32);
    }
    Ok(resampled)
}

/// The windowed sinc from 0 to [`CROSSINGS`].
fn kernel_table() -> Vec<f64> {
    let kernel = |i: usize| {
        let x = i as f64 / STEPS as f64;
        let angle = std::f64::consts::PI * x;
        let sinc = if i == 0 { 1.0 } else { angle.sin() / angle };
        let edge = 1.0 - (x / CROSSINGS as f64).powi(2);
        sinc * bessel(BETA * edge.max(0.0).sqrt()) / bessel(BETA)
    };
    (0..=CROSSINGS * STEPS).map(kernel).collect()
}

fn look_up(table: &[f64], distance: f64) -> f64 {
    let place = distance * STEPS as f64;
    let (whole, fraction) = (place as usize, place.fract());
    match table.get(whole..whole + 2) {
        Some(&[a, b]) => a + (b - a) * fraction,
        _ => 0.0,
    }
}

/// Modified Bessel function of the first kind, order 0, by its power series.
fn bessel(x: f64) -> f64 {
    let (mut sum, mut term) = (1.0, 1.0);
    for k in 1..64 {
        term *= (x / 2.0 / f64::from(k)).powi(2);
        sum += term;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(frequency: f64, rate: u32, len: usize) -> Vec<f32> {
        let step = 2.0 * std::f64::consts::PI * frequency / f64::from(rate);
        (0..len).map(|i| (i as f64 * step).sin() as f32).collect()
    }

    /// Away from the ends, a tone at one rate is the same tone at the other. The window damps by
    /// about 100 dB (1e-5), and f32 samples are off by 6e-8.
    #[test]
    fn tones_stay_what_they_are() {
        for (from, to) in [
            (44_100, 16_000),
            (8000, 16_000),
            (48_000, 16_000),
            (16_000, 11_025),
        ] {
            let found = resample(&tone(1000.0, from, from as usize), from, to, usize::MAX).unwrap();
            let expected = tone(1000.0, to, to as usize);
            assert_eq!(found.len(), expected.len());
            let margin = 200;
            let worst = (margin..found.len() - margin)
                .map(|i| (found[i] - expected[i]).abs())
                .fold(0.0, f32::max);
            assert!(worst < 1e-4, "{from} to {to}: {worst}");
        }
    }

    /// 11 kHz does not exist at 16 kHz; folded back it would be heard as 5 kHz.
    #[test]
    fn what_is_too_high_vanishes() {
        let found = resample(&tone(11_000.0, 48_000, 48_000), 48_000, 16_000, usize::MAX).unwrap();
        let loudest = found[200..15_800]
            .iter()
            .fold(0.0f32, |a, v| a.max(v.abs()));
        assert!(loudest < 1e-4, "{loudest}");
    }

    #[test]
    fn odd_requests() {
        assert_eq!(resample(&[], 8000, 16_000, 9).unwrap(), []);
        assert_eq!(resample(&[1.0, 2.0, 3.0], 5, 5, 2).unwrap(), [1.0, 2.0]);
        assert_eq!(resample(&[1.0; 1000], 44_100, 16_000, 7).unwrap().len(), 7);
        assert!(resample(&[1.0], 0, 16_000, 9).is_err());
        assert!(resample(&[1.0], u32::MAX, 16_000, 9).is_err());
        assert_eq!(resample(&[1.0], 1, 16_000, 100).unwrap().len(), 100);
    }
}
