//! Products with packed weights.

mod activations;
mod epilogue;
mod feed_forward;
mod float;
mod product;
mod quantized;
mod schedule;

pub use epilogue::Epilogue;
pub use feed_forward::{FeedForward, feed_forward};
pub use product::{linear, product};
pub use quantized::FEW_TOKENS;
