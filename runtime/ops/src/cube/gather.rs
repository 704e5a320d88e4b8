//! Dequantization of rows of a packed matrix: embeddings.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use edge_lmm_kernels::format::{Format, MatrixShape, PANEL};

use super::packed::{
    Packed, QUAD, block_of_load, first_input, inputs_of_load, loads_of_inputs, packed,
    quads_of_load, weights,
};
use super::tensor::{cubes, empty, indices};
use crate::stage;

const UNITS: usize = 128;

/// Dequantizes one row per cube and one load per unit.
#[cube(launch_unchecked)]
fn gather_kernel(
    weight: &Packed,
    ids: &Array<u32>,
    out: &mut Array<f32>,
    count: usize,
    #[comptime] format: Format,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let inputs = comptime!(inputs_of_load(format));
    let quads = comptime!(quads_of_load(format));
    let together = comptime!(loads_of_inputs(format));
    let row = ids[CUBE_POS] as usize;
    let (panel, quad) = (row / PANEL, row % PANEL / QUAD);
    let lane = row % QUAD;
    for group in range_stepped(UNIT_POS as usize, weight.loads / together, UNITS) {
        let index = group * together + quad % together;
        let load = weight.load(panel, index);
        let mut scale = 1.0f32;
        if comptime!(format.is_quantized()) {
            scale = weight.scale(panel, block_of_load(index, format), index, format)[lane];
        }
        let first = first_input(index, format);
        #[unroll]
        for i in 0..inputs {
            let mut value = weights(load, i, 0usize, format)[lane];
            if comptime!(quads == 2) {
                let other = weights(load, i, 1usize, format)[lane];
                value = select(quad == 0, value, other);
            }
            if first + i < weight.cols {
                out[CUBE_POS * weight.cols + first + i] = value * scale;
            }
        }
    }
}

/// See [`KernelBackend::gather_rows`](crate::KernelBackend::gather_rows).
pub(super) fn gather_rows<R: CubeRuntime>(
    weight: &CubeTensor<R>,
    shape: MatrixShape,
    ids: &[u32],
) -> CubeTensor<R> {
    let client = &weight.client;
    let out = empty(client, &weight.device, [ids.len(), shape.cols].into());
    if let Some(last) = ids.iter().max() {
        assert!(
            (*last as usize) < shape.rows,
            "row {last} of {}",
            shape.rows
        );
        stage::launched();
        // SAFETY: all ids are rows, and only inputs below `cols` are written.
        #[allow(unsafe_code)]
        unsafe {
            gather_kernel::launch_unchecked::<R>(
                client,
                cubes(ids.len()),
                CubeDim::new_1d(UNITS as u32),
                packed(weight, shape),
                indices(client, ids),
                super::tensor::elements(&out),
                ids.len(),
                shape.format,
            );
        }
    }
    out
}
