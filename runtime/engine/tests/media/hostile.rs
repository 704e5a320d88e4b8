//! Damaged files give an error or a part of what they held, but no panic.

use std::path::{Path, PathBuf};

use edge_lmm::media::{FrameSelection, kind, load_audio, load_image, load_video};
use proptest::prelude::*;

use crate::fixtures::{files, path};

/// Reads a file as everything that it can be; whatever is read keeps its promises.
fn read(file: &Path) {
    let _ = kind(file);
    if let Ok(image) = load_image(file) {
        assert_eq!(image.pixels().len(), image.width() * image.height() * 3);
    }
    for selection in [
        FrameSelection::All,
        FrameSelection::Uniform(2),
        FrameSelection::Rate(3.0),
        FrameSelection::Key(2),
    ] {
        if let Ok(video) = load_video(file, selection) {
            assert!(!video.frames.is_empty());
            assert!(video.frames_per_second > 0.0 && video.frames_per_second.is_finite());
        }
    }
    if let Ok(audio) = load_audio(file) {
        assert!(!audio.samples.is_empty() && audio.sample_rate > 0);
        assert!(audio.samples.iter().all(|v| v.is_finite()));
    }
}

/// One file of every format.
fn specimens() -> Vec<PathBuf> {
    let names = [
        "images/palette.png",
        "images/png_moving.png",
        "images/jpeg_orientation6.jpg",
        "images/jpeg_progressive.jpg",
        "images/bmp8.bmp",
        "images/gif_moving.gif",
        "images/webp_lossy.webp",
        "images/webp_moving.webp",
        "sounds/wav_pcm_24.wav",
        "sounds/flac_16.flac",
        "sounds/mp3_mono.mp3",
        "aac_stereo.m4a",
        "videos/h264_high.mp4",
        "videos/h264_fragmented.mp4",
    ];
    names.map(path).into()
}

#[test]
fn cut_off_files_do_not_panic() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("cut");
    for specimen in specimens() {
        let content = std::fs::read(&specimen).expect("file");
        for len in (0..content.len().min(128)).chain((128..content.len()).step_by(37)) {
            std::fs::write(&file, &content[..len]).expect("written");
            read(&file);
        }
    }
}

#[test]
fn whole_specimens_can_be_read() {
    let readable = |file: &PathBuf| {
        let video = || load_video(file, FrameSelection::All).is_ok();
        load_image(file).is_ok() || load_audio(file).is_ok() || video()
    };
    assert!(specimens().iter().all(readable));
    assert!(files("images").len() > 30);
}

/// Damage of a file: a position to cut or change it at, as a fraction of its length, and changes of
/// bytes.
fn damage() -> impl Strategy<Value = (usize, f64, Vec<(f64, bool, u8)>)> {
    // Headers are short; half of the places are among the first bytes.
    let place = prop_oneof![0.0..0.05f64, 0.0..1.0f64];
    let flips = prop::collection::vec((place, any::<bool>(), any::<u8>()), 1..6);
    (0..specimens().len(), 0.5..2.0f64, flips)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_do_not_panic((specimen, len, flips) in damage()) {
        let mut content = std::fs::read(&specimens()[specimen]).expect("file");
        content.truncate((content.len() as f64 * len) as usize);
        let end = content.len();
        for (place, wide, value) in flips {
            let at = (place * end as f64) as usize;
            // Sizes have up to four bytes.
            let width = if wide { 4 } else { 1 };
            for byte in content[at..end.min(at + width)].iter_mut() {
                *byte = value;
            }
        }
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("damaged");
        std::fs::write(&file, &content).expect("written");
        read(&file);
    }

    #[test]
    fn damaged_y4m_does_not_panic(header in "[ WHFCXI0-9:a-z]{0,24}", planes in prop::collection::vec(any::<u8>(), 0..40)) {
        let mut content = format!("YUV4MPEG2 W2 H2{header}\nFRAME\n").into_bytes();
        content.extend(planes);
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("damaged.y4m");
        std::fs::write(&file, &content).expect("written");
        read(&file);
    }
}
