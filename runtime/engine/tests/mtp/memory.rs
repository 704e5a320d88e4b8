//! Memory of the keys and values of the layer that drafts tokens.

use edge_lmm::{Request, Speculation};

use crate::model::Model;
use crate::support::go_on;
use crate::{long_request, question};

/// Bytes of a position in a layer with attention: a key and a value of one head with 64 numbers in half
/// precision. The model has one such layer, and the layer that drafts is one, too.
const POSITION: usize = 2 * 64 * 2;

/// Returns the estimated bytes of caches, the reserved ones, and the tokens of the prompt.
fn memory(model: Model, speculation: Speculation) -> (usize, usize, usize) {
    let (engine, messages) = (model.engine(), question());
    let request = Request {
        speculation,
        ..long_request(&messages, &[])
    };
    let mut session = engine.session();
    let generation = session.generate(&request, Vec::new(), go_on);
    let reserved = generation.expect("a prompt").reserved_bytes();
    let estimate = engine.estimate(&request, &[], session.len());
    (estimate.memory.cache as usize, reserved, session.len())
}

#[test]
fn requests_with_drafts_need_the_cache_of_the_layer() {
    let drafts = Speculation::Fixed(3);
    let (estimated, reserved, prompt) = memory(Model::QWEN, Speculation::Off);
    let with_drafts = memory(Model::QWEN, drafts);
    let context = prompt + 60;
    assert_eq!(with_drafts.0 - estimated, context * POSITION);
    // The layer has not processed the prompt yet.
    let capacity = reserved + prompt * POSITION;
    assert!(capacity >= context * POSITION, "{capacity}");
    assert_eq!(with_drafts.1 - reserved, capacity);
    let older = Model {
        without_mtp: true,
        ..Model::QWEN
    };
    assert_eq!(memory(older, drafts), (estimated, reserved, prompt));
}
