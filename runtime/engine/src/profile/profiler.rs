//! Profiles of burn modules that know nothing of this library.

use burn::module::Module;
use edge_lmm_ops::profiled::{BackendIr, Profiled, name_parameters};
use edge_lmm_ops::stage::{self, Guard, Recording, Running};

use crate::timing::Timing;

/// Profiles a burn module without a change of its code: the module runs on the backend
/// [`Profiled<B>`] instead of `B`, which records every operation.
///
/// Operations that read a parameter are named by the path of the module that has it and by their
/// kind (`layers.0.mha.query.linear`), others by their kind only (`softmax`), because a burn module
/// does not tell the backend where it is.
///
/// ```
/// use burn::nn::LinearConfig;
/// use burn::tensor::{Distribution, Tensor};
/// use edge_lmm::{Cpu, Profiled, Profiler};
///
/// type Backend = Profiled<Cpu>;
/// let device = Default::default();
/// let model = LinearConfig::new(16, 16).init::<Backend>(&device);
/// let x = Tensor::<Backend, 2>::random([4, 16], Distribution::Default, &device);
///
/// let profiler = Profiler::new(&model);
/// let running = profiler.start();
/// let output = model.forward(x);
/// let timing = running.stop();
/// timing.print_summary();
/// assert_eq!(output.dims(), [4, 16]);
/// assert!(timing.stages().iter().any(|stage| stage.name == "model.linear"));
/// ```
pub struct Profiler<B: BackendIr> {
    devices: Vec<B::Device>,
}

impl<B: BackendIr> Profiler<B> {
    /// Creates a profiler and tells the backend the paths of the module's parameters.
    pub fn new<M: Module<Profiled<B>>>(module: &M) -> Self {
        name_parameters(module);
        Self {
            devices: module.devices(),
        }
    }

    /// Records the operations of this thread until the result is stopped. On a device that works
    /// asynchronously, every operation ends when its work is done.
    pub fn start(&self) -> RunningProfiler {
        let devices = self.devices.clone();
        let synchronize = move || {
            for device in &devices {
                if let Err(error) = B::sync(device) {
                    // Whoever reads the next result gets the error.
                    log::error!("the device failed: {error}");
                }
            }
        };
        let running = Recording::new(Some(Box::new(synchronize))).start();
        let stage = stage::top("model");
        RunningProfiler {
            scope: stage::scope(format_args!("model")),
            stage,
            running,
        }
    }
}

/// A running measurement.
#[must_use = "the measurement ends with `stop`"]
pub struct RunningProfiler {
    scope: Guard,
    stage: Guard,
    running: Running,
}

impl RunningProfiler {
    /// Ends the measurement and returns the operations by module.
    pub fn stop(self) -> Timing {
        drop(self.scope);
        drop(self.stage);
        Timing::of(self.running.stop())
    }
}
