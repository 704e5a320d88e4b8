//! Times a burn module of your own with the stages of this library.
//!
//! ```text
//! cargo run --release -p edge-lmm --example time_module
//! ```

use burn::module::Module;
use burn::nn::{Gelu, Linear, LinearConfig};
use burn::tensor::backend::Backend;
use burn::tensor::{Distribution, Tensor};
use edge_lmm::memory::CountingAllocator;
use edge_lmm::timing::{self, Recording};
use edge_lmm::{Cpu, Device};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Two linear layers with an activation between them.
#[derive(Module, Debug)]
struct Mlp<B: Backend> {
    up: Linear<B>,
    activation: Gelu,
    down: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    fn new(width: usize, device: &B::Device) -> Self {
        Self {
            up: LinearConfig::new(width, 4 * width).init(device),
            activation: Gelu::new(),
            down: LinearConfig::new(4 * width, width).init(device),
        }
    }

    /// `[tokens, width]` to `[tokens, width]`
    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let x = {
            let _module = timing::module("up");
            self.up.forward(x)
        };
        let x = {
            let _module = timing::module("activation");
            self.activation.forward(x)
        };
        let _module = timing::module("down");
        self.down.forward(x)
    }
}

fn main() {
    let device = Default::default();
    let layers = [Mlp::<Cpu>::new(256, &device), Mlp::new(256, &device)];
    let mut x = Tensor::random([64, 256], Distribution::Default, &device);
    let mut recording = Recording::new(Device::Cpu);
    recording.run(|| {
        let _stage = timing::stage("mlp");
        for (i, layer) in layers.iter().enumerate() {
            let _scope = timing::scope(format_args!("mlp.layers.{i}"));
            x = layer.forward(x.clone());
        }
    });
    println!("{}", recording.finish());
}
