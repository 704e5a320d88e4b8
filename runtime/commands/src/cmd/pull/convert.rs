//! The conversion, by the program `edge-lmm-convert`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use super::choose::Checkpoint;

/// Name of the program.
const PROGRAM: &str = "edge-lmm-convert";

/// The converter.
pub struct Converter(PathBuf);

impl Converter {
    /// Finds the program beside this one or in `PATH`.
    pub fn find() -> Option<Self> {
        let name = format!("{PROGRAM}{}", std::env::consts::EXE_SUFFIX);
        let own = std::env::current_exe().ok();
        let beside = own.as_deref().and_then(Path::parent).map(Path::to_owned);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders = beside.into_iter().chain(std::env::split_paths(&path));
        let found = folders.find_map(|folder| Some(folder.join(&name)).filter(|p| p.is_file()));
        found.map(Self)
    }

    /// Converts with its messages on standard error.
    ///
    /// # Errors
    /// If the program cannot be started or fails.
    pub fn run(&self, arguments: &[OsString]) -> anyhow::Result<()> {
        let status = self.command(arguments).status();
        let status = status.with_context(|| format!("cannot start {}", self.0.display()))?;
        ensure!(
            status.success(),
            "{PROGRAM} failed ({status}); its message is above. The download is kept: run the \
             command again to convert it"
        );
        Ok(())
    }

    /// Plans a conversion without writing anything. Returns `None` if it succeeds, or its error.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn plan(&self, arguments: &[OsString]) -> anyhow::Result<Option<String>> {
        let mut command = self.command(arguments);
        let output = command.arg("--dry-run").output();
        let output = output.with_context(|| format!("cannot start {}", self.0.display()))?;
        if output.status.success() {
            return Ok(None);
        }
        let messages = String::from_utf8_lossy(&output.stderr);
        let error = messages
            .lines()
            .find_map(|line| line.strip_prefix("error: "));
        let error = error.map_or_else(|| output.status.to_string(), str::to_owned);
        Ok(Some(error))
    }

    fn command(&self, arguments: &[OsString]) -> Command {
        let mut command = Command::new(&self.0);
        command.args(arguments).stdin(Stdio::null());
        // Standard output is for the name of the model.
        command.stdout(Stdio::null());
        command
    }
}

/// Returns the arguments for a checkpoint in a folder.
pub fn arguments(checkpoint: &Checkpoint<'_>, folder: &Path, record: &Path) -> Vec<OsString> {
    let mut arguments = match checkpoint.gguf {
        None => vec![folder.as_os_str().to_owned()],
        Some((model, tower)) => {
            let tower = tower.map(|tower| ["--mmproj".into(), folder.join(tower).into()]);
            let model = folder.join(model).into_os_string();
            std::iter::once(model)
                .chain(tower.into_iter().flatten())
                .collect()
        }
    };
    arguments.extend(["--output".into(), record.as_os_str().to_owned()]);
    arguments
}

/// Returns the command for a shell.
pub fn command_line(arguments: &[OsString]) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=+,@".contains(c);
    let quoted = arguments.iter().map(|argument| {
        let argument = argument.to_string_lossy();
        match argument.chars().all(is_plain) {
            true => argument.into_owned(),
            false => format!("'{}'", argument.replace('\'', "'\\''")),
        }
    });
    let words: Vec<String> = std::iter::once(PROGRAM.to_owned()).chain(quoted).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_quoted_for_a_shell() {
        let arguments = ["/a b/c", "--output", "it's"].map(OsString::from);
        assert_eq!(
            command_line(&arguments),
            r"edge-lmm-convert '/a b/c' --output 'it'\''s'"
        );
    }
}
