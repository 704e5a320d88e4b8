//! Video tracks.

#[cfg(feature = "h264")]
use super::avc::AvcFrames;
use super::track::Track;
use crate::media::files::error::MediaError;
use crate::media::files::frame_stream::Frames;
use crate::media::files::shared::Bytes;

fn unsupported(codec: String) -> MediaError {
    MediaError::Unsupported {
        format: codec,
        advice: "convert it with ffmpeg -c:v libx264 -pix_fmt yuv420p".to_owned(),
    }
}

/// Opens the first video track.
///
/// # Errors
/// [`MediaError::Unsupported`] if it is not H.264, or H.264 that OpenH264 does not decode;
/// otherwise if the file is truncated or damaged, or has no video.
pub(in super::super) fn open_video(bytes: &Bytes) -> Result<Box<dyn Frames>, MediaError> {
    let track = Track::read(bytes, b"vide")?;
    let track = track.ok_or_else(|| MediaError::damaged("MP4", "it has no video track"))?;
    #[cfg(feature = "h264")]
    if matches!(&track.codec, b"avc1" | b"avc3") {
        return Ok(Box::new(AvcFrames::open(bytes, track)?));
    }
    let codec = match &track.codec {
        b"avc1" | b"avc3" => "H.264, which this build does not decode".to_owned(),
        b"hvc1" | b"hev1" => "H.265 in MP4".to_owned(),
        b"av01" => "AV1 in MP4".to_owned(),
        b"vp08" | b"vp09" => "VP8 or VP9 in MP4".to_owned(),
        b"mp4v" => "MPEG-4 part 2 in MP4".to_owned(),
        other => format!("{} in MP4", other.escape_ascii()),
    };
    Err(unsupported(codec))
}
