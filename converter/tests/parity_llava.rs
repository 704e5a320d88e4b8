//! Every stage of LLaVA-1.5 against the reference implementation's values.

mod common;

use common::check::check_family;
use common::data;

#[test]
fn trained() {
    let folder = data().join("goldens/llava-tiny");
    check_family(&data().join("llava-tiny"), None, &folder, 8);
}

/// Features of the last layer but two, grouped key-value heads, pictures resized to 80 pixels of
/// which 70 are cut out, a transparent one, another layout of the tokenizer.
#[test]
fn of_other_dimensions() {
    let folder = data().join("llava-odd");
    check_family(&folder, None, &folder.join("goldens"), 3);
}
