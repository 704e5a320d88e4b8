//! What is known of the devices that models run on, and what follows for a model: whether it fits
//! into their memory ([`fit`]) and how fast it can be at best ([`roofline`]).
//!
//! The profiles are the files of `targets/profiles`, compiled in; its README explains them.

pub mod fit;
pub mod profile;
pub mod roofline;

pub use fit::{Fit, Needs};
pub use profile::{Build, Device, ProfileError, device, devices};
pub use roofline::{Estimate, Work};
