//! Timing as a Chrome trace, for `chrome://tracing` and <https://ui.perfetto.dev>.

use std::time::Duration;

use edge_lmm_ops::stage::Span;
use serde_json::{Value, json};

use super::{Stage, Timing};

/// Identifier of the process.
const PROCESS: u32 = 1;
/// Rows of the trace: identifier and name.
const THREADS: [(u32, &str); 2] = [(1, "main"), (2, "helper")];

impl Timing {
    /// Returns all calls as a Chrome trace: complete events with times in microseconds, one row per
    /// thread, and counters of heap use and tokens.
    pub fn chrome_trace(&self) -> Value {
        let mut events = names();
        events.extend(self.calls());
        events.extend(self.memory());
        events.extend(self.tokens());
        json!({ "traceEvents": events, "displayTimeUnit": "ms" })
    }

    fn calls(&self) -> impl Iterator<Item = Value> {
        self.stages().iter().flat_map(|stage| {
            let [(main, _), (helper, _)] = THREADS;
            let own = stage.spans.iter().map(move |span| (main, span));
            let others = stage.helper_spans.iter().map(move |span| (helper, span));
            own.chain(others).map(|(thread, span)| {
                json!({
                    "name": stage.name,
                    "cat": stage.stage,
                    "ph": "X",
                    "ts": micros(span.start),
                    "dur": micros(span.time),
                    "pid": PROCESS,
                    "tid": thread,
                })
            })
        })
    }

    /// Returns the heap use at the start and end of every call.
    fn memory(&self) -> Vec<Value> {
        let samples = self.memory_samples(|_| true).into_iter();
        samples
            .map(|(time, bytes)| counter("heap", time, json!({ "bytes": bytes })))
            .collect()
    }

    /// Returns the tokens that stages have generated: each call of `decode` gives one.
    fn tokens(&self) -> Vec<Value> {
        let spans = self.stage("decode").map(|stage| stage.spans.iter());
        let spans = spans.into_iter().flatten();
        spans
            .zip(1..)
            .map(|(span, count)| {
                let end = span.start + span.time;
                counter("generated tokens", end, json!({ "tokens": count }))
            })
            .collect()
    }

    /// Returns time and heap use at the start and end of the calls of the stages and modules that
    /// `select` chooses, by time.
    pub(crate) fn memory_samples(&self, select: impl Fn(&Stage) -> bool) -> Vec<(Duration, usize)> {
        let spans = self.stages().iter().filter(|stage| select(stage));
        let ends = |span: &Span| {
            let end = span.start + span.time;
            [(span.start, span.begin_bytes), (end, span.end_bytes)]
        };
        let mut samples: Vec<_> = spans
            .flat_map(|stage| stage.spans.iter().flat_map(ends))
            .collect();
        samples.sort_by_key(|&(time, _)| time);
        samples
    }
}

/// Names of the process and its threads.
fn names() -> Vec<Value> {
    let name = |kind: &str, thread: u32, name: &str| {
        json!({
            "name": kind, "cat": "__metadata", "ph": "M", "pid": PROCESS, "tid": thread, "args": { "name": name },
        })
    };
    let threads = THREADS.map(|(id, text)| name("thread_name", id, text));
    let process = name("process_name", 0, "edge-lmm");
    std::iter::once(process).chain(threads).collect()
}

fn counter(name: &str, time: Duration, values: Value) -> Value {
    json!({ "name": name, "cat": "counter", "ph": "C", "ts": micros(time), "pid": PROCESS, "args": values })
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, time: u64, begin_bytes: usize) -> Span {
        Span {
            start: Duration::from_millis(start),
            time: Duration::from_millis(time),
            begin_bytes,
            end_bytes: begin_bytes + 1,
        }
    }

    fn events(timing: &Timing, phase: &str) -> Vec<Value> {
        let trace = timing.chrome_trace();
        let events = trace["traceEvents"].as_array().expect("events").clone();
        events.into_iter().filter(|e| e["ph"] == phase).collect()
    }

    #[test]
    fn every_call_is_an_event_on_the_row_of_its_thread() {
        let timing = Timing(vec![Stage {
            spans: vec![span(1, 1, 10), span(5, 2, 20)],
            helper_spans: vec![span(4, 1, 0)],
            ..Stage::new("vision", "vision")
        }]);
        let calls = events(&timing, "X");
        assert_eq!(calls.len(), 3);
        assert_eq!(calls[1]["ts"], 5000.0);
        assert_eq!(calls[1]["dur"], 2000.0);
        assert_eq!((&calls[1]["tid"], &calls[2]["tid"]), (&json!(1), &json!(2)));
        let names = events(&timing, "M");
        assert_eq!(names.len(), 3);
        assert_eq!(names[2]["args"]["name"], "helper");
        // Parsers split the categories of every event.
        let trace = timing.chrome_trace();
        let all = trace["traceEvents"].as_array().expect("events");
        assert!(all.iter().all(|event| event["cat"].is_string()));
    }

    #[test]
    fn heap_and_tokens_are_counters() {
        let timing = Timing(vec![Stage {
            spans: vec![span(5, 2, 20), span(1, 1, 10)],
            ..Stage::new("decode", "decode")
        }]);
        let counters = events(&timing, "C");
        let of = |name: &str, value: &str| -> Vec<Value> {
            let events = counters.iter().filter(|event| event["name"] == name);
            events.map(|event| event["args"][value].clone()).collect()
        };
        assert_eq!(of("heap", "bytes"), [10, 11, 20, 21]);
        assert_eq!(of("generated tokens", "tokens"), [1, 2]);
    }
}
