//! Compilation and timing of every kernel, for the GPU report of `edge-lmm doctor`.

use std::time::{Duration, Instant};

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Distribution, Int, Tensor};
use burn_cubecl::CubeRuntime;
use edge_lmm_kernels::activation::Activation;
use edge_lmm_kernels::attention::{Heads, Mask, WeightedMask};
use edge_lmm_kernels::format::{Format, MatrixShape};

use super::backend::{Cube, products};
use super::products::Products;
use crate::backend::{CacheShape, KernelBackend, KvStore};
use crate::functional::{
    Columns, argmax, attention, attention_received, encoder_attention, gated, gated_linear,
    gather_rows, layer_norm, linear, rms_norm, rope, rotated_attention,
};

/// Scores of a token: the size of a typical vocabulary.
const SCORES: usize = 151_936;
/// Head sizes of the supported models.
const HEADS: [usize; 6] = [64, 72, 80, 88, 96, 128];
/// Number of timed calls, after the first one.
const CALLS: u32 = 10;

/// Cost of a kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// The kernel and its operands.
    pub name: String,
    /// Time of the first call, in which the kernel is compiled or read from the cache.
    pub first: Duration,
    /// Time of a later call.
    pub call: Duration,
    /// Minimum bytes that a call reads and writes.
    pub bytes: usize,
    /// Multiplications of a call.
    pub products: usize,
}

/// Runs every kernel on operands of `width` (a multiple of 64) and `tokens`.
///
/// # Errors
/// If the device cannot compile or run a kernel. The message is that of the device for the first
/// such kernel.
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
            // The message of the compiler is followed by the code of the kernel.
            let message = error.split("[Source]").next().unwrap_or_default().trim();
            format!("{name}: {message}")
        })
    }

    /// Times `call`, which reads and writes `elements` f32 numbers and `bytes` other bytes.
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
            if shape.format == Format::Q4 {
                let name = format!("gated product {format}, 1 x {width} x {width}");
                let x = self.random([1, width]);
                self.time(name, 2 * width, bytes, width * width, || {
                    gated_linear(x.clone(), weight.clone(), shape, Activation::Silu)
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
        let scores = self.random([1, SCORES]);
        let name = format!("argmax of {SCORES}");
        self.time(name, SCORES, 0, 0, || {
            // The next wait reports failures of the device.
            let _ = argmax(scores.clone());
            scores.clone()
        })?;
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
        let name = format!("received attention, {tokens} x {tokens}, {heads:?}");
        self.time(name, 2 * tokens * width, 0, products / 2, || {
            attention_received(part(0), part(1), heads, Mask::Full, 0.125).unsqueeze()
        })?;
        for head_dim in HEADS {
            for weighted in [false, true] {
                self.encoder_attention(width, tokens, head_dim, weighted)?;
            }
        }
        for quantized in [false, true] {
            self.decoding_attention(heads, tokens, quantized)?;
        }
        let count = (width / 128).max(1);
        let grouped = Heads {
            heads: count,
            kv_heads: if count.is_multiple_of(2) { 2 } else { 1 },
            head_dim: 128,
        };
        self.decoding_attention(grouped, tokens, true)
    }

    /// Times attention among the tokens of an encoder with quantized weights. The keys have weights if
    /// `weighted`.
    fn encoder_attention(
        &mut self,
        width: usize,
        tokens: usize,
        head_dim: usize,
        weighted: bool,
    ) -> Result<(), String> {
        let count = (width / head_dim).max(1);
        let heads = Heads {
            heads: count,
            kv_heads: count,
            head_dim,
        };
        let width = count * head_dim;
        let qkv = self.random([tokens, 3 * width]);
        let part = |i: usize| Columns {
            tensor: qkv.clone(),
            column: i * width,
        };
        let kind = self.kind();
        let keys = if weighted { ", weighted keys" } else { "" };
        let name = format!("encoder attention, {tokens} x {tokens}, {heads:?}{keys}{kind}");
        let weights = vec![2.0; tokens];
        let mask = WeightedMask {
            mask: Mask::Full,
            key_weights: weighted.then_some(&weights[..]),
        };
        let products = 2 * tokens * tokens * width;
        self.time(name, 4 * tokens * width, 0, products, || {
            let (q, k, v) = (part(0), part(1), part(2));
            encoder_attention(q, k, v, heads, mask, 0.125, true)
        })
    }

    /// Times attention of a prefill of `tokens` tokens, and of one token after them.
    fn decoding_attention(
        &mut self,
        heads: Heads,
        tokens: usize,
        quantized: bool,
    ) -> Result<(), String> {
        let shape = CacheShape {
            layers: 1,
            kv_heads: heads.kv_heads,
            head_dim: heads.head_dim,
            capacity: tokens + 1,
            quantized,
        };
        let width = (heads.heads + 2 * heads.kv_heads) * heads.head_dim;
        let q_width = heads.heads * heads.head_dim;
        let kv_width = heads.kv_heads * heads.head_dim;
        let mut cache = Cube::<R>::kv_cache(shape, &self.device).map_err(|e| e.to_string())?;
        let kept = 2 * (tokens * kv_width) * (cache.bytes() / 2 / (tokens + 1) / kv_width);
        let of = if quantized { "quantized" } else { "f32" };
        let kind = if quantized {
            self.kind()
        } else {
            String::new()
        };
        let angles = |tokens: usize| self.random([tokens, heads.head_dim / 2]);
        let (many, one) = (self.random([tokens, width]), self.random([1, width]));
        let (of_many, of_one) = (angles(tokens), angles(1));
        let name = format!("prefill attention, {of}, {tokens} x {tokens}, {heads:?}{kind}");
        let products = 2 * tokens * tokens * q_width;
        let elements = tokens * (width + q_width);
        self.time(name, elements, kept, products, || {
            let (qkv, angles) = (many.clone(), &of_many);
            rotated_attention::<Cube<R>>(
                qkv,
                heads,
                angles,
                angles,
                &mut cache,
                0,
                Mask::Causal,
                0.125,
            )
        })?;
        cache.advance(tokens);
        let name = format!("decoding attention, {of}, 1 x {tokens}, {heads:?}");
        let products = 2 * tokens * q_width;
        self.time(name, width + q_width, kept, products, || {
            let (qkv, angles) = (one.clone(), &of_one);
            rotated_attention::<Cube<R>>(
                qkv,
                heads,
                angles,
                angles,
                &mut cache,
                0,
                Mask::Causal,
                0.125,
            )
        })
    }

    /// Returns the suffix of a name for the multiplication method.
    fn kind(&self) -> String {
        match products(&self.random([1, 4])) {
            Products::Matrix => ", matrix".to_owned(),
            Products::Plain | Products::Emulated => String::new(),
        }
    }
}
