//! Pruned layers and channels: those without an effect go first, and the answers stay.

mod common;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use common::damage::{Copy, Tensors};
use common::{F32, ask, data, engine, engine_from, samples};
use edge_lmm::{Cpu, Media, Request, Session};
use edge_lmm_convert::calibration::Samples;
use edge_lmm_convert::prune::{
    Importance, prune_channels, prune_heads, prune_layers, prune_vision_layers,
};
use edge_lmm_convert::source::Checkpoint;
use edge_lmm_convert::{Plan, Progress, Pruning};

fn measure_on(copy: &Copy, samples: &Samples) -> (Checkpoint, Importance) {
    let checkpoint = Arc::new(Checkpoint::open(copy.path(), None).expect("a checkpoint"));
    let plan = Plan::new(&checkpoint, &F32).expect("a plan");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("temporary");
    let steps = Rc::new(RefCell::new(Vec::new()));
    let seen = steps.clone();
    let progress = Progress::new(move |step, done, all| {
        assert!(done <= all, "{step}: {done} of {all}");
        let mut steps = seen.borrow_mut();
        if steps.last() != Some(&step) {
            steps.push(step);
        }
    });
    let importance = Importance::measure(&plan, &checkpoint, samples, &path, &progress);
    let importance = importance.expect("importance");
    let expected = ["writing a temporary record", "running the samples"];
    assert_eq!(*steps.borrow(), expected);
    let left = std::fs::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(left, 0);
    let checkpoint = Arc::into_inner(checkpoint).expect("the checkpoint is not in use");
    (checkpoint, importance)
}

fn questions() -> Samples {
    samples::questions(8)
}

fn measure(copy: &Copy) -> (Checkpoint, Importance) {
    let measured = measure_on(copy, &samples::text());
    // Questions about media are samples, too.
    let of_questions = measure_on(copy, &questions()).1;
    assert_eq!(of_questions.layers.len(), measured.1.layers.len());
    measured
}

fn answers(session: &mut Session<Cpu>) -> Vec<String> {
    ["color_000", "color_040", "count_020"]
        .map(|name| {
            let path = data().join(format!("questions/images/{name}.png"));
            let media = [Media::open(path).expect("an image")];
            let messages = ask(&media, "what color is the diamond?");
            let request = Request {
                media: &media,
                max_tokens: 8,
                sampling: Default::default(),
                ..Request::new(&messages)
            };
            session.forget();
            let answer = session.answer(&request, |_| std::ops::ControlFlow::Continue(()));
            answer.expect("an answer").text
        })
        .to_vec()
}

/// Sets rows of a tensor to zero; without rows, all of it.
fn clear(tensors: &mut Tensors, name: &str, rows: Option<&[usize]>) {
    let (_, shape, bytes) = tensors.get_mut(name).expect(name);
    let row = bytes.len() / shape[0];
    let all: Vec<usize> = (0..shape[0]).collect();
    for &i in rows.unwrap_or(&all) {
        bytes[i * row..(i + 1) * row].fill(0);
    }
}

/// Sets the columns of heads to zero.
fn clear_columns(tensors: &mut Tensors, name: &str, heads: &[usize], head_dim: usize) {
    let (_, shape, bytes) = tensors.get_mut(name).expect(name);
    let size = bytes.len() / (shape[0] * shape[1]);
    for row in bytes.chunks_exact_mut(shape[1] * size) {
        for &head in heads {
            row[head * head_dim * size..][..head_dim * size].fill(0);
        }
    }
}

