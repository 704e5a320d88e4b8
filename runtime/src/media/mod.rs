//! Pictures, videos and sounds from files.
//!
//! What a file is, is decided by its content ([`kind()`]); names play no part but for frame strips
//! (see [`video`]). Files are taken for hostile: sizes are checked before memory is taken, and
//! damaged files give an error or what could be read, but no panic.

mod animation;
pub mod audio;
mod error;
mod file;
pub mod image;
pub mod kind;
mod medium;
mod pieces;
pub mod video;
mod wav;
mod y4m;

pub use audio::{Audio, load_audio};
pub use error::MediaError;
pub use image::{decode_image, load_image};
pub use kind::{MediaKind, kind};
pub use medium::Media;
pub use video::{FrameSelection, Video, load_video};
