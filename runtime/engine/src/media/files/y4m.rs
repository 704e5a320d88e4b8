//! Uncompressed video in YUV4MPEG2 files (`man yuv4mpeg` of mjpegtools): 8 bits, 4:2:0, 4:2:2,
//! 4:4:4 or gray.
//!
//! Colors are converted by ITU-R BT.601, with the limited range of video (16 to 235) unless the
//! header contains `XCOLORRANGE=FULL`.

use std::io::{self, BufRead, BufReader, Read};

use edge_lmm_models::preprocess::RgbImage;

use super::budget;
use super::error::MediaError;
use super::frame_stream::{Frames, Length, Outline};
use super::shared::{Bytes, BytesReader};
use super::yuv::{ChromaPlanes, Color, Matrix, Planes};

/// Maximum length of a header line.
const MAX_LINE: u64 = 1024;

/// Chroma subsampling: one sample per `.0` columns and `.1` rows.
type Chroma = Option<(usize, usize)>;

#[derive(Debug, Clone, PartialEq)]
struct Header {
    width: usize,
    height: usize,
    frames_per_second: f64,
    /// `None` for gray.
    chroma: Chroma,
    full_range: bool,
}

fn damaged(message: impl ToString) -> MediaError {
    MediaError::damaged("Y4M", message)
}

/// A Y4M video.
pub(super) struct Y4mFrames {
    input: Input,
    header: Header,
    /// `None` for streams.
    frames: Option<usize>,
    /// Number of frames passed, including the current one.
    passed: usize,
    planes: Vec<u8>,
    /// `true` if the planes of the current frame have been read.
    is_read: bool,
}

enum Input {
    /// A reader, and the length of its file.
    File(BufReader<BytesReader>, u64),
    Stream(Box<dyn BufRead + Send>),
}

impl Y4mFrames {
    /// Opens a file and counts its frames.
    pub fn open(bytes: &Bytes) -> Result<Self, MediaError> {
        let open = || Self::new(Input::File(BufReader::new(bytes.reader(0)), bytes.len()?));
        let mut counted = open()?;
        while counted.advance()?.is_some() {}
        let frames = Some(counted.passed);
        Ok(Self { frames, ..open()? })
    }

    /// Opens a stream.
    pub fn stream(stream: Box<dyn BufRead + Send>) -> Result<Self, MediaError> {
        Self::new(Input::Stream(stream))
    }

    fn new(mut input: Input) -> Result<Self, MediaError> {
        let header = Header::read(input.reader())?;
        budget::check(header.frame_len() as u64)?;
        Ok(Self {
            input,
            header,
            frames: None,
            passed: 0,
            planes: Vec::new(),
            is_read: true,
        })
    }
}

impl Frames for Y4mFrames {
    fn outline(&self) -> Outline {
        Outline {
            format: "Y4M",
            size: Some((self.header.width, self.header.height)),
            length: self.frames.map(|frames| Length {
                frames,
                seconds: frames as f64 / self.header.frames_per_second,
            }),
        }
    }

    fn advance(&mut self) -> Result<Option<f64>, MediaError> {
        if !self.is_read {
            let len = self.header.frame_len() as u64;
            let skipped = self.input.skip(len).map_err(MediaError::Io)?;
            self.header.check_read(skipped)?;
        }
        self.is_read = true;
        if !next_frame(self.input.reader())? {
            return Ok(None);
        }
        self.is_read = false;
        self.passed += 1;
        Ok(Some(
            (self.passed - 1) as f64 / self.header.frames_per_second,
        ))
    }

    fn image(&mut self) -> Result<RgbImage, MediaError> {
        if !self.is_read {
            self.header
                .read_planes(self.input.reader(), &mut self.planes)?;
            self.is_read = true;
        }
        self.header.image(&self.planes)
    }

    fn end(&self) -> f64 {
        self.passed as f64 / self.header.frames_per_second
    }
}

impl Input {
    fn reader(&mut self) -> &mut dyn BufRead {
        match self {
            Self::File(reader, _) => reader,
            Self::Stream(reader) => reader,
        }
    }

    /// Skips `len` bytes; returns fewer if the input ends before.
    fn skip(&mut self, len: u64) -> io::Result<u64> {
        use io::Seek;
        match self {
            Self::Stream(reader) => io::copy(&mut reader.take(len), &mut io::sink()),
            Self::File(reader, end) => {
                let len = len.min(end.saturating_sub(reader.stream_position()?));
                reader.seek_relative(len.cast_signed())?;
                Ok(len)
            }
        }
    }
}

/// Reads a line without its newline; `None` at the end of the file.
fn line(reader: &mut dyn BufRead) -> Result<Option<String>, MediaError> {
    let mut line = Vec::new();
    reader
        .take(MAX_LINE)
        .read_until(b'\n', &mut line)
        .map_err(MediaError::Io)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(String::from_utf8_lossy(&line).into_owned())),
        Some(_) if (line.len() as u64) < MAX_LINE - 1 => {
            Err(MediaError::truncated("Y4M", "it ends within a header line"))
        }
        Some(_) => Err(damaged("a header line is too long")),
    }
}

