//! Media from standard input, and media that need more memory than there is.

#![cfg(target_os = "linux")]

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn demo(name: &str) -> PathBuf {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");
    PathBuf::from(demo).join(name)
}

/// Asks the demo's model about media.
fn ask(input: impl Into<Stdio>, media: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_edge-lmm"))
        .arg("run")
        .arg(demo("qwen2vl-tiny.bpk"))
        .args(["--prompt", "how many shapes are there?"])
        .args(media)
        .stdin(input)
        .output()
        .expect("the program starts")
}

/// A pipe that delivers the demo's image.
fn piped() -> Stdio {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let mut image = File::open(demo("shapes.png")).expect("the image");
    std::thread::spawn(move || std::io::copy(&mut image, &mut writer));
    reader.into()
}

#[test]
fn standard_input_can_be_an_image() {
    let file = || File::open(demo("shapes.png")).expect("the image");
    for (input, name) in [
        (piped(), "-"),
        (piped(), "/dev/stdin"),
        (file().into(), "-"),
        (file().into(), "/dev/stdin"),
    ] {
        let answer = ask(input, &["--image", name]);
        assert_eq!(answer.stdout, b"two\n", "{name}: {answer:?}");
    }
}

#[test]
fn standard_input_is_read_once() {
    let answer = ask(piped(), &["--image", "-", "--audio", "-"]);
    let message = String::from_utf8_lossy(&answer.stderr);
    assert_eq!(answer.status.code(), Some(1), "{message}");
    assert!(message.contains("standard input is read once"), "{message}");
}

#[test]
fn errors_name_standard_input() {
    let answer = ask(Stdio::null(), &["--image", "-"]);
    let message = String::from_utf8_lossy(&answer.stderr);
    let expected = "error: standard input: not an image: found an empty file";
    assert!(message.starts_with(expected), "{message}");
}

#[test]
fn memory_is_compared_with_the_limit_of_the_process() {
    // A WebP of 34 bytes that announces 16000x12000 pixels.
    let (width, height) = (16_000u32, 12_000u32);
    let mut image = b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0\x2f".to_vec();
    image.extend(((width - 1) | (height - 1) << 14).to_le_bytes());
    image.resize(34, 0);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("large.webp");
    std::fs::write(&file, image).expect("written");
    let ended = Command::new("sh")
        .args(["-c", "ulimit -v 2000000; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_edge-lmm"))
        .arg("run")
        .arg(demo("qwen2vl-tiny.bpk"))
        .args(["--prompt", "x", "--image"])
        .arg(&file)
        .output()
        .expect("the program starts");
    let message = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(message.contains("decoding needs"), "{message}");
}
