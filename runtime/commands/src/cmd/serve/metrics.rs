//! Counters of the service, in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use edge_lmm::health::System;
use edge_lmm::report::resident_bytes;
use edge_lmm::{Answer, EngineError, FinishReason};

/// Upper bounds of the buckets of times, in seconds.
const SECONDS: [f64; 13] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];
/// Upper bounds of the buckets of speeds, in tokens per second.
const SPEEDS: [f64; 10] = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0];

/// Counters of all requests so far.
#[derive(Default)]
pub struct Metrics(Mutex<Counters>);

struct Counters {
    /// Time of each stage.
    stages: BTreeMap<String, Histogram>,
    first_token: Histogram,
    waited: Histogram,
    speed: Histogram,
    /// Answers by the reason of their end.
    answers: BTreeMap<&'static str, u64>,
    /// Replies of HTTP by path and status.
    replies: BTreeMap<(&'static str, u16), u64>,
    prompt_tokens: u64,
    reused_tokens: u64,
    visual_tokens: u64,
    answer_tokens: u64,
}

/// State of the service at the time of a report.
pub struct Load {
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that are being answered.
    pub answering: usize,
}

impl Metrics {
    fn counters(&self) -> MutexGuard<'_, Counters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an answer and the time that its request waited.
    pub fn observe(&self, answer: &Result<Answer, EngineError>, waited: Duration) {
        let mut counters = self.counters();
        counters.waited.add(waited.as_secs_f64());
        let reason = match answer {
            Ok(answer) => reason(answer.finish_reason),
            Err(_) => "error",
        };
        *counters.answers.entry(reason).or_default() += 1;
        let Ok(answer) = answer else {
            return;
        };
        let timing = &answer.timing;
        for stage in timing.stages().iter().filter(|stage| stage.is_top()) {
            let seconds = stage.time.as_secs_f64();
            let stage = counters.stages.entry(stage.name.clone());
            stage
                .or_insert_with(|| Histogram::new(&SECONDS))
                .add(seconds);
        }
        let first = answer.first_token_after(timing).as_secs_f64();
        counters.first_token.add(first);
        if let Some(speed) = answer.tokens_per_second(timing) {
            counters.speed.add(speed);
        }
        counters.prompt_tokens += answer.prompt_tokens as u64;
        counters.reused_tokens += answer.reused_tokens as u64;
        counters.visual_tokens += answer.visual_tokens as u64;
        counters.answer_tokens += answer.tokens.len() as u64;
    }

    /// Counts a reply of HTTP.
    pub fn reply(&self, path: &'static str, status: u16) {
        *self.counters().replies.entry((path, status)).or_default() += 1;
    }

    /// Writes all counters, the state of the service and that of the machine.
    pub fn text(&self, load: &Load) -> String {
        let mut out = String::new();
        self.counters().write(&mut out);
        let gauge = |out: &mut String, name: &str, help: &str, value: f64| {
            head(out, name, "gauge", help);
            line(out, name, "", value);
        };
        let waiting = load.waiting as f64;
        gauge(&mut out, "queue_length", "Requests that wait.", waiting);
        let help = "Requests that are being answered.";
        gauge(&mut out, "answering", help, load.answering as f64);
        let system = System::default();
        if let Some(bytes) = resident_bytes() {
            let help = "Resident memory of the process, with mapped weights.";
            gauge(&mut out, "resident_bytes", help, bytes as f64);
        }
        if let Some(memory) = system.memory() {
            let help = "Memory that the process can still allocate.";
            gauge(&mut out, "usable_bytes", help, memory.usable() as f64);
        }
        let temperatures = system.temperatures();
        if !temperatures.is_empty() {
            let help = "Temperature of a thermal zone.";
            head(&mut out, "temperature_celsius", "gauge", help);
        }
        for zone in temperatures {
            let label = format!("zone=\"{}\"", escaped(&zone.zone));
            line(&mut out, "temperature_celsius", &label, zone.celsius);
        }
        out
    }
}

fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Context => "context",
        _ => "canceled",
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            stages: BTreeMap::new(),
            first_token: Histogram::new(&SECONDS),
            waited: Histogram::new(&SECONDS),
            speed: Histogram::new(&SPEEDS),
            answers: BTreeMap::new(),
            replies: BTreeMap::new(),
            prompt_tokens: 0,
            reused_tokens: 0,
            visual_tokens: 0,
            answer_tokens: 0,
        }
    }
}

