//! Downloads by the program yt-dlp, which runs without a shell.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::names;
use super::sample::{AUDIOCAPS_SECONDS, YouTube};

/// The program.
const PROGRAM: &str = "yt-dlp";

/// Temporary folder within the output.
const FOLDER: &str = ".download";

/// A folder for downloads, removed on drop.
pub struct Downloads(PathBuf);

impl Downloads {
    /// Checks that the program is installed.
    ///
    /// # Errors
    /// If it is not, or the folder cannot be created.
    pub fn new(out: &Path) -> anyhow::Result<Self> {
        let mut version = Command::new(PROGRAM);
        version.arg("--version");
        version
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        match version.status() {
            Ok(status) if status.success() => {}
            Ok(status) => bail!("{PROGRAM} --version failed ({status})"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
                "--ytdlp requires the program {PROGRAM}, which is not installed \
                 (https://github.com/yt-dlp/yt-dlp)"
            ),
            Err(error) => return Err(error).context(format!("cannot start {PROGRAM}")),
        }
        let folder = out.join(FOLDER);
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        // Absolute, so that no name is taken for an option.
        Ok(Self(folder.canonicalize()?))
    }

    /// Downloads a video or sound. Returns its extension and the file, or the reason why it is not
    /// available.
    ///
    /// # Errors
    /// If the program cannot be started or the folder cannot be read.
    pub fn get(&self, video: &YouTube) -> anyhow::Result<Result<(String, File), String>> {
        self.clear()?;
        // A percent sign in the folder would be taken for a field.
        let folder = self.0.to_string_lossy().replace('%', "%%");
        let mut command = Command::new(PROGRAM);
        command.args([
            "--ignore-config",
            "--no-playlist",
            "--no-progress",
            "--quiet",
        ]);
        match video.sound_from {
            None => command.args(["--format", "mp4[height<=480]/best[height<=480]/best"]),
            Some(start) => {
                let end = start + AUDIOCAPS_SECONDS;
                command.args([
                    "--extract-audio",
                    "--audio-format",
                    "wav",
                    "--download-sections",
                ]);
                command.arg(format!("*{start}-{end}"))
            }
        };
        command
            .arg("--output")
            .arg(format!("{folder}/clip.%(ext)s"));
        command.arg("--");
        command.arg(format!("https://www.youtube.com/watch?v={}", video.id));
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {PROGRAM}"))?;
        if !output.status.success() {
            let messages = String::from_utf8_lossy(&output.stderr);
            let last = messages.lines().rfind(|line| !line.trim().is_empty());
            let last = last.map_or_else(|| output.status.to_string(), str::to_owned);
            let last: String = last.chars().filter(|c| !c.is_control()).take(300).collect();
            return Ok(Err(format!("{PROGRAM}: {last}")));
        }
        for entry in self.0.read_dir()? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            if names::stem(&name) == "clip" && names::check_plain(&name).is_ok() {
                let file = File::open(self.0.join(&*name))?;
                return Ok(Ok((plain(&names::extension(&name)), file)));
            }
        }
        Ok(Err(format!("{PROGRAM} wrote no file")))
    }

    /// Removes what an earlier download left.
    fn clear(&self) -> anyhow::Result<()> {
        for entry in self.0.read_dir()? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            log::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Returns an extension without special characters.
fn plain(extension: &str) -> String {
    let plain = extension.chars().filter(char::is_ascii_alphanumeric);
    plain.take(8).collect()
}
