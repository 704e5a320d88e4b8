//! Operands of a product with packed weights, and the operations fused into it.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use edge_lmm_kernels::activation::Activation;
use edge_lmm_kernels::format::MatrixShape;

use super::activation::activate;
use super::tensor::{Rows, array, elements};

/// Operations fused into a product. The residual is the previous content of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Epilogue {
    pub(super) bias: bool,
    pub(super) activation: Activation,
    pub(super) accumulate: bool,
    /// `true` if products come in pairs, gate and up, of which `activation(gate) * up` is stored.
    pub(super) gated: bool,
}

/// Destination of a product: `[tokens, rows]`.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Output {
    out: Array<f32>,
    /// A single element if the epilogue has no bias.
    bias: Array<f32>,
    /// Elements from one token to the next.
    stride: usize,
    /// Tokens.
    pub(super) tokens: usize,
}

#[cube]
impl Output {
    /// Applies the epilogue to a product and stores the result.
    pub(super) fn store(
        &mut self,
        token: usize,
        row: usize,
        product: f32,
        #[comptime] epilogue: Epilogue,
    ) {
        let mut value = product;
        if comptime!(epilogue.bias) {
            value += self.bias[row];
        }
        value = activate(value, comptime!(epilogue.activation));
        let at = token * self.stride + row;
        if comptime!(epilogue.accumulate) {
            value += self.out[at];
        }
        self.out[at] = value;
    }

    /// Applies the epilogue to a pair of products and stores the result.
    pub(super) fn store_gated(
        &mut self,
        token: usize,
        row: usize,
        gate: f32,
        up: f32,
        #[comptime] epilogue: Epilogue,
    ) {
        let gate = activate(gate, comptime!(epilogue.activation));
        self.out[token * self.stride + row] = gate * up;
    }
}

/// The operands of a product.
pub(super) struct Operands<'a, R: CubeRuntime> {
    pub(super) x: Rows<R>,
    pub(super) weight: &'a CubeTensor<R>,
    pub(super) shape: MatrixShape,
    pub(super) bias: Option<&'a CubeTensor<R>>,
    pub(super) out: Rows<R>,
    pub(super) epilogue: Epilogue,
}

impl<R: CubeRuntime> Operands<'_, R> {
    /// Returns the destination as a kernel argument.
    pub(super) fn output(&self) -> OutputLaunch<R> {
        let bias = match self.bias {
            Some(bias) => elements(bias),
            None => array(&self.x.client().empty(size_of::<f32>()), 1),
        };
        OutputLaunch::new(self.out.arg(), bias, self.out.stride, self.out.rows)
    }
}
