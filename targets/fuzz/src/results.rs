//! Fuzz target for the results of experiments.

use edge_lmm::experiment::{self, ALL};
use serde_json::json;

use crate::data::scratch;
use crate::mutate::{Form, SEPARATOR, parts};
use crate::{Target, errors};

/// `plan.json` and `results.jsonl` of a folder that `edge-lmm bench merge` reads.
pub const RESULTS: Target = Target {
    name: "results",
    form: Form::Json(&[
        b"{\"model\":\"m\",\"setting\":\"a\",\"sample\":\"1\",\"values\":{\"encoder\":1.5}}\n",
        b"{\"model\":\"m\",\"setting\":\"a\",\"sample\":\"1\",\"error\":\"e\"}\n",
        b"\"text\":\"a\"",
        b"\"values\":{",
        b"1e308",
        b"-0.0",
        b"\n",
        b"}",
        b"null",
    ]),
    seeds: || {
        ALL.iter()
            .map(|experiment| seed(experiment.about().name))
            .collect()
    },
    run: |input| {
        let [plan, lines] = parts(input);
        let folder = scratch();
        let part = folder.path().join("part");
        std::fs::create_dir(&part).expect("a folder");
        std::fs::write(part.join("plan.json"), plan).expect("a file");
        std::fs::write(part.join("results.jsonl"), lines).expect("a file");
        let merged = experiment::merge(&[part], &folder.path().join("all"));
        match merged.and_then(|(plan, lines)| experiment::report(&plan, &lines)) {
            Ok(report) => drop(serde_json::to_string(&report).expect("a report is JSON")),
            Err(error) => errors::check(&error),
        }
    },
};

/// Values that experiments compute their findings from.
const VALUES: [&str; 20] = [
    "media",
    "preprocess",
    "encoder",
    "projector",
    "prefill",
    "decode",
    "vision",
    "audio",
    "total",
    "first_token",
    "latency",
    "right",
    "tokens",
    "prompt_tokens",
    "visual_tokens",
    "reduced_tokens",
    "before",
    "after",
    "first",
    "second",
];

/// Returns the complete results of an experiment with two cases and two samples.
fn seed(experiment: &str) -> Vec<u8> {
    let cases = [("2", 2.0), ("4", 4.0)];
    let plan = json!({
        "experiment": experiment,
        "parameters": { "models": ["m"], "threads": 1 },
        "cases": cases.map(|(setting, x)| json!({ "model": "m", "setting": setting, "x": x })),
        "samples": [{ "id": "1" }, { "id": "2", "modality": "image", "task": "vqa" }],
        "shard": { "index": 1, "count": 1 },
        "environments": [],
    });
    let mut seed = plan.to_string().into_bytes();
    seed.push(SEPARATOR);
    for (number, sample) in ["1", "2"].into_iter().enumerate() {
        for (setting, x) in cases {
            let values: serde_json::Map<_, _> = (VALUES.iter())
                .map(|name| ((*name).to_owned(), json!(x + number as f64)))
                .collect();
            let line = json!({ "model": "m", "setting": setting, "sample": sample,
                "values": values, "text": "a" });
            seed.extend(format!("{line}\n").into_bytes());
        }
    }
    seed
}
