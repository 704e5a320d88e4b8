//! Stages as a Chrome trace (the JSON of `chrome://tracing` and Perfetto).

use edge_lmm_ops::stage::StageRecord;
use serde_json::{Value, json};

/// All calls as complete events (`ph: "X"`), times in microseconds.
pub fn chrome(stages: &[StageRecord]) -> Value {
    let events: Vec<Value> = stages
        .iter()
        .flat_map(|stage| {
            stage.spans.iter().map(move |(start, time)| {
                json!({
                    "name": stage.name,
                    "cat": stage.stage,
                    "ph": "X",
                    "ts": start.as_secs_f64() * 1e6,
                    "dur": time.as_secs_f64() * 1e6,
                    "pid": 1,
                    "tid": 1,
                })
            })
        })
        .collect();
    json!({ "traceEvents": events, "displayTimeUnit": "ms" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_call_is_an_event() {
        let stage = StageRecord {
            name: "vision".to_owned(),
            stage: "vision",
            time: Duration::from_millis(3),
            calls: 2,
            peak_bytes: 0,
            launches: 0,
            spans: vec![
                (Duration::from_millis(1), Duration::from_millis(1)),
                (Duration::from_millis(5), Duration::from_millis(2)),
            ],
        };
        let trace = chrome(&[stage]);
        let events = trace["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), 2);
        assert_eq!(events[1]["ts"], 5000.0);
        assert_eq!(events[1]["dur"], 2000.0);
    }
}
