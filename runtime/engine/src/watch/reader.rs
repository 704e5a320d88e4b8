//! Readers of frames into a slot.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::folder;
use super::slot::Slot;
use crate::media::{MediaError, Source};

/// Time after which a reader that waits looks whether it is to end.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);

/// A source of frames.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchSource {
    /// A stream on standard input, such as Y4M: frames count as they arrive.
    Input,
    /// A folder into which images arrive: the newest one counts.
    Folder(PathBuf),
    /// A camera (Video4Linux), such as `/dev/video0`.
    Camera(PathBuf),
    /// A video that is played by its time stamps, at `speed` times their rate.
    File {
        /// The file.
        path: PathBuf,
        /// 1 for real time.
        speed: f64,
    },
}

impl WatchSource {
    /// Chooses the kind of source by a path: `-` is standard input, a character device a camera.
    ///
    /// # Errors
    /// If the path cannot be read, is a pipe, or this build has no camera support.
    pub fn open(path: &Path, speed: f64) -> Result<Self, MediaError> {
        use std::os::unix::fs::FileTypeExt;
        if path == Path::new("-") {
            return Ok(Self::Input);
        }
        let metadata = path
            .metadata()
            .map_err(|error| MediaError::Io(error).of(path))?;
        let (path, kind) = (path.to_owned(), metadata.file_type());
        if kind.is_dir() {
            return Ok(Self::Folder(path));
        }
        if !kind.is_char_device() {
            return Ok(Self::File { path, speed });
        }
        if cfg!(feature = "camera") {
            return Ok(Self::Camera(path));
        }
        let advice = format!(
            "build with --features camera, or let ffmpeg read it: ffmpeg -loglevel error -f v4l2 -i \
             {} -f yuv4mpegpipe -pix_fmt yuv420p - | edge-lmm watch MODEL.bpk --source -",
            path.display()
        );
        let format = "camera, for which this program was not built".to_owned();
        Err(MediaError::Unsupported { format, advice }.of(&path))
    }
}

/// Reads a source into `slot` until it ends or the slot is closed. `ffmpeg` may convert videos, see
/// [`Source::with_ffmpeg`]; `warn` gets errors of single frames, which are skipped.
pub fn read(source: &WatchSource, ffmpeg: &str, slot: &Arc<Slot>, warn: impl Fn(&MediaError)) {
    let end = match source {
        WatchSource::Input => {
            let source = standard_input(slot);
            source.and_then(|source| play(&source.with_ffmpeg(ffmpeg), None, slot))
        }
        WatchSource::File { path, speed } => {
            let source = Source::file(path);
            source.and_then(|source| play(&source.with_ffmpeg(ffmpeg), Some(*speed), slot))
        }
        WatchSource::Folder(path) => folder::watch(path, slot, warn),
        #[cfg(feature = "camera")]
        WatchSource::Camera(path) => {
            super::camera::watch(path, slot, warn).map_err(|error| error.of(path))
        }
        #[cfg(not(feature = "camera"))]
        WatchSource::Camera(path) => Err(MediaError::NotAFile("a device").of(path)),
    };
    // An input that was interrupted looks as if it had failed.
    slot.end(if slot.is_closed() { Ok(()) } else { end });
}

/// Opens standard input. It is read without the buffer of [`io::Stdin`], whose bytes `poll` does not
/// see.
fn standard_input(slot: &Arc<Slot>) -> Result<Source, MediaError> {
    let input = io::stdin().as_fd().try_clone_to_owned();
    let input = Interruptible {
        input: File::from(input.map_err(MediaError::Io)?),
        slot: slot.clone(),
    };
    Source::stream(Path::new("-"), input)
}

/// Puts the frames of a video in, at `speed` times the rate of their time stamps, or as they arrive.
fn play(source: &Source, speed: Option<f64>, slot: &Slot) -> Result<(), MediaError> {
    let mut frames = source.frames()?;
    let start = Instant::now();
    while let Some(frame) = frames.next_frame()? {
        if let Some(speed) = speed {
            // A time stamp may be any number.
            let due = Duration::try_from_secs_f64(frame.time / speed).unwrap_or_default();
            if !slot.wait(due.saturating_sub(start.elapsed())) {
                break;
            }
        }
        if !slot.put(frame.image, frame.time) {
            break;
        }
    }
    Ok(())
}

/// An input whose reads end when the slot is closed.
struct Interruptible<R> {
    input: R,
    slot: Arc<Slot>,
}

impl<R: Read + AsFd> Read for Interruptible<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
        while !self.slot.is_closed() {
            let mut input = [PollFd::new(&self.input, PollFlags::IN)];
            match poll(&mut input, Some(&patience)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return self.input.read(buffer),
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other("interrupted"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::Taken;
    use super::*;

    /// A Y4M video of 10 gray frames per second.
    fn y4m(frames: &[u8]) -> Vec<u8> {
        let mut video = b"YUV4MPEG2 W8 H8 F10:1 Cmono\n".to_vec();
        for &gray in frames {
            video.extend(b"FRAME\n");
            video.extend([gray; 64]);
        }
        video
    }

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn play_file(content: &[u8], speed: f64) -> (Arc<Slot>, Duration) {
        let file = file(content);
        let slot = Arc::new(Slot::new());
        let source = WatchSource::open(file.path(), speed).unwrap();
        let start = Instant::now();
        read(&source, "ffmpeg", &slot, |_| {});
        (slot, start.elapsed())
    }

    #[test]
    fn a_file_is_played_by_its_time_stamps() {
        let (slot, time) = play_file(&y4m(&[1, 2, 3, 4]), 2.0);
        assert!(time >= Duration::from_millis(150), "{time:?}");
        assert_eq!((slot.seen(), slot.skipped()), (4, 3));
        let Taken::Frame(last) = slot.take(Duration::ZERO) else {
            panic!("no frame")
        };
        assert_eq!(last.time, 0.3);
        assert!(matches!(slot.take(Duration::ZERO), Taken::End(Ok(()))));
    }

    #[test]
    fn a_stream_that_ends_within_a_frame_gives_an_error_after_its_last_frame() {
        let mut content = y4m(&[1, 2]);
        content.truncate(content.len() - 9);
        let slot = Arc::new(Slot::new());
        let stream = Source::stream(Path::new("-"), io::Cursor::new(content)).unwrap();
        slot.end(play(&stream, None, &slot));
        assert!(matches!(slot.take(Duration::ZERO), Taken::Frame(_)));
        let Taken::End(Err(error)) = slot.take(Duration::ZERO) else {
            panic!("no error")
        };
        let error = error.to_string();
        assert!(
            error.contains("standard input: the Y4M file is truncated"),
            "{error}"
        );
    }

    #[test]
    fn a_read_ends_when_the_slot_is_closed() {
        let (input, _writer) = io::pipe().unwrap();
        let slot = Arc::new(Slot::new());
        slot.close();
        let mut input = Interruptible { input, slot };
        assert!(input.read(&mut [0]).is_err());
    }
}
