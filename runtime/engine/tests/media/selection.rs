//! Selection of frames from files and streams.

use std::path::Path;

use edge_lmm::media::{FrameSelection, Source, Video, VideoOptions, load_video};
use edge_lmm_models::preprocess::RgbImage;

use crate::fixtures::temporary;

/// A gray Y4M video of 4x4 pixels at 10 frames per second whose frames have these levels.
fn y4m(levels: &[u8]) -> Vec<u8> {
    let mut file = b"YUV4MPEG2 W4 H4 F10:1 Cmono XCOLORRANGE=FULL\n".to_vec();
    for &level in levels {
        file.extend(b"FRAME\n");
        file.extend([level; 16]);
    }
    file
}

fn levels(video: &Video) -> Vec<u8> {
    video.frames.iter().map(|frame| frame.pixels()[0]).collect()
}

/// Reads a video from a pipe.
fn streamed(content: Vec<u8>, options: impl Into<VideoOptions>) -> Video {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let writing = std::thread::spawn(move || {
        let _ = std::io::Write::write_all(&mut writer, &content);
    });
    let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
    let source = Source::open(Path::new(&name)).expect("a source");
    let video = source.video(options).expect("a video");
    let again = source.video(FrameSelection::All).unwrap_err().to_string();
    assert!(again.contains("can be read only once"), "{again}");
    drop((source, reader));
    writing.join().expect("written");
    video
}

fn filed(content: &[u8], options: impl Into<VideoOptions>) -> Video {
    let (_folder, file) = temporary("v.y4m", content);
    load_video(&file, options).expect("a video")
}

#[test]
fn streams_of_known_selections_equal_files() {
    let frames: Vec<u8> = (0..100).map(|i| i / 7 * 7 + i % 2).collect();
    for options in [
        FrameSelection::All.into(),
        FrameSelection::Rate(3.0).into(),
        // Up to twice as many frames are held.
        FrameSelection::Uniform(50).into(),
        FrameSelection::Key(50).into(),
        // All frames change, so none are chosen for coverage.
        FrameSelection::Key(4).into(),
        VideoOptions {
            frames: FrameSelection::Uniform(9),
            motion_gate: Some(5.0),
        },
    ] {
        let video = filed(&y4m(&frames), options);
        assert_eq!(streamed(y4m(&frames), options), video, "{options:?}");
    }
}

#[test]
fn long_streams_are_sampled_evenly() {
    for total in [21, 97, 100, 200, 255] {
        let frames: Vec<u8> = (0..total).collect();
        let video = streamed(y4m(&frames), FrameSelection::Uniform(10));
        let exact = filed(&y4m(&frames), FrameSelection::Uniform(10));
        assert_eq!(video.frames.len(), 10, "{total}");
        assert_eq!(video.frames_per_second, exact.frames_per_second);
        let found = levels(&video);
        assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "{found:?}");
        let pairs = found.iter().zip(levels(&exact));
        let farthest = pairs.map(|(a, b)| a.abs_diff(b)).max().expect("frames");
        assert!(farthest <= total / 10, "{total}: {farthest}");
    }
}

/// The definition, as in the key frames of the measurements: sorted by difference, then covered.
fn reference_key_frames(frames: &[RgbImage], count: usize) -> Vec<usize> {
    let total = frames.len();
    if count >= total {
        return (0..total).collect();
    }
    let difference = |i: usize| -> u64 {
        match i {
            0 => u64::MAX,
            i => {
                let pairs = frames[i].pixels().iter().zip(frames[i - 1].pixels());
                pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum()
            }
        }
    };
    let mut order: Vec<usize> = (0..total).filter(|&i| difference(i) > 0).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(difference(i)), i));
    order.truncate(count);
    while order.len() < count {
        let free = (0..total).filter(|i| !order.contains(i));
        let distance = |i: usize| order.iter().map(|&to| i.abs_diff(to)).min();
        let next = free.max_by_key(|&i| (distance(i), std::cmp::Reverse(i)));
        order.push(next.expect("a frame"));
    }
    order.sort_unstable();
    order
}

#[test]
fn key_frames_equal_their_definition() {
    let flash: Vec<u8> = [9; 16]
        .iter()
        .enumerate()
        .map(|(i, &level)| if (6..8).contains(&i) { 10 } else { level })
        .collect();
    let steps: Vec<u8> = (0..30).map(|i| (i * i * 7 % 11) as u8 / 5 * 20).collect();
    for frames in [flash, steps, vec![3; 12], (0..20).collect()] {
        let all = filed(&y4m(&frames), FrameSelection::All);
        for count in [1, 2, 3, 4, 8, 11, 16, 40] {
            let video = filed(&y4m(&frames), FrameSelection::Key(count));
            let expected = reference_key_frames(&all.frames, count);
            let expected: Vec<RgbImage> = expected.iter().map(|&i| all.frames[i].clone()).collect();
            assert_eq!(video.frames, expected, "{count} of {frames:?}");
        }
    }
}

#[test]
fn large_changes_survive_in_long_streams() {
    let mut frames = vec![50; 3000];
    frames[777] = 90;
    frames[2500..].fill(60);
    let video = streamed(y4m(&frames), FrameSelection::Key(6));
    // The change, its end, the step; the rest cover the others.
    let found = levels(&video);
    assert_eq!(
        (found.len(), &found[..3], found[5]),
        (6, &[50, 90, 50][..], 60)
    );
}

#[test]
fn still_frames_are_skipped_before_the_selection() {
    let frames = [10, 10, 11, 12, 13, 30, 30, 31, 30, 90];
    let gate = |frames, threshold| VideoOptions {
        frames,
        motion_gate: Some(threshold),
    };
    // Each frame is compared with the last one that passed, so a slow change adds up.
    for (options, expected, skipped) in [
        (gate(FrameSelection::All, 3.0), &[10, 13, 30, 90][..], 6),
        (gate(FrameSelection::All, 0.0), &frames[..], 0),
        (gate(FrameSelection::Uniform(2), 3.0), &[10, 30], 6),
        (gate(FrameSelection::Key(2), 3.0), &[10, 90], 6),
        (gate(FrameSelection::Rate(2.0), 3.0), &[10, 30], 6),
    ] {
        let video = filed(&y4m(&frames), options);
        assert_eq!(levels(&video), expected, "{options:?}");
        assert_eq!(video.skipped, skipped, "{options:?}");
    }
}

#[test]
fn streams_that_end_within_a_frame_are_refused() {
    let mut content = y4m(&[1, 2, 3]);
    content.pop();
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    std::io::Write::write_all(&mut writer, &content).expect("written");
    drop(writer);
    let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
    let source = Source::open(Path::new(&name)).expect("a source");
    let message = source.video(FrameSelection::Uniform(1)).unwrap_err();
    let message = message.to_string();
    assert!(
        message.contains("its last frame has 15 of 16 bytes"),
        "{message}"
    );
}
