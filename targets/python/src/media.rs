//! Images, videos and sounds.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use edge_lmm::RgbImage;
use edge_lmm::media::{FrameSelection, MediaError, MediaKind, Source, VideoOptions};
use pyo3::prelude::*;

use crate::error::{InputError, input_error};

/// A decoded image, video or sound.
#[pyclass(frozen, module = "edge_lmm._native")]
pub struct Media(pub edge_lmm::Media);

#[pymethods]
impl Media {
    /// Reads a file. `kind` is "image", "video", "audio", or None to detect it. Of a video, `frames`
    /// evenly spaced frames are used, or `fps` of a second, or all.
    #[staticmethod]
    #[pyo3(signature = (path, kind=None, frames=None, fps=None))]
    fn open(
        py: Python<'_>,
        path: PathBuf,
        kind: Option<&str>,
        frames: Option<usize>,
        fps: Option<f32>,
    ) -> PyResult<Self> {
        let kind = kind.map(parse_kind).transpose()?;
        let video = video_options(frames, fps)?;
        py.detach(|| read(Source::file(&path)?.with_ffmpeg("ffmpeg"), kind, video))
            .map_err(input_error)
            .map(Self)
    }

    /// Reads the content of a file, as `open` does; `name` stands for it in errors.
    #[staticmethod]
    #[pyo3(signature = (content, name, kind=None, frames=None, fps=None))]
    fn decode(
        py: Python<'_>,
        content: Vec<u8>,
        name: &str,
        kind: Option<&str>,
        frames: Option<usize>,
        fps: Option<f32>,
    ) -> PyResult<Self> {
        let kind = kind.map(parse_kind).transpose()?;
        let video = video_options(frames, fps)?;
        py.detach(|| {
            let source = Source::stream(Path::new(name), Cursor::new(content))?;
            read(source, kind, video)
        })
        .map_err(input_error)
        .map(Self)
    }

    /// Takes the pixels of an image, `height * width * 3` bytes.
    #[staticmethod]
    fn image(width: usize, height: usize, pixels: Vec<u8>) -> PyResult<Self> {
        Ok(Self(edge_lmm::Media::image(rgb(width, height, pixels)?)))
    }

    /// Takes the frames of a video, each with its width, height and pixels.
    #[staticmethod]
    fn video(frames: Vec<(usize, usize, Vec<u8>)>, fps: f32) -> PyResult<Self> {
        if frames.is_empty() {
            return Err(InputError::new_err("the video has no frames"));
        }
        let frames = frames
            .into_iter()
            .map(|(width, height, pixels)| rgb(width, height, pixels))
            .collect::<PyResult<Vec<_>>>()?;
        Ok(Self(edge_lmm::Media::video(frames, fps)))
    }

    /// Takes samples from -1 to 1, as the bytes of 32-bit floats.
    #[staticmethod]
    fn audio(samples: &[u8], sample_rate: u32) -> PyResult<Self> {
        if samples.is_empty() || sample_rate == 0 {
            return Err(InputError::new_err(
                "the sound is empty or has a sample rate of 0",
            ));
        }
        let samples = samples.chunks_exact(4);
        let samples: Vec<f32> = samples
            .map(|bytes| f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect();
        Ok(Self(edge_lmm::Media::audio(samples, sample_rate)))
    }

    /// "image", "video" or "audio".
    #[getter]
    fn kind(&self) -> &'static str {
        self.0.kind().as_str()
    }
}

fn read(
    source: Source,
    kind: Option<MediaKind>,
    video: VideoOptions,
) -> Result<edge_lmm::Media, MediaError> {
    let kind = match kind {
        Some(kind) => kind,
        None => source.kind()?,
    };
    edge_lmm::Media::read(&source, kind, video)
}

fn parse_kind(name: &str) -> PyResult<MediaKind> {
    [MediaKind::Image, MediaKind::Video, MediaKind::Audio]
        .into_iter()
        .find(|kind| kind.as_str() == name)
        .ok_or_else(|| {
            InputError::new_err(format!(
                "unknown kind of medium {name:?}: expected image, video or audio"
            ))
        })
}

fn video_options(frames: Option<usize>, fps: Option<f32>) -> PyResult<VideoOptions> {
    let frames = match (frames, fps) {
        (None, None) => FrameSelection::All,
        (Some(count), None) if count > 0 => FrameSelection::Uniform(count),
        (None, Some(rate)) if rate > 0.0 && rate <= 1000.0 => FrameSelection::Rate(rate),
        _ => {
            return Err(InputError::new_err(
                "expected frames above 0, or fps above 0 and up to 1000, not both",
            ));
        }
    };
    Ok(frames.into())
}

fn rgb(width: usize, height: usize, pixels: Vec<u8>) -> PyResult<RgbImage> {
    RgbImage::new(width, height, pixels).map_err(input_error)
}
