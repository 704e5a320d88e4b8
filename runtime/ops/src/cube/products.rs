//! How tiles are multiplied: the only difference between devices.

use burn_cubecl::CubeRuntime;
use cubecl::client::ComputeClient;
use cubecl::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind, StorageType};

use super::fragments::{PLANE, SIDE};

/// How a tile is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Products {
    /// Multiply-adds in f32.
    Plain,
    /// 16 x 16 x 16 matrix operations: half-precision operands, sums in f32.
    Matrix,
    /// The same steps, with multiply-adds in place of the operations: for tests on devices that
    /// have none.
    Emulated,
}

/// The largest half-precision number. A few activations of language models are beyond it; as
/// infinity they would spoil everything behind them.
pub(super) const HALF_MAX: f32 = 65_504.0;

/// Half precision, as devices name it.
pub(super) fn half() -> StorageType {
    ElemType::Float(FloatKind::F16).into()
}

impl Products {
    /// What suits the device.
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