/// A layer whose outputs are zero passes its input on.
#[test]
fn a_layer_without_effect_is_left_out_first() {
    let copy = Copy::of("qwen2vl-tiny");
    copy.change_tensors(|tensors| {
        for name in ["self_attn.o_proj", "mlp.down_proj"] {
            clear(tensors, &format!("model.layers.1.{name}.weight"), None);
        }
    });
    let (checkpoint, importance) = measure(&copy);
    let layers = &importance.layers;
    assert!(layers[1].abs() < 1e-6, "{layers:?}");
    assert!(layers[0] > 1e-3 && layers[2] > 1e-3, "{layers:?}");
    let mut pruning = Pruning::none(&checkpoint);
    let removed = prune_layers(&mut pruning, &importance, 0.34).expect("a selection");
    assert_eq!(removed, [1]);
    let plan = Plan::pruned(&checkpoint, &F32, pruning).expect("a plan");
    assert_eq!(plan.dimensions["text.layers"], 2);
    let expected = answers(&mut engine(copy.path(), None, &F32));
    assert_eq!(answers(&mut engine_from(&plan, checkpoint)), expected);
}

/// The same for the layers of vision encoders: one before the last layer of the checkpoint, which is
/// not used, one with windows, and one without either.
#[test]
fn a_vision_layer_without_effect_is_left_out_first() {
    for (name, prefix, modules, changed) in [
        (
            "qwen2vl-tiny",
            "visual.blocks",
            ["attn.proj", "mlp.fc2"],
            ("depth", 3),
        ),
        (
            "qwen25vl-tiny",
            "visual.blocks",
            ["attn.proj", "mlp.down_proj"],
            ("depth", 3),
        ),
        (
            "llava-tiny",
            "vision_tower.vision_model.encoder.layers",
            ["self_attn.out_proj", "mlp.fc2"],
            ("num_hidden_layers", 3),
        ),
    ] {
        let copy = Copy::of(name);
        copy.change_tensors(|tensors| {
            let start = format!("{prefix}.2.");
            let names: Vec<String> = tensors.keys().cloned().collect();
            for tensor in names {
                let module = tensor.strip_prefix(&start);
                let module = module.and_then(|rest| rest.rsplit_once('.'));
                if module.is_some_and(|(module, _)| modules.contains(&module)) {
                    clear(tensors, &tensor, None);
                }
            }
        });
        let (checkpoint, importance) = measure_on(&copy, &questions());
        let layers = &importance.vision_layers;
        assert_eq!(layers.len(), 4, "{name}");
        assert!(layers[2].abs() < 1e-6, "{name}: {layers:?}");
        assert!(layers[0] > 1e-3 && layers[1] > 1e-3, "{name}: {layers:?}");
        assert_eq!(layers[3], f64::INFINITY, "{name}");
        let mut pruning = Pruning::none(&checkpoint);
        let removed = prune_vision_layers(&mut pruning, &importance, 0.25).expect("a selection");
        assert_eq!(removed, [2], "{name}");
        let vision = &pruning.config["vision_config"];
        assert_eq!(vision[changed.0], changed.1, "{name}");
        if name == "qwen25vl-tiny" {
            assert_eq!(vision["fullatt_block_indexes"], serde_json::json!([1, 2]));
        }
        let plan = Plan::pruned(&checkpoint, &F32, pruning).expect(name);
        assert_eq!(plan.dimensions["vision.blocks"], 3);
        let expected = answers(&mut engine(copy.path(), None, &F32));
        assert_eq!(
            answers(&mut engine_from(&plan, checkpoint)),
            expected,
            "{name}"
        );
    }
}

/// Texts say nothing about a vision encoder, generated pictures do, and the last layer stays.
#[test]
fn impossible_prunings_of_vision_layers_are_refused() {
    let copy = Copy::of("qwen2vl-tiny");
    let (checkpoint, of_texts) = measure_on(&copy, &samples::text());
    let refused = |importance: &Importance, ratio| {
        let mut pruning = Pruning::none(&checkpoint);
        let refused = prune_vision_layers(&mut pruning, importance, ratio);
        refused.expect_err("nothing can be left out").to_string()
    };
    let message = refused(&of_texts, 0.25);
    assert!(message.contains("have no images"), "{message}");
    let (_, built_in) = measure_on(&copy, &Samples::built_in());
    let seen = built_in.vision_layers.iter().filter(|x| x.is_finite());
    assert_eq!(seen.count(), 3, "{:?}", built_in.vision_layers);
    let (_, of_questions) = measure_on(&copy, &questions());
    let message = refused(&of_questions, 0.9);
    assert!(message.contains("4 of 4 layers"), "{message}");
}

