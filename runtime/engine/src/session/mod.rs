//! Conversations with a loaded model.

mod budget;
mod events;
mod generation;
mod held;
mod kept;
mod logprobs;
mod past;
mod pieces;
mod prepare;
mod prompt_choice;
mod reuse;
mod scored;
mod snapshot_file;
mod speculation;
mod state;
mod stored;

pub use generation::{Generation, Token};
pub use logprobs::{ScoredToken, TokenLogprobs};
pub(crate) use past::PastToken;
pub(crate) use prepare::check_options;
pub use reuse::ReusedFrom;
pub use snapshot_file::SnapshotError;
pub use speculation::{Speculation, SpeculationCounts, UnknownSpeculation};
pub use state::{Logits, Prefilled, Session, Snapshot};
