//! The line editor of a conversation: history, completion, and questions of several lines.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use edge_lmm::chat::COMMANDS;
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Cmd, CompletionType, Config, Helper, KeyCode, KeyEvent, Modifiers};

/// Questions that are kept.
const HISTORY: usize = 1000;

const HOW_TO_LEAVE: &str = "/quit or Ctrl-D exits; Ctrl-C stops an answer";

/// The editor.
pub struct Editor {
    editor: rustyline::Editor<Helping, DefaultHistory>,
    history: Option<PathBuf>,
}

impl Editor {
    /// Opens the terminal and the history of earlier conversations.
    ///
    /// # Errors
    /// If the terminal cannot be used.
    pub fn open() -> anyhow::Result<Self> {
        let config = Config::builder()
            .max_history_size(HISTORY)
            .and_then(|config| config.history_ignore_dups(true));
        let config = config?.history_ignore_space(true);
        let config = config.completion_type(CompletionType::List).build();
        let mut editor =
            rustyline::Editor::with_config(config).context("cannot use the terminal")?;
        editor.set_helper(Some(Helping));
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), Cmd::Newline);
        let history = history(|name| std::env::var_os(name));
        if let Some(path) = history.as_ref().filter(|path| path.exists())
            && let Err(error) = editor.load_history(path)
        {
            log::warn!("cannot read the history {}: {error}", path.display());
        }
        Ok(Self { editor, history })
    }

    /// Reads a question or command, which may have several lines; `None` at the end of input.
    ///
    /// # Errors
    /// If the terminal cannot be read.
    pub fn question(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            match self.editor.readline("> ") {
                Ok(line) => {
                    self.remember(&line);
                    return Ok(Some(line.replace("\\\n", "\n")));
                }
                Err(ReadlineError::Eof) => return Ok(None),
                Err(ReadlineError::Interrupted) => eprintln!("{HOW_TO_LEAVE}"),
                Err(error) => return Err(error).context("cannot read the terminal"),
            }
        }
    }

    /// Asks for a choice; `None` if the line is empty or was interrupted.
    ///
    /// # Errors
    /// If the terminal cannot be read.
    pub fn choice(&mut self, question: &str) -> anyhow::Result<Option<String>> {
        match self.editor.readline(question) {
            Ok(line) => Ok(Some(line.trim().to_owned()).filter(|line| !line.is_empty())),
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
            Err(error) => Err(error).context("cannot read the terminal"),
        }
    }

    /// Adds a line to the history and its file.
    fn remember(&mut self, line: &str) {
        let is_new = self.editor.add_history_entry(line).unwrap_or(false);
        let Some(path) = self.history.as_ref().filter(|_| is_new) else {
            return;
        };
        let saved = path.parent().map_or(Ok(()), private_folder);
        let saved = saved
            .map_err(ReadlineError::from)
            .and_then(|()| self.editor.append_history(path));
        if let Err(error) = saved {
            log::warn!("the history is not kept in {}: {error}", path.display());
            self.history = None;
        }
    }
}

