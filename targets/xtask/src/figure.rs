//! `cargo xtask figure`: stages of an answer by two programs, as a figure for the README.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Deserialize;

/// Draws the stages of a comparison with llama.cpp as SVG.
///
/// The input is what targets/compare_llama_cpp.py --json writes.
#[derive(Args)]
pub struct Cmd {
    /// Comparison in JSON
    #[arg(value_name = "FILE.json")]
    comparison: PathBuf,
    /// Figure to write
    #[arg(short, long, value_name = "FILE.svg")]
    output: PathBuf,
}

impl Cmd {
    pub fn run(self) -> anyhow::Result<()> {
        let text = fs::read_to_string(&self.comparison)
            .with_context(|| format!("cannot read {}", self.comparison.display()))?;
        let svg = svg(&text).with_context(|| self.comparison.display().to_string())?;
        fs::write(&self.output, svg)
            .with_context(|| format!("cannot write {}", self.output.display()))
    }
}

#[derive(Deserialize)]
struct Comparison {
    processor: String,
    threads: usize,
    record: String,
    generated_tokens: usize,
    answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    program: String,
    pixels: u32,
    stages_ms: Stages,
}

#[derive(Deserialize)]
struct Stages {
    vision: f64,
    prefill: f64,
    decode: f64,
}

impl Stages {
    /// Returns name and seconds of each stage.
    fn seconds(&self) -> [(&'static str, f64); 3] {
        let Self {
            vision,
            prefill,
            decode,
        } = self;
        [
            ("vision", vision / 1e3),
            ("prefill", prefill / 1e3),
            ("decode", decode / 1e3),
        ]
    }

    fn total(&self) -> f64 {
        self.seconds().iter().map(|(_, seconds)| seconds).sum()
    }
}

/// Width of the figure, of its labels and of the room behind the longest bar, in pixels.
const WIDTH: f64 = 820.0;
const LABELS: f64 = 96.0;
const TOTALS: f64 = 64.0;
/// Height of the title, of a group's heading and of a bar with the gap below it.
const TITLE: f64 = 58.0;
const HEADING: f64 = 30.0;
const BAR: f64 = 32.0;
/// Colors follow the reader's setting for light and dark pages.
const STYLE: &str = "text{font:14px system-ui,sans-serif;fill:#1b1d20}.soft{fill:#595f67;font-size:12px}\
.strong{font-weight:600}.on{fill:#fff;font-size:12px}.vision{fill:#0b5fa5}.prefill{fill:#b84700}.decode{fill:#00735a}\
@media(prefers-color-scheme:dark){text{fill:#e9ebee}.soft{fill:#a8afb8}.on{fill:#101214}.vision{fill:#6fb1f0}\
.prefill{fill:#ff9a57}.decode{fill:#4ecba5}}";

fn svg(comparison: &str) -> anyhow::Result<String> {
    let comparison: Comparison = serde_json::from_str(comparison)?;
    let longest = comparison
        .answers
        .iter()
        .map(|answer| answer.stages_ms.total());
    let longest = longest.fold(0.0, f64::max);
    ensure!(longest > 0.0, "the comparison has no answers");
    let scale = (WIDTH - LABELS - TOTALS) / longest;
    let mut body = title(&comparison);
    let (mut y, mut group) = (TITLE, None);
    for answer in &comparison.answers {
        if group.replace(answer.pixels) != Some(answer.pixels) {
            y += HEADING;
            let pixels = answer.pixels;
            body += &text(
                0.0,
                y - 10.0,
                "strong",
                &format!("image of {pixels} x {pixels} pixels"),
            );
        }
        body += &bar(answer, y, scale);
        y += BAR;
    }
    let alternative = escaped(&alternative(&comparison));
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" role=\"img\" aria-label=\"{alternative}\">\n\
         <style>{STYLE}</style>\n{body}</svg>\n"
    ))
}

/// Draws the title with the legend.
fn title(comparison: &Comparison) -> String {
    let Comparison {
        processor,
        threads,
        record,
        generated_tokens,
        ..
    } = comparison;
    let what = format!("{record}: time of an answer of {generated_tokens} tokens, in seconds");
    let machine = format!("{threads} threads, {processor}");
    let mut body = text(0.0, 16.0, "strong", &what) + &text(0.0, 38.0, "soft", &machine);
    let mut x = WIDTH - 240.0;
    for name in ["vision", "prefill", "decode"] {
        let _ = writeln!(
            body,
            "<rect class=\"{name}\" x=\"{x}\" y=\"28\" width=\"12\" height=\"12\"/>"
        );
        body += &text(x + 17.0, 38.0, "soft", name);
        x += 80.0;
    }
    body
}

fn bar(answer: &Answer, y: f64, scale: f64) -> String {
    let mut body = text(0.0, y + 17.0, "", &answer.program);
    let mut x = LABELS;
    for (name, seconds) in answer.stages_ms.seconds() {
        let width = seconds * scale;
        let _ = writeln!(
            body,
            "<rect class=\"{name}\" x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"25\"/>"
        );
        if width > 34.0 {
            body += &text(x + 6.0, y + 17.0, "on", &format!("{seconds:.1}"));
        }
        x += width;
    }
    body + &text(
        x + 8.0,
        y + 17.0,
        "strong",
        &format!("{:.1}", answer.stages_ms.total()),
    )
}

fn text(x: f64, y: f64, class: &str, text: &str) -> String {
    format!(
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y}\">{}</text>\n",
        escaped(text)
    )
}

/// Describes the figure in words.
fn alternative(comparison: &Comparison) -> String {
    let answers = comparison.answers.iter().map(|answer| {
        let Answer {
            program,
            pixels,
            stages_ms,
        } = answer;
        format!("{program}, {pixels} pixels: {:.1} s", stages_ms.total())
    });
    answers.collect::<Vec<_>>().join("; ")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell;

    #[test]
    fn the_figure_of_the_readme_is_that_of_its_data() {
        let docs = shell::root().join("docs");
        let data = fs::read_to_string(docs.join("comparison.json")).expect("the data");
        let figure = fs::read_to_string(docs.join("comparison.svg")).expect("the figure");
        assert_eq!(
            svg(&data).expect("a figure"),
            figure,
            "run cargo xtask figure docs/comparison.json -o docs/comparison.svg"
        );
    }

    #[test]
    fn text_is_escaped_and_nothing_to_draw_is_an_error() {
        let json = r#"{"processor": "<b> & \"", "threads": 1, "record": "r", "generated_tokens": 2, "answers": [
            {"program": "p", "pixels": 8, "stages_ms": {"vision": 1, "prefill": 2, "decode": 3}}]}"#;
        assert!(svg(json).expect("a figure").contains("&lt;b> &amp; &quot;"));
        let empty = r#"{"processor": "", "threads": 1, "record": "r", "generated_tokens": 2, "answers": []}"#;
        assert!(svg(empty).is_err());
    }
}
