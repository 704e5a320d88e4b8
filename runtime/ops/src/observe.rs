//! Observation of the inputs of linear layers, for calibration and statistics.
//!
//! An observer is called on the thread that runs the model, before each product with a packed
//! weight. While there is none, a layer costs one thread-local read. While there is one, a fused
//! feed-forward is computed in two products, so that the inputs of the second can be observed.
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

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

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

type Observe = Box<dyn FnMut(&str, Inputs<'_>)>;

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static OBSERVER: RefCell<Option<Observe>> = const { RefCell::new(None) };
}

/// Guard that removes the observer of this thread on drop and puts back the one before it.
#[must_use = "the observer is removed when the guard is dropped"]
pub struct Observer {
    previous: Option<Observe>,
}

impl Drop for Observer {
    fn drop(&mut self) {
        ON.set(self.previous.is_some());
        OBSERVER.set(self.previous.take());
    }
}

/// Calls `observer` for every linear layer that this thread runs, with the name of its weight in
/// the record and its inputs, until the guard is dropped. The observer must not run a model
/// itself.
pub fn start(observer: impl FnMut(&str, Inputs<'_>) + 'static) -> Observer {
    ON.set(true);
    Observer {
        previous: OBSERVER.replace(Some(Box::new(observer))),
    }
}

/// Returns `true` if this thread has an observer.
pub fn active() -> bool {
    ON.get()
}

/// Passes `x`, the inputs (`[tokens, width]`) of the weight `name`, to the observer, if there is
/// one. This copies the values from a device with its own memory.
pub fn inputs<B: Backend>(name: &str, x: &Tensor<B, 2>) {
    if !active() {
        return;
    }
    let [_, width] = x.dims();
    let values: Vec<f32> = x
        .to_data()
        .into_vec()
        .expect("activations are f32, as everywhere in this crate");
    OBSERVER.with_borrow_mut(|observer| {
        if let Some(observe) = observer {
            observe(
                name,
                Inputs {
                    values: &values,
                    width,
                },
            );
        }
    });
}
