//! Qwen2.5-Omni: parts of the checkpoint that are skipped, and sounds of videos.

use std::collections::BTreeMap;

use edge_lmm::{Media, Request};
use edge_lmm_convert::Plan;
use edge_lmm_convert::source::Checkpoint;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

use crate::common::{F32, ask, data, engine, goldens};

/// The published checkpoints have the speech of the model beside the text.
#[test]
fn the_talker_is_skipped() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = data().join("qwen25omni-odd");
    for name in [
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        std::fs::copy(source.join(name), folder.path().join(name)).expect(name);
    }
    let bytes = std::fs::read(source.join("model.safetensors")).expect("weights");
    let thinker = SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut tensors: BTreeMap<String, TensorView<'_>> = thinker.tensors().into_iter().collect();
    for name in [
        "talker.codec_head.weight",
        "talker.model.norm.weight",
        "token2wav.code2wav_dit_model.norm.weight",
    ] {
        let view = TensorView::new(Dtype::BF16, vec![2], &[0; 4]).expect("a tensor");
        tensors.insert(name.to_owned(), view);
    }
    let path = folder.path().join("model.safetensors");
    serialize_to_file(tensors, None, &path).expect("a file");
    let checkpoint = Checkpoint::open(folder.path(), None).expect("a checkpoint");
    let plan = Plan::new(&checkpoint, &F32).expect("a plan");
    let skipped: Vec<(&str, usize)> = plan.skipped_parts().into_iter().collect();
    assert_eq!(skipped, [("talker", 2), ("token2wav", 1)]);
}

/// A sound track needs its video; other sounds stand alone.
#[test]
fn a_sound_track_follows_its_video() {
    let folder = data().join("qwen25omni-odd");
    let mut session = engine(&folder, None, &F32);
    let all = goldens(&folder.join("goldens"));
    let sample = (all.iter()).find(|golden| {
        golden.media.len() == 2
            && golden.media[1].kind() == edge_lmm::MediaKind::Audio
            && golden.media[0].kind() == edge_lmm::MediaKind::Video
    });
    let [video, track] = &sample.expect("a video with its sound").media[..] else {
        panic!("two media");
    };
    let mut answer = |media: &[Media]| {
        let messages = ask(media, "what happens?");
        let request = Request {
            media,
            max_tokens: 1,
            ..Request::new(&messages)
        };
        let answer = session.answer(&request, |_| std::ops::ControlFlow::Continue(()));
        answer.map_err(|error| error.to_string())
    };
    let joined = answer(&[video.clone(), track.clone()]).expect("both together");
    assert_eq!(joined.visual_tokens, 18 + 67);
    let error = answer(&[track.clone(), video.clone()]).expect_err("no video before it");
    assert!(error.contains("follow its video"), "{error}");
    let error = answer(std::slice::from_ref(track)).expect_err("no video");
    assert!(error.contains("follow its video"), "{error}");
}
