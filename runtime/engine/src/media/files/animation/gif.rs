//! GIF (GIF89a specification), composed as in Pillow.
//!
//! Transparent pixels of the first frame show their palette color, those of later frames the pixels
//! below. "Restore to background" leaves the frame's transparent color, or the background color if
//! it has none.

use std::io::Cursor;

use edge_lmm_models::preprocess::RgbImage;
use gif::{ColorOutput, DecodeOptions, DisposalMethod, Frame, MemoryLimit};

use super::Decoder;
use super::canvas::{Canvas, Disposal, Rect, check_size};
use crate::media::files::error::MediaError;
use crate::media::files::pieces::Pieces;
use crate::media::files::shared::Shared;

const NAME: &str = "GIF";

/// Returns the duration of each complete frame in seconds.
pub fn delays(bytes: &[u8]) -> Vec<f64> {
    let mut blocks = Blocks::default();
    let _ = blocks.walk(bytes);
    blocks.delays.pop();
    blocks.delays
}

/// State of a walk over the blocks after the screen descriptor.
#[derive(Default)]
struct Blocks {
    /// Duration of each frame in seconds. The last entry belongs to the next frame, which an
    /// extension precedes.
    delays: Vec<f64>,
    /// `true` if the last block was complete.
    at_boundary: bool,
}

impl Blocks {
    /// Walks over all blocks; `None` if the file ends before its trailer.
    fn walk(&mut self, bytes: &[u8]) -> Option<()> {
        const EXTENSION: u8 = 0x21;
        const FRAME: u8 = 0x2c;
        let mut pieces = Pieces(bytes);
        let screen = pieces.take(13)?;
        pieces.take(color_table_len(screen[10]))?;
        self.delays.push(0.0);
        loop {
            self.at_boundary = true;
            let block = pieces.byte()?;
            self.at_boundary = false;
            match block {
                EXTENSION => self.extension(&mut pieces)?,
                FRAME => {
                    let descriptor = pieces.take(9)?;
                    pieces.take(color_table_len(descriptor[8]) + 1)?;
                    skip_data(&mut pieces)?;
                    self.delays.push(0.0);
                }
                // The trailer, or a byte that starts no block, where decoders stop.
                _ => return Some(()),
            }
        }
    }

    fn extension(&mut self, pieces: &mut Pieces<'_>) -> Option<()> {
        const GRAPHIC_CONTROL: u8 = 0xf9;
        let label = pieces.byte()?;
        if let (GRAPHIC_CONTROL, &[4, _, low, high, ..]) = (label, pieces.0) {
            let delay = f64::from(u16::from_le_bytes([low, high])) / 100.0;
            // As in browsers, more than 50 frames per second means unspecified.
            *self.delays.last_mut()? = if delay < 0.02 { 0.0 } else { delay };
        }
        skip_data(pieces)
    }

    /// Checks that the file is complete. Only its last byte, the trailer, may be missing.
    fn check(bytes: &[u8]) -> Result<(), MediaError> {
        let mut blocks = Self::default();
        if blocks.walk(bytes).is_some() {
            return Ok(());
        }
        let frames = blocks.delays.len().saturating_sub(1);
        if frames > 0 && blocks.at_boundary {
            log::warn!("the GIF lacks its trailer: it may be truncated after {frames} frames");
            return Ok(());
        }
        let message = format!("it ends after {} bytes, within a block", bytes.len());
        Err(MediaError::truncated(NAME, message))
    }
}

/// Returns the bytes of a color table from its flags.
fn color_table_len(flags: u8) -> usize {
    if flags & 0x80 == 0 {
        0
    } else {
        3 << ((flags & 7) + 1)
    }
}

fn skip_data(pieces: &mut Pieces<'_>) -> Option<()> {
    loop {
        match pieces.byte()? {
            0 => return Some(()),
            len => pieces.take(usize::from(len))?,
        };
    }
}

/// Decoder of a GIF.
pub(super) struct GifDecoder {
    decoder: gif::Decoder<Cursor<Shared>>,
    global: Option<Vec<u8>>,
    composer: Composer,
    /// Disposal of the last frame, which is done before the next one is drawn.
    disposal: Disposal,
    indices: Vec<u8>,
}

