//! Media from files.
//!
//! The format of a file is decided by its content ([`kind()`]), not by its name; the name matters
//! only for frame strips (see [`video`]). Files are untrusted: memory is compared with a budget
//! before it is allocated (half of what the process can still have), truncated and damaged files
//! give an error, and a panic of a decoder becomes an error.

mod animation;
pub mod audio;
mod budget;
mod error;
mod format;
mod guard;
pub mod image;
pub mod kind;
mod pieces;
mod source;
mod truncation;
pub mod video;
mod wav;
mod y4m;

pub use audio::{Audio, load_audio};
pub use budget::MediaBudget;
pub use error::MediaError;
pub use image::{decode_image, load_image};
pub use kind::kind;
pub use source::Source;
pub use video::{FrameSelection, Video, load_video};
