//! Products with packed weights: which kernel, and what follows the product.
//!
//! Activations stay in f32; weights are dequantized in registers ([`gemv`](super::gemv), a few
//! tokens) or into shared memory ([`gemm`](super::gemm), many) and never written back.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use edge_lmm_kernels::activation::Activation;
use edge_lmm_kernels::format::{Format, MatrixShape, PANEL};

use super::activation::activate;
use super::gemv;
use super::products::Products;
use super::tensor::{Rows, elements};
use super::{activation, gemm, tensor};

/// What happens to a product on its way out; the residual is what the output holds before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Epilogue {
    pub(super) bias: bool,
    pub(super) activation: Activation,
    pub(super) accumulate: bool,
    /// Products come in pairs, gate and up: stored is the gate's activation times the other.
    pub(super) gated: bool,
}

/// Where products go: `[tokens, rows]`.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Output {
    out: Array<f32>,
    /// One element only where the epilogue has no bias.
    bias: Array<f32>,
    /// Elements from one token to the next.
    stride: usize,
    /// Tokens.
    pub(super) tokens: usize,
}

#[cube]
impl Output {
    /// Finishes a product.
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

    /// Finishes a pair of products.
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
    /// The output for a kernel.
    pub(super) fn output(&self) -> OutputLaunch<R> {
        let bias = match self.bias {
            Some(bias) => elements(bias),
            None => tensor::array(&self.x.client().empty(size_of::<f32>()), 1),
        };
        OutputLaunch::new(self.out.arg(), bias, self.out.stride, self.out.rows)
    }
}

/// See [`KernelBackend::packed_linear`](crate::KernelBackend::packed_linear); `products` is how
/// many tokens are multiplied, `None` what suits the device.
pub(super) fn linear<R: CubeRuntime>(
    x: &CubeTensor<R>,
    weight: &CubeTensor<R>,
    shape: MatrixShape,
    bias: Option<&CubeTensor<R>>,
    activation: Activation,
    residual: Option<CubeTensor<R>>,
    products: Option<Products>,
) -> CubeTensor<R> {
    let x = Rows::of(x);
    assert_eq!(x.width, shape.cols, "inputs of {shape:?}");
    let epilogue = Epilogue {
        bias: bias.is_some(),
        activation,
        accumulate: residual.is_some(),
        gated: false,
    };
    let out = match residual {
        Some(residual) => Rows::owned(residual),
        None => Rows::empty(&x, x.rows, shape.rows),
    };
    assert_eq!([out.rows, out.width], [x.rows, shape.rows], "a residual");
    let operands = Operands {
        x,
        weight,
        shape,
        bias,
        out,
        epilogue,
    };
    match operands.x.rows {
        0 => {}
        tokens if tokens <= gemv::TOKENS => gemv::launch(&operands),
        _ => {
            let products = products.unwrap_or_else(|| match shape.format {
                // Whoever keeps weights in f32 wants products as exact as that.
                Format::F32 => Products::Plain,
                _ => Products::of(operands.x.client()),
            });
            gemm::launch(&operands, products);
        }
    }
    operands.out.into_tensor()
}

/// See [`KernelBackend::gated_linear`](crate::KernelBackend::gated_linear): in one kernel for a few
/// tokens, whose rows of gate and up can be taken together where both begin with a panel.
pub(super) fn gated<R: CubeRuntime>(
    x: &CubeTensor<R>,
    weight: &CubeTensor<R>,
    shape: MatrixShape,
    activation: Activation,
) -> CubeTensor<R> {
    let rows = Rows::of(x);
    let few = (1..=gemv::TOKENS).contains(&rows.rows);
    if !few || !shape.rows.is_multiple_of(2 * PANEL) {
        let gate_up = linear(x, weight, shape, None, Activation::None, None, None);
        return activation::gated(&gate_up, activation);
    }
    assert_eq!(rows.width, shape.cols, "inputs of {shape:?}");
    let out = Rows::empty(&rows, rows.rows, shape.rows / 2);
    let operands = Operands {
        x: rows,
        weight,
        shape,
        bias: None,
        out,
        epilogue: Epilogue {
            bias: false,
            activation,
            accumulate: false,
            gated: true,
        },
    };
    gemv::launch(&operands);
    operands.out.into_tensor()
}
