//! Product of many tokens and a packed matrix. A cube computes a tile of 64 tokens by 64 rows. For each
//! block of 32 inputs, the activations and the dequantized weights of the tile are copied to shared memory
//! and multiplied.
//!
//! Devices differ only in the multiplication method ([`Products`]).

use burn::tensor::f16;
use burn_cubecl::CubeRuntime;
use cubecl::prelude::*;
use edge_lmm_kernels::format::{BLOCK, Format, PANEL};

use super::epilogue::{Epilogue, Operands, Output};
use super::fragments::{self, ALIGNMENT, Four, Order, Sums};
use super::packed::{
    Load, Packed, QUAD, Quad, first_input, inputs_of_load, loads_of_inputs, packed, quads_of_load,
    weights,
};
use super::products::{HALF_MAX, PLANE, Products, SIDE};
use crate::stage;

const UNITS: usize = 128;
/// Tokens and rows of a tile.
const TILE: usize = 64;
/// Vectors of four elements from one input to the next in shared memory. Two more than the width of the
/// tile, so that units that write the same tokens of successive inputs access different banks.
const PITCH: usize = TILE / QUAD + 2;
/// Tokens that a unit multiplies by one quad of rows.
const UNIT_TOKENS: usize = TILE * TILE / QUAD / UNITS;
/// Fragments along a side of the part of a tile that a plane computes.
const PLANE_FRAGMENTS: usize = TILE / 2 / SIDE;
/// Elements from one token to the next in a tile of sums. Eight more than the width of the tile, so that
/// fragments are aligned and units that read successive tokens access different banks.
const SUMS_PITCH: usize = TILE + 8;

#[cube(launch_unchecked)]
fn gemm_kernel<S: Float>(
    weight: &Packed,
    x: &Array<f32>,
    x_stride: usize,
    output: &mut Output,
    tiles: usize,
    #[comptime] products: Products,
    #[comptime] format: Format,
    #[comptime] epilogue: Epilogue,
) {
    // Neighboring cubes share weights, which are larger than the activations.
    let (token, row) = (CUBE_POS % tiles * TILE, CUBE_POS / tiles * TILE);
    if row >= weight.rows {
        terminate!();
    }
    // Elements `[input, token]` and `[input, row]`.
    let mut tokens = SharedMemory::<Four<S>>::new_aligned(comptime!(BLOCK * PITCH), ALIGNMENT);
    let mut rows = SharedMemory::<Four<S>>::new_aligned(comptime!(BLOCK * PITCH), ALIGNMENT);
    match products {
        Products::Plain => {
            let mut sums = Array::<Quad>::new(UNIT_TOKENS);
            #[unroll]
            for i in 0..UNIT_TOKENS {
                sums[i] = Quad::new(0.0f32);
            }
            for block in 0..weight.cols.div_ceil(BLOCK) {
                fill_tokens::<S>(
                    &mut tokens,
                    x,
                    x_stride,
                    token,
                    output.tokens,
                    block,
                    weight.cols,
                    products,
                );
                fill_rows::<S>(&mut rows, weight, row / PANEL, block, format);
                sync_cube();
                multiply::<S>(&tokens, &rows, &mut sums);
                sync_cube();
            }
            store(&sums, output, token, row, weight.rows, epilogue);
        }
        Products::Matrix | Products::Emulated => {
            let mut sums = fragments::zeros(comptime!(PLANE_FRAGMENTS * PLANE_FRAGMENTS), products);
            for block in 0..weight.cols.div_ceil(BLOCK) {
                fill_tokens::<S>(
                    &mut tokens,
                    x,
                    x_stride,
                    token,
                    output.tokens,
                    block,
                    weight.cols,
                    products,
                );
                fill_rows::<S>(&mut rows, weight, row / PANEL, block, format);
                sync_cube();
                multiply_matrices::<S>(&tokens, &rows, &mut sums, products);
                sync_cube();
            }
            store_matrices(&sums, output, token, row, weight.rows, products, epilogue);
        }
    }
}

