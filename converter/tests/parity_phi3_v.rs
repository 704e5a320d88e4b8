//! Every stage of Phi-3.5-Vision against the reference implementation's values.

mod common;

use common::check::check_family;
use common::data;

/// The seventh sample is longer than the short rotary factors are for.
#[test]
fn trained() {
    let folder = data().join("goldens/phi35v-tiny");
    check_family(&data().join("phi35v-tiny"), None, &folder, 8);
}

/// Unequal parts of the fused projection, a portrait, empty places for crops, a prompt that is one
/// token longer than the short rotary factors are for.
#[test]
fn of_other_dimensions() {
    let folder = data().join("phi35v-odd");
    check_family(&folder, None, &folder.join("goldens"), 3);
}
