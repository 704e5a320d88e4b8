//! Media from standard input, and media that need more memory than there is.

#![cfg(target_os = "linux")]

#[path = "../../engine/tests/media/script.rs"]
mod script;

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

/// A video of the engine's test data.
fn video(name: &str) -> PathBuf {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../engine/tests/media/data");
    PathBuf::from(data).join("videos").join(name)
}

#[test]
fn standard_input_can_be_a_video() {
    let y4m = b"YUV4MPEG2 W56 H56 F5:1 Cmono\n".to_vec();
    let frame = [b"FRAME\n".as_slice(), &[90; 56 * 56]].concat();
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let content = [y4m, frame.repeat(20)].concat();
    std::thread::spawn(move || std::io::Write::write_all(&mut writer, &content));
    let mp4 = File::open(video("h264_high.mp4")).expect("a video");
    for (input, used) in [
        (Stdio::from(reader), "1 frames are used, 19"),
        (mp4.into(), "3 frames"),
    ] {
        let options = [
            "--video",
            "-",
            "--frames",
            "keyframes:3",
            "--motion-gate",
            "1",
        ];
        let answer = ask(input, &options);
        let message = String::from_utf8_lossy(&answer.stderr);
        assert_eq!(answer.status.code(), Some(0), "{message}");
        assert!(message.contains(used), "{message}");
    }
}

#[test]
fn selections_of_frames_are_checked() {
    for options in [
        &["--fps", "2", "--frames", "3"][..],
        &["--fps", "0"],
        &["--frames", "keyframes:0"],
        &["--frames", "every:3"],
        &["--motion-gate", "-1"],
        &["--video-sound"],
    ] {
        let answer = ask(Stdio::null(), options);
        assert_eq!(answer.status.code(), Some(2), "{options:?}");
    }
}

#[test]
fn ffmpeg_is_found_in_the_path() {
    let folder = tempfile::tempdir().expect("a folder");
    let ffmpeg = folder.path().join("ffmpeg");
    let video = folder.path().join("clip.mkv");
    std::fs::write(&video, b"\x1a\x45\xdf\xa3\x01\0\0\0").expect("a video");
    let run = || {
        let output = Command::new(env!("CARGO_BIN_EXE_edge-lmm"))
            .arg("run")
            .arg(demo("qwen2vl-tiny.bpk"))
            .args(["--prompt", "x", "--max-tokens", "1", "--video"])
            .arg(&video)
            .env("PATH", folder.path())
            .output()
            .expect("the program starts");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, message) = run();
    assert_eq!(code, Some(1), "{message}");
    assert!(
        message.contains("ffmpeg, which would convert it, was not found"),
        "{message}"
    );
    script::write(
        &ffmpeg,
        "#!/bin/sh\nprintf 'YUV4MPEG2 W2 H2 F5:1 Cmono\\nFRAME\\nabcd'\n",
    );
    let (code, message) = run();
    assert_eq!(code, Some(0), "{message}");
    script::write(&ffmpeg, "#!/bin/sh\necho 'unknown codec' >&2\nexit 1\n");
    let (code, message) = run();
    assert_eq!(code, Some(1), "{message}");
    assert!(
        message.contains("clip.mkv: cannot be read: ffmpeg failed: unknown codec"),
        "{message}"
    );
}
