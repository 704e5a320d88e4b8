//! Observation of the inputs of linear layers, for calibration and statistics.
//!
//! An observer is called on the thread that runs the model, before each product with a packed
//! weight. While there is none, a layer costs one thread-local read. While there is one, a fused
//! feed-forward is computed in two products, so that the inputs of the second can be observed.
//!
//! A supplier ([`supply`]) also returns the weight to use, so that a model can run whose weights are
//! not in memory.
//!
//! ```
//! use std::{cell::Cell, rc::Rc};
//! use edge_lmm_ops::observe;
//! let seen = Rc::new(Cell::new(0));
//! let count = seen.clone();
//! let observer = observe::start(move |_name, inputs| count.set(count.get() + inputs.tokens()));
//! // Run a model here.
//! drop(observer);
//! ```

use std::cell::{Cell, RefCell};

use burn::tensor::backend::Backend;
use burn::tensor::{Bytes, DType, Int, Tensor, TensorData};
use edge_lmm_kernels::format::MatrixShape;

/// The inputs of one call of a linear layer: `[tokens, width]`, row-major.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// All values.
    pub values: &'a [f32],
    /// Inputs per token.
    pub width: usize,
}

impl Inputs<'_> {
    /// Tokens of the call.
    pub fn tokens(&self) -> usize {
        self.values.len() / self.width.max(1)
    }
}

/// The use of a packed weight.
#[derive(Debug, Clone, Copy)]
pub enum Use<'a> {
    /// A product with these inputs.
    Product(Inputs<'a>),
    /// The rows with these indices.
    Rows(&'a [u32]),
}

/// A packed matrix that is used once: the weight for [`Use::Product`], or the wanted rows in their
/// order for [`Use::Rows`].
#[derive(Debug)]
pub struct Supplied {
    /// Format and size.
    pub shape: MatrixShape,
    /// The bytes of the packed matrix.
    pub bytes: Bytes,
}

type Observe = dyn FnMut(&str, Inputs<'_>);
type Supply = dyn FnMut(&str, Use<'_>) -> Supplied;

enum Hook {
    Observe(Box<Observe>),
    Supply(Box<Supply>),
}

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Guard that removes the observer or supplier of this thread on drop and puts back the one before
/// it.
#[must_use = "the observer is removed when the guard is dropped"]
pub struct Observer {
    previous: Option<Hook>,
}

impl Drop for Observer {
    fn drop(&mut self) {
        ON.set(self.previous.is_some());
        HOOK.set(self.previous.take());
    }
}

fn install(hook: Hook) -> Observer {
    ON.set(true);
    Observer {
        previous: HOOK.replace(Some(hook)),
    }
}

/// Calls `observer` for every linear layer that this thread runs, with the name of its weight in
/// the record and its inputs, until the guard is dropped. The observer must not run a model
/// itself.
pub fn start(observer: impl FnMut(&str, Inputs<'_>) + 'static) -> Observer {
    install(Hook::Observe(Box::new(observer)))
}

/// Uses the matrices that `supplier` returns, in place of the packed weights of the models that this
/// thread runs, until the guard is dropped. The supplier must not run a model itself.
pub fn supply(supplier: impl FnMut(&str, Use<'_>) -> Supplied + 'static) -> Observer {
    install(Hook::Supply(Box::new(supplier)))
}

/// Returns `true` if this thread has an observer or a supplier.
pub fn active() -> bool {
    ON.get()
}

/// Passes `x`, the inputs (`[tokens, width]`) of the weight `name`, to the observer or supplier, if
/// there is one. This copies the values from a device with its own memory. Returns the weight to
/// use, if a supplier has one.
pub fn inputs<B: Backend>(
    name: &str,
    x: &Tensor<B, 2>,
) -> Option<(Tensor<B, 1, Int>, MatrixShape)> {
    if !active() {
        return None;
    }
    let [_, width] = x.dims();
    let values: Vec<f32> = x
        .to_data()
        .into_vec()
        .expect("activations are f32, as everywhere in this crate");
    let inputs = Inputs {
        values: &values,
        width,
    };
    let supplied = HOOK.with_borrow_mut(|hook| match hook {
        Some(Hook::Supply(supply)) => Some(supply(name, Use::Product(inputs))),
        Some(Hook::Observe(observe)) => {
            observe(name, inputs);
            None
        }
        None => None,
    });
    supplied.map(|supplied| tensor(supplied, &x.device()))
}

/// Returns the rows `ids` of the weight `name` as a packed matrix, if there is a supplier.
pub fn rows<B: Backend>(
    name: &str,
    ids: &[u32],
    device: &B::Device,
) -> Option<(Tensor<B, 1, Int>, MatrixShape)> {
    if !active() {
        return None;
    }
    let supplied = HOOK.with_borrow_mut(|hook| match hook {
        Some(Hook::Supply(supply)) => Some(supply(name, Use::Rows(ids))),
        _ => None,
    });
    supplied.map(|supplied| tensor(supplied, device))
}

fn tensor<B: Backend>(supplied: Supplied, device: &B::Device) -> (Tensor<B, 1, Int>, MatrixShape) {
    let Supplied { shape, bytes } = supplied;
    let size = [bytes.len()];
    let data = TensorData::from_bytes(bytes, size, DType::U8);
    (Tensor::from_data(data, (device, DType::U8)), shape)
}
