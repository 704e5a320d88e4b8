//! A model without its weights.

use edge_lmm_models::ModelError;
use edge_lmm_models::families::Registry;
use edge_lmm_models::family::BuiltModel;
use edge_lmm_models::weights::{WeightSpec, Weights};
use edge_lmm_ops::KernelBackend;

use crate::schema::RecordInfo;

/// A model whose weights are declared but not filled, and the declarations in their order.
pub type Skeleton<B> = (Box<dyn BuiltModel<B>>, Vec<WeightSpec>);

impl RecordInfo {
    /// Builds the model that the record describes.
    ///
    /// # Errors
    /// If the configuration describes no model, or a weight has no format.
    pub fn skeleton<B: KernelBackend>(
        &self,
        registry: &Registry<B>,
        device: &B::Device,
    ) -> Result<Skeleton<B>, ModelError> {
        let weights = Weights::<B>::new(device.clone(), |spec| {
            let format = self.formats.get(&spec.name);
            format
                .map(|format| format.0)
                .ok_or_else(|| ModelError::MissingWeight(spec.name.clone()))
        })
        .with_tails(|name| self.formats.contains_key(name))
        .with_optional(|name, _| self.formats.contains_key(name));
        let model = registry.build(&self.files, &weights)?;
        Ok((model, weights.into_specs()))
    }
}
