//! `edge-lmm-convert --generate WHAT`: prints the manual page and shell completions for packages.
//!
//! The option is handled before the command line is parsed and is not listed in its help.

use std::ffi::OsString;
use std::io::Write;

use anyhow::{Context, bail};
use clap::Command;
use clap_complete::Shell;

/// Returns WHAT if the arguments after the program name are exactly `--generate WHAT`.
pub fn requested(arguments: &[OsString]) -> Option<String> {
    match arguments {
        [_, option, what] if option == "--generate" => Some(what.to_string_lossy().into_owned()),
        _ => None,
    }
}

/// Prints the manual page or the completions for a shell.
pub fn print(what: &str, mut command: Command) -> anyhow::Result<()> {
    let mut text = Vec::new();
    let name = command.get_name().to_owned();
    match (what, what.parse::<Shell>()) {
        ("man", _) => clap_mangen::Man::new(command).render(&mut text)?,
        (_, Ok(shell)) => clap_complete::generate(shell, &mut command, name, &mut text),
        _ => bail!("--generate {what}: expected man, bash, zsh or fish"),
    }
    std::io::stdout()
        .write_all(&text)
        .context("cannot write to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_stands_alone() {
        let of = |arguments: &[&str]| {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            requested(&arguments)
        };
        assert_eq!(of(&["x", "--generate", "man"]).as_deref(), Some("man"));
        assert_eq!(of(&["x", "--generate"]), None);
        assert_eq!(of(&["x", "model", "-o", "m.bpk"]), None);
    }
}
