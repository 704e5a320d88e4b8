//! Reports as tables for people.

use std::fmt::Write;

use super::report::{Bound, ModuleCost, ProfileReport, ProfileRun};
use crate::columns::columns;
use crate::timing::{within_stage, without_numbers};
use crate::units::bytes;

/// Mark of the row that takes most of the time.
const MARK: &str = " <- bottleneck";

/// Formats a run as a table of stages and modules, in which the layers of a stack are one row.
pub fn modules(costs: &[ModuleCost]) -> String {
    let rows = rows(costs);
    let total: f64 = tops(costs).map(shown).sum();
    let largest = rows.iter().filter(|row| row.top).map(|row| row.ms);
    let largest = largest.fold(0.0, f64::max);
    let header = [
        "stage", "time", "own", "share", "calls", "own peak", "GFLOP/s", "GB/s", "bound",
    ];
    let mut cells = vec![header.map(str::to_owned)];
    for row in &rows {
        let mark = if row.top && row.ms == largest {
            MARK
        } else {
            ""
        };
        cells.push([
            match row.top {
                true => format!("{}{mark}", row.name),
                false => format!("  {}", within_stage(&row.name)),
            },
            format!("{:.1} ms", row.ms),
            format!("{:.1} ms", row.own_ms),
            format!("{:.1} %", 100.0 * row.ms / total.max(f64::MIN_POSITIVE)),
            row.calls.to_string(),
            bytes(row.peak_bytes as usize),
            row.per_second(2.0 * row.macs as f64),
            row.per_second(row.bytes as f64),
            row.bound(),
        ]);
    }
    let none = String::new;
    let total = format!("{total:.1} ms");
    cells.push([
        "total".to_owned(),
        total,
        none(),
        "100.0 %".to_owned(),
        none(),
        none(),
        none(),
        none(),
        none(),
    ]);
    columns(&cells)
}

/// Formats a run as a table with one row per type of layer: time outside of inner modules, and share
/// of the total.
pub fn layers(costs: &[ModuleCost]) -> String {
    let mut types: Vec<(String, f64)> = Vec::new();
    for cost in costs {
        let kind = layer_type(cost);
        let own = match cost.parent {
            None => cost.own_ms - cost.hidden_ms,
            Some(_) => cost.own_ms,
        };
        match types.iter_mut().find(|(name, _)| *name == kind) {
            Some((_, ms)) => *ms += own,
            None => types.push((kind, own)),
        }
    }
    types.sort_by(|a, b| b.1.total_cmp(&a.1));
    let total: f64 = types.iter().map(|(_, ms)| ms).sum();
    let row = |name: String, ms: f64| {
        let share = 100.0 * ms / total.max(f64::MIN_POSITIVE);
        [name, format!("{ms:.2}"), format!("{share:.1}")]
    };
    let mut cells = vec![["Layer Type", "Time (ms)", "% Total"].map(str::to_owned)];
    for (place, (name, ms)) in types.into_iter().enumerate() {
        let mark = if place == 0 { MARK } else { "" };
        cells.push(row(format!("{name}{mark}"), ms));
    }
    cells.push(row("Total".to_owned(), total));
    columns(&cells)
}

/// Returns the type of layer that a module's own time belongs to.
fn layer_type(cost: &ModuleCost) -> String {
    let last = cost.name.rsplit('.').next().unwrap_or(&cost.name);
    let in_module = |name: &str| cost.name.split('.').any(|part| part == name);
    let attention = in_module("attention") || in_module("cross_attention");
    let kind = match last {
        _ if cost.parent.is_none() => return format!("Other ({})", cost.stage),
        "norm" => "Norm",
        "scores" => "Attention scores",
        "softmax" => "Attention softmax",
        "values" => "Attention values",
        "attention" | "cross_attention" | "ranking" | "received" => "Attention, other",
        _ if attention => "Attention projections",
        "mlp" | "feed_forward" => "MLP",
        _ if in_module("mlp") => "MLP",
        "head" => "Output head",
        "embedding" => "Embedding",
        "patch_embed" => "Patch embedding",
        _ if in_module("patch_embed") => "Patch embedding",
        _ if in_module("conv") => "Convolution",
        "merge" => "Token merging",
        _ if cost.stage == "projector" => "Projector",
        other => return format!("{other} ({})", cost.stage),
    };
    kind.to_owned()
}

