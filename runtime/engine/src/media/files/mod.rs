//! Images, videos and audio from files.
//!
//! The content of a file decides its format ([`kind()`]); the name matters only for frame strips
//! (see [`video`]). Files are untrusted: allocations are compared with a memory limit before they
//! are made (half of the memory that the process can allocate), truncated and damaged files give an
//! error, and a panic of a decoder becomes an error.

mod animation;
pub mod audio;
mod budget;
mod error;
mod format;
mod frames;
mod guard;
pub mod image;
pub mod kind;
mod open;
mod pieces;
mod pixels;
mod samples;
mod source;
mod stream;
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
