//! Product of one or a few tokens and a packed matrix. It is bound by the bytes of the weights, so each
//! weight is read once, 16 bytes at a time, and dequantized in registers.

use burn_cubecl::CubeRuntime;
use cubecl::prelude::*;
use edge_lmm_kernels::format::{Format, PANEL};

use super::epilogue::{Epilogue, Operands, Output};
use super::packed::{
    Packed, QUAD, Quad, block_of_load, first_input, inputs_of_load, loads_of_inputs, packed,
    quads_of_load, weights,
};
use super::tensor::cubes;
use crate::stage;

/// Largest number of tokens; their sums must fit the registers.
pub(super) const TOKENS: usize = 4;
const UNITS: usize = 128;

/// Computes one panel per cube, or one pair of panels of gate and up.
#[cube(launch_unchecked)]
fn gemv_kernel<N: Size>(
    weight: &Packed,
    x: &Array<Vector<f32, N>>,
    x_stride: usize,
    output: &mut Output,
    #[comptime] tokens: usize,
    #[comptime] format: Format,
    #[comptime] epilogue: Epilogue,
) {
    let panel = CUBE_POS;
    let parts = comptime!(if epilogue.gated { 2usize } else { 1usize });
    let panels = weight.panels / parts;
    if panel >= panels {
        terminate!();
    }
    let count = comptime!(tokens * quads_of_load(format) * UNITS);
    let mut shared = SharedMemory::<Quad>::new(count);
    let product = products_of_panel(weight, panel, x, x_stride, &mut shared, tokens, format);
    let mut up = 0.0f32;
    if comptime!(epilogue.gated) {
        // All units must have read these sums before the next ones are written.
        sync_cube();
        up = products_of_panel(
            weight,
            panel + panels,
            x,
            x_stride,
            &mut shared,
            tokens,
            format,
        );
    }
    let unit = UNIT_POS as usize;
    if unit < comptime!(tokens * PANEL) {
        let (token, row) = (unit / PANEL, panel * PANEL + unit % PANEL);
        if row < weight.rows / parts {
            if comptime!(epilogue.gated) {
                output.store_gated(token, row, product, up, epilogue);
            } else {
                output.store(token, row, product, epilogue);
            }
        }
    }
}

/// Computes the products of a panel; unit `token * PANEL + row` returns that of its token and row. The
/// loads of the panel are distributed over all units, whose sums are added at the end.
#[cube]
fn products_of_panel<N: Size>(
    weight: &Packed,
    panel: usize,
    x: &Array<Vector<f32, N>>,
    x_stride: usize,
    shared: &mut SharedMemory<Quad>,
    #[comptime] tokens: usize,
    #[comptime] format: Format,
) -> f32 {
    let quads = comptime!(quads_of_load(format));
    let count = comptime!(tokens * quads);
    let unit = UNIT_POS as usize;
    let mut sums = Array::<Quad>::new(count);
    #[unroll]
    for i in 0..count {
        sums[i] = Quad::new(0.0f32);
    }
    for index in range_stepped(unit, weight.loads, UNITS) {
        add_load(weight, panel, index, x, x_stride, &mut sums, tokens, format);
    }
    #[unroll]
    for i in 0..count {
        shared[i * UNITS + unit] = sums[i];
    }
    sync_cube();
    // Units whose indices differ by a multiple of `together` have sums of the same rows.
    let together = comptime!(loads_of_inputs(format));
    let halvings = comptime!((UNITS / together).ilog2() as usize);
    #[unroll]
    for h in 0..halvings {
        let half = comptime!(UNITS >> (h + 1));
        if unit < half {
            #[unroll]
            for i in 0..count {
                let other = shared[i * UNITS + unit + half];
                shared[i * UNITS + unit] += other;
            }
        }
        sync_cube();
    }
    let mut product = 0.0f32;
    if unit < comptime!(tokens * PANEL) {
        let (token, row) = (unit / PANEL, unit % PANEL);
        let (quad, lane) = (row / QUAD, row % QUAD);
        // With one quad per load, quad 1 is that of unit 1; with two, it is the second sum of unit 0.
        let at = (token * quads + quad / together) * UNITS + quad % together;
        product = shared[at][lane];
    }
    product
}

/// Adds the products of one load with all tokens.
#[cube]
fn add_load<N: Size>(
    weight: &Packed,
    panel: usize,
    index: usize,
    x: &Array<Vector<f32, N>>,
    x_stride: usize,
    sums: &mut Array<Quad>,
    #[comptime] tokens: usize,
    #[comptime] format: Format,
) {
    let inputs = comptime!(inputs_of_load(format));
    let quads = comptime!(quads_of_load(format));
    let load = weight.load(panel, index);
    let first = first_input(index, format);
    let mut scale = Quad::new(1.0f32);
    if comptime!(format.is_quantized()) {
        scale = weight.scale(panel, block_of_load(index, format), index, format);
    }
    #[unroll]
    for token in 0..tokens {
        let values = inputs_at::<N>(x, token * x_stride, first, weight.cols, inputs);
        #[unroll]
        for quad in 0..quads {
            let mut product = Quad::new(0.0f32);
            #[unroll]
            for i in 0..inputs {
                product += weights(load, i, quad, format) * Quad::new(values[i]);
            }
            sums[token * quads + quad] += product * scale;
        }
    }
}

/// Returns `count` inputs of a token from `first` on, with zeros past the last one.
#[cube]
fn inputs_at<N: Size>(
    x: &Array<Vector<f32, N>>,
    row: usize,
    first: usize,
    cols: usize,
    #[comptime] count: usize,
) -> Array<f32> {
    let size = N::value();
    let mut values = Array::<f32>::new(count);
    #[unroll]
    for v in 0..comptime!(count / size) {
        let at = first + v * size;
        let mut vector = Vector::<f32, N>::new(0.0f32);
        if at < cols {
            vector = x[(row + at) / size];
        }
        #[unroll]
        for j in 0..size {
            values[v * size + j] = vector[j];
        }
    }
    values
}

/// Launches the product of at most [`TOKENS`] tokens.
pub(super) fn launch<R: CubeRuntime>(operands: &Operands<'_, R>) {
    let Operands { x, shape, .. } = operands;
    let cube_count = shape.panels() / if operands.epilogue.gated { 2 } else { 1 };
    let by_four = x.by_four() && inputs_of_load(shape.format).is_multiple_of(4);
    stage::launched();
    // SAFETY: cubes below the number of panels read whole loads of their panel and inputs below
    // `cols`, and store rows below `rows`.
    #[allow(unsafe_code)]
    unsafe {
        gemv_kernel::launch_unchecked::<R>(
            x.client(),
            cubes(cube_count),
            CubeDim::new_1d(UNITS as u32),
            if by_four { 4 } else { 1 },
            packed(operands.weight, *shape),
            x.arg(),
            x.stride,
            operands.output(),
            x.rows,
            shape.format,
            operands.epilogue,
        );
    }
}
