//! MP4 files. `data/make_videos.py` writes them and what ffmpeg reads from them.

use std::path::Path;

use edge_lmm::media::{FrameSelection, MediaKind, Source, Video, kind, load_audio, load_video};

use crate::fixtures::{expected_frames, files, path, stem, temporary};

fn load(name: &str) -> Video {
    load_video(&path(&format!("videos/{name}.mp4")), FrameSelection::All).expect(name)
}

/// Mean absolute difference of two images of one size.
fn mean_difference(a: &edge_lmm::RgbImage, b: &edge_lmm::RgbImage) -> f64 {
    assert_eq!((a.width(), a.height()), (b.width(), b.height()));
    let pairs = a.pixels().iter().zip(b.pixels());
    let sum: u64 = pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / a.pixels().len() as f64
}

#[test]
fn frames_equal_ffmpeg() {
    for file in files("videos") {
        let video = load_video(&file, FrameSelection::All).expect("a video");
        let expected = expected_frames(stem(&file), video.frames[0].width());
        assert_eq!(video.frames.len(), expected.len(), "{}", file.display());
        for (i, (frame, expected)) in video.frames.iter().zip(&expected).enumerate() {
            let difference = mean_difference(frame, expected);
            println!("{} {i} {difference}", file.display());
            assert!(
                difference < 2.0,
                "{}, frame {i}: {difference}",
                file.display()
            );
        }
    }
}
