//! Comparison of every stage of every family with the reference implementation on a Vulkan device,
//! which may be a software one: the kernels are those of CUDA.

mod common;

use common::check::check_sample;
use common::{F32, ask, data, engine_on, goldens};
use edge_lmm::{Request, Stage, Vulkan};
use edge_lmm_convert::Options;
use edge_lmm_convert::source::Checkpoint;
use edge_lmm_models::media::{AudioPadding, MediaOptions};
use edge_lmm_ops::Format;

/// Checks some samples of a checkpoint.
fn check(checkpoint: &str, folder: &str, samples: &[usize]) {
    let source = Checkpoint::open(&data().join(checkpoint), None).expect("a checkpoint");
    let mut engine = engine_on::<Vulkan>(source, &F32);
    let goldens = goldens(&data().join(folder));
    // The reference pads audio.
    let options = MediaOptions {
        audio_padding: AudioPadding::Window,
        ..MediaOptions::default()
    };
    for &sample in samples {
        check_sample(&mut engine, &goldens[sample], &options);
    }
}

/// An image and a video.
#[test]
fn qwen2_vl() {
    check("qwen2vl-tiny", "goldens/qwen2vl-tiny", &[0, 7]);
    check("qwen2vl-odd", "qwen2vl-odd/goldens", &[0, 1]);
}

/// Window attention.
#[test]
fn qwen2_5_vl() {
    check("qwen25vl-tiny", "goldens/qwen25vl-tiny", &[0]);
    check("qwen25vl-odd", "qwen25vl-odd/goldens", &[0, 1]);
}

#[test]
fn llava() {
    check("llava-tiny", "goldens/llava-tiny", &[0]);
    check("llava-odd", "llava-odd/goldens", &[0]);
}

/// With OPT, and with Flan-T5 and its attention bias.
#[test]
fn blip2() {
    check("blip2-tiny", "goldens/blip2-tiny", &[0]);
    check("blip2-t5-odd", "blip2-t5-odd/goldens", &[0]);
}

#[test]
fn phi3_vision() {
    check("phi35v-tiny", "goldens/phi35v-tiny", &[0]);
    check("phi35v-odd", "phi35v-odd/goldens", &[0]);
}

#[test]
fn qwen2_audio() {
    check("qwen2audio-tiny", "goldens/qwen2audio-tiny", &[0]);
    check("qwen2audio-odd", "qwen2audio-odd/goldens", &[0]);
}

/// Text-only language models, with scaled and with partial RoPE.
#[test]
fn text() {
    for name in ["llama3-odd", "qwen2-odd", "phi3-odd"] {
        check(name, &format!("{name}/goldens"), &[0]);
    }
}

/// With quantized weights a generated token takes 8 kernel launches per layer, or 9 if keys are
/// split, plus a few outside the layers.
#[test]
fn launches_of_a_token() {
    let source = Checkpoint::open(&data().join("qwen2vl-tiny"), None).expect("a checkpoint");
    let options = Options {
        text: Format::Q4,
        vision: Format::Q8,
        audio: Format::Q8,
    };
    let mut engine = engine_on::<Vulkan>(source, &options);
    let golden = &goldens(&data().join("goldens/qwen2vl-tiny"))[0];
    let request = Request {
        timing: true,
        media: &golden.media,
        max_tokens: 5,
        ignore_eos: true,
        sampling: Default::default(),
        ..Request::new(&ask(&golden.media, &golden.question))
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
