//! Components of a program according to `cargo metadata`: a list of components (CycloneDX 1.5,
//! <https://cyclonedx.org>), and their licenses with the texts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cross::{CONVERTER, RUNTIME_PACKAGE};
use crate::shell;

/// A library in the program.
#[derive(Debug, Clone, Deserialize)]
pub struct Package {
    name: String,
    version: String,
    license: Option<String>,
    license_file: Option<PathBuf>,
    authors: Vec<String>,
    repository: Option<String>,
    manifest_path: PathBuf,
    source: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// All that is linked into edge-lmm with these features, and into edge-lmm-convert, for a Rust
/// target, the package of edge-lmm first: tools, macros and tests are left out.
pub fn packages(triple: &str, features: &[String]) -> anyhow::Result<Vec<Package>> {
    let text = shell::output(
        Command::new("cargo")
            .args([
                "metadata",
                "--format-version",
                "1",
                "--locked",
                "--all-features",
                "--filter-platform",
            ])
            .arg(triple)
            .current_dir(shell::root()),
    )?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo metadata")?;
    // The metadata of the workspace does not reflect the features of this program alone.
    let tree = shell::output(
        Command::new("cargo")
            .args(["tree", "--locked"])
            .args(["--package", RUNTIME_PACKAGE, "--package", CONVERTER])
            .args([
                "--edges",
                "normal,no-proc-macro",
                "--prefix",
                "none",
                "--format",
                "{p}",
            ])
            .args(["--target", triple])
            .args(
                features
                    .iter()
                    .map(|feature| format!("--features={RUNTIME_PACKAGE}/{feature}")),
            )
            .current_dir(shell::root()),
    )?;
    let linked: BTreeSet<(&str, &str)> = tree.lines().filter_map(name_and_version).collect();
    let mut packages = metadata.packages;
    packages.retain(|package| linked.contains(&(package.name.as_str(), package.version.as_str())));
    packages.sort_by_key(|package| (package.name != RUNTIME_PACKAGE, package.name.clone()));
    Ok(packages)
}

/// Parses a line such as `serde v1.0.229 (proc-macro)`.
fn name_and_version(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split_whitespace();
    Some((words.next()?, words.next()?.strip_prefix('v')?))
}

/// Builds the list of components.
pub fn cyclonedx(packages: &[Package], triple: &str) -> anyhow::Result<String> {
    let [own, others @ ..] = packages else {
        anyhow::bail!("there are no packages");
    };
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": component(own, "application"),
            "properties": [{ "name": "cargo:target", "value": triple }],
        },
        "components": others.iter().map(|p| component(p, kind(p))).collect::<Vec<Value>>(),
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn kind(package: &Package) -> &'static str {
    if package.name == CONVERTER {
        "application"
    } else {
        "library"
    }
}

fn component(package: &Package, kind: &str) -> Value {
    let Package { name, version, .. } = package;
    let mut component = json!({
        "type": kind,
        "name": name,
        "version": version,
        "bom-ref": format!("pkg:cargo/{name}@{version}"),
        "purl": format!("pkg:cargo/{name}@{version}"),
    });
    if let Some(license) = &package.license {
        component["licenses"] = json!([{ "expression": expression(license) }]);
    }
    if let Some(url) = &package.repository {
        component["externalReferences"] = json!([{ "type": "vcs", "url": url }]);
    }
    component
}

/// Converts a license expression: old manifests separate alternatives by a slash.
fn expression(license: &str) -> String {
    license
        .split('/')
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(" OR ")
}

/// Returns name, version, license and authors of each library, and each license text once.
pub fn licences(packages: &[Package]) -> String {
    let mut text = String::from(
        "edge-lmm and edge-lmm-convert are made of the following libraries, each under the license named, and of the Rust\n\
         standard library (MIT OR Apache-2.0). A static program also contains musl (MIT).\n\n",
    );
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages.iter().filter(|package| package.source.is_some()) {
        let Package { name, version, .. } = package;
        let licence = match (&package.license, &package.license_file) {
            (Some(licence), _) => expression(licence),
            (None, Some(file)) => format!("see {}", file.display()),
            (None, None) => "not stated".to_owned(),
        };
        text += &format!("{name} {version}: {licence}");
        if !package.authors.is_empty() {
            text += &format!(" ({})", package.authors.join(", "));
        }
        text.push('\n');
        for licence in licence_texts(&package.manifest_path) {
            texts.entry(licence).or_default().push(name.clone());
        }
    }
    for (licence, names) in &texts {
        text += &format!(
            "\n{}\nOf {}:\n\n{}\n",
            "-".repeat(72),
            names.join(", "),
            licence.trim()
        );
    }
    text
}

/// Reads the license files beside a manifest.
fn licence_texts(manifest: &Path) -> Vec<String> {
    let Some(Ok(files)) = manifest.parent().map(fs::read_dir) else {
        return Vec::new();
    };
    let is_licence = |name: &str| {
        let name = name.to_ascii_uppercase();
        ["LICENSE", "LICENCE", "COPYING", "NOTICE"]
            .iter()
            .any(|start| name.starts_with(start))
    };
    let mut paths: Vec<PathBuf> = files
        .flatten()
        .filter(|file| is_licence(&file.file_name().to_string_lossy()))
        .map(|file| file.path())
        .collect();
    paths.sort();
    paths
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_tree_are_understood() {
        let line = "edge-lmm v0.1.0 (/somewhere/runtime/engine)";
        assert_eq!(name_and_version(line), Some(("edge-lmm", "0.1.0")));
        assert_eq!(name_and_version(""), None);
    }

    #[test]
    fn old_licence_expressions_become_new_ones() {
        assert_eq!(expression("MIT/Apache-2.0"), "MIT OR Apache-2.0");
        assert_eq!(expression("MIT"), "MIT");
    }
}