/// Channels whose activations are zero add nothing. A decoder of layer norms and one of RMS norms.
#[test]
fn channels_without_effect_are_left_out_first() {
    let dead: Vec<usize> = (0..256).filter(|i| i % 4 == 1).collect();
    let cases = [
        ("qwen2vl-tiny", "model.layers", &["mlp.up_proj.weight"][..]),
        (
            "blip2-tiny",
            "language_model.model.decoder.layers",
            &["fc1.weight", "fc1.bias"],
        ),
    ];
    for (name, prefix, modules) in cases {
        let copy = Copy::of(name);
        copy.change_tensors(|tensors| {
            for layer in 0..3 {
                for module in modules {
                    clear(tensors, &format!("{prefix}.{layer}.{module}"), Some(&dead));
                }
            }
        });
        let (checkpoint, importance) = measure(&copy);
        for channels in &importance.channels {
            for (i, &channel) in channels.iter().enumerate() {
                // A ReLU may never let another channel through either.
                let expected = dead.contains(&i) || (name == "blip2-tiny" && channel == 0.0);
                assert_eq!(channel == 0.0, expected, "{name}: channel {i}");
            }
        }
        let mut pruning = Pruning::none(&checkpoint);
        let sizes = prune_channels(&mut pruning, &importance, &[], 0.25).expect("a selection");
        assert_eq!(sizes, (256, 192), "{name}");
        let plan = Plan::pruned(&checkpoint, &F32, pruning).expect(name);
        let expected = answers(&mut engine(copy.path(), None, &F32));
        let found = answers(&mut engine_from(&plan, checkpoint));
        assert_eq!(found, expected, "{name}");
    }
}

/// Heads whose outputs are zero add nothing: query heads of a group, and heads with keys and values of
/// their own.
#[test]
fn heads_without_effect_are_left_out_first() {
    for (name, dead, after) in [
        ("qwen2vl-tiny", &[1, 2][..], 2),
        ("llava-tiny", &[2][..], 3),
    ] {
        let (before, dim) = (4, 32);
        let copy = Copy::of(name);
        copy.change_tensors(|tensors| {
            let output = "self_attn.o_proj.weight";
            let names: Vec<String> = (tensors.keys().filter(|name| name.ends_with(output)))
                .cloned()
                .collect();
            for name in names {
                clear_columns(tensors, &name, dead, dim);
            }
        });
        let (checkpoint, importance) = measure(&copy);
        for heads in &importance.heads {
            let zero: Vec<usize> = (0..heads.len()).filter(|&i| heads[i] == 0.0).collect();
            assert_eq!(zero, dead, "{name}");
        }
        let mut pruning = Pruning::none(&checkpoint);
        let ratio = dead.len() as f64 / before as f64;
        let sizes = prune_heads(&mut pruning, &importance, &[], ratio).expect("a selection");
        assert_eq!(sizes, (before, after), "{name}");
        let plan = Plan::pruned(&checkpoint, &F32, pruning).expect(name);
        let expected = answers(&mut engine(copy.path(), None, &F32));
        let found = answers(&mut engine_from(&plan, checkpoint));
        assert_eq!(found, expected, "{name}");
    }
}

/// The layers of Gemma 3 differ in their attention; each keeps its kind.
#[test]
fn kinds_of_layers_are_kept() {
    let copy = Copy::of("gemma3text-odd");
    let checkpoint = Checkpoint::open(copy.path(), None).expect("a checkpoint");
    let mut pruning = Pruning::none(&checkpoint);
    let importance = Importance {
        layers: vec![0.5, 0.1, 0.4, 0.3],
        channels: vec![vec![1.0; 68]; 4],
        ..Importance::default()
    };
    let removed = prune_layers(&mut pruning, &importance, 0.25).expect("a selection");
    prune_channels(&mut pruning, &importance, &removed, 0.5).expect("a selection");
    // With a period of 3, layer 2 attends to everything.
    let kinds = &pruning.config["layer_types"];
    let expected = ["sliding_attention", "full_attention", "sliding_attention"];
    assert_eq!(*kinds, serde_json::json!(expected));
    let plan = Plan::pruned(&checkpoint, &F32, pruning).expect("a plan");
    assert_eq!(plan.dimensions["text.layers.2.ffn"], 34);
}

