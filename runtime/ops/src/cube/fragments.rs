//! Products of small matrices by the matrix operations of tensor cores: a plane of 32 units holds
//! 16 x 16 fragments of the operands, half-precision numbers in shared memory, and of the sums, in
//! f32.
//!
//! Devices without such operations can carry out the same steps with multiply-adds
//! ([`Products::Emulated`]): slowly, for every unit loads its operands itself, but with the same
//! operands from the same places, so that all that is around the operations can be tested there.

use cubecl::prelude::*;

use super::packed::{QUAD, Quad};
use super::products::Products;

/// Side of a fragment.
pub(super) const SIDE: usize = 16;
/// Units that carry out an operation together.
pub(super) const PLANE: usize = 32;
/// Bytes to which the device's operations want fragments aligned.
pub(super) const ALIGNMENT: usize = 32;
/// Elements of a fragment that a unit emulates: a half of a row.
const OWN: usize = SIDE * SIDE / PLANE;

/// Four elements in shared memory.
pub(super) type Four<S> = Vector<S, Const<4>>;

/// How an operand lies in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Order {
    /// Elements of a row stand together.
    Rows,
    /// Elements of a column stand together.
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
    /// One, or none where operations are emulated.
    matrix: Sequence<cmma::Matrix<Four<S>>>,
    /// What the unit needs where they are.
    elements: Array<f32>,
}

/// The row of a fragment that a unit emulates, and its first column.
#[cube]
fn own() -> (usize, usize) {
    let unit = UNIT_POS as usize % PLANE;
    (unit / 2, unit % 2 * OWN)
}

/// Element `at` of shared memory, counted in elements.
#[cube]
fn element<S: Float>(shared: &SharedMemory<Four<S>>, at: usize) -> f32 {
    f32::cast_from(shared[at / QUAD][at % QUAD])
}

/// The fragment of a left operand that begins at element `at`; `pitch` is from one row (or column)
/// to the next, in elements.
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

/// As [`left`], of a right operand.
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

/// Sums of products of a plane: some fragments.
#[derive(CubeType)]
pub(super) struct Sums {
    matrices: Sequence<cmma::Matrix<f32>>,
    elements: Array<f32>,
}

/// `count` fragments of zeros.
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

    /// Stores fragment `index`, its rows `pitch` elements from each other, from element `at` on.
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
