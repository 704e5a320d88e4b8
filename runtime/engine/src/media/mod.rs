//! Images, videos and audio, decoded or (feature `files`, on by default) read from files.

#[cfg(feature = "files")]
mod files;
mod medium;

pub use edge_lmm_models::media::{FrameTimes, MediaKind};
#[cfg(feature = "files")]
pub use files::*;
pub use medium::{Media, MediaData, user_message};