impl Counters {
    fn write(&self, out: &mut String) {
        let counter = |out: &mut String, name: &str, help: &str, value: u64| {
            head(out, name, "counter", help);
            line(out, name, "", value as f64);
        };
        head(out, "answers_total", "counter", "Answers by their end.");
        for (reason, &count) in &self.answers {
            let label = format!("finish_reason=\"{reason}\"");
            line(out, "answers_total", &label, count as f64);
        }
        let help = "Replies of HTTP by path and status.";
        head(out, "http_replies_total", "counter", help);
        for ((path, status), &count) in &self.replies {
            let label = format!("path=\"{path}\",status=\"{status}\"");
            line(out, "http_replies_total", &label, count as f64);
        }
        let help = "Tokens of prompts.";
        counter(out, "prompt_tokens_total", help, self.prompt_tokens);
        let help = "Tokens of prompts that were not computed again.";
        counter(out, "cached_tokens_total", help, self.reused_tokens);
        let help = "Tokens of images, videos and sounds.";
        counter(out, "visual_tokens_total", help, self.visual_tokens);
        let help = "Tokens of answers.";
        counter(out, "answer_tokens_total", help, self.answer_tokens);
        let help = "Time of each stage of an answer.";
        head(out, "stage_seconds", "histogram", help);
        for (stage, histogram) in &self.stages {
            let label = format!("stage=\"{}\"", escaped(stage));
            histogram.write(out, "stage_seconds", &label);
        }
        let help = "Time in the queue.";
        head(out, "queue_seconds", "histogram", help);
        self.waited.write(out, "queue_seconds", "");
        let help = "Time from the request to its first token, without the queue.";
        head(out, "first_token_seconds", "histogram", help);
        let first = &self.first_token;
        first.write(out, "first_token_seconds", "");
        let help = "Tokens per second of decoding.";
        head(out, "tokens_per_second", "histogram", help);
        self.speed.write(out, "tokens_per_second", "");
    }
}

/// Values counted in buckets.
struct Histogram {
    /// Upper bounds of the buckets.
    bounds: &'static [f64],
    counts: Vec<u64>,
    count: u64,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len()],
            count: 0,
            sum: 0.0,
        }
    }

    fn add(&mut self, value: f64) {
        if let Some(bucket) = self.bounds.iter().position(|&bound| value <= bound) {
            self.counts[bucket] += 1;
        }
        self.count += 1;
        self.sum += value;
    }

    fn write(&self, out: &mut String, name: &str, label: &str) {
        let comma = if label.is_empty() { "" } else { "," };
        let bucket = format!("{name}_bucket");
        let mut total = 0;
        for (count, bound) in self.counts.iter().zip(self.bounds) {
            total += count;
            let label = format!("{label}{comma}le=\"{bound}\"");
            line(out, &bucket, &label, total as f64);
        }
        let label_of_all = format!("{label}{comma}le=\"+Inf\"");
        line(out, &bucket, &label_of_all, self.count as f64);
        line(out, &format!("{name}_sum"), label, self.sum);
        line(out, &format!("{name}_count"), label, self.count as f64);
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP edge_lmm_{name} {help}");
    let _ = writeln!(out, "# TYPE edge_lmm_{name} {kind}");
}

fn line(out: &mut String, name: &str, labels: &str, value: f64) {
    let _ = match labels {
        "" => writeln!(out, "edge_lmm_{name} {value}"),
        labels => writeln!(out, "edge_lmm_{name}{{{labels}}} {value}"),
    };
}

/// Escapes the value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let metrics = Metrics::default();
        for seconds in [0.001, 0.02, 0.02, 99.0] {
            metrics.counters().waited.add(seconds);
        }
        metrics.reply("/health", 200);
        let text = metrics.text(&Load {
            waiting: 3,
            answering: 2,
        });
        for expected in [
            "edge_lmm_queue_seconds_bucket{le=\"0.005\"} 1\n",
            "edge_lmm_queue_seconds_bucket{le=\"0.025\"} 3\n",
            "edge_lmm_queue_seconds_bucket{le=\"60\"} 3\n",
            "edge_lmm_queue_seconds_bucket{le=\"+Inf\"} 4\n",
            "edge_lmm_queue_seconds_count 4\n",
            "edge_lmm_queue_length 3\n",
            "edge_lmm_answering 2\n",
            "edge_lmm_http_replies_total{path=\"/health\",status=\"200\"} 1\n",
        ] {
            assert!(text.contains(expected), "no {expected:?} in\n{text}");
        }
    }
}
