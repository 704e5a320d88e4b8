//! Profiles of the target devices, memory checks ([`fit`]) and roofline estimates ([`roofline`]) of
//! models on them.
//!
//! The profiles are the files in `targets/profiles`, compiled in; their README explains them.

pub mod fit;
pub mod profile;
pub mod roofline;

pub use fit::{Fit, MemoryEstimate};
pub use profile::{Build, Device, ProfileError, device, devices};
pub use roofline::{Estimate, Work};
