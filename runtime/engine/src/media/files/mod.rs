//! Images, videos and audio from files.
//!
//! [`Source`] opens a file or stream; [`Source::video`] reads selected frames of a video and
//! [`Source::frames`] all of them one by one.
//!
//! The content of a file decides its format ([`kind()`]); the name matters only for frame strips
//! (see [`video`]). Files are untrusted: allocations are compared with a memory limit before they
//! are made (half of the memory that the process can allocate), truncated and damaged files give an
//! error, and a panic of a decoder becomes an error.

mod aac;
mod animation;
pub mod audio;
mod budget;
mod candidates;
mod collector;
mod decoding;
mod error;
mod ffmpeg;
mod folder;
mod format;
mod frame_stream;
mod frames;
mod guard;
#[cfg(feature = "h264")]
mod h264;
pub mod image;
mod key_frames;
pub mod kind;
mod motion_gate;
mod mp4;
mod open;
mod pieces;
mod pixels;
mod samples;
mod selection;
mod shared;
mod source;
mod stream;
mod strip;
mod thumbnail;
mod truncation;
pub mod video;
mod wav;
mod y4m;
mod yuv;

pub use audio::{Audio, load_audio};
pub use budget::MediaBudget;
pub(super) use decoding::Decoding;
pub use error::MediaError;
pub use frame_stream::{Frame, FrameStream};
pub use image::{decode_image, load_image};
pub use kind::kind;
pub use source::Source;
pub use thumbnail::Thumbnail;
pub use video::{FrameSelection, Video, VideoOptions, load_video};
