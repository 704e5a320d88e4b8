//! Argmax of a row of scores: the next token of greedy decoding. Only the index is read from the device.

use burn::tensor::backend::ExecutionError;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::tensor::{array, elements};
use crate::stage;

const UNITS: usize = 256;
/// Halvings that leave one of [`UNITS`] candidates.
const HALVINGS: usize = UNITS.ilog2() as usize;
/// Largest number of cubes in the first pass, so that one cube can reduce their candidates.
const CUBES: usize = 64;
/// Fewest scores per unit.
const UNIT_SCORES: usize = 4;
/// Key of NaN and positive infinity, above all others.
const OVERFLOW_KEY: u32 = u32::MAX;
/// Key of negative infinity, below those of all finite scores.
const LOWEST_KEY: u32 = !0xFF80_0000;

/// Returns an integer key ordered as the scores, with equal keys for zeros of either sign. Keys are
/// integers because the comparison of NaN is device-specific.
#[cube]
fn key_of(score: f32) -> u32 {
    let bits = u32::reinterpret(score);
    let size = bits & 0x7FFF_FFFFu32;
    let positive = bits >> 31u32 == 0u32;
    let key = select(positive || size == 0u32, size | 0x8000_0000u32, !bits);
    // Magnitudes above infinity are NaN.
    let overflows = size > 0x7F80_0000u32 || bits == 0x7F80_0000u32;
    select(overflows, OVERFLOW_KEY, key)
}

/// Returns `true` if the first of two candidates precedes the second.
#[cube]
fn better(key: u32, index: u32, other: u32, other_index: u32) -> bool {
    key > other || (key == other && index < other_index)
}

/// Returns the best candidate of all units; valid for unit 0.
#[cube]
fn best_of_cube(key: u32, index: u32) -> (u32, u32) {
    let unit = UNIT_POS as usize;
    let mut keys = SharedMemory::<u32>::new(UNITS);
    let mut indices = SharedMemory::<u32>::new(UNITS);
    keys[unit] = key;
    indices[unit] = index;
    sync_cube();
    #[unroll]
    for i in 0..HALVINGS {
        let half = comptime!(UNITS >> (i + 1));
        if unit < half {
            let (other, other_index) = (keys[unit + half], indices[unit + half]);
            if better(other, other_index, keys[unit], indices[unit]) {
                keys[unit] = other;
                indices[unit] = other_index;
            }
        }
        sync_cube();
    }
    (keys[0], indices[0])
}

/// Finds the best candidate of each cube: key and index. Key 0 is below those of all scores.
#[cube(launch_unchecked)]
fn candidates_kernel(scores: &Array<f32>, found: &mut Array<u32>, len: usize, cubes: usize) {
    let first = CUBE_POS * UNITS + UNIT_POS as usize;
    let mut key = 0u32;
    let mut index = 0u32;
    for at in range_stepped(first, len, cubes * UNITS) {
        let other = key_of(scores[at]);
        // Indices ascend, so that the first of equal scores is kept.
        if other > key {
            key = other;
            index = at as u32;
        }
    }
    let (key, index) = best_of_cube(key, index);
    if UNIT_POS == 0 {
        found[2 * CUBE_POS] = key;
        found[2 * CUBE_POS + 1] = index;
    }
}

/// Finds the best of at most [`UNITS`] candidates and stores its key and index.
#[cube(launch_unchecked)]
fn best_kernel(found: &Array<u32>, best: &mut Array<u32>, cubes: usize) {
    let unit = UNIT_POS as usize;
    let mut key = 0u32;
    let mut index = 0u32;
    if unit < cubes {
        key = found[2 * unit];
        index = found[2 * unit + 1];
    }
    let (key, index) = best_of_cube(key, index);
    if unit == 0 {
        best[0] = key;
        best[1] = index;
    }
}

/// See [`KernelBackend::argmax`](crate::KernelBackend::argmax).
pub(super) fn argmax<R: CubeRuntime>(
    scores: &CubeTensor<R>,
) -> Result<Option<u32>, ExecutionError> {
    let client = &scores.client;
    let len = scores.meta.shape().num_elements();
    if len == 0 {
        return Ok(None);
    }
    let cubes = len.div_ceil(UNITS * UNIT_SCORES).min(CUBES);
    let pair = 2 * size_of::<u32>();
    let mut found = client.empty(cubes * pair);
    stage::launched();
    // SAFETY: units read scores below `len`; each cube writes its own pair.
    #[allow(unsafe_code)]
    unsafe {
        candidates_kernel::launch_unchecked::<R>(
            client,
            CubeCount::Static(cubes as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            elements(scores),
            array(&found, 2 * cubes),
            len,
            cubes,
        );
    }
    if cubes > 1 {
        let best = client.empty(pair);
        stage::launched();
        // SAFETY: units below `cubes`, of which there are at most `UNITS`, read one pair each; one pair is
        // written.
        #[allow(unsafe_code)]
        unsafe {
            best_kernel::launch_unchecked::<R>(
                client,
                CubeCount::Static(1, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                array(&found, 2 * cubes),
                array(&best, 2),
                cubes,
            );
        }
        found = best;
    }
    let bytes = client
        .read_one(found)
        .map_err(|error| ExecutionError::WithContext {
            reason: error.to_string(),
        })?;
    let pair = u32::from_bytes(&bytes);
    let is_finite = (LOWEST_KEY + 1..OVERFLOW_KEY).contains(&pair[0]);
    Ok(is_finite.then_some(pair[1]))
}
