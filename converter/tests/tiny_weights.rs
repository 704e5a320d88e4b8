//! Weights near the limits of their formats: representable values are kept, lost ones cause a
//! warning.

mod common;

use common::damage::{Copy, Tensors};
use common::{ask, data, engine};
use edge_lmm::{Media, Request, media};
use edge_lmm_convert::Options;

/// Multiplies a bf16 tensor by a power of two, which is exact.
fn scale(tensors: &mut Tensors, name: &str, factor: f32) {
    let (_, _, bytes) = tensors.get_mut(name).expect(name);
    for word in bytes.chunks_exact_mut(2) {
        let value = f32::from_bits(u32::from(u16::from_le_bytes([word[0], word[1]])) << 16);
        let scaled = (value * factor).to_bits() >> 16;
        word.copy_from_slice(&(scaled as u16).to_le_bytes());
    }
}

/// Returns a checkpoint of the same function with small weights in `down` and large ones in `up`.
fn rescaled(factor: f32) -> Copy {
    let copy = Copy::of("qwen2vl-tiny");
    copy.change_tensors(|tensors| {
        for layer in 0..3 {
            let name = |part: &str| format!("model.layers.{layer}.mlp.{part}_proj.weight");
            scale(tensors, &name("up"), factor);
            scale(tensors, &name("down"), 1.0 / factor);
        }
    });
    copy
}

#[test]
fn small_weights_keep_the_function() {
    let image = data().join("questions/images/color_000.png");
    let media = [Media::image(media::load_image(&image).expect("an image"))];
    let messages = ask(&media, "what color is the diamond?");
    let request = Request {
        media: &media,
        options: Default::default(),
        max_tokens: 8,
        sampling: Default::default(),
        ..Request::new(&messages)
    };
    let copy = rescaled(65536.0);
    let mut engine = engine(copy.path(), None, &Options::default());
    let answer = engine
        .answer(&request, |_| std::ops::ControlFlow::Continue(()))
        .expect("an answer");
    assert_eq!(answer.text, "green");
}

/// An overflow inside the model gives an error instead of repeating token 0.
#[test]
fn overflowing_weights_give_no_answer() {
    let copy = Copy::of("qwen2vl-tiny");
    copy.change_tensors(|tensors| {
        for layer in 0..3 {
            let name = format!("model.layers.{layer}.self_attn.o_proj.weight");
            scale(tensors, &name, 2f32.powi(120));
        }
    });
    let mut engine = engine(copy.path(), None, &common::F32);
    let messages = ask(&[], "hello");
    let request = Request {
        options: Default::default(),
        max_tokens: 8,
        sampling: Default::default(),
        ..Request::new(&messages)
    };
    let answer = engine.answer(&request, |_| std::ops::ControlFlow::Continue(()));
    let error = answer.expect_err("an overflow").to_string();
    assert!(error.contains("not numbers"), "{error}");
}

#[test]
fn lost_weights_are_named() {
    for (format, factor) in [("q4", 20), ("q8", 20), ("f16", 18)] {
        let copy = rescaled(2f32.powi(factor));
        let (converted, said) = copy.convert(&["--text-quant", format]);
        assert!(converted, "{said}");
        let warnings: Vec<&str> = said.lines().filter(|l| l.contains("WARN")).collect();
        assert_eq!(warnings.len(), 1, "{said}");
        assert!(warnings[0].contains("down"), "{said}");
        assert!(warnings[0].contains(format), "{said}");
    }
    for (copy, format) in [
        (rescaled(2f32.powi(20)), "f32"),
        (Copy::of("qwen2vl-tiny"), "q4"),
    ] {
        let (converted, said) = copy.convert(&["--text-quant", format]);
        assert!(converted && !said.contains("WARN"), "{said}");
    }
}
