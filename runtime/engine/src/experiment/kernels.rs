//! Throughput of the kernels with the shapes of real models, relative to the roofline of the
//! machine.

use std::hint::black_box;
use std::time::{Duration, Instant};

use edge_lmm_kernels::workload::{
    FEW_TOKENS, IMAGE_ATTENTION, ImageAttention, NETWORKS, Network, PRODUCTS, Product, noise,
    weights,
};
use edge_lmm_kernels::{
    Activation, Epilogue, FeedForward, Format, FormatError, Mask, Matrix, MatrixShape, Rows,
    ThreadPool, attention, feed_forward, integer_attention, linear, peak,
};
use serde::Serialize;

/// Minimum total size of the weight copies that a few tokens are multiplied with in turn. It
/// exceeds the caches, so that weights are read from memory as in a real model.
const COLD_BYTES: usize = 192 << 20;
/// Minimum duration of a measurement.
const LEAST_TIME: Duration = Duration::from_millis(400);
/// Minimum number of runs of a measurement; the median is reported.
const LEAST_RUNS: usize = 3;

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Measurement {
    /// Operation, and the stage of the model in which it occurs.
    pub what: String,
    /// Format of the weights; for attention, of queries, keys and values.
    pub format: String,
    /// Outputs x inputs x tokens, or tokens x heads x elements.
    pub shape: String,
    /// Median time of an operation in milliseconds.
    pub ms: f64,
    /// Throughput in 10^9 operations per second, two per multiply-add.
    pub gops: f64,
    /// Bandwidth in 10^9 bytes of weights per second.
    pub gbs: f64,
    /// Fraction of the peak that bounds the operation: memory bandwidth for up to 8 tokens, arithmetic
    /// throughput for many tokens.
    pub share: Option<f64>,
}

/// All measurements.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Instruction set in use.
    pub kernels: String,
    /// Number of threads.
    pub threads: usize,
    /// Peak memory bandwidth in bytes per second.
    pub read_bandwidth: f64,
    /// Peak arithmetic throughput in operations per second, by format of the weights.
    pub operations_per_second: Vec<(String, Option<f64>)>,
    /// One measurement per operation.
    pub measurements: Vec<Measurement>,
}

/// Measures all operations and calls `progress` with the name of each before it starts.
///
/// # Errors
/// Never in practice: the shapes and weights are valid.
pub fn run(pool: &ThreadPool, mut progress: impl FnMut(&str)) -> Result<Report, FormatError> {
    progress("memory bandwidth");
    let bandwidth = peak::read_bandwidth(pool);
    progress("peak throughput");
    let peaks = Format::ALL.map(|format| (format, peak::operations_per_second(pool, format)));
    let peak = |format: Format| {
        let found = peaks.iter().find(|(other, _)| *other == format);
        found.and_then(|(_, peak)| *peak)
    };
    let mut measurements = Vec::new();
    for product in PRODUCTS {
        progress(&format!("{} {}", name(&product), product.format));
        measurements.push(measure_product(
            &product,
            pool,
            bandwidth,
            peak(product.format),
        )?);
    }
    for network in NETWORKS {
        let Network {
            stage,
            format,
            inputs,
            width,
            tokens,
            ..
        } = network;
        let what = format!("{stage}, feed-forward");
        progress(&what);
        let (time, bytes) = time_feed_forward(pool, &network)?;
        let shape = format!("{inputs}x{width}x{tokens}");
        let limits = (tokens <= FEW_TOKENS, bandwidth, peak(format));
        let operations = network.operations();
        measurements.push(measurement(
            &what, format, shape, time, operations, bytes, limits,
        ));
    }
    for case in IMAGE_ATTENTION {
        progress(&format!("attention, {}", case.name));
        for kind in [Attention::Float, Attention::Integer] {
            let peak = peak(kind.format());
            measurements.push(measure_attention(pool, &case, kind, peak));
        }
    }
    Ok(Report {
        kernels: pool.kernels().isa().to_string(),
        threads: pool.threads(),
        read_bandwidth: bandwidth,
        operations_per_second: peaks
            .map(|(format, peak)| (format.to_string(), peak))
            .to_vec(),
        measurements,
    })
}

/// Returns the median time of a call.
fn median_time(mut call: impl FnMut()) -> Duration {
    call();
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < LEAST_RUNS || start.elapsed() < LEAST_TIME {
        let start = Instant::now();
        call();
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2]
}

/// Returns the stage and layer of a product.
fn name(product: &Product) -> String {
    format!("{}, {}", product.stage, product.layer.name)
}

fn measure_product(
    product: &Product,
    pool: &ThreadPool,
    bandwidth: f64,
    peak: Option<f64>,
) -> Result<Measurement, FormatError> {
    let Product {
        layer,
        format,
        tokens,
        ..
    } = *product;
    let (rows, cols) = (layer.rows, layer.cols);
    let shape = MatrixShape::new(format, rows, cols);
    let len = shape.panel_bytes() * shape.panels();
    let copies = copies(tokens, len);
    let bytes = weights(shape, copies)?;
    let matrices = bytes
        .chunks(len)
        .map(|bytes| Matrix::new(shape, bytes))
        .collect::<Result<Vec<_>, _>>()?;
    let x = noise(tokens * cols);
    let mut out = vec![0.0; tokens * rows];
    let time = median_time(|| {
        for matrix in &matrices {
            linear(pool, matrix, black_box(&x), &Epilogue::default(), &mut out);
        }
        black_box(&mut out);
    });
    let seconds = time.as_secs_f64() / matrices.len() as f64;
    let limits = (tokens <= FEW_TOKENS, bandwidth, peak);
    let (operations, size) = (2 * rows * cols * tokens, format!("{rows}x{cols}x{tokens}"));
    Ok(measurement(
        &name(product),
        format,
        size,
        seconds,
        operations,
        len,
        limits,
    ))
}

