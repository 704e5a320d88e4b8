//! MP4 and QuickTime files (ISO/IEC 14496-12), also fragmented ones: H.264 video and AAC sound.
//!
//! Samples are read from the file one by one. Their positions and times come from the index, which
//! is checked against the length of the file first.

#[cfg(feature = "h264")]
mod avc;
mod boxes;
#[cfg(feature = "h264")]
mod orientation;
mod samples;
mod sound;
mod track;
mod video;

use boxes::Indices;
pub(super) use sound::decode_sound;
pub(super) use video::open_video;

use super::shared::Bytes;

/// Returns `true` if a file has sound but no video.
pub(super) fn is_sound(bytes: &Bytes) -> bool {
    Indices::read(bytes).is_ok_and(|indices| {
        let has = |handler| track::find_track(&indices.movie, handler).is_some();
        has(b"soun") && !has(b"vide")
    })
}
