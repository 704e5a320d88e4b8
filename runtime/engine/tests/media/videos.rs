//! Videos.

use std::path::Path;

use edge_lmm::media::{FrameSelection, MediaError, Video, load_image, load_video};
use edge_lmm_models::preprocess::RgbImage;

use crate::fixtures::{difference, expected_image, files, path, plain, png, stem, temporary};

fn load(file: &Path) -> Video {
    load_video(file, FrameSelection::All).expect("a video")
}

/// Cuts frames that stand side by side.
fn cut(strip: &RgbImage, count: usize) -> Vec<RgbImage> {
    let width = strip.width() / count;
    let frame = |i: usize| {
        let rows = (0..strip.height()).map(|y| &strip.row(y)[i * width * 3..(i + 1) * width * 3]);
        let pixels = rows.collect::<Vec<_>>().concat();
        RgbImage::new(width, strip.height(), pixels).expect("a frame")
    };
    (0..count).map(frame).collect()
}

#[test]
fn animations_equal_pillow() {
    for (file, tolerance) in [
        ("gif_moving.gif", 0),
        ("png_moving.png", 0),
        ("webp_moving.webp", 0),
    ] {
        let video = load(&path(&format!("images/{file}")));
        let expected = cut(&expected_image(file.split('.').next().expect("stem")), 4);
        assert_eq!(video.frames.len(), 4, "{file}");
        for (frame, expected) in video.frames.iter().zip(&expected) {
            assert!(difference(frame, expected) <= tolerance, "{file}");
        }
        // Shown for 0.1, 0.2, 0.3 and 0.4 seconds.
        assert!((video.frames_per_second - 4.0).abs() < 1e-6, "{file}");
    }
}

/// Frames that are disposed of and blended in every way.
#[test]
fn composed_frames_equal_pillow() {
    for file in files("images") {
        let name = stem(&file);
        if !name.ends_with("_moving") {
            continue;
        }
        let (video, strip) = (load(&file), expected_image(name));
        let count = strip.width() / video.frames[0].width();
        assert_eq!(video.frames.len(), count, "{name}");
        for (i, (frame, expected)) in video.frames.iter().zip(cut(&strip, count)).enumerate() {
            assert_eq!(difference(frame, &expected), 0, "{name}, frame {i}");
        }
    }
}

#[test]
fn frames_are_selected_evenly() {
    let file = path("images/gif_moving.gif");
    let all = load(&file);
    for (wanted, expected) in [
        (1, &[0][..]),
        (2, &[0, 2]),
        (3, &[0, 1, 2]),
        (4, &[0, 1, 2, 3]),
        (9, &[0, 1, 2, 3]),
    ] {
        let video = load_video(&file, FrameSelection::Uniform(wanted)).expect("a video");
        let chosen: Vec<_> = expected.iter().map(|&i| all.frames[i].clone()).collect();
        assert_eq!(video.frames, chosen, "{wanted} frames");
        // The frames stand for the same second.
        assert!((video.frames_per_second - expected.len() as f32).abs() < 1e-6);
    }
    assert!(load_video(&file, FrameSelection::Uniform(0)).is_err());
}

#[test]
fn a_still_image_is_a_video_of_one_frame() {
    let file = path("images/gif_still.gif");
    assert_eq!(load(&file).frames, [load_image(&file).expect("an image")]);
}

/// A file of two frames, whose second one begins after the first.
fn y4m(header: &str, frames: [&[u8]; 2]) -> Vec<u8> {
    let mut file = format!("YUV4MPEG2 {header}\n").into_bytes();
    for frame in frames {
        file.extend(b"FRAME\n");
        file.extend(frame);
    }
    file
}

#[test]
fn y4m_colors_follow_bt601() {
    // Red, green, blue and white of the standard's limited range: Y', Cb, Cr.
    let colors = [
        ([81, 90, 240], [255, 0, 0]),
        ([145, 54, 34], [0, 255, 0]),
        ([41, 240, 110], [0, 0, 255]),
        ([235, 128, 128], [255, 255, 255]),
        ([16, 128, 128], [0, 0, 0]),
    ];
    for (yuv, rgb) in colors {
        let frame = [[yuv[0]; 4].as_slice(), &[yuv[1]], &[yuv[2]]].concat();
        let (_folder, file) = temporary("v.y4m", &y4m("W2 H2 F30:1 C420jpeg", [&frame, &frame]));
        let video = load(&file);
        assert_eq!(video.frames_per_second, 30.0);
        // The colors' codes are rounded to 8 bits: half a step of chroma is up to
        // 0.5 * 255 / 224 * 1.772 + 0.5 * 255 / 219 = 1.6 steps of color.
        assert!(
            difference(&video.frames[1], &plain(2, 2, rgb)) <= 2,
            "{rgb:?}"
        );
    }
}

#[test]
fn y4m_planes_are_found_for_all_samplings() {
    // A 3x3 image in the full range: luma 10 to 90, chroma without color but for one sample.
    let luma: Vec<u8> = (1..=9).map(|i| i * 10).collect();
    for (name, width, height) in [("420", 2, 2), ("422", 2, 3), ("444", 3, 3), ("mono", 0, 0)] {
        let (mut blue, red) = (vec![128u8; width * height], vec![128u8; width * height]);
        if let Some(last) = blue.last_mut() {
            *last = 138;
        }
        let frame = [&luma[..], &blue, &red].concat();
        let header = format!("W3 H3 F25:2 Ip A1:1 C{name} XCOLORRANGE=FULL");
        let (_folder, file) = temporary("v.y4m", &y4m(&header, [&frame, &frame]));
        let video = load(&file);
        assert_eq!(
            (video.frames.len(), video.frames_per_second),
            (2, 12.5),
            "{name}"
        );
        let pixels: Vec<&[u8]> = video.frames[1].pixels().chunks_exact(3).collect();
        for (pixel, &luma) in pixels.iter().zip(&luma[..8]) {
            assert_eq!(*pixel, [luma; 3], "{name}");
        }
        // 10 steps of Cb are 17.72 of blue and -3.44 of green.
        let expected = if name == "mono" {
            [90; 3]
        } else {
            [90, 87, 108]
        };
        assert_eq!(*pixels[8], expected, "{name}");
    }
}

