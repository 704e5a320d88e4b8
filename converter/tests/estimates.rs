//! Estimates of memory and time before a record is written.

mod common;

use common::data;
use edge_lmm::estimate::Scenario;
use edge_lmm_convert::source::Checkpoint;
use edge_lmm_convert::{Options, Plan};

/// Patches of an image of 112x112 pixels that enter the encoder: in a grid, all of a square that
/// several share a token, in all tiles, and before queries summarize them.
#[test]
fn estimates_count_the_patches_of_the_encoder() {
    for (name, patches) in [
        // Resized to 56x56, the limit of pixels, with patches of 14x14.
        ("qwen2vl-odd", 4 * 4),
        // 70x70 pixels in patches of 10x10.
        ("llava-odd", 7 * 7),
        ("blip2-odd", 7 * 7),
        // 140x140 pixels in patches of 14x14, four of which become a token.
        ("gemma3-odd", 10 * 10),
        // Nine tiles and the whole image of 130x130 pixels, in whole patches of 14x14.
        ("smolvlm2-odd", (9 + 1) * 9 * 9),
    ] {
        let checkpoint = Checkpoint::open(&data().join(name), None).expect(name);
        let plan = Plan::new(&checkpoint, &Options::default()).expect(name);
        let scenario = Scenario {
            context: 64,
            image_size: Some((112, 112)),
            drafts: true,
        };
        let estimate = plan.estimate(0, &scenario).expect(name);
        let vision = &estimate.stages[0];
        assert_eq!((vision.stage, vision.tokens), ("vision", patches), "{name}");
    }
}
