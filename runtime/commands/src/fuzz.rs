//! The parsers of the command, for the fuzz targets in `targets/fuzz`. The module exists with the Cargo
//! feature `fuzz` only.

use std::ffi::OsString;
use std::path::Path;

use clap::{CommandFactory, Parser};
use edge_lmm::profile::ProfileReport;

use crate::cmd::profile::compare;
use crate::cmd::profile::comparison::Comparison;
#[cfg(feature = "http")]
use crate::cmd::serve::http::fetch::address::Address;
use crate::{Cli, cmd, page};

#[cfg(feature = "http")]
pub use crate::cmd::serve::http::scripted::Scripted;

/// Completes and parses the command line of a server whose options come from a file.
///
/// # Errors
/// If the file or an option is invalid.
pub fn server_options(file: &Path) -> anyhow::Result<()> {
    let mut given = ["edge-lmm", "serve", "model.bpk", "--config"]
        .map(OsString::from)
        .to_vec();
    given.push(file.into());
    let completed = cmd::serve::config::arguments(&Cli::command(), given, |_| None)?;
    Cli::try_parse_from(completed)?;
    Ok(())
}

/// Compares profiles, written by `edge-lmm profile --json`, and returns the tables.
///
/// # Errors
/// If a text is no profile.
pub fn compare_profiles(before: &str, after: &str) -> anyhow::Result<String> {
    let read = |name: &str, text| anyhow::Ok((name.to_owned(), ProfileReport::parse(text)?));
    let profiles = [read("before", before)?, read("after", after)?];
    let comparison = Comparison::new(&profiles);
    page::comparison(&comparison)?;
    Ok(compare::text(&comparison))
}

/// Parses an address of a request. Returns it in the usual form, and the one that a redirect to
/// `location` leads to.
///
/// # Errors
/// If the address is invalid.
#[cfg(feature = "http")]
pub fn web_address(text: &str, location: &str) -> anyhow::Result<(String, Option<String>)> {
    let shown =
        |address: &Address| format!("{}://{}{}", address.scheme(), address.host, address.path);
    let address = Address::parse(text)?;
    let redirected = address.join(location).ok();
    Ok((shown(&address), redirected.as_ref().map(shown)))
}

/// Chooses the files of a checkpoint from the hub's list of files of a repository. Returns their
/// names.
///
/// # Errors
/// If the list is invalid, or has no checkpoint of this variant.
#[cfg(feature = "pull")]
pub fn checkpoint_files(listing: &str, variant: Option<&str>) -> anyhow::Result<Vec<String>> {
    let (_, files) = crate::hub::parse_listing(listing)?;
    let checkpoint = cmd::pull::choose::Checkpoint::choose(&files, variant)?;
    Ok(checkpoint
        .files
        .iter()
        .map(|file| file.name.clone())
        .collect())
}

/// Prepares the question set of a dataset from a folder of published files.
///
/// # Errors
/// If the files are invalid or have no question with a medium.
#[cfg(feature = "data")]
pub fn prepare_dataset(dataset: &str, source: &Path, out: &Path) -> anyhow::Result<()> {
    let given = ["edge-lmm", "data", "prepare", "--dataset", dataset].map(OsString::from);
    let folders = ["--source".into(), source.into(), "--out".into(), out.into()];
    Cli::try_parse_from(given.into_iter().chain(folders))?
        .command
        .run()
}
