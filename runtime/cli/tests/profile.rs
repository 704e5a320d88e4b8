//! `edge-lmm profile`: repeats, turns, sweeps and outputs, with the demo's model.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use edge_lmm::profile::ProfileReport;
use edge_lmm::profile::report::{ModuleCost, ProfileRun};

fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/demo")
        .join(name)
}

/// Standard output of `edge-lmm profile` with the demo's model.
fn profile(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge-lmm"));
    command.arg("profile").arg(demo("qwen2vl-tiny.bpk"));
    command.args(["--max-tokens", "4", "--ignore-eos"]);
    let output = command.args(arguments).output().expect("it starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn report(arguments: &[&str]) -> ProfileReport {
    let json = profile(&[&["--json"], arguments].concat());
    ProfileReport::parse(&json).expect("a report")
}

fn image() -> String {
    demo("shapes.png").display().to_string()
}

fn module<'a>(run: &'a ProfileRun, stage: &str, name: &str) -> &'a ModuleCost {
    let mut modules = run.modules.iter();
    let found = modules.find(|cost| cost.stage == stage && cost.name == name);
    found.unwrap_or_else(|| panic!("no {name} in {stage}"))
}

#[test]
fn repeats_have_statistics_and_a_cold_run() {
    let image = image();
    let arguments = ["--image", &image, "--warmup", "1", "--repeat", "3"];
    let report = report(&[&arguments[..], &["--threads", "2"]].concat());
    let [run] = &report.runs[..] else {
        panic!("{} runs", report.runs.len())
    };
    assert!(run.cold.is_some());
    assert_eq!(
        (run.warmup, run.total_ms.count, run.outside_ms.count),
        (1, 3, 3)
    );
    assert!(report.load.iter().any(|cost| cost.name == "load"));
    let roofline = report.roofline.as_ref().expect("it was measured");
    assert!(roofline.bytes_per_second > 0.0);
    // An image that was encoded in an earlier repeat is encoded again.
    assert_eq!((run.tokens.encoder_misses, run.tokens.encoder_hits), (1, 0));
    assert_eq!(module(run, "vision", "vision").ms.count, 3);
    assert_eq!(module(run, "decode", "decode").tokens, 3);
    assert!(!run.memory.is_empty());
    assert_eq!(report.environment.threads, 2);
    assert!(report.environment.after.is_some());
}

#[test]
fn own_and_child_times_add_up() {
    let image = image();
    let report = report(&["--image", &image, "--no-roofline"]);
    assert_eq!(report.roofline, None);
    let run = &report.runs[0];
    let mut inside = vec![0.0; run.modules.len()];
    for (index, cost) in run.modules.iter().enumerate() {
        // With one run, medians are values of the same run.
        let sum = cost.own_ms + cost.child_ms;
        assert!((sum - cost.ms.median).abs() < 1e-6, "{cost:?}");
        if let Some(parent) = cost.parent {
            assert!(parent < index, "{cost:?}");
            assert_eq!(run.modules[parent].stage, cost.stage);
            inside[parent] += cost.ms.median;
        }
    }
    for (cost, inside) in run.modules.iter().zip(inside) {
        assert!((cost.child_ms - inside).abs() < 1e-6, "{cost:?}");
    }
    let stages = run.modules.iter().filter(|cost| cost.parent.is_none());
    let sum: f64 = stages.map(|cost| cost.ms.median - cost.hidden_ms).sum();
    assert!(
        (sum - run.total_ms.median).abs() < 1e-6,
        "{sum} {:?}",
        run.total_ms
    );
    assert!(run.total_ms.median <= run.outside_ms.median);
}

/// The stages add up to the time by the clock outside, apart from at most 2 %. Other processes can
/// interrupt the program between two stages, so the best of some runs counts.
#[test]
fn stages_cover_the_whole_run() {
    let arguments = ["--image-size", "448", "--repeat", "5", "--no-roofline"];
    let uncovered = |_| {
        let report = report(&arguments);
        let run = &report.runs[0];
        1.0 - run.total_ms.min / run.outside_ms.min
    };
    let best = (0..3).map(uncovered).fold(1.0, f64::min);
    assert!(best <= 0.02, "{best}");
}

