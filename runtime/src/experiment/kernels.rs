//! How fast the kernels are in the shapes of real models, as a share of what the machine could do at most.

use std::hint::black_box;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};
use edge_lmm_kernels::attention::Heads;
use edge_lmm_kernels::{
    Activation, Epilogue, FeedForward, Format, FormatError, Mask, Matrix, MatrixShape, Rows,
    ThreadPool, attention, ceiling, feed_forward, integer_attention, linear, pack_rows,
};
use serde::Serialize;

/// Weights and tokens of one product.
struct Product {
    what: &'static str,
    format: Format,
    rows: usize,
    cols: usize,
    tokens: usize,
}

/// The products of Qwen2-VL-2B that take the most time: decoding reads all weights for one token, prefill and the vision
/// tower share them among many.
const PRODUCTS: [Product; 12] = [
    product("decode, qkv", Format::Q4, 2048, 1536, 1),
    product("decode, gate and up", Format::Q4, 17920, 1536, 1),
    product("decode, down", Format::Q4, 1536, 8960, 1),
    product("decode, head", Format::Q4, 151936, 1536, 1),
    product("prefill, qkv", Format::Q4, 2048, 1536, 512),
    product("prefill, gate and up", Format::Q4, 17920, 1536, 512),
    product("prefill, down", Format::Q4, 1536, 8960, 512),
    product("vision, qkv", Format::Q8, 3840, 1280, 2304),
    product("vision, up", Format::Q8, 5120, 1280, 2304),
    product("vision, down", Format::Q8, 1280, 5120, 2304),
    product("vision, up", Format::Q4, 5120, 1280, 2304),
    product("vision, up", Format::F16, 5120, 1280, 2304),
];

const fn product(
    what: &'static str,
    format: Format,
    rows: usize,
    cols: usize,
    tokens: usize,
) -> Product {
    Product {
        what,
        format,
        rows,
        cols,
        tokens,
    }
}

/// Feed-forward parts, whose two products and what lies between them are one operation: what, format, gated, inputs, width,
/// tokens.
const FEED_FORWARD: [(&str, Format, bool, usize, usize, usize); 3] = [
    ("decode, feed-forward", Format::Q4, true, 1536, 8960, 1),
    ("prefill, feed-forward", Format::Q4, true, 1536, 8960, 512),
    ("vision, feed-forward", Format::Q8, false, 1280, 5120, 2304),
];

/// Attention of the vision towers: what, heads, elements of a head, tokens.
const ATTENTION: [(&str, usize, usize, usize); 3] = [
    ("vision, 336x336", 16, 80, 576),
    ("vision, 672x672", 16, 80, 2304),
    ("CLIP, 336x336", 16, 64, 577),
];

/// Weights that one token reads in turn, so that they come from memory as in a real model.
const COLD_BYTES: usize = 192 << 20;
/// Every measurement takes at least this long,
const LEAST_TIME: Duration = Duration::from_millis(400);
/// and at least this many runs, of which the median counts.
const LEAST_RUNS: usize = 3;

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Measurement {
    /// Where it occurs.
    pub what: String,
    /// Format of the weights; of queries, keys and values in attention.
    pub format: String,
    /// Outputs x inputs x tokens, or tokens x heads x elements.
    pub shape: String,
    /// Milliseconds of one product, the median of several.
    pub ms: f64,
    /// 10^9 operations per second, two for a product and its addition.
    pub gops: f64,
    /// 10^9 bytes of weights per second.
    pub gbs: f64,
    /// Share of the ceiling that binds: bandwidth for one token, operations for many.
    pub share: Option<f64>,
}

/// Everything that is measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Instruction set in use.
    pub kernels: String,
    /// Threads.
    pub threads: usize,
    /// Bytes per second that can be read from memory.
    pub read_bandwidth: f64,
    /// Operations per second on registers, by format of the weights.
    pub operations_per_second: Vec<(String, Option<f64>)>,
    /// The kernels.
    pub measurements: Vec<Measurement>,
}

/// Measures everything; `progress` hears what comes next.
///
/// # Errors
/// Never in practice: the shapes and weights are known to be good.
pub fn run(pool: &ThreadPool, mut progress: impl FnMut(&str)) -> Result<Report, FormatError> {
    progress("memory bandwidth");
    let bandwidth = ceiling::read_bandwidth(pool);
    progress("ceilings");
    let ceilings = Format::ALL.map(|format| (format, ceiling::operations_per_second(pool, format)));
    let ceiling = |format: Format| {
        let found = ceilings.iter().find(|(other, _)| *other == format);
        found.and_then(|(_, ceiling)| *ceiling)
    };
    let mut measurements = Vec::new();
    for product in PRODUCTS {
        progress(&format!("{} {}", product.what, product.format));
        measurements.push(product.measure(pool, bandwidth, ceiling(product.format))?);
    }
    for (what, format, gated, inputs, width, tokens) in FEED_FORWARD {
        progress(what);
        let (time, bytes) = time_feed_forward(pool, format, gated, inputs, width, tokens)?;
        let operations = 2 * inputs * width * if gated { 3 } else { 2 } * tokens;
        let shape = format!("{inputs}x{width}x{tokens}");
        let limits = (tokens == 1, bandwidth, ceiling(format));
        measurements.push(measurement(
            what, format, shape, time, operations, bytes, limits,
        ));
    }
    for (what, heads, head_dim, tokens) in ATTENTION {
        progress(&format!("attention, {what}"));
        let heads = Heads {
            heads,
            kv_heads: heads,
            head_dim,
        };
        for format in [Format::F32, Format::Q8] {
            let ceiling = ceiling(format);
            measurements.push(measure_attention(
                pool, what, heads, tokens, format, ceiling,
            ));
        }
    }
    Ok(Report {
        kernels: pool.kernels().isa().to_string(),
        threads: pool.threads(),
        read_bandwidth: bandwidth,
        operations_per_second: ceilings
            .map(|(format, ceiling)| (format.to_string(), ceiling))
            .to_vec(),
        measurements,
    })
}

