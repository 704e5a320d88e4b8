//! Capture of intermediate tensors by name, for comparison with a reference implementation.

use std::cell::RefCell;
use std::collections::BTreeMap;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// A captured tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Captured {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub values: Vec<f32>,
}

thread_local! {
    static PROBE: RefCell<Option<BTreeMap<String, Captured>>> = const { RefCell::new(None) };
}

/// Starts capturing on this thread.
pub fn start() {
    PROBE.set(Some(BTreeMap::new()));
}

/// Returns `true` if this thread captures.
pub fn active() -> bool {
    PROBE.with_borrow(Option::is_some)
}

/// Stops capturing and returns the captured tensors.
pub fn finish() -> BTreeMap<String, Captured> {
    PROBE.take().unwrap_or_default()
}

/// Captures `tensor` under `name`. If the name was captured before, the rows are appended.
pub fn capture<B: Backend, const D: usize>(name: &str, tensor: &Tensor<B, D>) {
    if active() {
        let data = tensor.to_data();
        let shape = data.shape.to_vec();
        let values = data.convert::<f32>().into_vec().unwrap_or_default();
        capture_values(name, &shape, &values);
    }
}

/// Captures values outside of a tensor, as [`capture`] does.
pub fn capture_values(name: &str, shape: &[usize], values: &[f32]) {
    PROBE.with_borrow_mut(|probe| {
        let Some(probe) = probe else { return };
        let entry = probe.entry(name.to_owned()).or_insert_with(|| Captured {
            shape: std::iter::once(0)
                .chain(shape.iter().skip(1).copied())
                .collect(),
            values: Vec::new(),
        });
        entry.shape[0] += shape[0];
        entry.values.extend_from_slice(values);
    });
}
