//! Audio: WAV, AIFF, FLAC, MP3 and the sound tracks of MP4 files (AAC), mixed down to mono.

use std::path::Path;

use edge_lmm_models::media::MediaKind;
use symphonia::default::formats::{AiffReader, FlacReader, MpaReader};

use super::error::MediaError;
use super::ffmpeg::Input;
use super::format::Format;
use super::source::{Content, Source};
use super::{budget, ffmpeg, mp4, stream, wav};

pub use super::samples::Audio;

/// Reads an audio file.
///
/// # Errors
/// If the file cannot be read, is not audio of a supported format, is truncated or damaged from the
/// start, or exceeds the memory limit.
pub fn load_audio(path: &Path) -> Result<Audio, MediaError> {
    Source::file(path)?.audio()
}

impl Source {
    /// Decodes audio; of a video, its sound track.
    ///
    /// # Errors
    /// If it is not audio or has no sound track, is truncated or damaged, or exceeds the memory limit.
    pub fn audio(&self) -> Result<Audio, MediaError> {
        self.read(|| match self.content() {
            Content::Disk(Format::Mp4 | Format::M4a, _)
            | Content::Whole(Format::Mp4 | Format::M4a, _)
            | Content::Stream(Format::Other(..), _)
            | Content::Unsupported(Format::Other(MediaKind::Video, _)) => sound_track(self),
            Content::Whole(format, bytes) => decode(*format, bytes),
            Content::Unsupported(Format::Other(MediaKind::Audio, name)) => Err(unsupported(name)),
            other => Err(other.wrong("audio file")),
        })
    }
}

/// Decodes the sound track of a video, or the sound of an M4A file.
fn sound_track(source: &Source) -> Result<Audio, MediaError> {
    let found = match source.content().bytes() {
        Some((_, bytes)) => mp4::decode_sound(&bytes),
        None => Err(unsupported("the sound track of this format")),
    };
    let format = source.content().format();
    let demuxer = format.and_then(ffmpeg::demuxer);
    match (found, source.ffmpeg(), demuxer) {
        (Err(MediaError::Unsupported { format, advice }), Some(program), Some(demuxer)) => {
            let sound = ffmpeg::audio(program, Input::of(source)?, demuxer)?;
            sound.ok_or(MediaError::Unsupported { format, advice })
        }
        (found, ..) => found?.ok_or_else(|| MediaError::damaged("MP4", "it has no sound track")),
    }
}

/// Decodes audio of this format.
fn decode(format: Format, bytes: &[u8]) -> Result<Audio, MediaError> {
    match format {
        Format::Wav => wav::decode(bytes),
        Format::Mp3 | Format::Flac | Format::Aiff => {
            budget::check(bytes.len() as u64)?;
            let name = format.name();
            match format {
                Format::Flac => {
                    let content = stream::flac_without_metadata(bytes)?;
                    stream::decode::<FlacReader>(name, content)
                }
                Format::Aiff => {
                    stream::check_aiff(bytes)?;
                    stream::decode::<AiffReader>(name, bytes.to_vec())
                }
                _ => {
                    stream::check_mp3(bytes)?;
                    stream::decode::<MpaReader>(name, bytes.to_vec())
                }
            }
        }
        other => Err(other.wrong("audio file")),
    }
}

/// Returns the error for audio of an unsupported format.
fn unsupported(name: &str) -> MediaError {
    MediaError::Unsupported {
        format: name.to_owned(),
        advice: "convert the file, for example ffmpeg -i IN -ar 16000 -ac 1 OUT.wav".to_owned(),
    }
}
