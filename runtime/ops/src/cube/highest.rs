//! The highest of a row of scores: the next token of a greedy answer, so that its number is all
//! that is read from the device.

use burn::tensor::backend::ExecutionError;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::tensor::{array, elements};
use crate::stage;

const UNITS: usize = 256;
/// Halvings that leave one of [`UNITS`] candidates.
const HALVINGS: usize = UNITS.ilog2() as usize;
/// Most cubes that look for the highest score, so that one cube can look through what they find.
const CUBES: usize = 64;
/// Scores of a unit that are worth a further cube.
const UNIT_SCORES: usize = 4;
/// The key of what is not a number, above all others.
const NOT_A_NUMBER: u32 = u32::MAX;

/// A number that is ordered as the score is, zeros of either sign being equal. Integers, because
/// devices need not compare scores that are not numbers in any particular way.
#[cube]
fn key_of(score: f32) -> u32 {
    let bits = u32::reinterpret(score);
    let size = bits & 0x7FFF_FFFFu32;
    let positive = bits >> 31u32 == 0u32;
    let key = select(positive || size == 0u32, size | 0x8000_0000u32, !bits);
    // Beyond infinity there is what is not a number.
    select(size > 0x7F80_0000u32, NOT_A_NUMBER, key)
}

/// Whether the first of two candidates is to be taken.
#[cube]
fn better(key: u32, place: u32, other: u32, other_place: u32) -> bool {
    key > other || (key == other && place < other_place)
}

/// The best of all units' candidates, for unit 0.
#[cube]
fn best_of_cube(key: u32, place: u32) -> (u32, u32) {
    let unit = UNIT_POS as usize;
    let mut keys = SharedMemory::<u32>::new(UNITS);
    let mut places = SharedMemory::<u32>::new(UNITS);
    keys[unit] = key;
    places[unit] = place;
    sync_cube();
    #[unroll]
    for i in 0..HALVINGS {
        let half = comptime!(UNITS >> (i + 1));
        if unit < half {
            let (other, other_place) = (keys[unit + half], places[unit + half]);
            if better(other, other_place, keys[unit], places[unit]) {
                keys[unit] = other;
                places[unit] = other_place;
            }
        }
        sync_cube();
    }
    (keys[0], places[0])
}

/// Every cube's best candidate: key and place. Key 0 is below that of every score.
#[cube(launch_unchecked)]
fn candidates_kernel(scores: &Array<f32>, found: &mut Array<u32>, len: usize, cubes: usize) {
    let first = CUBE_POS * UNITS + UNIT_POS as usize;
    let mut key = 0u32;
    let mut place = 0u32;
    for at in range_stepped(first, len, cubes * UNITS) {
        let other = key_of(scores[at]);
        // Later places are larger: among equals the first one stays.
        if other > key {
            key = other;
            place = at as u32;
        }
    }
    let (key, place) = best_of_cube(key, place);
    if UNIT_POS == 0 {
        found[2 * CUBE_POS] = key;
        found[2 * CUBE_POS + 1] = place;
    }
}

/// The best of at most [`UNITS`] candidates; its key in place 0 of the result, its place behind it.
#[cube(launch_unchecked)]
fn best_kernel(found: &Array<u32>, best: &mut Array<u32>, cubes: usize) {
    let unit = UNIT_POS as usize;
    let mut key = 0u32;
    let mut place = 0u32;
    if unit < cubes {
        key = found[2 * unit];
        place = found[2 * unit + 1];
    }
    let (key, place) = best_of_cube(key, place);
    if unit == 0 {
        best[0] = key;
        best[1] = place;
    }
}

/// See [`KernelBackend::highest`](crate::KernelBackend::highest).
pub(super) fn highest<R: CubeRuntime>(
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
    // SAFETY: units read scores below `len`; every cube writes the pair of its own place.
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
        // SAFETY: units below `cubes`, which are no more than units, read one pair each; one pair
        // is written.
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
    Ok((pair[0] != NOT_A_NUMBER).then_some(pair[1]))
}
