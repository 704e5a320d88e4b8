//! Conversion by ffmpeg, which a script stands in for.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use edge_lmm::media::{FrameSelection, MediaError, Source};

use crate::fixtures::temporary;
use crate::script;

const MATROSKA: &[u8] = b"\x1a\x45\xdf\xa3\x01\0\0\0";

/// Two gray frames as `printf` writes them.
const VIDEO: &str = r"YUV4MPEG2 W2 H2 F5:1 Cmono XCOLORRANGE=FULL\nFRAME\nabcdFRAME\nefgh";

/// A program that writes its arguments to `arguments` beside it and then runs `script`.
fn program(folder: &Path, script: &str) -> PathBuf {
    let file = folder.join("converter");
    let script = format!(
        "#!/bin/sh\nprintf '%s\\n' \"$@\" > '{}/arguments'\n{script}\n",
        folder.display()
    );
    script::write(&file, &script);
    file
}

fn arguments(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("arguments")).expect("arguments");
    text.lines().map(str::to_owned).collect()
}

fn read(file: &Path, program: &Path) -> Result<Vec<u8>, MediaError> {
    let source = Source::open(file)?.with_ffmpeg(program);
    let video = source.video(FrameSelection::All)?;
    assert_eq!(video.frames_per_second, 5.0);
    Ok(video.frames.iter().map(|frame| frame.pixels()[0]).collect())
}

#[test]
fn other_formats_are_converted() {
    let (folder, file) = temporary("holiday.mkv", MATROSKA);
    let program = program(folder.path(), &format!("printf '{VIDEO}'"));
    assert_eq!(read(&file, &program).expect("a video"), *b"ae");
    let arguments = arguments(folder.path());
    let input = arguments
        .iter()
        .position(|argument| argument == "-i")
        .expect("an input");
    assert_eq!(arguments[input - 2..input], ["-f", "matroska"]);
    assert_eq!(arguments[input + 1], format!("file:{}", file.display()));
    assert_eq!(arguments.last().expect("an output"), "pipe:1");
    assert!(arguments.contains(&"file,pipe".to_owned()));
}

/// Names that look like options, protocols or patterns reach the program as they are.
#[test]
fn names_are_no_options() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path(), &format!("printf '{VIDEO}'"));
    for name in ["-y.mkv", "http:x.mkv", "a b;c'%03d.mkv", "concat:a|b"] {
        let file = folder.path().join(name);
        fs::write(&file, MATROSKA).expect("a file");
        read(&file, &program).expect("a video");
        let expected = format!("file:{}", file.display());
        assert!(arguments(folder.path()).contains(&expected), "{name}");
    }
}

#[test]
fn pipes_are_passed_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = format!(
        "cat > '{}/input'; printf '{VIDEO}'",
        folder.path().display()
    );
    let program = program(folder.path(), &script);
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let content = [MATROSKA, &[7; 200_000]].concat();
    let sent = content.clone();
    std::thread::spawn(move || std::io::Write::write_all(&mut writer, &sent));
    let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
    assert_eq!(read(name.as_ref(), &program).expect("a video"), *b"ae");
    assert_eq!(
        fs::read(folder.path().join("input")).expect("the input"),
        content
    );
    assert!(arguments(folder.path()).contains(&"pipe:0".to_owned()));
}

#[test]
fn sound_tracks_are_converted() {
    let (folder, file) = temporary("holiday.mkv", MATROSKA);
    // -1 and 0.5.
    let program = program(folder.path(), r"printf '\0\0\200\277\0\0\0\077'");
    let source = Source::file(&file).expect("a source").with_ffmpeg(program);
    let sound = source.audio().expect("a sound");
    assert_eq!(
        (&sound.samples[..], sound.sample_rate),
        (&[-1.0, 0.5][..], 16_000)
    );
}

#[test]
fn failures_are_reported() {
    for (script, part) in [
        (
            "echo first >&2; echo 'no such codec' >&2; exit 1",
            "ffmpeg failed: no such codec",
        ),
        ("exit 3", "ffmpeg failed: exit status: 3"),
        ("true", "it has no frames"),
        (
            "printf 'YUV4MPEG2 W2 H2 F5:1 Cmono\\nFRAME\\nab'",
            "its last frame has 2 of 4 bytes",
        ),
        (
            "printf 'YUV4MPEG2 W2 H2 F5:1 Cmono\\nFRAME\\nabcd'; echo broken >&2; exit 1",
            "ffmpeg failed: broken",
        ),
    ] {
        let (folder, file) = temporary("holiday.mkv", MATROSKA);
        let program = program(folder.path(), script);
        let message = read(&file, &program).expect_err(part).to_string();
        assert!(message.contains(part), "{message:?} lacks {part:?}");
        assert!(message.contains("holiday.mkv: "), "{message}");
    }
}

#[test]
fn a_missing_program_is_reported() {
    let (folder, file) = temporary("holiday.mkv", MATROSKA);
    let message = read(&file, &folder.path().join("none"))
        .unwrap_err()
        .to_string();
    for part in [
        "Matroska",
        "ffmpeg, which would convert it, was not found",
        "install it",
    ] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

/// By default, as in the server, no program is started.
#[test]
fn programs_are_not_started_unless_allowed() {
    let (_folder, file) = temporary("holiday.mkv", MATROSKA);
    let source = Source::file(&file).expect("a source");
    for message in [
        source.video(FrameSelection::All).unwrap_err().to_string(),
        source.audio().unwrap_err().to_string(),
    ] {
        assert!(message.contains("unsupported file format"), "{message}");
    }
}

#[test]
fn the_program_ends_with_the_stream() {
    let (folder, file) = temporary("holiday.mkv", MATROSKA);
    let process = folder.path().join("process");
    let script = format!(
        "echo $$ > '{}'; printf '{VIDEO}'; exec sleep 600",
        process.display()
    );
    let program = program(folder.path(), &script);
    let start = Instant::now();
    let source = Source::file(&file).expect("a source").with_ffmpeg(program);
    let mut stream = source.frames().expect("a stream");
    assert_eq!(stream.frame_count(), None);
    assert_eq!(
        stream.next_frame().expect("a frame").expect("a frame").time,
        0.0
    );
    drop(stream);
    assert!(start.elapsed() < Duration::from_secs(60));
    let process = fs::read_to_string(process).expect("a process");
    assert!(!Path::new("/proc").join(process.trim()).exists());
}
