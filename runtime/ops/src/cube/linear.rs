//! Products with packed weights: selection of the kernel.
//!
//! Activations stay in f32. Weights are dequantized in registers ([`gemv`](super::gemv), a few tokens) or
//! to shared memory ([`gemm`](super::gemm), many), and never stored dequantized.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use edge_lmm_kernels::activation::Activation;
use edge_lmm_kernels::format::{Format, MatrixShape, PANEL};

use super::epilogue::{Epilogue, Operands};
use super::products::Products;
use super::tensor::Rows;
use super::{activation, gemm, gemv};

/// See [`KernelBackend::packed_linear`](crate::KernelBackend::packed_linear). `products` applies to
/// many tokens; `None` selects the fastest supported method.
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
                // f32 weights are chosen for accuracy.
                Format::F32 => Products::Plain,
                Format::F16 | Format::Q8 | Format::Q4 => Products::of(operands.x.client()),
            });
            gemm::launch(&operands, products);
        }
    }
    operands.out.into_tensor()
}

/// See [`KernelBackend::gated_linear`](crate::KernelBackend::gated_linear). A few tokens are computed by
/// one kernel, if the rows of gate and up both begin with a panel.
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
