//! Comparison of every stage of Qwen2-VL with the reference implementation.

mod common;

use common::check::check_family;
use common::data;

#[test]
fn qwen2_vl() {
    let folder = data().join("goldens/qwen2vl-tiny");
    check_family(&data().join("qwen2vl-tiny"), None, &folder, 8);
}

/// Other sizes, none a multiple of a block; an untied head; two shards; two images in one prompt, a
/// video of five frames, text alone.
#[test]
fn qwen2_vl_of_other_dimensions() {
    let folder = data().join("qwen2vl-odd");
    check_family(&folder, None, &folder.join("goldens"), 5);
}

#[test]
fn qwen2_vl_of_other_dimensions_from_gguf() {
    let folder = data().join("qwen2vl-odd-gguf");
    check_family(
        &folder.join("qwen2vl-odd-f16.gguf"),
        Some(&folder.join("mmproj-qwen2vl-odd-f16.gguf")),
        &data().join("qwen2vl-odd/goldens"),
        5,
    );
}