/// Copies the activations of the tile's tokens for the inputs of a block, with zeros for padding.
#[cube]
fn fill_tokens<S: Float>(
    shared: &mut SharedMemory<Four<S>>,
    x: &Array<f32>,
    x_stride: usize,
    token: usize,
    tokens: usize,
    block: usize,
    cols: usize,
    #[comptime] products: Products,
) {
    // Neighboring units read neighboring inputs.
    let input = UNIT_POS as usize % BLOCK;
    let col = block * BLOCK + input;
    for group in range_stepped(
        UNIT_POS as usize / BLOCK,
        comptime!(TILE / QUAD),
        comptime!(UNITS / BLOCK),
    ) {
        let mut four = Four::<S>::new(S::new(0.0));
        #[unroll]
        for i in 0..QUAD {
            let t = token + group * QUAD + i;
            if t < tokens && col < cols {
                let mut value = x[t * x_stride + col];
                if comptime!(products != Products::Plain) {
                    value = clamp(value, -HALF_MAX, HALF_MAX);
                }
                four[i] = S::cast_from(value);
            }
        }
        shared[input * PITCH + group] = four;
    }
}

/// Dequantizes the weights of the tile's rows for the inputs of a block, with zeros for padding.
#[cube]
fn fill_rows<S: Float>(
    shared: &mut SharedMemory<Four<S>>,
    weight: &Packed,
    panel: usize,
    block: usize,
    #[comptime] format: Format,
) {
    let inputs = comptime!(inputs_of_load(format));
    let quads = comptime!(quads_of_load(format));
    let together = comptime!(loads_of_inputs(format));
    let of_panel = comptime!(BLOCK / inputs * together);
    for at in range_stepped(UNIT_POS as usize, comptime!(TILE / PANEL * of_panel), UNITS) {
        let (place, local) = (at / of_panel, at % of_panel);
        let index = block * of_panel + local;
        let first = first_input(local, format);
        let exists = panel + place < weight.panels && index < weight.loads;
        let mut load = zero_weights(format);
        let mut scale = Quad::new(1.0f32);
        if exists {
            load = weight.load(panel + place, index);
            if comptime!(format.is_quantized()) {
                scale = weight.scale(panel + place, block, index, format);
            }
        }
        #[unroll]
        for i in 0..inputs {
            #[unroll]
            for quad in 0..quads {
                let column = place * comptime!(PANEL / QUAD) + local % together + quad;
                let quad = weights(load, i, quad, format) * scale;
                shared[(first + i) * PITCH + column] = Four::<S>::cast_from(quad);
            }
        }
    }
}

/// Returns a load of zero weights.
#[cube]
fn zero_weights(#[comptime] format: Format) -> Load {
    match format {
        Format::Q4 => Load::new(0x8888_8888u32),
        Format::Q8 | Format::F16 | Format::F32 => Load::new(0u32),
    }
}

/// Returns the first token and quad of rows of the unit's sums in the tile.
#[cube]
fn place_of_unit() -> (usize, usize) {
    let unit = UNIT_POS as usize;
    (
        unit / comptime!(TILE / QUAD) * UNIT_TOKENS,
        unit % comptime!(TILE / QUAD),
    )
}

/// Adds the products of a block for the unit's tokens and quad.
#[cube]
fn multiply<S: Float>(
    tokens: &SharedMemory<Four<S>>,
    rows: &SharedMemory<Four<S>>,
    sums: &mut Array<Quad>,
) {
    let (first, quad) = place_of_unit();
    for input in 0..BLOCK {
        let weight = Quad::cast_from(rows[input * PITCH + quad]);
        #[unroll]
        for group in 0..comptime!(UNIT_TOKENS / QUAD) {
            let values = tokens[input * PITCH + first / QUAD + group];
            #[unroll]
            for i in 0..QUAD {
                sums[group * QUAD + i] += weight * Quad::new(f32::cast_from(values[i]));
            }
        }
    }
}

