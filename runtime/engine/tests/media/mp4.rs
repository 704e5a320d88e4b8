//! MP4 files. `data/make_videos.py` writes them and what ffmpeg reads from them.

use edge_lmm::media::{
    FrameSelection, Media, MediaData, MediaKind, Source, Video, VideoOptions, kind, load_audio,
    load_video,
};
use edge_lmm_models::preprocess::RgbImage;

use crate::fixtures::{expected_frames, files, path, stem, temporary};

fn content(name: &str) -> Vec<u8> {
    std::fs::read(path(&format!("videos/{name}.mp4"))).expect(name)
}

fn load(name: &str, options: impl Into<VideoOptions>) -> Video {
    load_video(&path(&format!("videos/{name}.mp4")), options).expect(name)
}

/// The error for a file with this content.
fn error(content: &[u8]) -> String {
    let (_folder, file) = temporary("clip.mp4", content);
    let video = load_video(&file, FrameSelection::All);
    video.expect_err("an error").to_string()
}

/// Mean absolute difference of two images of one size.
fn mean_difference(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!((a.width(), a.height()), (b.width(), b.height()));
    let pairs = a.pixels().iter().zip(b.pixels());
    let sum: u64 = pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / a.pixels().len() as f64
}

/// Profiles, B-frames, cropped and rotated frames, BT.709 in the full range, fragments.
#[test]
fn frames_equal_ffmpeg() {
    for file in files("videos") {
        let video = load_video(&file, FrameSelection::All).expect("a video");
        let expected = expected_frames(stem(&file), video.frames[0].width());
        assert_eq!(video.frames.len(), expected.len(), "{}", file.display());
        for (i, (frame, expected)) in video.frames.iter().zip(&expected).enumerate() {
            let difference = mean_difference(frame, expected);
            let name = file.display();
            assert!(difference < 0.05, "{name}, frame {i}: {difference}");
        }
    }
}

#[test]
fn frames_are_rotated() {
    for (name, size) in [
        ("h264_rotated90", (32, 48)),
        ("h264_rotated180", (48, 32)),
        ("h264_rotated270", (32, 48)),
    ] {
        let frame = &load(name, FrameSelection::All).frames[0];
        assert_eq!((frame.width(), frame.height()), size, "{name}");
    }
}

#[test]
fn frames_have_the_times_of_the_file() {
    for (name, expected) in [
        ("h264_high", (0..12).map(|i| f64::from(i) / 10.0).collect()),
        (
            "h264_fragmented",
            (0..10).map(|i| f64::from(i) / 10.0).collect(),
        ),
        (
            "h264_variable_rate",
            vec![0.0, 0.1, 0.2, 0.3, 1.3, 2.3, 3.3, 4.3],
        ),
    ] {
        let source = Source::file(&path(&format!("videos/{name}.mp4"))).expect(name);
        let mut stream = source.frames().expect(name);
        assert_eq!(stream.frame_count(), Some(expected.len()), "{name}");
        let all = load(name, FrameSelection::All).frames;
        for (time, image) in expected.into_iter().zip(all) {
            let frame = stream.next_frame().expect(name).expect("a frame");
            assert!(
                (frame.time - time).abs() < 2e-3,
                "{name}: {} {time}",
                frame.time
            );
            assert_eq!(frame.image, image, "{name}");
        }
        assert_eq!(stream.next_frame().expect(name), None);
        assert_eq!(stream.skip_frame().expect(name), None);
    }
}

#[test]
fn frames_are_selected_by_time() {
    let all = load("h264_variable_rate", FrameSelection::All);
    let some = load("h264_variable_rate", FrameSelection::Rate(1.0));
    // At 0, 1.3, 2.3, 3.3 and 4.3 seconds.
    let expected = [0, 4, 5, 6, 7].map(|i| all.frames[i].clone());
    assert_eq!(some.frames, expected);
    let some = load("h264_high", FrameSelection::Rate(5.0));
    assert_eq!((some.frames.len(), some.frames_per_second), (6, 5.0));
    let all = load("h264_high", FrameSelection::Rate(100.0));
    assert_eq!((all.frames.len(), all.frames_per_second), (12, 10.0));
    let some = load("h264_high", FrameSelection::Uniform(3));
    assert_eq!((some.frames.len(), some.frames_per_second), (3, 2.5));
    let all = load("h264_high", FrameSelection::All);
    assert_eq!(some.frames, [0, 4, 8].map(|i| all.frames[i].clone()));
}

#[test]
fn a_pipe_is_read_like_a_file() {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let bytes = content("h264_baseline");
    std::thread::spawn(move || std::io::Write::write_all(&mut writer, &bytes));
    let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
    let source = Source::open(name.as_ref()).expect("a source");
    let video = source.video(FrameSelection::Uniform(2)).expect("a video");
    assert_eq!(video, load("h264_baseline", FrameSelection::Uniform(2)));
}

