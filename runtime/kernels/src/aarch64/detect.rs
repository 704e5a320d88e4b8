//! Tokens of proof: a value of these types exists only if the machine has the instruction set.

use std::arch::is_aarch64_feature_detected;

/// Proof of Advanced SIMD.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon(());

impl Neon {
    pub(crate) fn detect() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

/// Proof of [`Neon`] and `sdot`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NeonDotprod(());

impl NeonDotprod {
    pub(crate) fn detect() -> Option<Self> {
        Neon::detect()?;
        is_aarch64_feature_detected!("dotprod").then_some(Self(()))
    }
}