/// Reads the line before a frame. Returns `false` at the end of the file.
fn next_frame(reader: &mut dyn BufRead) -> Result<bool, MediaError> {
    match line(reader)? {
        None => Ok(false),
        Some(line) if line.split(' ').next() == Some("FRAME") => Ok(true),
        Some(line) => {
            let found: String = line.chars().take(16).collect();
            Err(damaged(format!("expected a frame, found {found:?}")))
        }
    }
}

impl Header {
    fn read(reader: &mut dyn BufRead) -> Result<Self, MediaError> {
        let line = line(reader)?.ok_or_else(|| damaged("it is empty"))?;
        Self::parse(&line)
    }

    fn parse(line: &str) -> Result<Self, MediaError> {
        let mut header = Self {
            width: 0,
            height: 0,
            frames_per_second: 25.0,
            chroma: Some((2, 2)),
            full_range: false,
        };
        for field in line.split(' ').skip(1).filter(|field| !field.is_empty()) {
            let (key, value) = field.split_at(field.chars().next().map_or(0, char::len_utf8));
            let size = || {
                let size = value.parse();
                size.map_err(|_| damaged(format!("{field:?} in the header is not a valid size")))
            };
            match key {
                "W" => header.width = size()?,
                "H" => header.height = size()?,
                "F" => header.frames_per_second = frame_rate(value)?,
                "C" => header.chroma = chroma(value)?,
                "X" if value == "COLORRANGE=FULL" => header.full_range = true,
                _ => {}
            }
        }
        RgbImage::bytes(header.width, header.height)?;
        Ok(header)
    }

    /// Returns width and height of the chroma planes, if any.
    fn chroma_size(&self) -> Option<(usize, usize)> {
        self.chroma
            .map(|(x, y)| (self.width.div_ceil(x), self.height.div_ceil(y)))
    }

    /// Returns the bytes of a frame.
    fn frame_len(&self) -> usize {
        let chroma = self.chroma_size().map_or(0, |(w, h)| 2 * w * h);
        self.width * self.height + chroma
    }

    /// Checks that this many bytes are a complete frame.
    fn check_read(&self, read: u64) -> Result<(), MediaError> {
        let len = self.frame_len() as u64;
        if read < len {
            let message = format!("its last frame has {read} of {len} bytes");
            return Err(MediaError::truncated("Y4M", message));
        }
        Ok(())
    }

    fn read_planes(
        &self,
        reader: &mut dyn BufRead,
        planes: &mut Vec<u8>,
    ) -> Result<(), MediaError> {
        planes.clear();
        let len = self.frame_len();
        reader
            .take(len as u64)
            .read_to_end(planes)
            .map_err(MediaError::Io)?;
        self.check_read(planes.len() as u64)
    }

    fn image(&self, planes: &[u8]) -> Result<RgbImage, MediaError> {
        let (luma, rest) = planes.split_at(self.width * self.height);
        let chroma = self.chroma.zip(self.chroma_size());
        let chroma = chroma.map(|((columns, rows), (width, height))| {
            let (blue, red) = rest.split_at(width * height);
            ChromaPlanes {
                blue,
                red,
                stride: width,
                columns,
                rows,
            }
        });
        let color = Color {
            matrix: Matrix::BT601,
            full_range: self.full_range,
        };
        Planes {
            width: self.width,
            height: self.height,
            luma,
            luma_stride: self.width,
            chroma,
        }
        .rgb(color)
    }
}

fn frame_rate(value: &str) -> Result<f64, MediaError> {
    let rate = value.split_once(':').and_then(|(frames, seconds)| {
        let (frames, seconds): (u32, u32) = (frames.parse().ok()?, seconds.parse().ok()?);
        // 0:0 means unknown.
        let known = frames > 0 && seconds > 0;
        Some(if known {
            f64::from(frames) / f64::from(seconds)
        } else {
            25.0
        })
    });
    rate.ok_or_else(|| damaged(format!("{value:?} in the header is not a valid frame rate")))
}

fn chroma(value: &str) -> Result<Chroma, MediaError> {
    match value {
        // The names differ in the position of samples, which does not matter here.
        "420" | "420jpeg" | "420mpeg2" | "420paldv" => Ok(Some((2, 2))),
        "422" => Ok(Some((2, 1))),
        "444" => Ok(Some((1, 1))),
        "mono" => Ok(None),
        _ => Err(MediaError::Unsupported {
            format: format!("Y4M with chroma format {value:?}"),
            advice: "convert it with ffmpeg -pix_fmt yuv420p".to_owned(),
        }),
    }
}
