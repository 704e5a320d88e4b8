//! Normalization of 8-bit samples for a vision encoder.

use serde_json::Value;

use super::error::PreprocessError;

/// Channel means of CLIP's training images, the default of the reference.
pub const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
/// Their standard deviations.
pub const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Rescaling and normalization of a preprocessor configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalization {
    /// Mean of each channel after rescaling.
    pub image_mean: [f64; 3],
    /// Standard deviation of each channel after rescaling.
    pub image_std: [f64; 3],
    /// Factor by which 8-bit samples are multiplied.
    pub rescale_factor: f64,
}

impl Default for Normalization {
    fn default() -> Self {
        Self {
            image_mean: CLIP_MEAN,
            image_std: CLIP_STD,
            rescale_factor: 1.0 / 255.0,
        }
    }
}

/// Reads a number per channel; a single number applies to all channels.
fn channels(file: &Value, name: &str) -> Result<Option<[f64; 3]>, PreprocessError> {
    let Some(value) = file.get(name) else {
        return Ok(None);
    };
    let each = serde_json::from_value(value.clone()).ok();
    let all = value.as_f64().map(|number| [number; 3]);
    match each.or(all) {
        Some(channels) => Ok(Some(channels)),
        None => Err(PreprocessError::config(format!(
            "{name} is {value}, expected one number or three"
        ))),
    }
}

/// Value of every 8-bit sample, per channel.
pub type SampleTable = [[f32; 256]; 3];

impl Normalization {
    /// Returns the normalization from 0..255 to -1..1, the default of newer processors.
    pub fn centered() -> Self {
        Self {
            image_mean: [0.5; 3],
            image_std: [0.5; 3],
            ..Self::default()
        }
    }

    /// Reads the fields of a preprocessor configuration without nulls; missing ones are those of the
    /// default.
    ///
    /// # Errors
    /// As [`Self::parse_or`].
    pub fn parse(file: &Value) -> Result<Self, PreprocessError> {
        Self::parse_or(file, Self::default())
    }

    /// Reads the fields of a preprocessor configuration without nulls; missing ones are those of
    /// `default`.
    ///
    /// # Errors
    /// If a value has the wrong type, is not finite or would be a zero divisor, or if one of the
    /// steps is disabled.
    pub fn parse_or(file: &Value, default: Self) -> Result<Self, PreprocessError> {
        for step in ["do_rescale", "do_normalize"] {
            if file.get(step).is_some_and(|on| *on != Value::Bool(true)) {
                return Err(PreprocessError::config(format!(
                    "{step} is {}, expected true: images are only supported with this step",
                    file[step]
                )));
            }
        }
        let factor = file.get("rescale_factor").map(|value| {
            value.as_f64().ok_or_else(|| {
                PreprocessError::config(format!("rescale_factor is {value}, expected a number"))
            })
        });
        let normalization = Self {
            image_mean: channels(file, "image_mean")?.unwrap_or(default.image_mean),
            image_std: channels(file, "image_std")?.unwrap_or(default.image_std),
            rescale_factor: factor.transpose()?.unwrap_or(default.rescale_factor),
        };
        normalization.check()?;
        Ok(normalization)
    }

    fn check(&self) -> Result<(), PreprocessError> {
        // The values are used in 32 bits.
        let finite = |values: &[f64]| values.iter().all(|&v| (v as f32).is_finite());
        if !finite(&self.image_mean) {
            return Err(PreprocessError::config(format!(
                "image_mean is {:?}, expected three finite numbers",
                self.image_mean
            )));
        }
        if !(finite(&self.image_std) && self.image_std.iter().all(|&v| v as f32 > 0.0)) {
            return Err(PreprocessError::config(format!(
                "image_std is {:?}, expected three positive numbers",
                self.image_std
            )));
        }
        if !(finite(&[self.rescale_factor, 1.0 / self.rescale_factor]) && self.rescale_factor > 0.0)
        {
            return Err(PreprocessError::config(format!(
                "rescale_factor is {}, expected a positive number",
                self.rescale_factor
            )));
        }
        Ok(())
    }

    /// Computes values in the order of operations of the reference's image processors on numpy
    /// arrays: rescaled in 64 bits, rounded to 32 bits, then normalized in 32 bits.
    pub fn table(&self) -> SampleTable {
        self.tabulate(|sample, mean, std| {
            ((sample * self.rescale_factor) as f32 - mean as f32) / std as f32
        })
    }

    /// Computes values in the order of operations of the reference's processors on torch tensors,
    /// including videos: mean and deviation are scaled instead of the samples, all in 32 bits.
    pub fn fused_table(&self) -> SampleTable {
        let scale = (1.0 / self.rescale_factor) as f32;
        self.tabulate(|sample, mean, std| {
            (sample as f32 - mean as f32 * scale) / (std as f32 * scale)
        })
    }

    /// Computes values in the order of operations of torchvision's `ToTensor` and `Normalize`:
    /// divided by 255 regardless of the rescale factor, then normalized, all in 32 bits.
    pub fn unit_table(&self) -> SampleTable {
        self.tabulate(|sample, mean, std| (sample as f32 / 255.0 - mean as f32) / std as f32)
    }

    /// Returns the 8-bit samples that [`Self::table`] or [`Self::fused_table`] made `values` of;
    /// channels take turns every `plane` values.
    pub fn samples(&self, values: &[f32], plane: usize) -> Vec<u8> {
        let planes = values.chunks_exact(plane.max(1)).enumerate();
        let sample = |channel: usize, value: &f32| {
            let scaled = f64::from(*value) * self.image_std[channel] + self.image_mean[channel];
            // The cast saturates.
            (scaled / self.rescale_factor).round() as u8
        };
        planes
            .flat_map(|(i, plane)| plane.iter().map(move |value| sample(i % 3, value)))
            .collect()
    }

    fn tabulate(&self, value: impl Fn(f64, f64, f64) -> f32) -> SampleTable {
        std::array::from_fn(|channel| {
            std::array::from_fn(|sample| {
                value(
                    sample as f64,
                    self.image_mean[channel],
                    self.image_std[channel],
                )
            })
        })
    }
}
