//! `edge-lmm profile --compare`: reads profiles and prints what changed.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use comfy_table::{CellAlignment, Table, presets};
use edge_lmm::output::Output;
use edge_lmm::profile::ProfileReport;
use edge_lmm::units;

use super::comparison::{Change, Comparison, Verdict};
use crate::cmd::options::print_now;
use crate::page;

/// Compares profiles with the first of them and prints the changes as tables or JSON; `html` gets
/// them as a page.
///
/// # Errors
/// If a file is no profile of this version, or the page cannot be written.
pub fn run(files: &[PathBuf], html: Option<&Path>, json: bool) -> anyhow::Result<()> {
    if files.len() < 2 {
        bail!("--compare needs two files or more, the baseline first");
    }
    let inputs = files.iter().map(PathBuf::as_path);
    let html = html.map(|path| Output::replace(path, inputs)).transpose()?;
    let read = |path: &PathBuf| {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        let report = ProfileReport::parse(&text).with_context(|| name.clone())?;
        anyhow::Ok((name, report))
    };
    let profiles = files.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let comparison = Comparison::new(&profiles);
    if let Some(file) = html {
        file.finish_with(page::comparison(&comparison)?.as_bytes())?;
    }
    let text = match json {
        true => serde_json::to_string(&comparison)?,
        false => text(&comparison),
    };
    print_now(&format!("{text}\n"))
}

/// Returns the tables of a comparison.
pub fn text(comparison: &Comparison) -> String {
    let mut parts = vec![format!("baseline: {}", comparison.baseline)];
    for profile in &comparison.profiles {
        parts.push(format!("compared: {}", profile.file));
        let warnings = profile.warnings.iter();
        parts.extend(warnings.map(|warning| format!("warning: {warning}")));
        for run in &profile.runs {
            parts.push(format!("\n{}", run.point));
            parts.push(table("", &run.whole));
            parts.push(table("stage or module", &run.modules));
        }
    }
    parts.push(
        "\nMeans of the repeats; noise: 99 % confidence interval of the difference (Welch's t-test)"
            .to_owned(),
    );
    parts.join("\n")
}

fn table(what: &str, changes: &[Change]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        what,
        "before",
        "after",
        "difference",
        "noise",
        "%",
        "verdict",
    ]);
    for column in table.column_iter_mut().skip(1).take(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for change in changes {
        let shown =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| amount(value, change.unit));
        table.add_row([
            name(change),
            shown(change.before),
            shown(change.after),
            signed(change.difference, change.unit),
            change.noise.map_or("-".to_owned(), |noise| {
                format!("± {}", amount(noise, change.unit))
            }),
            change
                .relative()
                .map_or("-".to_owned(), |share| format!("{:+.1}", 100.0 * share)),
            verdict(change.verdict).to_owned(),
        ]);
    }
    table.to_string()
}

/// The name of a module, with its stage if the path does not start with it.
fn name(change: &Change) -> String {
    match &change.stage {
        Some(stage) if !change.name.starts_with(stage.as_str()) => {
            format!("{} ({stage})", change.name)
        }
        _ => change.name.clone(),
    }
}

fn amount(value: f64, unit: &str) -> String {
    match unit {
        "bytes" => units::bytes(value as usize),
        "ms" => format!("{value:.2} ms"),
        unit => format!("{value:.2} {unit}"),
    }
}

fn signed(difference: f64, unit: &str) -> String {
    let sign = if difference < 0.0 { "-" } else { "+" };
    format!("{sign}{}", amount(difference.abs(), unit))
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::WithinNoise => "within noise",
        Verdict::NoiseUnknown => "noise unknown",
        Verdict::Equal => "equal",
        Verdict::Added => "added",
        Verdict::Removed => "removed",
    }
}
