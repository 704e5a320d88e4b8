//! Profiles a burn module that knows nothing of this library, here a transformer of `burn::nn`.
//!
//! ```text
//! cargo run --release -p edge-lmm --features profiler --example profile_module
//! ```

use burn::nn::transformer::{
    TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput,
};
use burn::tensor::{Distribution, Tensor};
use edge_lmm::memory::CountingAllocator;
use edge_lmm::{Cpu, Profiled, Profiler, Timing};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The backend of the module, and what records its operations.
type Backend = Profiled<Cpu>;

/// Runs an encoder of two layers over 64 tokens.
fn profile() -> Timing {
    let device = Default::default();
    let config = TransformerEncoderConfig::new(128, 512, 4, 2).with_dropout(0.0);
    let model: TransformerEncoder<Backend> = config.init(&device);
    let x = Tensor::random([1, 64, 128], Distribution::Default, &device);

    let profiler = Profiler::new(&model);
    let running = profiler.start();
    model.forward(TransformerEncoderInput::new(x));
    running.stop()
}

fn main() {
    profile().print_summary();
}

#[test]
fn every_layer_has_its_operations() {
    let timing = profile();
    let model = timing.stage("model").expect("the stage of the module");
    for layer in 0..2 {
        for module in ["mha.query", "mha.output", "pwff.linear_inner"] {
            let name = format!("model.layers.{layer}.{module}.linear");
            let found = timing.stages().iter().find(|stage| stage.name == name);
            let found = found.unwrap_or_else(|| panic!("no {name} in\n{timing}"));
            assert_eq!(found.calls, 1, "{name}");
        }
    }
    let operations = timing
        .stages()
        .iter()
        .filter(|stage| stage.parent.is_some());
    let inside: std::time::Duration = operations.map(|stage| stage.time).sum();
    assert_eq!(inside, model.child_time);
    assert!(inside <= model.time);
}