#[test]
fn too_much_is_refused() {
    let copy = Copy::of("qwen2vl-tiny");
    let text = samples::write_text(copy.path());
    let text = text.to_str().expect("a path");
    for ([option, share], words) in [
        (["--prune-layers", "0.9"], "3 of 3 layers"),
        (["--prune-ffn", "0.999"], "none of 256 channels"),
        (["--prune-heads", "0.9"], "none of 2 heads"),
        (["--prune-to", "0.001"], "cannot keep 0.001"),
    ] {
        let (done, stderr) = copy.convert(&[option, share, "--calibration", text]);
        assert!(!done && stderr.contains(words), "{stderr}");
    }
}

/// Of several ways to the same size, the command takes the one that changes the predictions least.
#[test]
fn a_size_is_reached_at_the_least_cost() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("pruned.bpk");
    let output = common::damage::command(&data().join("qwen2vl-tiny"), &path)
        .args(["--prune-to", "0.7", "--text-quant", "f32"])
        .arg("--calibration")
        .arg(samples::write_text(folder.path()))
        .output()
        .expect("the command starts");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    let tried = stderr
        .lines()
        .filter_map(|line| line.split_once("divergence "));
    let costs: Vec<f64> = tried
        .map(|(_, cost)| cost.trim_end_matches(" nats").parse().expect("a number"))
        .collect();
    assert!(costs.len() > 2 && costs.is_sorted(), "{stderr}");
    let record = edge_lmm::Record::open(&path).expect("a record");
    let layers = record
        .tensors()
        .filter(|(name, _)| name.starts_with("text.layers.") && name.ends_with(".weight"));
    let bytes: usize = layers
        .map(|(name, _)| record.bytes_of(name).map_or(0, <[u8]>::len))
        .sum();
    // Queries and outputs, keys and values, and three matrices of the feed-forward network.
    let whole = 3 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 256 * 128) * 4;
    assert!(
        (0.6..0.72).contains(&(bytes as f64 / whole as f64)),
        "{bytes} of {whole}"
    );
}

/// The command prunes everything at once, and the record is smaller and runs.
#[test]
fn the_command_writes_a_smaller_record() {
    let folder = tempfile::tempdir().expect("a folder");
    let convert = |name: &str, options: &[&str]| {
        let path = folder.path().join(name);
        let source = data().join("qwen2vl-tiny");
        let output = common::damage::command(&source, &path)
            .args(options)
            .output();
        let output = output.expect("the command starts");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{stderr}");
        (std::fs::metadata(path).expect("a record").len(), stderr)
    };
    let corpus = data().join("questions/manifest.csv");
    let (whole, _) = convert("whole.bpk", &[]);
    let corpus = corpus.to_str().expect("a path");
    let text = samples::write_text(folder.path());
    let options = [
        "--prune-layers",
        "0.3",
        "--prune-ffn",
        "0.5",
        "--prune-heads",
        "0.5",
        "--prune-vocabulary",
        corpus,
        "--calibration",
        text.to_str().expect("a path"),
    ];
    let (pruned, stderr) = convert("pruned.bpk", &options);
    assert!(pruned < whole, "{pruned} of {whole}");
    for words in ["layers: 1 of 3 left out", "128 of 256 per layer", "tokens"] {
        assert!(stderr.contains(words), "{stderr}");
    }
    let record = edge_lmm::Record::open(folder.path().join("pruned.bpk")).expect("a record");
    let engine = edge_lmm::Engine::<Cpu>::load(&record, Default::default()).expect("a model");
    assert_eq!(answers(&mut engine.session()).len(), 3);
}
