//! Multiplication methods of tiles: the only difference between devices.

use burn_cubecl::CubeRuntime;
use cubecl::client::ComputeClient;
use cubecl::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind, StorageType};

/// Side of a fragment: the operands and results of a matrix operation.
pub(super) const SIDE: usize = 16;
/// Number of units that execute a matrix operation together.
pub(super) const PLANE: usize = 32;

/// Multiplication method of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Products {
    /// Multiply-adds in f32.
    Plain,
    /// Matrix operations of 16 x 16 x 16 on half-precision operands with sums in f32.
    Matrix,
    /// The steps of `Matrix` with multiply-adds in place of the matrix operations, for tests on devices
    /// without them.
    Emulated,
}

/// Largest half-precision number. Activations of language models occasionally exceed it; converted
/// to infinity, they would make all later results NaN.
pub(super) const HALF_MAX: f32 = 65_504.0;

/// Returns the half-precision type.
pub(super) fn half() -> StorageType {
    ElemType::Float(FloatKind::F16).into()
}

impl Products {
    /// Returns the fastest method that the device supports.
    pub fn of<R: CubeRuntime>(client: &ComputeClient<R>) -> Self {
        let properties = client.properties();
        let config = MmaConfig {
            a_type: half(),
            b_type: half(),
            cd_type: ElemType::Float(FloatKind::F32).into(),
            m: SIDE as u32,
            n: SIDE as u32,
            k: SIDE as u32,
        };
        let plane = PLANE as u32;
        let hardware = &properties.hardware;
        let planes = [hardware.plane_size_min, hardware.plane_size_max] == [plane; 2];
        if planes && properties.features.matmul.cmma.contains(&config) {
            Self::Matrix
        } else {
            Self::Plain
        }
    }
}