/// Formats everything about a run apart from its modules.
pub fn summary(run: &ProfileRun) -> String {
    let mut text = format!(
        "total {}, by the clock outside {}; first token after {}",
        times(&run.total_ms),
        times(&run.outside_ms),
        times(&run.first_token_ms)
    );
    if let Some(cold) = &run.cold {
        let _ = write!(
            text,
            "\ncold run: total {:.1} ms, first token after {:.1} ms",
            cold.total_ms, cold.first_token_ms
        );
    }
    if let Some(speed) = &run.tokens_per_second {
        let _ = write!(text, "\ndecoding at {:.1} tokens/s", speed.median);
    }
    let tokens = &run.tokens;
    let _ = write!(
        text,
        "\nprompt of {} tokens: {} computed, {} reused; {} of media ({} before reductions); {} \
         generated",
        tokens.prompt,
        tokens.computed,
        tokens.reused,
        tokens.visual,
        tokens.visual_before,
        tokens.generated
    );
    for step in &tokens.reductions {
        let _ = write!(text, "\n{}: {} tokens left", step.method, step.tokens);
    }
    if tokens.encoder_hits + tokens.encoder_misses > 0 {
        let _ = write!(
            text,
            "\nmedia: {} encoded, {} reused",
            tokens.encoder_misses, tokens.encoder_hits
        );
    }
    if tokens.useful_frames > 0 {
        let _ = write!(
            text,
            "; frames: {} with content, {} of padding",
            tokens.useful_frames, tokens.padded_frames
        );
    }
    if let Some(joules) = run.energy_joules {
        let _ = write!(text, "\nenergy {joules:.2} J");
    }
    if let Some(resident) = run.peak_resident_bytes {
        let _ = write!(text, "\npeak resident memory {}", bytes(resident as usize));
    }
    text
}

/// Formats what all runs have in common.
pub fn environment(report: &ProfileReport) -> String {
    let environment = &report.environment;
    let machine = environment.machine.as_deref();
    let mut text = format!(
        "{} {} ({}) on {}, {} threads, {}, device {}",
        environment.program,
        environment.version,
        environment.build,
        machine.unwrap_or(&environment.architecture),
        environment.threads,
        environment.kernels,
        environment.device
    );
    if let Some(roofline) = &report.roofline {
        let peaks = roofline.peaks.iter().filter_map(|peak| {
            let macs = peak.macs_per_second?;
            Some(format!(", {:.1} GMAC/s in {}", macs / 1e9, peak.format))
        });
        let _ = write!(
            text,
            "\npeaks: {:.1} GB/s{}",
            roofline.bytes_per_second / 1e9,
            peaks.collect::<String>()
        );
    }
    if let Some(source) = &report.energy_source {
        let _ = write!(text, "\nenergy from {source}");
    }
    text
}

/// Names the point of a sweep, and the turn if `turns` is set; empty for a single question about given
/// files.
pub fn title(run: &ProfileRun, turns: bool) -> String {
    let parameters = &run.parameters;
    let size = parameters
        .image_size
        .map(|size| format!("image size {size}"));
    let frames = parameters.frames.map(|frames| format!("{frames} frames"));
    let audio = parameters
        .audio_seconds
        .map(|seconds| format!("{seconds} s of sound"));
    let turn = turns.then(|| format!("turn {}", parameters.turn));
    let parts: Vec<String> = [size, frames, audio, turn].into_iter().flatten().collect();
    parts.join(", ")
}

fn times(statistics: &crate::statistics::Statistics) -> String {
    match statistics.count {
        1 => format!("{:.1} ms", statistics.median),
        _ => format!(
            "{:.1} ms (median of {}, {:.1} to {:.1}, standard deviation {:.1})",
            statistics.median, statistics.count, statistics.min, statistics.max, statistics.std_dev
        ),
    }
}

/// A row of the table: a stage, or the modules of one kind inside it.
struct Row {
    name: String,
    top: bool,
    ms: f64,
    own_ms: f64,
    calls: usize,
    peak_bytes: u64,
    macs: u64,
    bytes: u64,
    bounds: Vec<Bound>,
    /// Shortest possible time by the roofline.
    shortest_ms: Option<f64>,
}

impl Row {
    fn new(cost: &ModuleCost, name: String) -> Self {
        Self {
            name,
            top: cost.parent.is_none(),
            ms: cost.ms.median,
            own_ms: cost.own_ms,
            calls: cost.calls,
            peak_bytes: cost.peak_bytes,
            macs: cost.macs,
            bytes: cost.bytes,
            bounds: vec![cost.bound],
            shortest_ms: shortest(cost),
        }
    }

