//! Comparison of every stage of Qwen2.5-VL with the reference implementation.

mod common;

use common::check::check_family;
use common::data;

#[test]
fn trained() {
    let folder = data().join("goldens/qwen25vl-tiny");
    check_family(&data().join("qwen25vl-tiny"), None, &folder, 8);
}

/// Windows of 3x3 tokens, truncated at the edge; one block with full attention; a video of five
/// frames with three positions per second.
#[test]
fn of_other_dimensions() {
    let folder = data().join("qwen25vl-odd");
    check_family(&folder, None, &folder.join("goldens"), 3);
}