#[test]
fn y4m_frames_are_selected_and_counted() {
    let (dark, light) = ([16u8; 4], [235u8; 4]);
    let content = y4m("W2 H2 F10:1 Cmono", [&dark, &light]);
    let (_folder, file) = temporary("v.y4m", &content);
    let video = load(&file);
    assert_eq!(video.frames, [plain(2, 2, [0; 3]), plain(2, 2, [255; 3])]);
    let video = load_video(&file, FrameSelection::Uniform(1)).expect("a video");
    assert_eq!((video.frames.len(), video.frames_per_second), (1, 5.0));
}

#[test]
fn y4m_errors_say_what_is_wrong() {
    for (content, part) in [
        (&b"YUV4MPEG2 W0 H4\nFRAME\n"[..], "0x4"),
        (b"YUV4MPEG2 W99999999 H99999999\nFRAME\n", "too large"),
        (b"YUV4MPEG2 W2 H2 C420p10\nFRAME\n", "420p10"),
        (b"YUV4MPEG2 Wx H2\nFRAME\n", "not a valid size"),
        (b"YUV4MPEG2 W2 H2 Fx\n", "not a valid frame rate"),
        (b"YUV4MPEG2 W2 H2 Cmono\nFRAM\n", "expected a frame"),
        (
            b"YUV4MPEG2 W2 H2 Cmono\nFRAME\n123",
            "its last frame has 3 of 4 bytes",
        ),
        (b"YUV4MPEG2 W2 H2", "ends within a header line"),
    ] {
        let (_folder, file) = temporary("v.y4m", content);
        let message = load_video(&file, FrameSelection::All)
            .unwrap_err()
            .to_string();
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[test]
fn folders_are_read_in_the_order_of_their_numbers() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, content: &[u8]| {
        std::fs::write(folder.path().join(name), content).expect("a file");
    };
    for number in [10u8, 9, 1, 100] {
        write(
            &format!("frame{number}.png"),
            &png(&plain(3, 2, [number; 3])),
        );
    }
    write("notes.txt", b"not a frame");
    write(".hidden.png", b"neither");
    let video = load(folder.path());
    let first: Vec<u8> = video.frames.iter().map(|frame| frame.pixels()[0]).collect();
    assert_eq!((first, video.frames_per_second), (vec![1, 9, 10, 100], 2.0));
    let video = load_video(folder.path(), FrameSelection::Uniform(2)).expect("a video");
    let first: Vec<u8> = video.frames.iter().map(|frame| frame.pixels()[0]).collect();
    assert_eq!((first, video.frames_per_second), (vec![1, 10], 1.0));
}

#[test]
fn folders_without_images_are_refused() {
    let (folder, _file) = temporary("notes.txt", b"nothing to see");
    let message = load_video(folder.path(), FrameSelection::All)
        .unwrap_err()
        .to_string();
    assert!(message.contains("a folder without images"), "{message}");
}

#[test]
fn strips_are_cut_from_the_left() {
    let colors = [[1u8, 2, 3], [4, 5, 6], [7, 8, 9]];
    let row = colors.map(|color| color.repeat(4)).concat();
    let strip = RgbImage::new(12, 5, row.repeat(5)).expect("a strip");
    let (_folder, file) = temporary("clip.strip3.png", &png(&strip));
    let video = load(&file);
    assert_eq!(video.frames, colors.map(|color| plain(4, 5, color)));
    assert_eq!(video.frames_per_second, 2.0);
    let (_folder, file) = temporary("clip.strip5.png", &png(&strip));
    let message = load_video(&file, FrameSelection::All)
        .unwrap_err()
        .to_string();
    assert!(message.contains("width of 12 pixels"), "{message}");
}

#[test]
fn compressed_videos_come_with_advice() {
    let (_folder, file) = temporary("holiday.mkv", b"\x1a\x45\xdf\xa3\x01\0\0\0");
    let message = load_video(&file, FrameSelection::All)
        .unwrap_err()
        .to_string();
    for part in ["Matroska or WebM", "ffmpeg -i 'holiday.mkv'"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn too_many_pixels_are_refused() {
    // The planes are a hole in the file and take no space.
    let (_folder, file) = temporary("v.y4m", b"YUV4MPEG2 W10000 H9000 Cmono\n");
    let mut writer = std::fs::OpenOptions::new()
        .append(true)
        .open(&file)
        .expect("file");
    for _ in 0..3 {
        use std::io::{Seek, SeekFrom, Write};
        writer.write_all(b"FRAME\n").expect("written");
        let end = writer.seek(SeekFrom::End(0)).expect("end") + 90_000_000;
        writer.set_len(end).expect("a hole");
        writer.seek(SeekFrom::Start(end)).expect("end");
    }
    let error = load_video(&file, FrameSelection::All).unwrap_err();
    let MediaError::File { error, .. } = error else {
        panic!("{error} has no file");
    };
    assert!(
        matches!(*error, MediaError::TooManyFrames { frames: 3, .. }),
        "{error}"
    );
}