#[test]
fn attention_is_divided_and_its_work_is_counted() {
    let image = image();
    let report = report(&["--image", &image]);
    let run = &report.runs[0];
    let block = |part: &str| module(run, "vision", &format!("vision.blocks.0.attention{part}"));
    for part in [".norm", ".qkv", ".scores", ".values", ".out"] {
        assert!(block(part).ms.median > 0.0, "{part}");
    }
    // 64 patches of width 64: queries, keys and values; scores of all pairs.
    let (patches, width) = (block("").tokens, 64);
    assert_eq!(block(".qkv").macs, patches * width * 3 * width);
    assert_eq!(block(".out").macs, patches * width * width);
    assert_eq!(block(".scores").macs, patches * patches * width);
    let sum: u64 = [".qkv", ".scores", ".values", ".out"]
        .map(|part| block(part).macs)
        .iter()
        .sum();
    assert_eq!(block("").macs, sum);
    let resident = block(".qkv").weight_resident_bytes;
    assert!(resident.is_none_or(|bytes| bytes == block(".qkv").weight_bytes));
    // A step of decoding reads all weights of a layer once and one row per layer norm.
    let layer = module(run, "decode", "text.layers.0.mlp.feed_forward");
    assert_eq!((layer.calls, layer.tokens), (3, 3));
    assert_eq!(layer.macs % 3, 0);
}

/// A token costs few measurements, so that they do not show in its time.
#[test]
fn a_layer_has_few_measurements() {
    let report = report(&["--image", &image(), "--no-roofline"]);
    let run = &report.runs[0];
    let in_layers = run.modules.iter().filter(|cost| cost.stage == "decode");
    let in_layers = in_layers.filter(|cost| cost.name.starts_with("text.layers."));
    let steps = module(run, "decode", "decode").tokens as usize;
    let layers = 3;
    let calls: usize = in_layers.map(|cost| cost.calls).sum();
    assert!(
        calls <= 10 * layers * steps,
        "{calls} calls in {steps} steps"
    );
}

#[test]
fn a_conversation_goes_on() {
    let image = image();
    let turns = ["--turn", "how many?", "--turn", "thanks"];
    let report = report(&[&["--image", &image, "--no-roofline"], &turns[..]].concat());
    assert_eq!(report.runs.len(), 3);
    for (run, turn) in report.runs.iter().zip(1..) {
        assert_eq!(run.parameters.turn, turn);
        let tokens = &run.tokens;
        assert_eq!(tokens.prompt, tokens.reused + tokens.computed);
        assert!(tokens.visual > 0, "{tokens:?}");
    }
    let [first, second, _] = &report.runs[..] else {
        unreachable!("there are three")
    };
    assert_eq!((first.tokens.reused, first.tokens.encoder_hits), (0, 0));
    assert!(
        second.tokens.reused >= first.tokens.prompt,
        "{:?}",
        second.tokens
    );
    assert_eq!(second.tokens.encoder_hits, 1);
    assert_eq!(second.tokens.visual_before, first.tokens.visual_before);
    assert!(!second.modules.iter().any(|cost| cost.stage == "vision"));
}

#[test]
fn sweeps_are_combined() {
    let sizes = ["--image-size", "56,112", "--frames", "4,5", "--no-roofline"];
    let report = report(&sizes);
    let points: Vec<_> = report
        .runs
        .iter()
        .map(|run| (run.parameters.image_size, run.parameters.frames))
        .collect();
    let expected = [(56, 4), (56, 5), (112, 4), (112, 5)];
    assert_eq!(
        points,
        expected.map(|(size, frames)| (Some(size), Some(frames)))
    );
    let tokens = report
        .runs
        .iter()
        .map(|run| run.tokens.visual)
        .collect::<Vec<_>>();
    assert!(tokens.is_sorted() && tokens[0] < tokens[3], "{tokens:?}");
    // Frames are encoded in pairs.
    let padded = report.runs.iter().map(|run| run.tokens.padded_frames);
    assert_eq!(padded.collect::<Vec<_>>(), [0, 1, 0, 1]);
    // Only the first run is cold.
    assert_eq!(
        report.runs.iter().filter(|run| run.cold.is_some()).count(),
        1
    );
}

#[test]
fn tables_and_files_are_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (csv, trace) = (file("profile.csv"), file("trace.json"));
    let outputs = ["--csv", &csv, "--chrome-trace", &trace];
    let image = image();
    let media = ["--image", &image, "--table", "layers"];
    let text = profile(&[&media[..], &outputs].concat());
    assert!(text.contains("| Layer Type "), "{text}");
    assert_eq!(text.matches("bottleneck").count(), 1, "{text}");
    let mut reader = csv::Reader::from_path(&csv).expect("CSV");
    let headers = reader.headers().expect("a header").clone();
    assert!(headers.iter().any(|name| name == "own_ms"), "{headers:?}");
    assert!(reader.records().count() > 20);
    let trace = fs::read_to_string(&trace).expect("a trace");
    let trace: serde_json::Value = serde_json::from_str(&trace).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("events");
    for phase in ["M", "X", "C"] {
        assert!(events.iter().any(|event| event["ph"] == phase), "{phase}");
    }
    let table = profile(&["--image", &image]);
    assert!(table.contains("blocks.*.attention.scores"), "{table}");
}
