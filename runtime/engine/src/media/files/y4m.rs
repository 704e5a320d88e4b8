//! Uncompressed video in YUV4MPEG2 files (`man yuv4mpeg` of mjpegtools): 8 bits, 4:2:0, 4:2:2,
//! 4:4:4 or gray.
//!
//! Colors are converted by ITU-R BT.601, with the limited range of video (16 to 235) unless the
//! header contains `XCOLORRANGE=FULL`. Chroma samples are replicated over their area, as in
//! ffmpeg's default conversion.

use std::io::{BufRead, Read};

use edge_lmm_models::preprocess::RgbImage;

use super::budget;
use super::error::MediaError;
use super::frames::{FrameSelection, Picker, Video};

/// Maximum length of a header line.
const MAX_LINE: u64 = 1024;

/// Chroma subsampling: one sample per `.0` columns and `.1` rows.
type Chroma = Option<(usize, usize)>;

#[derive(Debug, PartialEq)]
struct Header {
    width: usize,
    height: usize,
    frames_per_second: f32,
    /// `None` for gray.
    chroma: Chroma,
    full_range: bool,
}

fn damaged(message: impl ToString) -> MediaError {
    MediaError::damaged("Y4M", message)
}

/// Reads a video in two passes: one for the number of frames, one for the selected frames.
pub(super) fn load(
    mut reader: impl BufRead + std::io::Seek,
    selection: FrameSelection,
) -> Result<Video, MediaError> {
    let header = Header::read(&mut reader)?;
    let start = reader.stream_position().map_err(MediaError::Io)?;
    let mut total = 0;
    while next_frame(&mut reader)? {
        header.skip(&mut reader)?;
        total += 1;
    }
    reader
        .seek(std::io::SeekFrom::Start(start))
        .map_err(MediaError::Io)?;
    let mut picker = Picker::new(selection, total);
    picker.check_room(header.width, header.height)?;
    budget::check(header.frame_len() as u64)?;
    let mut planes = Vec::new();
    while !picker.is_done() && next_frame(&mut reader)? {
        if picker.wants() {
            header.read_planes(&mut reader, &mut planes)?;
        } else {
            header.skip(&mut reader)?;
        }
        picker.offer(|| header.image(&planes))?;
    }
    picker.finish("Y4M", header.frames_per_second)
}

/// Reads a line without its newline; `None` at the end of the file.
fn line(reader: &mut impl BufRead) -> Result<Option<String>, MediaError> {
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
fn next_frame(reader: &mut impl BufRead) -> Result<bool, MediaError> {
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
    fn read(reader: &mut impl BufRead) -> Result<Self, MediaError> {
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

    /// Skips the planes of a frame.
    fn skip(&self, reader: &mut impl BufRead) -> Result<(), MediaError> {
        let len = self.frame_len() as u64;
        let mut rest = reader.take(len);
        let skipped = std::io::copy(&mut rest, &mut std::io::sink()).map_err(MediaError::Io)?;
        self.check_read(skipped)
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
        reader: &mut impl BufRead,
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
        let (luma, chroma) = planes.split_at(self.width * self.height);
        let convert = Conversion::new(self.full_range);
        let mut pixels = Vec::with_capacity(luma.len() * 3);
        for (y, row) in luma.chunks_exact(self.width).enumerate() {
            match (self.chroma, self.chroma_size()) {
                (Some((dx, dy)), Some((width, height))) => {
                    let (blue, red) = chroma.split_at(width * height);
                    let start = y / dy * width;
                    pixels.extend(row.iter().enumerate().flat_map(|(x, &luma)| {
                        let at = start + x / dx;
                        convert.rgb(luma, blue[at], red[at])
                    }));
                }
                _ => pixels.extend(row.iter().flat_map(|&luma| convert.rgb(luma, 128, 128))),
            }
        }
        Ok(RgbImage::new(self.width, self.height, pixels)?)
    }
}

fn frame_rate(value: &str) -> Result<f32, MediaError> {
    let rate = value.split_once(':').and_then(|(frames, seconds)| {
        let (frames, seconds): (u32, u32) = (frames.parse().ok()?, seconds.parse().ok()?);
        // 0:0 means unknown.
        let known = frames > 0 && seconds > 0;
        Some(if known {
            frames as f32 / seconds as f32
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

/// Conversion from Y'CbCr to RGB.
struct Conversion {
    black: f32,
    luma: f32,
    chroma: f32,
}

impl Conversion {
    fn new(full_range: bool) -> Self {
        if full_range {
            Self {
                black: 0.0,
                luma: 1.0,
                chroma: 1.0,
            }
        } else {
            Self {
                black: 16.0,
                luma: 255.0 / 219.0,
                chroma: 255.0 / 224.0,
            }
        }
    }

    /// Converts a pixel by ITU-R BT.601: red and blue contribute 0.299 and 0.114 to luma.
    fn rgb(&self, luma: u8, blue: u8, red: u8) -> [u8; 3] {
        let y = (f32::from(luma) - self.black) * self.luma;
        let cb = (f32::from(blue) - 128.0) * self.chroma;
        let cr = (f32::from(red) - 128.0) * self.chroma;
        let r = y + 1.402 * cr;
        let b = y + 1.772 * cb;
        let g = (y - 0.299 * r - 0.114 * b) / 0.587;
        // The cast saturates.
        [r, g, b].map(|v| v.round() as u8)
    }
}
