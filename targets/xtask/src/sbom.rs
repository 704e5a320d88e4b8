//! What a program is made of, from `cargo metadata`: a list of components (CycloneDX 1.5,
//! <https://cyclonedx.org>) and their licences with their texts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::shell;

/// A library in the program.
#[derive(Debug, Clone, Deserialize)]
pub struct Package {
    id: String,
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
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

/// All that is linked into edge-lmm for a Rust target, edge-lmm first: tools and tests are left
/// out.
pub fn packages(triple: &str) -> anyhow::Result<Vec<Package>> {
    let text = shell::output(
        Command::new("cargo")
            .args(["metadata", "--format-version", "1", "--locked", "--filter-platform"])
            .arg(triple)
            .current_dir(shell::root()),
    )?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo metadata")?;
    let root = metadata.packages.iter().find(|package| package.name == "edge-lmm");
    let root = root.context("cargo metadata knows no package edge-lmm")?.id.clone();
    let nodes: BTreeMap<&str, &Node> = metadata
        .resolve
        .nodes
        .iter()
        .map(|node| (node.id.as_str(), node))
        .collect();
    let mut linked = BTreeSet::new();
    let mut open = vec![root.as_str()];
    while let Some(id) = open.pop() {
        if !linked.insert(id) {
            continue;
        }
        let dependencies = nodes.get(id).map_or(&[][..], |node| &node.deps);
        let normal = dependencies
            .iter()
            .filter(|dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none()));
        open.extend(normal.map(|dependency| dependency.pkg.as_str()));
    }
    let mut packages: Vec<Package> = metadata
        .packages
        .iter()
        .filter(|package| linked.contains(package.id.as_str()))
        .cloned()
        .collect();
    packages.sort_by_key(|package| (package.id != root, package.name.clone()));
    Ok(packages)
}

/// The list of components.
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
        "components": others.iter().map(|p| component(p, "library")).collect::<Vec<Value>>(),
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
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

/// Old manifests separate alternatives by a slash.
fn expression(license: &str) -> String {
    license
        .split('/')
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(" OR ")
}

/// Name, version, licence and authors of each library, and each licence's text once.
pub fn licences(packages: &[Package]) -> String {
    let mut text = String::from(
        "edge-lmm is made of the following libraries, each under the licence named.\n\n",
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
        text += &format!("\n{}\nOf {}:\n\n{}\n", "-".repeat(72), names.join(", "), licence.trim());
    }
    text
}

/// The licence files beside a manifest.
fn licence_texts(manifest: &Path) -> Vec<String> {
    let Some(Ok(files)) = manifest.parent().map(fs::read_dir) else {
        return Vec::new();
    };
    let is_licence = |name: &str| {
        let name = name.to_ascii_uppercase();
        ["LICENSE", "LICENCE", "COPYING", "NOTICE"].iter().any(|start| name.starts_with(start))
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
