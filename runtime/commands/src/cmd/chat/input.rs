//! Lines of input: from an editor on a terminal, and plain ones from pipes.

use std::io::{BufRead, IsTerminal, StdinLock};

use anyhow::Context;

use super::editor::Editor;

/// The source of lines.
pub enum Input {
    /// A terminal.
    Editor(Box<Editor>),
    /// Standard input, with a prompt on standard error if both are terminals.
    Plain(StdinLock<'static>, bool),
}

impl Input {
    /// Opens standard input. Only a conversation of text on a terminal has an editor.
    ///
    /// # Errors
    /// If the terminal cannot be used.
    pub fn open(is_text: bool) -> anyhow::Result<Self> {
        let is_terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        match is_terminal && is_text && std::io::stdout().is_terminal() {
            true => Ok(Self::Editor(Box::new(Editor::open()?))),
            false => Ok(Self::Plain(std::io::stdin().lock(), is_terminal)),
        }
    }

    /// Reads the next line; `None` at the end of input.
    ///
    /// # Errors
    /// If standard input cannot be read.
    pub fn line(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        match self {
            Self::Editor(editor) => Ok(editor.question()?.map(String::into_bytes)),
            Self::Plain(input, prompts) => {
                if *prompts {
                    eprint!("> ");
                }
                let mut line = Vec::new();
                let read = input.read_until(b'\n', &mut line);
                let read = read.context("cannot read standard input")?;
                Ok((read > 0).then_some(line))
            }
        }
    }

    /// Asks for a choice on a terminal; `None` without an editor, or if there is no answer.
    ///
    /// # Errors
    /// If the terminal cannot be read.
    pub fn choice(&mut self, question: &str) -> anyhow::Result<Option<String>> {
        match self {
            Self::Editor(editor) => editor.choice(question),
            Self::Plain(..) => Ok(None),
        }
    }
}