/// Stores the unit's sums.
#[cube]
fn store(
    sums: &Array<Quad>,
    output: &mut Output,
    token: usize,
    row: usize,
    rows: usize,
    #[comptime] epilogue: Epilogue,
) {
    let (first, quad) = place_of_unit();
    #[unroll]
    for i in 0..UNIT_TOKENS {
        let token = token + first + i;
        #[unroll]
        for lane in 0..QUAD {
            let row = row + quad * QUAD + lane;
            if token < output.tokens && row < rows {
                output.store(token, row, sums[i][lane], epilogue);
            }
        }
    }
}

/// Returns the first token and row of the plane's quarter of the tile.
#[cube]
fn place_of_plane() -> (usize, usize) {
    let plane = UNIT_POS as usize / PLANE;
    (
        plane / 2 * comptime!(TILE / 2),
        plane % 2 * comptime!(TILE / 2),
    )
}

/// Adds the products of a block for the plane's quarter.
#[cube]
fn multiply_matrices<S: Float>(
    tokens: &SharedMemory<Four<S>>,
    rows: &SharedMemory<Four<S>>,
    sums: &mut Sums,
    #[comptime] products: Products,
) {
    let (token, row) = place_of_plane();
    let pitch = comptime!(PITCH * QUAD);
    #[unroll]
    for step in 0..comptime!(BLOCK / SIDE) {
        let line = step * SIDE * pitch;
        #[unroll]
        for t in 0..PLANE_FRAGMENTS {
            let at = line + token + t * SIDE;
            let a = fragments::left::<S>(tokens, at, pitch, Order::Columns, products);
            #[unroll]
            for r in 0..PLANE_FRAGMENTS {
                let at = line + row + r * SIDE;
                let b = fragments::right::<S>(rows, at, pitch, Order::Rows, products);
                sums.add::<S>(comptime!(t * PLANE_FRAGMENTS + r), &a, &b, products);
            }
        }
    }
}

/// Stores the planes' sums through shared memory, because the layout of a fragment in registers is
/// unspecified.
#[cube]
fn store_matrices(
    sums: &Sums,
    output: &mut Output,
    token: usize,
    row: usize,
    rows: usize,
    #[comptime] products: Products,
    #[comptime] epilogue: Epilogue,
) {
    let size = comptime!(TILE * SUMS_PITCH / QUAD);
    let mut shared = SharedMemory::<Quad>::new_aligned(size, ALIGNMENT);
    let (plane_token, plane_row) = place_of_plane();
    #[unroll]
    for t in 0..PLANE_FRAGMENTS {
        #[unroll]
        for r in 0..PLANE_FRAGMENTS {
            let at = (plane_token + t * SIDE) * SUMS_PITCH + plane_row + r * SIDE;
            let index = comptime!(t * PLANE_FRAGMENTS + r);
            sums.store(index, &mut shared, at, SUMS_PITCH, products);
        }
    }
    sync_cube();
    for at in range_stepped(UNIT_POS as usize, comptime!(TILE * TILE), UNITS) {
        let place = at / TILE * SUMS_PITCH + at % TILE;
        let (token, row) = (token + at / TILE, row + at % TILE);
        if token < output.tokens && row < rows {
            output.store(token, row, shared[place / QUAD][place % QUAD], epilogue);
        }
    }
}

/// Launches the product of any number of tokens.
pub(super) fn launch<R: CubeRuntime>(operands: &Operands<'_, R>, products: Products) {
    match products {
        Products::Plain => launch_with::<R, f32>(operands, products),
        Products::Matrix | Products::Emulated => launch_with::<R, f16>(operands, products),
    }
}

fn launch_with<R: CubeRuntime, S: Float>(operands: &Operands<'_, R>, products: Products) {
    let Operands { x, shape, .. } = operands;
    let tiles = x.rows.div_ceil(TILE);
    stage::launched();
    // SAFETY: cubes whose tile has rows access existing loads, inputs, tokens and rows only.
    #[allow(unsafe_code)]
    unsafe {
        gemm_kernel::launch_unchecked::<S, R>(
            x.client(),
            super::tensor::cubes(tiles * shape.rows.div_ceil(TILE)),
            CubeDim::new_1d(UNITS as u32),
            packed(operands.weight, *shape),
            x.arg(),
            x.stride,
            operands.output(),
            tiles,
            products,
            shape.format,
            operands.epilogue,
        );
    }
}
