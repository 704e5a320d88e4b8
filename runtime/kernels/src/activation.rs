//! Activation functions.

/// A function applied to each element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x`
    #[default]
    None,
    /// `max(x, 0)`
    Relu,
    /// `x * Phi(x)` with the exact normal distribution (`erf`), to an absolute error of `2e-7 * |x|`
    /// (Hendrycks & Gimpel 2016, [arXiv:1606.08415](https://arxiv.org/abs/1606.08415)).
    Gelu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`, PyTorch's `approximate="tanh"`.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`, as in CLIP.
    QuickGelu,
    /// `x * sigmoid(x)`
    Silu,
}
