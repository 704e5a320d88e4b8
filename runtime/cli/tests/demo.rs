//! `edge-lmm demo`: the page that it writes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

fn demo(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge-lmm"));
    let command = command.arg("demo").args(arguments).current_dir(folder);
    command.output().expect("the program starts")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder");
    entries
        .map(|entry| {
            let name = entry.expect("an entry").file_name();
            name.to_string_lossy().into_owned()
        })
        .collect()
}

#[test]
fn the_page_has_the_image_the_answers_and_their_stages() {
    let folder = TempDir::new().expect("a folder");
    let output = demo(folder.path(), &[]);
    assert!(output.status.success(), "{output:?}");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("wrote demo.html"), "{message}");
    let page = fs::read_to_string(folder.path().join("demo.html")).expect("the page");
    let (_, rest) = page.split_once("id=\"data\">").expect("the data");
    let (data, _) = rest.split_once("</script>").expect("the end of the data");
    let data: Value = serde_json::from_str(data).expect("JSON");
    let image = data["image"].as_str().expect("an image");
    assert!(image.starts_with("data:image/png;base64,"));
    assert_eq!(data["answers"][0]["text"], "two");
    assert_eq!(data["answers"][1]["text"], "blue square, yellow cross");
    let stages = |answer: usize| {
        let stages = data["answers"][answer]["stages"]
            .as_array()
            .expect("stages");
        stages
            .iter()
            .map(|stage| stage["name"].clone())
            .collect::<Vec<_>>()
    };
    assert!(stages(0).contains(&"vision".into()), "{data}");
    // The second question starts at its text.
    assert!(!stages(1).contains(&"vision".into()), "{data}");
    assert_ne!(data["answers"][1]["reused_tokens"], 0);
}

#[test]
fn the_page_is_an_addition() {
    let folder = TempDir::new().expect("a folder");
    assert!(demo(folder.path(), &["--no-html"]).status.success());
    assert_eq!(names(folder.path()), [""; 0]);

    // A page that cannot be written is an error only if it was asked for.
    fs::create_dir(folder.path().join("demo.html")).expect("a folder");
    let output = demo(folder.path(), &[]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no page is written"));
    let output = demo(folder.path(), &["--html", "demo.html"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_leaves_no_unfinished_page() {
    let folder = TempDir::new().expect("a folder");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = Command::new(env!("CARGO_BIN_EXE_edge-lmm"))
        .args(["demo", "--html", "page.html"])
        .current_dir(folder.path())
        .stdout(writer)
        .stderr(Stdio::null())
        .status()
        .expect("the program starts");
    assert!(status.success());
    assert_eq!(names(folder.path()), [""; 0]);
}