/// Creates a folder that only its owner can read.
fn private_folder(folder: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// Returns the path of the history: `edge-lmm/history` below `XDG_STATE_HOME` or `~/.local/state`;
/// `None` without a home folder.
fn history(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| {
        let value = variable(name).filter(|value| !value.is_empty());
        value.map(PathBuf::from)
    };
    let state = path("XDG_STATE_HOME").or_else(|| Some(path("HOME")?.join(".local/state")));
    Some(state?.join("edge-lmm/history"))
}

/// Completes commands and paths, and continues lines that end with a backslash.
struct Helping;

impl Helper for Helping {}

impl Hinter for Helping {
    type Hint = String;
}

impl Highlighter for Helping {}

impl Validator for Helping {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match context.input().ends_with('\\') {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Completer for Helping {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        Ok(complete(&line[..position], home.as_deref()))
    }
}

/// Returns the start of the part to complete and its completions.
fn complete(line: &str, home: Option<&Path>) -> (usize, Vec<Pair>) {
    let whole = |text: &str| Pair {
        display: text.to_owned(),
        replacement: text.to_owned(),
    };
    let Some((command, rest)) = line.split_once(' ') else {
        let commands = COMMANDS
            .iter()
            .filter(|command| command.0.starts_with(line));
        let is_command = line.starts_with('/');
        return (
            0,
            commands
                .filter(|_| is_command)
                .map(|c| whole(c.0))
                .collect(),
        );
    };
    let argument = COMMANDS.iter().find(|known| known.0 == command);
    let argument = argument.map_or("", |known| known.1);
    let typed = rest.trim_start();
    let start = line.len() - typed.len();
    match argument {
        "FILE" => {
            let (folder, name) = typed
                .rsplit_once('/')
                .map_or(("", typed), |(folder, name)| {
                    (&typed[..=folder.len()], name)
                });
            (start + folder.len(), files(folder, name, home))
        }
        words => {
            let words = words.split('|').filter(|word| word.starts_with(typed));
            (
                start,
                words.filter(|word| !word.is_empty()).map(whole).collect(),
            )
        }
    }
}

/// Returns the files of a folder whose names begin with `name`, sorted. Hidden ones are left out
/// unless the name begins with a dot.
fn files(folder: &str, name: &str, home: Option<&Path>) -> Vec<Pair> {
    let path = match (folder.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ if folder.is_empty() => PathBuf::from("."),
        _ => PathBuf::from(folder),
    };
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    let mut found: Vec<Pair> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let mut file = entry.file_name().into_string().ok()?;
            if !file.starts_with(name) || (file.starts_with('.') && name.is_empty()) {
                return None;
            }
            if entry.path().is_dir() {
                file.push('/');
            }
            Some(Pair {
                display: file.clone(),
                replacement: file,
            })
        })
        .collect();
    found.sort_by(|a, b| a.display.cmp(&b.display));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(line: &str, home: Option<&Path>) -> (usize, Vec<String>) {
        let (start, pairs) = complete(line, home);
        (
            start,
            pairs.into_iter().map(|pair| pair.replacement).collect(),
        )
    }

    #[test]
    fn commands_are_completed() {
        assert_eq!(
            completed("/sa", None),
            (0, vec!["/save".into(), "/save-cache".into()])
        );
        assert_eq!(completed("/drop m", None), (6, vec!["media".into()]));
        assert_eq!(completed("/undo ", None).1, Vec::<String>::new());
        assert_eq!(completed("", None).1, Vec::<String>::new());
        assert_eq!(completed("what", None).1, Vec::<String>::new());
    }

    #[test]
    fn paths_are_completed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a b.png"), "").unwrap();
        fs::write(folder.path().join(".hidden"), "").unwrap();
        fs::create_dir(folder.path().join("about")).unwrap();
        let line = format!("/image {}/a", folder.path().display());
        let (start, found) = completed(&line, None);
        assert_eq!(found, ["a b.png", "about/"]);
        assert_eq!(start, line.len() - 1);
        assert_eq!(completed("/image ~/", Some(folder.path())).1.len(), 2);
        assert_eq!(completed("/image ~/.h", Some(folder.path())).1, [".hidden"]);
        assert_eq!(completed("say ~/", Some(folder.path())).1.len(), 0);
    }

    #[test]
    fn the_history_is_below_the_state_folder() {
        let with = |pairs: &'static [(&str, &str)]| {
            history(|name| {
                let pair = pairs.iter().find(|pair| pair.0 == name);
                pair.map(|pair| pair.1.into())
            })
        };
        let home = with(&[("HOME", "/h")]).unwrap();
        assert_eq!(home, Path::new("/h/.local/state/edge-lmm/history"));
        let state = with(&[("HOME", "/h"), ("XDG_STATE_HOME", "/s")]).unwrap();
        assert_eq!(state, Path::new("/s/edge-lmm/history"));
        assert_eq!(with(&[]), None);
    }
}
