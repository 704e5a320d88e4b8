//! Cameras of Video4Linux, which give YUYV or Motion JPEG.

use std::io;
use std::path::Path;
use std::time::Instant;

use edge_lmm_models::preprocess::RgbImage;
use linuxvideo::format::{PixFormat, PixelFormat};
use linuxvideo::{BufType, Device};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::reader::PATIENCE;
use super::slot::Slot;
use crate::media::{MediaError, decode_image};

/// Frames in a row without a good one after which a camera counts as broken.
const MOST_DAMAGED: usize = 100;

/// Puts the frames of a camera in until the slot is closed.
///
/// # Errors
/// If the camera cannot be opened or stops, or gives frames of another format.
pub(super) fn watch(
    path: &Path,
    slot: &Slot,
    warn: impl Fn(&MediaError),
) -> Result<(), MediaError> {
    let device = Device::open(path).map_err(MediaError::Io)?;
    let format = choose(&device)?;
    let request = PixFormat::new(640, 480, format);
    let capture = device.video_capture(request).map_err(MediaError::Io)?;
    let decode = decoder(capture.format());
    let mut stream = capture.into_stream().map_err(MediaError::Io)?;
    let start = Instant::now();
    let patience =
        Timespec::try_from(PATIENCE).map_err(|error| MediaError::Io(io::Error::other(error)))?;
    let mut damaged = 0;
    while !slot.is_closed() {
        match poll(&mut [PollFd::new(&stream, PollFlags::IN)], Some(&patience)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(MediaError::Io(error.into())),
        }
        let image = stream.dequeue(|buffer| {
            Ok(match buffer.is_error() {
                true => Err(MediaError::damaged("camera", "a frame is incomplete")),
                false => decode(&buffer),
            })
        });
        match image.map_err(MediaError::Io)? {
            Ok(image) => {
                damaged = 0;
                slot.put(image, start.elapsed().as_secs_f64());
            }
            Err(error) => {
                slot.put_damaged();
                damaged += 1;
                if damaged == MOST_DAMAGED {
                    return Err(error);
                }
                warn(&error);
            }
        }
    }
    Ok(())
}

/// Chooses a format that is decoded here.
fn choose(device: &Device) -> Result<PixelFormat, MediaError> {
    let offered = device.formats(BufType::VIDEO_CAPTURE);
    let offered: io::Result<Vec<_>> = offered.map(|format| Ok(format?.pixel_format())).collect();
    let offered = offered.map_err(MediaError::Io)?;
    let known = [PixelFormat::YUYV, PixelFormat::MJPG, PixelFormat::JPEG];
    let chosen = known.into_iter().find(|format| offered.contains(format));
    chosen.ok_or_else(|| MediaError::Unsupported {
        format: format!("camera with the pixel formats {offered:?}"),
        advice: "expected YUYV, MJPG or JPEG; let ffmpeg convert it to Y4M on standard input"
            .to_owned(),
    })
}

/// Returns a decoder of frames.
fn decoder(format: &PixFormat) -> impl Fn(&[u8]) -> Result<RgbImage, MediaError> + use<> {
    let is_yuyv = format.pixel_format() == PixelFormat::YUYV;
    let size = [format.width(), format.height(), format.bytes_per_line()];
    let [width, height, stride] = size.map(|size| size as usize);
    move |bytes| match is_yuyv {
        true => yuyv(width, height, stride, bytes),
        false => decode_image(bytes),
    }
}

/// Converts rows of `stride` bytes, in which two pixels are luma, blue, luma, red (ITU-R BT.601,
/// limited range).
fn yuyv(width: usize, height: usize, stride: usize, bytes: &[u8]) -> Result<RgbImage, MediaError> {
    let short = || MediaError::damaged("camera", "a frame is incomplete");
    let mut rgb = Vec::with_capacity(RgbImage::bytes(width, height)?);
    for y in 0..height {
        let row = bytes
            .get(y * stride..)
            .and_then(|rest| rest.get(..2 * width));
        for pair in row.ok_or_else(short)?.chunks_exact(4) {
            for luma in [pair[0], pair[2]] {
                let luma = 1.164 * (f32::from(luma) - 16.0);
                let (blue, red) = (f32::from(pair[1]) - 128.0, f32::from(pair[3]) - 128.0);
                let colors = [
                    luma + 1.596 * red,
                    luma - 0.392 * blue - 0.813 * red,
                    luma + 2.017 * blue,
                ];
                // The conversion saturates.
                rgb.extend(colors.map(|value| value.round() as u8));
            }
        }
    }
    Ok(RgbImage::new(width, height, rgb)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yuyv_is_converted() {
        // White and black, then a red pair; rows have two bytes of padding.
        let bytes = [235, 128, 16, 128, 0, 0, 81, 90, 81, 240, 0, 0];
        let image = yuyv(2, 2, 6, &bytes).unwrap();
        assert_eq!(image.row(0), [255, 255, 255, 0, 0, 0]);
        assert!(image.row(1)[0] >= 253 && image.row(1)[1] <= 2, "{image:?}");
        assert!(yuyv(2, 2, 6, &bytes[..9]).is_err());
    }
}
