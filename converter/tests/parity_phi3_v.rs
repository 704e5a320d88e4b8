//! Comparison of every stage of Phi-3.5-Vision with the reference implementation.

mod common;

use common::check::check_family;
use common::data;

/// The seventh sample is too long for the short rotary factors.
#[test]
fn trained() {
    let folder = data().join("goldens/phi35v-tiny");
    check_family(&data().join("phi35v-tiny"), None, &folder, 8);
}

/// Unequal parts of the fused projection, a portrait image, empty crops, a prompt one token too
/// long for the short rotary factors.
#[test]
fn of_other_dimensions() {
    let folder = data().join("phi35v-odd");
    check_family(&folder, None, &folder.join("goldens"), 3);
}
