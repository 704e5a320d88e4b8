//! Compiles and times every kernel once: what `edge-lmm doctor` says of a GPU.

use std::time::{Duration, Instant};

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Distribution, Int, Tensor};
use burn_cubecl::CubeRuntime;
use edge_lmm_kernels::activation::Activation;
use edge_lmm_kernels::attention::{Heads, Mask};
use edge_lmm_kernels::format::{Format, MatrixShape};

use super::{Cube, products};
use crate::backend::{CacheShape, KernelBackend, KvStore};
use crate::functional::{
    Columns, attention, cached_attention, gated, gather_rows, layer_norm, linear, rms_norm, rope,
};

/// Calls that are timed, after the first one.
const CALLS: u32 = 10;

/// What a kernel took.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// The kernel and its operands.
    pub name: String,
    /// The first call, in which the kernel is compiled or read from the cache.
    pub first: Duration,
    /// A further call.
    pub call: Duration,
    /// Bytes that a call has to read and write at least.
    pub bytes: usize,
    /// Multiplications that a call has to do.
    pub products: usize,
}

/// Runs every kernel on operands of `width` (a multiple of 64) and `tokens`.
///
/// # Errors
/// What the device says of the first kernel that it cannot compile or run.
pub fn trials<R: CubeRuntime>(
    device: &R::Device,
    width: usize,
    tokens: usize,
) -> Result<Vec<Trial>, String> {
    let mut bench = Bench::<R> {
        device: device.clone(),
        trials: Vec::new(),
    };
    bench.products(width, tokens)?;
    bench.rows(width, tokens)?;
    bench.attentions(width, tokens)?;
    Ok(bench.trials)
}

struct Bench<R: CubeRuntime> {
    device: R::Device,
    trials: Vec<Trial>,
}

impl<R: CubeRuntime> Bench<R> {
    fn random<const D: usize>(&self, shape: [usize; D]) -> Tensor<Cube<R>, D> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &self.device)
    }

    fn wait(&self, name: &str) -> Result<(), String> {
        Cube::<R>::sync(&self.device).map_err(|error| {
            let error = error.to_string();
            // A compiler's message is followed by all of the kernel's code.
            let message = error.split("[Source]").next().unwrap_or_default().trim();
            format!("{name}: {message}")
        })
    }

    /// Times `call`, which moves so many f32 elements besides `bytes`.
    fn time(
        &mut self,
        name: String,
        elements: usize,
        bytes: usize,
        products: usize,
        mut call: impl FnMut() -> Tensor<Cube<R>, 2>,
    ) -> Result<(), String> {
        self.wait(&name)?;
        let start = Instant::now();
        call();
        self.wait(&name)?;
        let first = start.elapsed();
        let start = Instant::now();
        for _ in 0..CALLS {
            call();
        }
        self.wait(&name)?;
        self.trials.push(Trial {
            name,
            first,
            call: start.elapsed() / CALLS,
            bytes: elements * size_of::<f32>() + bytes,
            products,
        });
        Ok(())
    }

    fn products(&mut self, width: usize, tokens: usize) -> Result<(), String> {
        let kind = products(&self.random([1, 4]));
        for format in Format::ALL {
            let shape = MatrixShape::new(format, width, width);
            let bytes = shape
                .byte_len()
                .ok_or_else(|| format!("{width} is too wide"))?;
            let options = (&self.device, DType::U8);
            let weight = Tensor::<Cube<R>, 1, Int>::zeros([bytes], options);
            for tokens in [1, tokens] {
                let x = self.random([tokens, width]);
                let kind = match tokens {
                    1 => String::new(),
                    _ => format!(", {kind:?}").to_lowercase(),
                };
                let name = format!("product {format}, {tokens} x {width} x {width}{kind}");
                let (elements, products) = (2 * tokens * width, tokens * width * width);
                self.time(name, elements, bytes, products, || {
                    let (x, weight) = (x.clone(), weight.clone());
                    linear(x, weight, shape, None, Activation::None, None)
                })?;
            }
            let ids: Vec<u32> = (0..width as u32).collect();
            let name = format!("embedding {format}, {width} rows of {width}");
            self.time(name, width * width, bytes, 0, || {
                gather_rows(weight.clone(), shape, &ids)
            })?;
        }
        Ok(())
    }

    fn rows(&mut self, width: usize, tokens: usize) -> Result<(), String> {
        let (x, gamma) = (self.random([tokens, width]), self.random([width]));
        let size = format!("{tokens} x {width}");
        let elements = 2 * tokens * width;
        self.time(format!("rms norm, {size}"), elements, 0, 0, || {
            rms_norm(x.clone(), gamma.clone(), 1e-6)
        })?;
        self.time(format!("layer norm, {size}"), elements, 0, 0, || {
            layer_norm(x.clone(), gamma.clone(), gamma.clone(), 1e-6)
        })?;
        self.time(
            format!("gate, {size}"),
            3 * tokens * width / 2,
            0,
            0,
            || gated(x.clone(), Activation::Silu),
        )?;
        let angles = self.random([tokens, 32]);
        self.time(format!("rotation, {size}"), 2 * elements, 0, 0, || {
            rope(x.clone(), 0, width / 64, 64, &angles, &angles)
        })
    }

    fn attentions(&mut self, width: usize, tokens: usize) -> Result<(), String> {
        let heads = Heads {
            heads: width / 64,
            kv_heads: width / 64,
            head_dim: 64,
        };
        let qkv = self.random([tokens, 3 * width]);
        let part = |i: usize| Columns {
            tensor: qkv.clone(),
            column: i * width,
        };
        let products = 2 * tokens * tokens * width;
        let name = format!("attention, {tokens} x {tokens}, {heads:?}");
        self.time(name, 4 * tokens * width, 0, products, || {
            attention(part(0), part(1), part(2), heads, Mask::Full, None, 0.125)
        })?;
        let shape = CacheShape {
            layers: 1,
            kv_heads: heads.kv_heads,
            head_dim: heads.head_dim,
            capacity: tokens + 1,
        };
        let mut cache = Cube::<R>::kv_cache(shape, &self.device).map_err(|e| e.to_string())?;
        cached_attention::<Cube<R>>(qkv.clone(), heads, &mut cache, 0, None, 0.125);
        cache.advance(tokens);
        let one = self.random([1, 3 * width]);
        let name = format!("decoding attention, 1 x {tokens}, {heads:?}");
        self.time(name, 2 * tokens * width, 0, 2 * tokens * width, || {
            cached_attention::<Cube<R>>(one.clone(), heads, &mut cache, 0, None, 0.125)
        })
    }
}
