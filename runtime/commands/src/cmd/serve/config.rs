//! Options of `edge-lmm serve` from the environment and a file.
//!
//! An option on the command line wins over the environment variable `EDGE_LMM_SERVE_NAME`, that over
//! the file, and that over the default. The others are added to the command line before it is
//! parsed, so that all of them are checked alike.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::{Table, Value};

/// Start of the names of environment variables.
const PREFIX: &str = "EDGE_LMM_SERVE_";

/// Completes the arguments of `edge-lmm serve`; others are unchanged.
///
/// # Errors
/// If the file cannot be read, or has an unknown option.
pub fn arguments(
    command: &Command,
    given: Vec<OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> anyhow::Result<Vec<OsString>> {
    let serve = command.find_subcommand("serve");
    let Some(serve) = serve.filter(|_| given.get(1).is_some_and(|word| word == "serve")) else {
        return Ok(given);
    };
    let parsed = command.clone().ignore_errors(true);
    let matches = parsed.try_get_matches_from(&given);
    let Some(matches) = matches.ok().and_then(|mut all| all.remove_subcommand()) else {
        // The parser reports what is wrong, or prints the help.
        return Ok(given);
    };
    let (_, matches) = matches;
    let is_given = |name: &str| is_given(&matches, name);
    let variable = |name: &str| {
        let name = name.to_ascii_uppercase().replace('-', "_");
        environment(&format!("{PREFIX}{name}"))
    };
    let path = match matches.get_one::<std::path::PathBuf>("config") {
        Some(path) => Some(path.clone()),
        None => variable("config").map(Into::into),
    };
    let mut file = match &path {
        Some(path) => read(path)?,
        None => Table::new(),
    };
    let mut added = Vec::new();
    let mut model = None;
    for arg in serve.get_arguments() {
        let name = match arg.get_long() {
            Some("help" | "config") => continue,
            Some(name) => name,
            None => arg.get_id().as_str(),
        };
        let from_file = take(&mut file, name);
        if is_given(arg.get_id().as_str()) {
            continue;
        }
        let values = match (variable(name), from_file) {
            (Some(value), _) => of_variable(arg, value),
            (None, Some(value)) => of_toml(value).with_context(|| format!("option {name:?}"))?,
            (None, None) => continue,
        };
        match arg.is_positional() {
            true => model = values.into_iter().next(),
            false => added.extend(written(arg, name, values)?),
        }
    }
    if let (Some(path), Some(name)) = (&path, file.keys().next()) {
        let path = path.display();
        bail!("{path}: unknown option {name:?}: edge-lmm serve --help lists them");
    }
    Ok(given.into_iter().chain(added).chain(model).collect())
}

fn is_given(matches: &ArgMatches, id: &str) -> bool {
    matches.value_source(id) == Some(ValueSource::CommandLine)
}

fn read(path: &Path) -> anyhow::Result<Table> {
    let text = fs::read_to_string(path);
    let text = text.with_context(|| format!("cannot read {}", path.display()))?;
    let table = text.parse::<Table>();
    // The message has several lines, with the place in the file.
    table.map_err(|error| anyhow::anyhow!("{}: {}", path.display(), error.message()))
}

/// Takes an option from the file, where its name may have `_` instead of `-`.
fn take(file: &mut Table, name: &str) -> Option<Value> {
    let hyphens = file.remove(name);
    hyphens.or_else(|| file.remove(&name.replace('-', "_")))
}

/// Returns the values of an option from the environment; those of a list are separated by commas.
fn of_variable(arg: &Arg, value: OsString) -> Vec<OsString> {
    match (arg.get_action(), value.to_str()) {
        (ArgAction::Append, Some(list)) => list.split(',').map(OsString::from).collect(),
        _ => vec![value],
    }
}

fn of_toml(value: Value) -> anyhow::Result<Vec<OsString>> {
    Ok(match value {
        Value::String(text) => vec![text.into()],
        Value::Integer(number) => vec![number.to_string().into()],
        Value::Float(number) => vec![number.to_string().into()],
        Value::Boolean(flag) => vec![flag.to_string().into()],
        Value::Array(items) => {
            let items = items.into_iter().map(of_toml);
            items.collect::<anyhow::Result<Vec<_>>>()?.concat()
        }
        Value::Table(_) | Value::Datetime(_) => {
            bail!("expected a text, a number, true or false, or a list of these")
        }
    })
}

/// Returns an option as on the command line.
fn written(arg: &Arg, name: &str, values: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        let is_on = match values.first().and_then(|value| value.to_str()) {
            Some("true" | "1") => true,
            Some("false" | "0" | "") => false,
            _ => bail!("option {name:?} is a switch: expected true or false"),
        };
        return Ok(is_on
            .then(|| format!("--{name}").into())
            .into_iter()
            .collect());
    }
    let is_list = matches!(arg.get_action(), ArgAction::Append);
    ensure!(
        is_list || values.len() == 1,
        "option {name:?} has one value"
    );
    let option = |value: OsString| {
        let mut option = OsString::from(format!("--{name}="));
        option.push::<&OsStr>(&value);
        option
    };
    Ok(values.into_iter().map(option).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use clap::CommandFactory;

    use super::*;

    fn completed(given: &[&str], variables: &[(&str, &str)]) -> anyhow::Result<Vec<String>> {
        let given = given.iter().map(OsString::from).collect();
        let environment = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let all = arguments(&crate::Cli::command(), given, environment)?;
        Ok(all.into_iter().map(|a| a.into_string().unwrap()).collect())
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        file
    }

    #[test]
    fn the_command_line_wins_over_the_environment_and_that_over_the_file() {
        let file = file(
            "model = 'file.bpk'\nmax_tokens = 3\nsocket = '/file'\nsocket-mode = '600'\n\
             no-files = true\nthreads = 2\n",
        );
        let path = file.path().to_str().expect("a path");
        let given = ["e", "serve", "--socket", "/given", "--config", path];
        let variables = [
            ("EDGE_LMM_SERVE_SOCKET", "/variable"),
            ("EDGE_LMM_SERVE_MAX_TOKENS", "5"),
            ("EDGE_LMM_SERVE_NO_FILES", "0"),
        ];
        let mut completed = completed(&given, &variables).expect("options");
        let mut added = completed.split_off(given.len());
        assert_eq!(completed, given);
        assert_eq!(added.pop().as_deref(), Some("file.bpk"));
        added.sort();
        assert_eq!(
            added,
            ["--max-tokens=5", "--socket-mode=600", "--threads=2"]
        );
    }

    #[test]
    fn the_environment_names_the_file_and_switches() {
        let file = file("conversations = 2");
        let path = file.path().to_str().expect("a path");
        let variables = [
            ("EDGE_LMM_SERVE_CONFIG", path),
            ("EDGE_LMM_SERVE_MLOCK", "true"),
        ];
        let completed = completed(&["e", "serve", "m.bpk"], &variables).expect("options");
        assert_eq!(completed[..3], ["e", "serve", "m.bpk"]);
        assert!(
            completed.contains(&"--conversations=2".to_owned()),
            "{completed:?}"
        );
        assert!(completed.contains(&"--mlock".to_owned()), "{completed:?}");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("max_token = 3", "\"max_token\""),
            ("no-files = 'maybe'", "switch"),
            ("max-tokens = [1, 2]", "one value"),
            ("max-tokens = {a = 1}", "expected a text"),
            ("max-tokens 3", "="),
        ] {
            let file = file(text);
            let path = file.path().to_str().expect("a path");
            let error = completed(&["e", "serve", "m.bpk", "--config", path], &[]);
            let error = format!("{:#}", error.expect_err(text));
            assert!(error.contains(word) && !error.contains('\n'), "{error}");
        }
        let missing = completed(&["e", "serve", "--config", "/no/such.toml"], &[]);
        assert!(missing.is_err());
    }

    #[test]
    fn other_commands_stay_as_they_are() {
        let variables = [("EDGE_LMM_SERVE_THREADS", "1")];
        for given in [
            &["e", "run", "m.bpk"][..],
            &["e"],
            &["e", "serve", "--help"],
        ] {
            assert_eq!(completed(given, &variables).expect("arguments"), given);
        }
    }
}
