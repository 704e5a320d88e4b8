//! Files that end too early are refused.

use edge_lmm::media::{FrameSelection, decode_image, load_audio, load_image, load_video};

use crate::fixtures::{path, temporary};

/// Places to cut a file of `len` bytes at, up to `end` bytes before its end.
fn cuts(len: usize, end: usize) -> impl Iterator<Item = usize> {
    let start = len / 3;
    (start..len - end)
        .step_by((len - start) / 23)
        .chain([len - end])
}

fn check(name: &str, cut: usize, result: Result<(), String>) {
    let message = result.expect_err(&format!("{name}, cut after {cut} bytes, is read"));
    assert!(message.contains("truncated"), "{name}, {cut}: {message}");
}

#[test]
fn images_are_refused() {
    // All cut the end marker, but for the trailer of a GIF, which may be missing.
    for (name, end) in [
        ("jpeg420.jpg", 1),
        ("jpeg_grey.jpg", 1),
        ("jpeg_progressive.jpg", 2),
        ("jpeg_orientation6.jpg", 2),
        ("rgb8.png", 1),
        ("palette.png", 12),
        ("rgba16.png", 30),
        ("png_moving.png", 1),
        ("webp_lossy.webp", 2),
        ("webp_lossless.webp", 2),
        ("webp_alpha.webp", 2),
        ("webp_moving.webp", 2),
        ("gif_still.gif", 2),
        ("gif_moving.gif", 2),
        ("bmp24.bmp", 1),
        ("bmp8.bmp", 1),
        ("bmp1.bmp", 4),
    ] {
        let content = std::fs::read(path(&format!("images/{name}"))).expect(name);
        assert!(decode_image(&content).is_ok(), "{name}");
        for cut in cuts(content.len(), end) {
            let (_folder, file) = temporary(name, &content[..cut]);
            let read = load_image(&file).map(|_| ());
            check(name, cut, read.map_err(|error| error.to_string()));
            if name.contains("moving") {
                let read = load_video(&file, FrameSelection::All).map(|_| ());
                check(name, cut, read.map_err(|error| error.to_string()));
            }
        }
    }
}

#[test]
fn sounds_are_refused() {
    for (name, end) in [
        ("wav_pcm_16.wav", 1),
        ("wav_stereo.wav", 1),
        ("wav_rf64.wav", 1),
        ("aiff_16.aiff", 2),
        ("flac_16.flac", 200),
        ("flac_24_stereo.flac", 200),
        ("mp3_mono.mp3", 500),
    ] {
        let content = std::fs::read(path(&format!("sounds/{name}"))).expect(name);
        for cut in cuts(content.len(), end) {
            let (_folder, file) = temporary(name, &content[..cut]);
            let read = load_audio(&file).map(|_| ());
            check(name, cut, read.map_err(|error| error.to_string()));
        }
    }
}

#[test]
fn a_gif_may_lack_its_trailer() {
    let content = std::fs::read(path("images/gif_moving.gif")).expect("file");
    let (_folder, whole) = temporary("whole.gif", &content);
    let (_folder, file) = temporary("cut.gif", &content[..content.len() - 1]);
    let load = |file| load_video(file, FrameSelection::All).expect("a video");
    assert_eq!(load(&file), load(&whole));
}

#[test]
fn a_jpeg_needs_data_for_its_pixels() {
    let mut content = std::fs::read(path("images/jpeg420.jpg")).expect("file");
    let frame = content.windows(2).position(|pair| pair == [0xff, 0xc0]);
    let at = frame.expect("a frame header") + 5;
    content[at..at + 4].copy_from_slice(&[0x0b, 0xb8, 0xff, 0xdc]);
    let message = decode_image(&content).unwrap_err().to_string();
    assert!(
        message.contains("bytes of data for 65500x3000"),
        "{message}"
    );
}