/// Numbers that look random, from -1 to 1 (a linear congruential generator: Numerical Recipes).
fn noise(len: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// The median time of a call.
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

impl Product {
    fn measure(
        &self,
        pool: &ThreadPool,
        bandwidth: f64,
        ceiling: Option<f64>,
    ) -> Result<Measurement, FormatError> {
        let Self {
            format,
            rows,
            cols,
            tokens,
            ..
        } = *self;
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
        let limits = (tokens == 1, bandwidth, ceiling);
        let (operations, size) = (2 * rows * cols * tokens, format!("{rows}x{cols}x{tokens}"));
        Ok(measurement(
            self.what, format, size, seconds, operations, len, limits,
        ))
    }
}

/// How many matrices take turns, so that weights which one token reads come from memory.
fn copies(tokens: usize, len: usize) -> usize {
    if tokens == 1 {
        COLD_BYTES.div_ceil(len)
    } else {
        1
    }
}

/// Packed matrices: a few panels of noise, again and again, because packing takes longer than computing.
fn weights(shape: MatrixShape, copies: usize) -> Result<Vec<u8>, FormatError> {
    let mut few = Vec::new();
    pack_rows(shape, &noise(8 * 8 * shape.cols), &mut few)?;
    let len = shape.panel_bytes() * shape.panels() * copies;
    Ok(few.iter().copied().cycle().take(len).collect())
}

/// A line of the table; `limits`: whether the bandwidth binds, the bandwidth, the ceiling of operations.
fn measurement(
    what: &str,
    format: Format,
    shape: String,
    seconds: f64,
    operations: usize,
    bytes: usize,
    (by_memory, bandwidth, ceiling): (bool, f64, Option<f64>),
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
            ceiling.map(|ceiling| 1e9 * gops / ceiling)
        },
    }
}

/// Seconds that a feed-forward part takes, and bytes of its weights.
fn time_feed_forward(
    pool: &ThreadPool,
    format: Format,
    gated: bool,
    inputs: usize,
    width: usize,
    tokens: usize,
) -> Result<(f64, usize), FormatError> {
    let rows = if gated { 2 * width } else { width };
    let shapes =
        [(rows, inputs), (inputs, width)].map(|(rows, cols)| MatrixShape::new(format, rows, cols));
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

/// All tokens attend to all, queries, keys and values lying side by side as a fused projection leaves them.
fn measure_attention(
    pool: &ThreadPool,
    what: &str,
    heads: Heads,
    tokens: usize,
    format: Format,
    ceiling: Option<f64>,
) -> Measurement {
    let width = heads.heads * heads.head_dim;
    let qkv = noise(tokens * 3 * width);
    let part = |part: usize| Rows {
        data: &qkv[part * width..],
        stride: 3 * width,
    };
    let scale = (heads.head_dim as f32).powf(-0.5);
    let seconds = median_time(|| {
        let (q, k, v) = (black_box(part(0)), part(1), part(2));
        let out = if format == Format::F32 {
            let mask = Mask::Full;
            attention(pool, heads, q, tokens, k, v, tokens, mask, None, scale)
        } else {
            integer_attention(pool, heads, q, k, v, tokens, &[0, tokens], scale)
        };
        black_box(out);
    })
    .as_secs_f64();
    let (operations, bytes) = (
        4 * tokens * tokens * width,
        2 * tokens * width * size_of::<f32>(),
    );
    measurement(
        &format!("attention, {what}"),
        format,
        format!("{tokens}x{}x{}", heads.heads, heads.head_dim),
        seconds,
        operations,
        bytes,
        (false, 0.0, ceiling),
    )
}

impl Report {
    /// The report as a table.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([
            "kernel",
            "weights",
            "shape",
            "ms",
            "GOP/s",
            "GB/s",
            "of the ceiling",
        ]);
        for column in table.column_iter_mut().skip(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for m in &self.measurements {
            let share = m
                .share
                .map_or("-".to_owned(), |share| format!("{:.0} %", 100.0 * share));
            table.add_row([
                m.what.clone(),
                m.format.clone(),
                m.shape.clone(),
                format!("{:.3}", m.ms),
                format!("{:.1}", m.gops),
                format!("{:.1}", m.gbs),
                share,
            ]);
        }
        let ceilings: Vec<String> = self
            .operations_per_second
            .iter()
            .filter_map(|(format, speed)| Some(format!("{format} {:.0} GOP/s", (*speed)? * 1e-9)))
            .collect();
        format!(
            "{}, {} threads; ceilings: read {:.1} GB/s, on registers {}\n{table}",
            self.kernels,
            self.threads,
            self.read_bandwidth * 1e-9,
            if ceilings.is_empty() {
                "not measured for this instruction set".to_owned()
            } else {
                ceilings.join(", ")
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_measured_against_the_ceiling_that_binds() {
        let pool = ThreadPool::new(std::num::NonZeroUsize::MIN);
        let many = product("many", Format::Q8, 16, 64, 8)
            .measure(&pool, 1e9, Some(1e12))
            .unwrap();
        assert!(many.ms > 0.0 && many.gops > 0.0);
        assert_eq!(many.share, Some(many.gops / 1e3));
        let one = product("one", Format::Q4, 4096, 4096, 1)
            .measure(&pool, 1e9, Some(1e12))
            .unwrap();
        assert_eq!(one.share, Some(1e9 * one.gbs / 1e9));
    }
}
