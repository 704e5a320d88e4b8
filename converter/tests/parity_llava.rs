//! Every stage of LLaVA-1.5 against the reference implementation's values.

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

/// Features of the last layer but two, grouped key-value heads, pictures resized to 80 pixels of
/// which 70 are cut out, a transparent one, another layout of the tokenizer.
#[test]
fn of_other_dimensions() {
    let folder = data().join("llava-odd");
    check_family(&folder, None, &folder.join("goldens"), 3);
}

/// Query and key rows are permuted in such files. They cannot say that pictures are resized to
/// more than what is cut out of them, nor that a text gets its leading space once and not behind
/// every special token: both are taken from the original.
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