impl GifDecoder {
    pub fn open(bytes: &Shared) -> Result<Self, MediaError> {
        Blocks::check(bytes)?;
        let mut options = DecodeOptions::new();
        options.set_color_output(ColorOutput::Indexed);
        // Sizes are checked by `check_size`.
        options.set_memory_limit(MemoryLimit::Unlimited);
        let decoder = options.read_info(Cursor::new(bytes.clone()));
        let decoder = decoder.map_err(failed)?;
        let (width, height) = (decoder.width().into(), decoder.height().into());
        check_size(width, height)?;
        Ok(Self {
            global: decoder.global_palette().map(<[u8]>::to_vec),
            decoder,
            composer: Composer {
                size: (width, height),
                background: if bytes[10] & 0x80 != 0 { bytes[11] } else { 0 },
                canvas: None,
                method: DisposalMethod::Keep,
            },
            disposal: Disposal::Keep,
            indices: Vec::new(),
        })
    }
}

fn failed(error: gif::DecodingError) -> MediaError {
    MediaError::decoding(NAME, &error)
}

impl Decoder for GifDecoder {
    fn size(&self) -> (usize, usize) {
        self.composer.size
    }

    fn advance(&mut self) -> Result<bool, MediaError> {
        let Some(frame) = self.decoder.next_frame_info().map_err(failed)? else {
            return Ok(false);
        };
        let frame = frame.clone();
        check_size(frame.width.into(), frame.height.into())?;
        self.indices.resize(self.decoder.buffer_size(), 0);
        let read = self.decoder.read_into_buffer(&mut self.indices);
        read.map_err(failed)?;
        if let Some(canvas) = &mut self.composer.canvas {
            std::mem::replace(&mut self.disposal, Disposal::Keep).apply(canvas);
        }
        let palette = frame.palette.as_deref().or(self.global.as_deref());
        let palette = palette.unwrap_or_default();
        self.disposal = self.composer.draw(&frame, palette, &self.indices);
        Ok(true)
    }

    fn image(&self) -> Result<RgbImage, MediaError> {
        match &self.composer.canvas {
            Some(canvas) => canvas.rgb(),
            None => Err(MediaError::damaged(NAME, "it has no complete frame")),
        }
    }
}

struct Composer {
    size: (usize, usize),
    /// Index of the background color.
    background: u8,
    /// `None` before the first frame.
    canvas: Option<Canvas>,
    /// Last disposal method; frames without one inherit it.
    method: DisposalMethod,
}

impl Composer {
    /// Draws a frame and returns its disposal.
    fn draw(&mut self, frame: &Frame<'_>, palette: &[u8], indices: &[u8]) -> Disposal {
        let color = |index: u8| match palette.get(usize::from(index) * 3..) {
            Some(&[r, g, b, ..]) => [r, g, b, 255],
            _ => [0, 0, 0, 255],
        };
        let rect = Rect {
            x: frame.left.into(),
            y: frame.top.into(),
            width: frame.width.into(),
            height: frame.height.into(),
        };
        if frame.dispose != DisposalMethod::Any {
            self.method = frame.dispose;
        }
        let is_first = self.canvas.is_none();
        let transparent = frame.transparent;
        let canvas = self.canvas.get_or_insert_with(|| {
            Canvas::new(self.size.0, self.size.1, color(transparent.unwrap_or(0)))
        });
        let disposal = match (self.method, transparent) {
            (DisposalMethod::Background, _) => {
                Disposal::Fill(rect, color(transparent.unwrap_or(self.background)))
            }
            (DisposalMethod::Previous, _) if !is_first => {
                Disposal::Restore(rect, canvas.copy(rect))
            }
            (DisposalMethod::Previous, Some(index)) => Disposal::Fill(rect, color(index)),
            _ => Disposal::Keep,
        };
        canvas.map(rect, |x, y, old| {
            let index = indices[(y - rect.y) * rect.width + x - rect.x];
            if !is_first && transparent == Some(index) {
                old
            } else {
                color(index)
            }
        });
        disposal
    }
}