#[test]
fn sound_tracks_are_separate() {
    let file = path("videos/h264_high.mp4");
    assert_eq!(kind(&file).expect("a kind"), MediaKind::Video);
    let m4a = path("aac_stereo.m4a");
    assert_eq!(kind(&m4a).expect("a kind"), MediaKind::Audio);
    for (file, seconds) in [(file, 1.2), (m4a, 0.5)] {
        let sound = load_audio(&file).expect("a sound");
        assert_eq!(sound.sample_rate, 16_000);
        let found = sound.samples.len() as f64 / 16_000.0;
        // The last packet of 1024 samples may be padded.
        assert!(
            (seconds - 0.01..seconds + 0.065).contains(&found),
            "{found} seconds"
        );
        // 440 Hz cross zero 880 times per second, from the start on.
        let middle = &sound.samples[1600..6400];
        let signs = middle.windows(2).filter(|pair| pair[0] * pair[1] < 0.0);
        assert!((260..=268).contains(&signs.count()));
        let peak = sound.samples[..800]
            .iter()
            .fold(0f32, |peak, v| peak.max(v.abs()));
        assert!((0.1..0.2).contains(&peak), "{peak}");
    }
    let message = load_audio(&path("videos/h264_baseline.mp4")).unwrap_err();
    assert!(message.to_string().contains("no sound track"), "{message}");
    let message = load_video(&path("aac_stereo.m4a"), FrameSelection::All).unwrap_err();
    assert!(
        message
            .to_string()
            .contains("not a video: found a M4A file"),
        "{message}"
    );
}

/// The index of some files precedes the data, that of others follows it.
#[test]
fn truncated_files_are_refused() {
    for name in ["h264_baseline", "h264_high", "h264_fragmented"] {
        let content = content(name);
        let steps = (8..content.len()).step_by(content.len() / 40);
        for len in steps.chain([content.len() - 1]) {
            // Between two fragments, nothing shows that there was another one.
            if name == "h264_fragmented" && ends_between_boxes(&content, len) {
                continue;
            }
            let message = error(&content[..len]);
            assert!(message.contains("truncated"), "{name}, {len}: {message}");
        }
    }
}

fn ends_between_boxes(content: &[u8], len: usize) -> bool {
    let mut position = 0;
    while position < len {
        let word = content[position..].first_chunk().expect("a length");
        position += u32::from_be_bytes(*word) as usize;
    }
    position == len
}

/// Changes the word at `offset` in the content of the first box of this name.
fn patch(name: &str, place: &[u8; 4], offset: usize, word: u32) -> Vec<u8> {
    let mut content = content(name);
    let found = content.windows(4).position(|bytes| bytes == place);
    let start = found.expect("a box") + 4 + offset;
    content[start..start + 4].copy_from_slice(&word.to_be_bytes());
    content
}

