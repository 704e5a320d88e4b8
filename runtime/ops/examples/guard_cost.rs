//! Prints the cost of a measured module in nanoseconds: without a recording, with one, and with a
//! detailed one.
//!
//! ```text
//! cargo run --release -p edge-lmm-ops --example guard_cost
//! ```

use std::time::Instant;

use edge_lmm_ops::stage::{self, Recording};

const STEPS: usize = 1000;
const LAYERS: usize = 28;
/// Modules and parts of a layer: attention and MLP with their norms and products.
const PARTS: [&str; 6] = ["norm", "qkv", "out", "norm", "feed_forward", "head"];

/// Measures the modules of some steps of decoding; returns the time of one.
fn modules() -> f64 {
    let start = Instant::now();
    for _ in 0..STEPS {
        let _stage = stage::top("decode");
        let _text = stage::scope(format_args!("text"));
        for layer in 0..LAYERS {
            let _layer = stage::scope(format_args!("layers.{layer}"));
            for parts in PARTS.chunks(3) {
                let _module = stage::module(if parts[1] == "qkv" {
                    "attention"
                } else {
                    "mlp"
                });
                for part in parts {
                    let _part = stage::part(part);
                }
            }
        }
    }
    let count = STEPS * LAYERS * (PARTS.len() + 2);
    start.elapsed().as_secs_f64() * 1e9 / count as f64
}

fn main() {
    println!("off       {:6.1} ns", modules());
    println!("on        {:6.1} ns", Recording::new(None).run(modules));
    println!(
        "detailed  {:6.1} ns",
        Recording::detailed(None).run(modules)
    );
}
