//! Comparison of every stage of every family with the reference implementation on a Vulkan device,
//! which may be a software one: the kernels are those of CUDA.

mod common;

use common::check::check_sample;
use common::manifest::Manifest;
use common::{F32, ask, data, engine_on, goldens, relative};
use edge_lmm::{Cpu, Media, Request, Stage, Vulkan, media};
use edge_lmm_convert::Options;
use edge_lmm_convert::source::Checkpoint;
use edge_lmm_models::media::{AudioPadding, MediaOptions};
use edge_lmm_ops::probe;
use libtest_mimic::{Arguments, Trial};

/// Checks the samples that the manifest lists for GPUs.
fn check(manifest: &Manifest) {
    let mut engine = engine_on::<Vulkan>(manifest.open(), &F32);
    let goldens = manifest.goldens();
    // The reference pads audio.
    let options = MediaOptions {
        audio_padding: AudioPadding::Window,
        ..MediaOptions::default()
    };
    for &sample in &manifest.gpu_samples {
        check_sample(&mut engine, manifest, &goldens[sample], &options);
    }
}

/// Every method of reduction leaves the same tokens as on the CPU, and the answers are the same. The
/// image has a noisy background: between equal units, rounding would decide.
fn reductions() {
    let checkpoint =
        || Checkpoint::open(&data().join("qwen2vl-scenes"), None).expect("a checkpoint");
    let image = media::load_image(&data().join("scenes/images/scene_035.png")).expect("an image");
    let shown = [Media::image(image)];
    let messages = ask(&shown, "list the shapes.");
    let mut cpu = engine_on::<Cpu>(checkpoint(), &F32);
    let mut gpu = engine_on::<Vulkan>(checkpoint(), &F32);
    for chain in [
        "duplicates:50%",
        "merge:0.5",
        "diverse:0.5",
        "attention:0.5",
        "language:1:0.5",
        "merge:0.5,diverse:0.5,language:2:0.5",
    ] {
        let request = Request {
            media: &shown,
            options: MediaOptions {
                reductions: chain.parse().expect("a chain"),
                ..MediaOptions::default()
            },
            max_tokens: 12,
            ..Request::new(&messages)
        };
        let go_on = |_: edge_lmm::Event<'_>| std::ops::ControlFlow::Continue(());
        probe::start();
        let expected = cpu.answer(&request, go_on).expect("an answer");
        let stages = probe::finish();
        probe::start();
        let found = gpu.answer(&request, go_on).expect("an answer");
        let own = probe::finish();
        assert_eq!(own["position_ids"], stages["position_ids"], "{chain}");
        assert_eq!(found.reductions, expected.reductions, "{chain}");
        assert_eq!(found.tokens, expected.tokens, "{chain}");
        let error = relative(&own["logits_first"].values, &stages["logits_first"].values);
        println!("{chain}: logits_first {error:.1e}");
        assert!(error <= 1e-3, "{chain}: {error}");
    }
}

/// With quantized weights a generated token takes 8 kernel launches per layer, or 9 if keys are
/// split, plus a few outside the layers.
fn launches_of_a_token() {
    let source = Checkpoint::open(&data().join("qwen2vl-tiny"), None).expect("a checkpoint");
    let options = Options::default();
    let mut engine = engine_on::<Vulkan>(source, &options);
    let golden = &goldens(&data().join("goldens/qwen2vl-tiny"))[0];
    let messages = ask(&golden.media, &golden.question);
    let request = Request {
        timing: true,
        media: &golden.media,
        max_tokens: 5,
        ignore_eos: true,
        sampling: Default::default(),
        ..Request::new(&messages)
    };
    let answer = engine
        .answer(&request, |_| std::ops::ControlFlow::Continue(()))
        .expect("an answer");
    let steps = answer.tokens.len() - 1;
    let stages = answer.timing.stages();
    let of_step = |found: &Stage| {
        assert_eq!(found.launches % steps, 0, "{}: {found:?}", found.name);
        found.launches / steps
    };
    let decode = || stages.iter().filter(|found| found.stage == "decode");
    let layers: Vec<&Stage> = decode()
        .filter(|found| found.name.starts_with("text.layers."))
        .collect();
    assert!(!layers.is_empty());
    for module in &layers {
        let wanted: &[usize] = match module.name.ends_with("attention") {
            true => &[5, 6],
            false => &[3],
        };
        assert!(wanted.contains(&of_step(module)), "{module:?}");
    }
    let inside: usize = layers.iter().map(|module| of_step(module)).sum();
    let all = decode()
        .find(|found| found.name == "decode")
        .expect("decoding");
    println!(
        "{} launches a token, {inside} of them in {} modules",
        of_step(all),
        layers.len()
    );
    // The embedding, the norm, the head, and the argmax, which takes two kernels.
    assert!((4..=5).contains(&(of_step(all) - inside)), "{all:?}");
}

fn trial(name: &str, run: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        run();
        Ok(())
    })
}

fn main() {
    let mut trials = vec![
        trial("launches_of_a_token", launches_of_a_token),
        trial("reductions", reductions),
    ];
    for manifest in Manifest::all() {
        if !manifest.gpu_samples.is_empty() {
            trials.push(trial(&manifest.name.clone(), move || check(&manifest)));
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