#[test]
fn counts_that_lie_are_refused() {
    const SIZE: usize = 4;
    const COUNT: usize = 8;
    for (content, part) in [
        // Four billion samples of no or one byte, more samples than sizes, than places.
        (
            patch("h264_baseline", b"stsz", COUNT, u32::MAX),
            "sample 5 has no",
        ),
        (
            patch("h264_baseline", b"stsz", SIZE, 1),
            "frame 0 has a unit beyond its end",
        ),
        (
            patch("h264_baseline", b"stsz", COUNT, 0),
            "its video has no frames",
        ),
        (
            patch("h264_baseline", b"stts", 8, 2),
            "sample 2 has no time",
        ),
        (
            patch("h264_baseline", b"stsc", 12, 2),
            "sample 2 has no place",
        ),
        (
            patch("h264_baseline", b"stco", 8, u32::MAX - 9),
            "sample 0 lies at bytes",
        ),
        (
            patch("h264_baseline", b"mdhd", 12, 0),
            "the index of a track is incomplete",
        ),
        (
            patch("h264_fragmented", b"trun", 4, u32::MAX),
            "a run of samples is incomplete",
        ),
    ] {
        let message = error(&content);
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    // All samples have one size, so that no table limits their number.
    let mut content = patch("h264_baseline", b"stsz", COUNT, u32::MAX);
    let found = content.windows(4).position(|bytes| bytes == b"stsz");
    let size = found.expect("a box") + 4 + SIZE;
    content[size..size + 4].copy_from_slice(&1u32.to_be_bytes());
    let message = error(&content);
    assert!(message.contains("sample 5 has no"), "{message}");
}

#[test]
fn codecs_that_are_not_supported_are_named() {
    let mut content = content("h264_baseline");
    // The brands of the file name the codec as well.
    let found = content.windows(4).rposition(|bytes| bytes == b"avc1");
    let start = found.expect("a codec");
    content[start..start + 4].copy_from_slice(b"hvc1");
    let message = error(&content);
    for part in ["H.265 in MP4", "ffmpeg -i 'clip.mp4'"] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

/// Returns a file whose sixth frame begins with a unit that is longer than the frame.
fn damaged_in_the_middle() -> Vec<u8> {
    const OFFSETS: usize = 8;
    let mut content = content("h264_high");
    let table = content.windows(4).position(|bytes| bytes == b"stco");
    let entry = table.expect("a box") + 4 + OFFSETS + 4 * 5;
    let offset: [u8; 4] = content[entry..entry + 4].try_into().expect("four bytes");
    let frame = u32::from_be_bytes(offset) as usize;
    content[frame..frame + 4].fill(0x7f);
    content
}

#[test]
fn damaged_frames_are_refused() {
    let mut content = content("h264_baseline");
    let half = content.len() - 700;
    content[half..].fill(0xff);
    let message = error(&content);
    assert!(message.contains("damaged"), "{message}");
}

/// IDR pictures are frames 0, 6 and 8 of one file, and 0, 4 and 8 of the other, whose index is in its
/// fragments.
#[test]
fn key_frames_may_be_chosen_from_independent_frames() {
    for (name, independent) in [("h264_high", [0, 6, 8]), ("h264_fragmented", [0, 4, 8])] {
        let all = load(name, FrameSelection::All);
        let of = |indices: &[usize]| -> Vec<RgbImage> {
            indices.iter().map(|&i| all.frames[i].clone()).collect()
        };
        let sync = |count| load(name, FrameSelection::SyncKey(count));
        assert_eq!(sync(3).frames, of(&independent), "{name}");
        assert_eq!(sync(1).frames, of(&[0]), "{name}");
        // The rate is that of the whole duration.
        let seconds = all.frames.len() as f32 / all.frames_per_second;
        assert!(
            (sync(3).frames_per_second - 3.0 / seconds).abs() < 1e-4,
            "{name}"
        );
        // With fewer of them, all frames are candidates.
        assert_eq!(sync(4), load(name, FrameSelection::Key(4)), "{name}");
    }
}

#[test]
fn frames_that_change_most_are_key_frames() {
    let name = "h264_high";
    let all = load(name, FrameSelection::All);
    let some = load(name, FrameSelection::Key(3));
    // The square changes its color at frames 4 and 8.
    assert_eq!(some.frames, [0, 4, 8].map(|i| all.frames[i].clone()));
}

/// Frames decoded by a thread are those that are read at once, with their hash.
#[test]
fn a_thread_decodes_the_same_frames() {
    for file in files("videos") {
        let source = Source::file(&file).expect("a file");
        for selection in [
            FrameSelection::All,
            FrameSelection::Uniform(3),
            FrameSelection::Uniform(1000),
            FrameSelection::Rate(4.0),
            FrameSelection::Key(2),
        ] {
            let name = format!("{} {selection:?}", file.display());
            let decoding = Media::decode(&source, selection).expect(&name);
            let read = Media::read(&source, MediaKind::Video, selection).expect(&name);
            assert_eq!(
                (decoding.kind(), decoding.bytes()),
                (read.kind(), read.bytes()),
                "{name}"
            );
            decoding.finish().expect(&name);
            assert_eq!(decoding.content_hash(), read.content_hash(), "{name}");
            let (MediaData::Video { frames: a, .. }, MediaData::Video { frames: b, .. }) =
                (decoding.data(), read.data())
            else {
                panic!("{name} is no video");
            };
            assert!(a == b, "{name}");
        }
    }
}

/// A frame in the middle is damaged: the thread's error is that of reading.
#[test]
fn damage_that_a_thread_finds_is_the_same_error() {
    let content = damaged_in_the_middle();
    let (_folder, file) = temporary("clip.mp4", &content);
    let source = Source::file(&file).expect("a file");
    let read = Media::read(&source, MediaKind::Video, FrameSelection::All);
    let expected = read.expect_err("an error").to_string();
    let decoding = Media::decode(&source, FrameSelection::All).expect("the index is fine");
    for _ in 0..2 {
        let found = decoding.finish().expect_err("an error").to_string();
        assert_eq!(found, expected);
    }
    assert!(matches!(decoding.data(), MediaData::Video { frames, .. } if frames.is_empty()));
}

/// Dropping a video ends its thread, wherever that is.
#[test]
fn a_video_may_be_dropped_while_it_is_decoded() {
    let source = Source::file(&path("videos/h264_high.mp4")).expect("a file");
    for wait in [0, 1, 5] {
        let decoding = Media::decode(&source, FrameSelection::All).expect("a video");
        std::thread::sleep(std::time::Duration::from_millis(wait));
        drop(decoding);
    }
}
