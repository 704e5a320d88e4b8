//! Compilation of the functions on rows for every instruction set.

/// Defines the methods of [`Kernels`](crate::cpu::Kernels) that work on rows: the portable functions,
/// compiled with `$features` if given. `$fma` tells whether these include a fused multiply-add; without
/// one, `mul_add` would call a library function.
macro_rules! row_kernels {
    ($fma:literal $(, $features:literal)?) => {
        fn quantize(
            &self,
            scheme: $crate::cpu::ActivationScheme,
            x: &[f32],
            quants: &mut [u8],
            scales: &mut [f32],
            offsets: &mut [i32],
            step: usize,
        ) -> i32 {
            $crate::generic::rows::compiled!($($features)?; (scheme: $crate::cpu::ActivationScheme, x: &[f32], quants: &mut [u8],
                scales: &mut [f32], offsets: &mut [i32], step: usize) -> i32 =>
                $crate::generic::quantize::quantize(scheme, x, quants, scales, offsets, step))
        }

        fn softmax(&self, s: &mut [f32]) -> (f32, f32) {
            $crate::generic::rows::compiled!($($features)?; (s: &mut [f32]) -> (f32, f32) => $crate::generic::attention::softmax::<$fma>(s))
        }

        fn merge(&self, acc: &mut [f32], alpha: f32, x: &[f32], beta: f32) {
            $crate::generic::rows::compiled!($($features)?; (acc: &mut [f32], alpha: f32, x: &[f32], beta: f32) =>
                $crate::generic::attention::merge::<$fma>(acc, alpha, x, beta))
        }

        fn activate(&self, activation: $crate::activation::Activation, x: &mut [f32]) {
            $crate::generic::rows::compiled!($($features)?; (activation: $crate::activation::Activation, x: &mut [f32]) =>
                $crate::generic::activation::activate::<$fma>(activation, x))
        }

        fn gated(&self, activation: $crate::activation::Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
            $crate::generic::rows::compiled!($($features)?; (activation: $crate::activation::Activation, gate: &[f32], up: &[f32], out: &mut [f32]) =>
                $crate::generic::activation::gated::<$fma>(activation, gate, up, out))
        }

        fn rms_norm(&self, x: &[f32], gamma: &[f32], eps: f32, out: &mut [f32]) {
            $crate::generic::rows::compiled!($($features)?; (x: &[f32], gamma: &[f32], eps: f32, out: &mut [f32]) =>
                $crate::generic::norm::rms_norm::<$fma>(x, gamma, eps, out))
        }

        fn layer_norm(&self, x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, out: &mut [f32]) {
            $crate::generic::rows::compiled!($($features)?; (x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, out: &mut [f32]) =>
                $crate::generic::norm::layer_norm::<$fma>(x, gamma, beta, eps, out))
        }

        fn rotate(&self, low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32]) {
            $crate::generic::rows::compiled!($($features)?; (low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32]) =>
                $crate::generic::rope::rotate::<$fma>(low, high, cos, sin))
        }

        fn multiply_add(&self, x: &[f32], y: &[f32], sum: &mut [f32]) {
            $crate::generic::rows::compiled!($($features)?; (x: &[f32], y: &[f32], sum: &mut [f32]) =>
                $crate::generic::activation::multiply_add::<$fma>(x, y, sum))
        }
    };
}

/// Evaluates `$body` in a function compiled with the given target features. The caller must be a method
/// of a token of an instruction set with these features.
macro_rules! compiled {
    (; ($($name:ident: $type:ty),*) $(-> $result:ty)? => $body:expr) => { $body };
    ($features:literal; ($($name:ident: $type:ty),*) $(-> $result:ty)? => $body:expr) => {{
        #[target_feature(enable = $features)]
        fn compiled($($name: $type),*) $(-> $result)? { $body }
        // SAFETY: the token proves that this machine has the features.
        #[allow(unsafe_code)]
        unsafe { compiled($($name),*) }
    }};
}
pub(crate) use {compiled, row_kernels};
