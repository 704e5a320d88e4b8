//! Matrix operations of tensor cores. A plane of 32 units holds 16 x 16 fragments of the operands, which
//! are half-precision numbers from shared memory, and of the sums, in f32.
//!
//! Devices without matrix operations can emulate them by multiply-adds ([`Products::Emulated`]). This is
//! slow, because each unit loads its operands itself, but accesses the same operands in the same places,
//! so that the surrounding code can be tested.

use cubecl::prelude::*;

use super::packed::{QUAD, Quad};
use super::products::{PLANE, Products, SIDE};

/// Alignment of fragments in shared memory, in bytes.
pub(super) const ALIGNMENT: usize = 32;
/// Elements of a fragment that a unit emulates: half of a row.
const OWN: usize = SIDE * SIDE / PLANE;

/// Four elements in shared memory.
pub(super) type Four<S> = Vector<S, Const<4>>;

/// Layout of an operand in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Order {
    /// Row-major.
    Rows,
    /// Column-major.
    Columns,
}

impl Order {
    const fn layout(self) -> cmma::MatrixLayout {
        match self {
            Self::Rows => cmma::MatrixLayout::RowMajor,
            Self::Columns => cmma::MatrixLayout::ColMajor,
        }
    }
}

/// A fragment of an operand.
#[derive(CubeType)]
pub(super) struct Operand<S: Float> {
    /// One fragment, or none if operations are emulated.
    matrix: Sequence<cmma::Matrix<Four<S>>>,
    /// The elements that the unit needs if operations are emulated.
    elements: Array<f32>,
}

/// Returns row and first column of the part of a fragment that a unit emulates.
#[cube]
fn own() -> (usize, usize) {
    let unit = UNIT_POS as usize % PLANE;
    (unit / 2, unit % 2 * OWN)
}

/// Returns element `at` of shared memory.
#[cube]
fn element<S: Float>(shared: &SharedMemory<Four<S>>, at: usize) -> f32 {
    f32::cast_from(shared[at / QUAD][at % QUAD])
}

/// Loads the fragment of a left operand that begins at element `at`. `pitch` is the distance of rows (or
/// columns) in elements.
#[cube]
pub(super) fn left<S: Float>(
    shared: &SharedMemory<Four<S>>,
    at: usize,
    #[comptime] pitch: usize,
    #[comptime] order: Order,
    #[comptime] products: Products,
) -> Operand<S> {
    let mut matrix = Sequence::<cmma::Matrix<Four<S>>>::new();
    let mut elements = Array::<f32>::new(SIDE);
    if comptime!(products == Products::Matrix) {
        matrix.push(cmma::Matrix::<Four<S>>::from_slice(
            cmma::MatrixIdent::A,
            SIDE,
            SIDE,
            SIDE,
            comptime!(order.layout()),
            &shared.slice(at / QUAD, shared.len()),
            comptime!(pitch as u32),
        ));
    } else {
        let (row, _) = own();
        for k in 0..SIDE {
            elements[k] = match order {
                Order::Rows => element::<S>(shared, at + row * pitch + k),
                Order::Columns => element::<S>(shared, at + k * pitch + row),
            };
        }
    }
    Operand::<S> { matrix, elements }
}

/// Loads the fragment of a right operand, as [`left`] does.
#[cube]
pub(super) fn right<S: Float>(
    shared: &SharedMemory<Four<S>>,
    at: usize,
    #[comptime] pitch: usize,
    #[comptime] order: Order,
    #[comptime] products: Products,
) -> Operand<S> {
    let mut matrix = Sequence::<cmma::Matrix<Four<S>>>::new();
    let mut elements = Array::<f32>::new(comptime!(SIDE * OWN));
    if comptime!(products == Products::Matrix) {
        matrix.push(cmma::Matrix::<Four<S>>::from_slice(
            cmma::MatrixIdent::B,
            SIDE,
            SIDE,
            SIDE,
            comptime!(order.layout()),
            &shared.slice(at / QUAD, shared.len()),
            comptime!(pitch as u32),
        ));
    } else {
        let (_, column) = own();
        for k in 0..SIDE {
            for c in 0..OWN {
                elements[k * OWN + c] = match order {
                    Order::Rows => element::<S>(shared, at + k * pitch + column + c),
                    Order::Columns => element::<S>(shared, at + (column + c) * pitch + k),
                };
            }
        }
    }
    Operand::<S> { matrix, elements }
}

/// Sums of a plane: a number of fragments.
#[derive(CubeType)]
pub(super) struct Sums {
    matrices: Sequence<cmma::Matrix<f32>>,
    elements: Array<f32>,
}

/// Returns `count` fragments of zeros.
#[cube]
pub(super) fn zeros(#[comptime] count: usize, #[comptime] products: Products) -> Sums {
    let mut matrices = Sequence::<cmma::Matrix<f32>>::new();
    let mut elements = Array::<f32>::new(comptime!(count * OWN));
    if comptime!(products == Products::Matrix) {
        #[unroll]
        for _ in 0..count {
            matrices.push(cmma::Matrix::<f32>::from_value(
                cmma::MatrixIdent::Accumulator,
                SIDE,
                SIDE,
                SIDE,
                cmma::MatrixLayout::Undefined,
                0.0f32,
            ));
        }
    } else {
        for i in 0..comptime!(count * OWN) {
            elements[i] = 0.0f32;
        }
    }
    Sums { matrices, elements }
}

#[cube]
impl Sums {
    /// Adds a product to fragment `index`.
    pub(super) fn add<S: Float>(
        &mut self,
        #[comptime] index: usize,
        a: &Operand<S>,
        b: &Operand<S>,
        #[comptime] products: Products,
    ) {
        if comptime!(products == Products::Matrix) {
            let sum = self.matrices.index(index);
            cmma::execute(a.matrix.index(0usize), b.matrix.index(0usize), sum, sum);
        } else {
            for k in 0..SIDE {
                for c in 0..OWN {
                    self.elements[index * OWN + c] += a.elements[k] * b.elements[k * OWN + c];
                }
            }
        }
    }

    /// Stores fragment `index` from element `at` on, with rows at a distance of `pitch` elements.
    pub(super) fn store(
        &self,
        #[comptime] index: usize,
        shared: &mut SharedMemory<Quad>,
        at: usize,
        #[comptime] pitch: usize,
        #[comptime] products: Products,
    ) {
        if comptime!(products == Products::Matrix) {
            let end = shared.len();
            cmma::store(
                &mut shared.slice_mut(at / QUAD, end),
                self.matrices.index(index),
                comptime!(pitch as u32),
                cmma::MatrixLayout::RowMajor,
            );
        } else {
            let (row, column) = own();
            #[unroll]
            for q in 0..comptime!(OWN / QUAD) {
                let mut quad = Quad::new(0.0f32);
                #[unroll]
                for i in 0..QUAD {
                    quad[i] = self.elements[index * OWN + q * QUAD + i];
                }
                shared[(at + row * pitch + column) / QUAD + q] = quad;
            }
        }
    }
}