/// Returns the number of matrices that are multiplied in turn.
fn copies(tokens: usize, len: usize) -> usize {
    if tokens <= FEW_TOKENS {
        COLD_BYTES.div_ceil(len)
    } else {
        1
    }
}

/// Builds a row of the table. `limits` are: `true` if memory bandwidth bounds the operation, peak
/// bandwidth, peak throughput.
fn measurement(
    what: &str,
    format: Format,
    shape: String,
    seconds: f64,
    operations: usize,
    bytes: usize,
    (by_memory, bandwidth, peak): (bool, f64, Option<f64>),
) -> Measurement {
    let (gops, gbs) = (
        1e-9 * operations as f64 / seconds,
        1e-9 * bytes as f64 / seconds,
    );
    Measurement {
        what: what.to_owned(),
        format: format.to_string(),
        shape,
        ms: 1e3 * seconds,
        gops,
        gbs,
        share: if by_memory {
            Some(1e9 * gbs / bandwidth)
        } else {
            peak.map(|peak| 1e9 * gops / peak)
        },
    }
}

/// Returns the time of a feed-forward network in seconds and the bytes of its weights.
fn time_feed_forward(pool: &ThreadPool, network: &Network) -> Result<(f64, usize), FormatError> {
    let Network {
        gated,
        inputs,
        tokens,
        ..
    } = *network;
    let shapes = network.shapes();
    let lens = shapes.map(|shape| shape.panel_bytes() * shape.panels());
    let copies = copies(tokens, lens[0] + lens[1]);
    let (ups, downs) = (weights(shapes[0], copies)?, weights(shapes[1], copies)?);
    let layers = ups
        .chunks(lens[0])
        .zip(downs.chunks(lens[1]))
        .map(|(up, down)| {
            Ok(FeedForward {
                up: Matrix::new(shapes[0], up)?,
                up_bias: None,
                activation: if gated {
                    Activation::Silu
                } else {
                    Activation::QuickGelu
                },
                gated,
                down: Matrix::new(shapes[1], down)?,
                down_bias: None,
            })
        })
        .collect::<Result<Vec<_>, FormatError>>()?;
    let x = noise(tokens * inputs);
    let mut out = vec![0.0; tokens * inputs];
    let time = median_time(|| {
        for layers in &layers {
            feed_forward(pool, layers, black_box(&x), false, &mut out);
        }
        black_box(&mut out);
    });
    Ok((time.as_secs_f64() / layers.len() as f64, lens[0] + lens[1]))
}

/// Arithmetic of an attention kernel.
#[derive(Clone, Copy)]
enum Attention {
    Float,
    Integer,
}

impl Attention {
    /// Returns the format of queries, keys and values.
    fn format(self) -> Format {
        match self {
            Attention::Float => Format::F32,
            Attention::Integer => Format::Q8,
        }
    }
}

/// Measures attention among all tokens. Queries, keys and values are columns of one matrix, as in
/// the output of a fused projection.
fn measure_attention(
    pool: &ThreadPool,
    case: &ImageAttention,
    kind: Attention,
    peak: Option<f64>,
) -> Measurement {
    let ImageAttention {
        name,
        heads,
        tokens,
    } = *case;
    let width = heads.heads * heads.head_dim;
    let qkv = noise(tokens * 3 * width);
    let part = |part: usize| Rows {
        data: &qkv[part * width..],
        stride: 3 * width,
    };
    let scale = (heads.head_dim as f32).powf(-0.5);
    let seconds = median_time(|| {
        let (q, k, v) = (black_box(part(0)), part(1), part(2));
        let out = match kind {
            Attention::Float => {
                let mask = Mask::Full;
                attention(pool, heads, q, tokens, k, v, tokens, mask, None, scale)
            }
            Attention::Integer => {
                integer_attention(pool, heads, q, k, v, tokens, &[0, tokens], None, scale)
            }
        };
        black_box(out);
    })
    .as_secs_f64();
    let (operations, bytes) = (
        4 * tokens * tokens * width,
        2 * tokens * width * size_of::<f32>(),
    );
    measurement(
        &format!("attention, {name}"),
        kind.format(),
        format!("{tokens}x{}x{}", heads.heads, heads.head_dim),
        seconds,
        operations,
        bytes,
        (false, 0.0, peak),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_lmm_kernels::workload::Layer;

    #[test]
    fn a_product_is_measured_against_the_peak_that_bounds_it() {
        let pool = ThreadPool::new(std::num::NonZeroUsize::MIN);
        let measure = |format, rows, cols, tokens| {
            let product = Product {
                stage: "test",
                layer: Layer {
                    name: "layer",
                    rows,
                    cols,
                },
                format,
                tokens,
            };
            measure_product(&product, &pool, 1e9, Some(1e12)).unwrap()
        };
        let many = measure(Format::Q8, 16, 64, 64);
        assert!(many.ms > 0.0 && many.gops > 0.0);
        let is = |share: Option<f64>, expected: f64| {
            let error = share.expect("a peak is known") / expected - 1.0;
            assert!(error.abs() < 1e-9, "{share:?}, expected {expected}");
        };
        is(many.share, many.gops / 1e3);
        let one = measure(Format::Q4, 4096, 4096, 1);
        is(one.share, one.gbs);
    }
}
