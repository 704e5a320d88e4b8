//! Progress of the encoders.

use std::ops::ControlFlow;

use edge_lmm::{Event, Request};
use edge_lmm_convert::Plan;

use crate::common::manifest::Manifest;
use crate::common::{F32, ask, engine_from};

/// Every encoder reports four times in each layer, so that a request can be canceled there.
#[test]
fn encoders_report_four_times_per_layer() {
    let mut encoders = 0;
    for manifest in Manifest::of_the_hub() {
        let checkpoint = manifest.open();
        let plan = Plan::new(&checkpoint, &F32).expect("a plan");
        let names = ["vision.blocks", "audio.layers"];
        let Some(layers) = names.iter().find_map(|name| plan.dimensions.get(*name)) else {
            continue;
        };
        encoders += 1;
        let mut goldens = manifest.goldens().into_iter();
        let golden = goldens
            .find(|golden| golden.media.len() == 1)
            .expect("a sample with one medium");
        let messages = ask(&golden.media, &golden.question);
        let request = Request {
            media: &golden.media,
            max_tokens: 1,
            sampling: Default::default(),
            ..Request::new(&messages)
        };
        let mut reports = Vec::new();
        let mut session = engine_from::<edge_lmm::Cpu>(&plan, checkpoint);
        session
            .answer(&request, |event| {
                if let Event::Progress {
                    stage: "vision" | "audio",
                    done,
                    total,
                } = event
                {
                    reports.push((done, total));
                }
                ControlFlow::Continue(())
            })
            .expect("an answer");
        let total = reports.len();
        // Phi-3.5-Vision encodes several crops of an image.
        assert!(
            total > 0 && total.is_multiple_of(4 * layers),
            "{}: {total} reports, {layers} layers",
            manifest.name
        );
        let expected: Vec<(usize, usize)> = (0..total).map(|done| (done, total)).collect();
        assert_eq!(reports, expected, "{}", manifest.name);
    }
    assert!(encoders > 6);
}
