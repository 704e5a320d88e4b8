//! Windows of a resampling filter: the input samples of an output sample and their weights.

use super::error::PreprocessError;

/// A resampling filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// A triangle of width 2.
    Bilinear,
    /// Keys' cubic convolution over four samples with a = -0.5
    /// (Keys 1981, "Cubic convolution interpolation for digital image processing").
    Bicubic,
    /// A sinc over six samples under a window that is a wider sinc (Lanczos 1979).
    Lanczos,
}

impl Filter {
    /// Returns the filter with this number in Pillow, as in `resample` of a preprocessor
    /// configuration.
    ///
    /// # Errors
    /// If no supported model uses it.
    pub fn from_pillow(number: u32) -> Result<Self, PreprocessError> {
        match number {
            1 => Ok(Self::Lanczos),
            2 => Ok(Self::Bilinear),
            3 => Ok(Self::Bicubic),
            _ => Err(PreprocessError::config(format!(
                "resample is {number}, expected 1 (Lanczos), 2 (bilinear) or 3 (bicubic)"
            ))),
        }
    }

    /// Returns the number of samples on each side of the center.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Bicubic => keys_cubic(x, -0.5),
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

/// Returns `sin(πx) / πx`.
fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// Evaluates Keys' cubic convolution kernel in Pillow's order of operations.
fn keys_cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

/// The windows of all output samples: the first input sample of each and the weights from there on.
///
/// When downscaling, the filter is stretched so that every input sample contributes (antialiasing).
#[derive(Debug)]
pub(super) struct Windows {
    /// First input sample and number of samples, per output sample.
    pub bounds: Vec<(usize, usize)>,
    /// Weights that sum to one: `[outputs, stride]`, zero after the end of a window.
    pub weights: Vec<f64>,
    /// Longest window.
    pub stride: usize,
}

impl Windows {
    /// Computes the windows of `outputs` samples from `inputs`; both are at least 1.
    pub fn new(filter: Filter, inputs: usize, outputs: usize) -> Result<Self, PreprocessError> {
        let scale = inputs as f64 / outputs as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let stride = support.ceil() as usize * 2 + 1;
        let mut bounds = super::error::allocate(outputs)?;
        let mut weights: Vec<f64> = super::error::allocate(outputs.saturating_mul(stride))?;
        for output in 0..outputs {
            let center = (output as f64 + 0.5) * scale;
            // Conversions to integers round towards zero, as in the reference.
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(inputs);
            let len = end.saturating_sub(first).min(stride);
            let start = weights.len();
            weights.extend((0..len).map(|i| {
                let distance = (i + first) as f64 - center + 0.5;
                filter.weight(distance * (1.0 / stretch))
            }));
            let sum: f64 = weights[start..].iter().sum();
            if sum != 0.0 {
                weights[start..].iter_mut().for_each(|w| *w /= sum);
            }
            weights.resize(start + stride, 0.0);
            bounds.push((first, len));
        }
        Ok(Self {
            bounds,
            weights,
            stride,
        })
    }
}
