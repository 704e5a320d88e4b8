//! Sound tracks of clips, as WAV.

use std::path::Path;

use edge_lmm::media::{Audio, Source};
use edge_lmm::one_line;

use crate::cmd::options::FFMPEG;

/// Sizes in a WAV file have 32 bits.
const MAX_SAMPLES: usize = (u32::MAX as usize - 36) / 2;

/// Decodes the sound track of a clip: AAC in MP4, other formats by ffmpeg if it is installed.
///
/// # Errors
/// The reason why there is none.
pub fn wav_of(clip: &Path) -> Result<Vec<u8>, String> {
    let source = Source::file(clip).map(|source| source.with_ffmpeg(FFMPEG));
    let audio = source.and_then(|source| source.audio());
    let audio = audio.map_err(|error| one_line(&error))?;
    if audio.samples.len() > MAX_SAMPLES {
        return Err("the sound track is too long for a WAV file".to_owned());
    }
    Ok(wav(&audio))
}

/// Returns a WAV file with 16 bits per sample, of up to `MAX_SAMPLES`.
pub fn wav(audio: &Audio) -> Vec<u8> {
    let bytes = 2 * audio.samples.len() as u32;
    let mut wav = Vec::with_capacity(44 + bytes as usize);
    wav.extend(b"RIFF");
    wav.extend((36 + bytes).to_le_bytes());
    wav.extend(b"WAVEfmt ");
    wav.extend(16_u32.to_le_bytes());
    // PCM, one channel.
    wav.extend([1, 0, 1, 0]);
    wav.extend(audio.sample_rate.to_le_bytes());
    wav.extend((2 * audio.sample_rate).to_le_bytes());
    // Bytes per frame, bits per sample.
    wav.extend([2, 0, 16, 0]);
    wav.extend(b"data");
    wav.extend(bytes.to_le_bytes());
    let samples = audio.samples.iter();
    wav.extend(samples.flat_map(|sample| {
        let sample = (sample * 32768.0).round().clamp(-32768.0, 32767.0);
        (sample as i16).to_le_bytes()
    }));
    wav
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn sound_tracks_become_wav() {
        let data = PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../engine/tests/media/data"
        ));
        let bytes = wav_of(&data.join("aac_stereo.m4a")).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let again = edge_lmm::media::load_audio(file.path()).unwrap();
        let original = edge_lmm::media::load_audio(&data.join("aac_stereo.m4a")).unwrap();
        assert_eq!(again.sample_rate, original.sample_rate);
        assert_eq!(again.samples.len(), original.samples.len());
        for (a, b) in again.samples.iter().zip(&original.samples) {
            assert!((a - b).abs() <= 0.5 / 32768.0 + 1e-6, "{a} {b}");
        }
        let error = wav_of(&data.join("videos/h264_baseline.mp4")).unwrap_err();
        assert!(error.contains("no sound track"), "{error}");
    }
}
