//! Comparison of every stage of LLaVA-1.5 with the reference implementation.

mod common;

use common::check::{check_family, check_sample};
use common::{F32, data, engine_of, goldens};
use edge_lmm_convert::source::Checkpoint;
use edge_lmm_models::media::MediaOptions;

#[test]
fn trained() {
    let folder = data().join("goldens/llava-tiny");
    check_family(&data().join("llava-tiny"), None, &folder, 8);
}

/// Features of the third-to-last layer, grouped key-value heads, images resized to 80 pixels and
/// cropped to 70, a transparent image, another tokenizer layout.
#[test]
fn of_other_dimensions() {
    let folder = data().join("llava-odd");
    check_family(&folder, None, &folder.join("goldens"), 3);
}

/// Query and key rows are permuted in such files. They cannot express that images are resized to
/// more than the crop size, nor that a text gets its leading space once and not after every special
/// token: both are taken from the original.
#[test]
fn of_other_dimensions_from_gguf() {
    let folder = data().join("llava-odd-gguf");
    let text = folder.join("llava-odd-f16.gguf");
    let mmproj = folder.join("mmproj-llava-odd-f16.gguf");
    let mut checkpoint = Checkpoint::open(&text, Some(&mmproj)).expect("GGUF files");
    let folder = data().join("llava-odd");
    let original = Checkpoint::open(&folder, None).expect("the original");
    checkpoint.preprocessor_config = original.preprocessor_config.clone();
    checkpoint.tokenizer = original.tokenizer.clone();
    let mut engine = engine_of(checkpoint, &F32);
    let goldens = goldens(&folder.join("goldens"));
    assert_eq!(goldens.len(), 3);
    for golden in &goldens {
        check_sample(&mut engine, golden, &MediaOptions::default());
    }
}
