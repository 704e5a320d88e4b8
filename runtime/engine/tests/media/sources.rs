//! Pipes, and the memory that media may take.

use std::path::Path;
use std::process::Command;

use edge_lmm::media::{FrameSelection, MediaKind, Source, load_audio, load_image, load_video};

use crate::fixtures::{path, temporary};

/// Opens a named pipe into which another thread writes a file.
fn through_pipe(file: &Path) -> Source {
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    let content = std::fs::read(file).expect("file");
    let writer = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::write(pipe, content)
    });
    let source = Source::open(&pipe).expect("a source");
    writer.join().expect("writer").expect("written");
    source
}

#[test]
fn pipes_are_read_like_files() {
    let image = path("images/rgb8.png");
    let source = through_pipe(&image);
    assert_eq!(source.kind().expect("a kind"), MediaKind::Image);
    assert_eq!(
        source.image().expect("an image"),
        load_image(&image).expect("an image")
    );

    let sound = path("sounds/flac_16.flac");
    let source = through_pipe(&sound);
    assert_eq!(source.kind().expect("a kind"), MediaKind::Audio);
    assert_eq!(
        source.audio().expect("a sound"),
        load_audio(&sound).expect("a sound")
    );

    let y4m = b"YUV4MPEG2 W2 H2 F10:1 Cmono\nFRAME\n\x10\x20\x30\x40FRAME\n\x50\x60\x70\x80";
    let (_folder, y4m) = temporary("v.y4m", y4m);
    for video in [path("images/gif_moving.gif"), y4m] {
        for selection in [FrameSelection::All, FrameSelection::Uniform(2)] {
            let source = through_pipe(&video);
            assert_eq!(source.kind().expect("a kind"), MediaKind::Video);
            let frames = source.video(selection).expect("a video");
            assert_eq!(frames, load_video(&video, selection).expect("a video"));
        }
    }
}

#[test]
fn only_sources_that_may_be_pipes_wait_for_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .expect("mkfifo")
            .success()
    );
    // Nobody writes into the pipe: opening it would wait for ever.
    let message = load_image(&pipe).unwrap_err().to_string();
    assert!(message.contains("not a file: found a pipe"), "{message}");
    let message = load_audio(Path::new("/dev/zero")).unwrap_err().to_string();
    assert!(message.contains("not a file: found a device"), "{message}");
}

#[test]
fn small_frames_have_a_limit_too() {
    let frame = b"\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0";
    let head = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff";
    let content = [&head[..], &frame.repeat(5000), b";"].concat();
    let (_folder, file) = temporary("many.gif", &content);
    let message = load_video(&file, FrameSelection::All)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("5000 frames of 1x1 pixels are too many"),
        "{message}"
    );
    let some = load_video(&file, FrameSelection::Uniform(9)).expect("a video");
    assert_eq!(some.frames.len(), 9);
}
