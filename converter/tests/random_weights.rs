//! Random weights stand in for those of a checkpoint.

mod common;

use std::fs;
use std::path::Path;

use common::{ask, convert_checkpoint, data, engine_of};
use edge_lmm::{Media, Request, media};
use edge_lmm_convert::source::Checkpoint;
use edge_lmm_convert::{Options, Plan, random_checkpoint};

/// Copies the JSON files of a checkpoint.
fn without_weights(source: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(source).expect("a checkpoint") {
        let path = entry.expect("an entry").path();
        if path.is_file() && path.extension().is_none_or(|e| e != "safetensors") {
            let to = folder.path().join(path.file_name().expect("a name"));
            fs::copy(&path, to).expect("a copy");
        }
    }
    folder
}

#[test]
fn a_record_has_the_weights_of_the_real_one() {
    for name in [
        "blip2-odd",
        "blip2-t5-odd",
        "gemma3-odd",
        "gemma3text-odd",
        "lfm2vl-odd",
        "llava-odd",
        "phi35v-odd",
        "qwen25omni-odd",
        "qwen25vl-odd",
        "qwen2audio-odd",
        "qwen2vl-odd",
        "qwen35-odd",
        "qwen3vl-odd",
        "smolvlm2-odd",
    ] {
        let plan = |checkpoint: &Checkpoint| {
            let plan = Plan::new(checkpoint, &Options::default()).expect(name);
            let weights = plan.weights.into_iter();
            let shape = |w: edge_lmm_convert::PlannedWeight| {
                (w.spec.name.clone(), w.spec.rows(), w.spec.cols(), w.bytes)
            };
            weights.map(shape).collect::<Vec<_>>()
        };
        let source = data().join(name);
        let folder = without_weights(&source);
        let random = random_checkpoint(folder.path(), 1).expect(name);
        let real = Checkpoint::open(&source, None).expect(name);
        assert_eq!(plan(&random), plan(&real), "{name}");
    }
}

#[test]
fn a_record_answers_and_depends_on_the_seed() {
    let folder = without_weights(&data().join("qwen2vl-tiny"));
    let checkpoint = |seed| random_checkpoint(folder.path(), seed).expect("a checkpoint");
    let bytes = |seed| {
        let record = convert_checkpoint(checkpoint(seed), &Options::default()).expect("a record");
        fs::read(&record.path).expect("the record")
    };
    let first = bytes(1);
    assert!(first == bytes(1), "the same seed gives another record");
    assert!(first != bytes(2), "another seed gives the same record");

    let image = data().join("questions/images/color_000.png");
    let media = [Media::image(media::load_image(&image).expect("an image"))];
    let messages = ask(&media, "what color is the diamond?");
    let request = Request {
        media: &media,
        max_tokens: 8,
        ignore_eos: true,
        sampling: Default::default(),
        ..Request::new(&messages)
    };
    let answer = engine_of(checkpoint(1), &Options::default())
        .answer(&request, |_| std::ops::ControlFlow::Continue(()))
        .expect("an answer");
    assert_eq!(answer.tokens.len(), 8);
}

#[test]
fn a_folder_without_a_configuration_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = random_checkpoint(folder.path(), 1).expect_err("no config.json");
    assert!(error.to_string().contains("config.json"), "{error}");
    let file = folder.path().join("model.gguf");
    fs::write(&file, "GGUF").expect("a file");
    let error = random_checkpoint(&file, 1).expect_err("not a folder");
    assert!(
        error.to_string().contains("Hugging Face directory"),
        "{error}"
    );
}
