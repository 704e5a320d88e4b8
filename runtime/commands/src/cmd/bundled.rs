//! Command line of a bundle, which needs no model argument and runs without a subcommand.

use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;

use anyhow::Context;
use clap::Command;
use edge_lmm::record::bundle;

/// Returns the arguments for the command line parser. Those of a bundle are completed, others are
/// unchanged.
pub fn arguments(
    command: &Command,
    given: impl Iterator<Item = OsString>,
) -> anyhow::Result<Vec<OsString>> {
    let given: Vec<OsString> = given.collect();
    match own_bundle()? {
        Some(own) => Ok(complete(command, given, own.into_os_string())),
        None => Ok(given),
    }
}

/// Returns the path of this program if it is a bundle.
fn own_bundle() -> anyhow::Result<Option<PathBuf>> {
    // The link still works if the file was replaced while the program runs.
    let link = PathBuf::from("/proc/self/exe");
    let path = match std::env::current_exe() {
        Ok(path) if path.exists() => path,
        _ if link.exists() => link,
        _ => return Ok(None),
    };
    let Ok(mut file) = File::open(&path) else {
        // A program may be executable but not readable; it is then treated as no bundle.
        return Ok(None);
    };
    let place = bundle::locate(&mut file).with_context(|| path.display().to_string())?;
    Ok(place.map(|_| path))
}

fn complete(command: &Command, mut given: Vec<OsString>, own: OsString) -> Vec<OsString> {
    let first = given
        .get(1)
        .map(|first| first.to_string_lossy().into_owned());
    let own_way = ["help", "-h", "--help", "-V", "--version"];
    let chosen = match first.as_deref() {
        Some(first) if own_way.contains(&first) => return given,
        Some(first) => command.find_subcommand(first),
        None => None,
    };
    let takes_model = |command: &Command| command.get_positionals().any(|p| p.get_id() == "model");
    match chosen {
        Some(chosen) if takes_model(chosen) => given.insert(2, own),
        Some(_) => {}
        None => {
            let at = given.len().min(1);
            given.splice(at..at, [OsString::from("run"), own]);
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn completed(given: &[&str]) -> Vec<String> {
        let given = given.iter().map(OsString::from).collect();
        let all = complete(&crate::Cli::command(), given, OsString::from("ME"));
        all.into_iter().map(|a| a.into_string().unwrap()).collect()
    }

    #[test]
    fn a_bundle_runs_its_own_model() {
        assert_eq!(
            completed(&["e", "--image", "a.jpg"]),
            ["e", "run", "ME", "--image", "a.jpg"]
        );
        assert_eq!(completed(&["e"]), ["e", "run", "ME"]);
    }

    #[test]
    fn subcommands_get_the_model_they_take() {
        assert_eq!(
            completed(&["e", "inspect", "--json"]),
            ["e", "inspect", "ME", "--json"]
        );
        assert_eq!(
            completed(&["e", "doctor", "--json"]),
            ["e", "doctor", "--json"]
        );
        assert_eq!(completed(&["e", "--version"]), ["e", "--version"]);
    }
}