    fn add(&mut self, cost: &ModuleCost) {
        self.ms += cost.ms.median;
        self.own_ms += cost.own_ms;
        self.calls += cost.calls;
        self.peak_bytes = self.peak_bytes.max(cost.peak_bytes);
        self.macs += cost.macs;
        self.bytes += cost.bytes;
        self.bounds.push(cost.bound);
        self.shortest_ms = self.shortest_ms.zip(shortest(cost)).map(|(a, b)| a + b);
    }

    fn per_second(&self, count: f64) -> String {
        match count > 0.0 && self.ms > 0.0 {
            true => format!("{:.1}", count / self.ms / 1e6),
            false => String::new(),
        }
    }

    /// Returns the bound of most of the layers, and the share of the roofline that they reach.
    fn bound(&self) -> String {
        let Some(shortest) = self.shortest_ms.filter(|_| self.ms > 0.0) else {
            return String::new();
        };
        let most = [Bound::Memory, Bound::Compute, Bound::Neither]
            .into_iter()
            .max_by_key(|bound| self.bounds.iter().filter(|other| *other == bound).count());
        let name = match most {
            Some(Bound::Memory) => "memory",
            Some(Bound::Compute) => "compute",
            _ => "neither",
        };
        format!("{name} {:.0} %", 100.0 * shortest / self.ms)
    }
}

fn shortest(cost: &ModuleCost) -> Option<f64> {
    cost.roof_share.map(|share| share * cost.ms.median)
}

fn tops(costs: &[ModuleCost]) -> impl Iterator<Item = &ModuleCost> {
    costs.iter().filter(|cost| cost.parent.is_none())
}

/// Returns the time of a stage that others do not hide.
fn shown(cost: &ModuleCost) -> f64 {
    cost.ms.median - cost.hidden_ms
}

/// Returns the stages, each followed by its modules; the layers of a stack are added up.
fn rows(costs: &[ModuleCost]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for top in tops(costs) {
        rows.push(Row::new(top, top.name.clone()));
        let first = rows.len();
        let inside = |cost: &&ModuleCost| cost.stage == top.stage && cost.parent.is_some();
        for cost in costs.iter().filter(inside) {
            let name = without_numbers(&cost.name);
            match rows[first..].iter_mut().find(|row| row.name == name) {
                Some(row) => row.add(cost),
                None => rows.push(Row::new(cost, name)),
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{cost, example};
    use super::*;

    fn costs() -> Vec<ModuleCost> {
        vec![
            cost("vision", None, 100.0, 10.0),
            cost("vision.blocks.0.attention", Some(0), 40.0, 5.0),
            cost("vision.blocks.0.attention.qkv", Some(1), 20.0, 20.0),
            cost("vision.blocks.0.attention.scores", Some(1), 15.0, 15.0),
            cost("vision.blocks.1.attention", Some(0), 50.0, 10.0),
            cost("vision.blocks.1.attention.qkv", Some(4), 40.0, 40.0),
        ]
    }

    #[test]
    fn layers_of_a_stack_are_one_row() {
        let text = modules(&costs());
        let line = |start: &str| {
            let mut lines = text.lines();
            let found = lines.find(|line| line.trim_start_matches(['|', ' ']).starts_with(start));
            found
                .unwrap_or_else(|| panic!("no {start} in\n{text}"))
                .to_owned()
        };
        assert!(line("blocks.*.attention ").contains("90.0 ms"), "{text}");
        assert!(line("blocks.*.attention ").contains("15.0 ms"), "{text}");
        assert!(line("blocks.*.attention.qkv").contains("60.0 %"), "{text}");
        assert!(line("vision <- bottleneck").contains("100.0 %"), "{text}");
        assert!(line("vision").contains("compute 50 %"), "{text}");
    }

    #[test]
    fn types_of_layers_add_up_to_the_total() {
        let text = layers(&costs());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("Layer Type"), "{text}");
        assert!(lines[0].contains("Time (ms) | % Total"), "{text}");
        assert!(
            lines[2].contains("Attention projections <- bottleneck"),
            "{text}"
        );
        assert!(lines[2].contains("60.00 |    60.0"), "{text}");
        assert!(
            lines[lines.len() - 1].contains("100.00 |   100.0"),
            "{text}"
        );
    }

    #[test]
    fn a_run_is_summarized() {
        let report = example();
        let text = summary(&report.runs[0]);
        assert!(
            text.contains("total 10.0 ms, by the clock outside 10.1 ms"),
            "{text}"
        );
        assert_eq!(title(&report.runs[0], true), "image size 224, turn 1");
        assert_eq!(title(&report.runs[0], false), "image size 224");
        assert!(environment(&report).contains("peaks: 10.0 GB/s"));
    }
}
