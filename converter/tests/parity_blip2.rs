//! Every stage of BLIP-2 against the reference implementation's values.

mod common;

use common::check::check_family;
use common::data;

#[test]
fn trained() {
    let folder = data().join("goldens/blip2-tiny");
    check_family(&data().join("blip2-tiny"), None, &folder, 8);
}

/// An odd number of layers in the Q-Former, so that the last one looks at the picture; a grey
/// picture; a final norm with negative scales.
#[test]
fn of_other_dimensions() {
    let folder = data().join("blip2-odd");
    check_family(&folder, None, &folder.join("goldens"), 3);
}

/// Encoder and decoder of different depth, heads together wider than the residual stream,
/// distances beyond the last bucket.
#[test]
fn over_flan_t5() {
    let folder = data().join("blip2-t5-odd");
    check_family(&folder, None, &folder.join("goldens"), 3);
}
