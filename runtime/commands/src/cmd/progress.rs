//! Progress of an answer on a terminal.

use edge_lmm::Event;
use indicatif::{ProgressBar, ProgressStyle};

/// A progress bar on standard error for the steps of the encoder and of prefill. It is hidden
/// unless standard error is a terminal, and cleared when the first text arrives.
pub struct AnswerProgress {
    bar: ProgressBar,
    stage: &'static str,
}

impl AnswerProgress {
    /// Creates a bar without progress.
    pub fn new() -> Self {
        let style = ProgressStyle::with_template("{msg:10} {bar:30} {pos}/{len} steps {elapsed}");
        let bar = ProgressBar::new(0);
        // The template is a constant; the default style is a fallback.
        let bar = match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        Self { bar, stage: "" }
    }

    /// Shows an event.
    pub fn show(&mut self, event: &Event<'_>) {
        match *event {
            Event::Progress {
                stage: "decode", ..
            }
            | Event::Text(_) => self.bar.finish_and_clear(),
            Event::Progress { stage, done, total } => {
                if self.stage != stage || done == 0 {
                    self.stage = stage;
                    self.bar.reset();
                    self.bar.set_message(stage);
                }
                self.bar.set_length(total as u64);
                self.bar.set_position(done as u64);
            }
            _ => {}
        }
    }

    /// Writes a line above the bar.
    pub fn note(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }
}

/// Returns a bar for a download of some bytes, hidden unless standard error is a terminal.
///
/// # Errors
/// None in practice: the template is a constant.
#[cfg(any(feature = "data", feature = "pull"))]
pub fn download_bar(bytes: u64) -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template(
        "{msg} {bar:20} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left",
    )?;
    Ok(ProgressBar::new(bytes).with_style(style))
}

impl Drop for AnswerProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
