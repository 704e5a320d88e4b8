//! Conversations with a loaded model.

mod events;
mod generation;
mod past;
mod prepare;
mod state;

pub use generation::{Generation, Token};
pub use state::{Logits, Prefilled, Session, Snapshot};
