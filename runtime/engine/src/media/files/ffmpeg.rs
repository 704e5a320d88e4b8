//! Conversion of other formats by the program ffmpeg.
//!
//! It runs without a shell. The demuxer is given, so that a file that was recognized as Matroska is
//! not read as a playlist, and only files and pipes may be opened. The process is killed when its
//! output is dropped, or if it gives no output for a while.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use edge_lmm_models::media::MediaKind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::error::MediaError;
use super::format::Format;
use super::samples::{self, Audio};
use super::source::{Content, Source};

/// Maximum time without output from a file. A pipe may pause for any time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sample rate of sounds: that of the models' encoders.
const SAMPLE_RATE: u32 = 16_000;

/// Maximum bytes of the end of the messages that are kept.
const MAX_MESSAGE: usize = 2048;

/// Input of ffmpeg.
pub(super) enum Input<'a> {
    File(&'a Path),
    Pipe(Box<dyn Read + Send>),
}

impl<'a> Input<'a> {
    /// Returns the input of a source that is a file, or was read into memory.
    pub fn of(source: &'a Source) -> Result<Self, MediaError> {
        match source.content() {
            Content::Whole(_, bytes) => Ok(Self::Pipe(Box::new(io::Cursor::new(bytes.clone())))),
            Content::Stream(_, stream) => Ok(Self::Pipe(stream.take()?)),
            _ => Ok(Self::File(source.path())),
        }
    }
}

/// Returns the name of ffmpeg's demuxer for a format that is not decoded here.
pub(super) fn demuxer(format: Format) -> Option<&'static str> {
    match format {
        Format::Mp4 | Format::M4a => Some("mov"),
        Format::Other(MediaKind::Video, name) => match name {
            "Matroska or WebM" => Some("matroska"),
            "AVI" => Some("avi"),
            "MPEG" => Some("mpeg"),
            "MPEG-TS" => Some("mpegts"),
            "FLV" => Some("flv"),
            "Ogg Theora" => Some("ogg"),
            _ => None,
        },
        _ => None,
    }
}

/// Converts the first video track to Y4M; `None` if there is no such program.
///
/// Frames of a variable rate are repeated or dropped for a constant one, and frames are rotated as
/// the file says.
pub(super) fn video(
    program: &Path,
    input: Input<'_>,
    demuxer: &str,
) -> Result<Option<BufReader<Output>>, MediaError> {
    let output = [
        "-map",
        "0:V:0",
        "-vf",
        // Y4M does not name its matrix.
        "scale=out_color_matrix=bt601:out_range=limited,format=yuv444p",
        "-f",
        "yuv4mpegpipe",
    ];
    let Some(output) = Output::of(program, input, demuxer, &output)? else {
        return Ok(None);
    };
    let mut output = BufReader::new(output);
    if output.fill_buf().map_err(MediaError::Io)?.is_empty() {
        return Err(MediaError::damaged("video", "it has no frames"));
    }
    Ok(Some(output))
}

/// Decodes the first sound track; `None` if there is no such program.
pub(super) fn audio(
    program: &Path,
    input: Input<'_>,
    demuxer: &str,
) -> Result<Option<Audio>, MediaError> {
    let rate = SAMPLE_RATE.to_string();
    let output = ["-map", "0:a:0", "-ac", "1", "-ar", &rate, "-f", "f32le"];
    let Some(mut output) = Output::of(program, input, demuxer, &output)? else {
        return Ok(None);
    };
    let mut audio = Vec::new();
    let mut buffer = [0; 1 << 16];
    let mut filled = 0;
    loop {
        let read = output.read(&mut buffer[filled..]).map_err(MediaError::Io)?;
        filled += read;
        let (samples, rest) = buffer[..filled].as_chunks();
        // The vector doubles when it grows.
        samples::check_len(2 * (audio.len() + samples.len()))?;
        audio.extend(samples.iter().map(|&bytes| f32::from_le_bytes(bytes)));
        let rest = rest.len();
        buffer.copy_within(filled - rest..filled, 0);
        filled = rest;
        if read == 0 {
            break;
        }
    }
    Audio::checked("sound track", audio, SAMPLE_RATE).map(Some)
}

/// The output of a running ffmpeg. Its end is reached only if the program succeeds.
pub(super) struct Output {
    child: Child,
    output: ChildStdout,
    /// Collects the last messages.
    messages: Option<JoinHandle<Vec<u8>>>,
    patience: Option<Duration>,
}

impl Output {
    fn of(
        program: &Path,
        input: Input<'_>,
        demuxer: &str,
        output: &[&str],
    ) -> Result<Option<Self>, MediaError> {
        let mut command = Command::new(program);
        command.args(["-nostdin", "-hide_banner", "-loglevel", "error"]);
        command.args(["-protocol_whitelist", "file,pipe", "-f", demuxer, "-i"]);
        let (patience, pipe) = match input {
            Input::File(path) => {
                // With the protocol, no name is taken for an option or another protocol.
                let mut name = OsString::from("file:");
                name.push(path);
                command.arg(name).stdin(Stdio::null());
                (Some(PATIENCE), None)
            }
            Input::Pipe(pipe) => {
                command.arg("pipe:0").stdin(Stdio::piped());
                (None, Some(pipe))
            }
        };
        command.args(output).arg("pipe:1");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                let message = format!("{} cannot be started: {error}", program.display());
                return Err(MediaError::Io(io::Error::other(message)));
            }
        };
        if let (Some(mut pipe), Some(mut input)) = (pipe, child.stdin.take()) {
            // Ends when either side does.
            std::thread::spawn(move || io::copy(&mut pipe, &mut input));
        }
        let messages = child.stderr.take();
        let messages = messages.map(|errors| std::thread::spawn(move || end_of(errors)));
        let output = child.stdout.take();
        Ok(output.map(|output| Self {
            child,
            output,
            messages,
            patience,
        }))
    }

    /// Waits for the end of the program.
    fn finish(&mut self) -> io::Result<()> {
        let status = self.child.wait()?;
        if status.success() {
            return Ok(());
        }
        let messages = self.messages.take().map(JoinHandle::join);
        let messages = messages.and_then(Result::ok).unwrap_or_default();
        let messages = String::from_utf8_lossy(&messages);
        let last = messages.lines().rfind(|line| !line.trim().is_empty());
        let last = last.map_or_else(|| status.to_string(), |line| line.trim().to_owned());
        let last: String = last.chars().filter(|c| !c.is_control()).collect();
        Err(io::Error::other(format!("ffmpeg failed: {last}")))
    }
}

impl Read for Output {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(patience) = self.patience
            && !is_readable(&self.output, patience)?
        {
            let message = format!("ffmpeg gave no output for {} seconds", patience.as_secs());
            return Err(io::Error::other(message));
        }
        let read = self.output.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            self.finish()?;
        }
        Ok(read)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a pipe has data or ends. Returns `false` if it does not in time.
fn is_readable(pipe: &ChildStdout, patience: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(patience).map_err(io::Error::other)?;
    let mut pipes = [PollFd::new(pipe, PollFlags::IN)];
    loop {
        match poll(&mut pipes, Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads a stream to its end and returns its last bytes.
fn end_of(mut stream: impl Read) -> Vec<u8> {
    let mut end = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        end.extend_from_slice(&buffer[..read]);
        end.drain(..end.len().saturating_sub(MAX_MESSAGE));
    }
    end
}
