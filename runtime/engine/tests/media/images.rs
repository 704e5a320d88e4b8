//! Still images.

use edge_lmm::media::{MediaError, decode_image, load_image};
use edge_lmm_models::preprocess::PreprocessError;

use crate::fixtures::{difference, expected_image, files, path, plain, png, stem, temporary};

/// Conforming JPEG decoders may be off by one in luma and chroma before the colors are
/// converted, which multiplies chroma by up to 1.772; with rounding that makes 3. All other
/// formats have one right answer.
fn tolerance(name: &str) -> u8 {
    if name.starts_with("jpeg") { 3 } else { 0 }
}

#[test]
fn equal_pillow() {
    for file in files("images") {
        let name = stem(&file);
        if name.ends_with("_moving") {
            continue;
        }
        let image = load_image(&file).expect(name);
        let difference = difference(&image, &expected_image(name));
        assert!(
            difference <= tolerance(name),
            "{name} differs by {difference}"
        );
    }
}

#[test]
fn animations_show_their_first_frame() {
    let still = load_image(&path("images/rgb8.png")).expect("still");
    for name in ["gif_moving.gif", "png_moving.png", "webp_moving.webp"] {
        let first = load_image(&path(&format!("images/{name}"))).expect(name);
        let all = expected_image(stem(name.as_ref()));
        assert_eq!(
            (first.width(), first.height()),
            (still.width(), still.height()),
            "{name}"
        );
        for y in 0..first.height() {
            assert_eq!(first.row(y), &all.row(y)[..first.width() * 3], "{name}");
        }
    }
}

#[test]
fn content_counts_and_not_the_name() {
    for (file, name) in [
        ("rgb8.png", "photo.jpg"),
        ("jpeg444.jpg", "photo"),
        ("bmp24.bmp", "a.gif"),
    ] {
        let original = path(&format!("images/{file}"));
        let (_folder, renamed) = temporary(name, &std::fs::read(&original).expect(file));
        assert_eq!(
            load_image(&renamed).expect(name),
            load_image(&original).expect(file)
        );
    }
}

#[test]
fn bytes_decode_like_files() {
    let file = path("images/palette.png");
    let bytes = std::fs::read(&file).expect("file");
    assert_eq!(
        decode_image(&bytes).expect("image"),
        load_image(&file).expect("image")
    );
}

#[test]
fn text_is_told_from_images() {
    let (_folder, file) = temporary("cat.png", b"Hello, I am not a cat.\n");
    let message = load_image(&file).unwrap_err().to_string();
    for part in ["cat.png: not an image", "found text", "expected PNG, JPEG"] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[test]
fn other_content_is_named() {
    for (content, part) in [
        (&b""[..], "an empty file"),
        (b"\x00\x01\x02\x03\xff", "data of an unknown format"),
        (b"fLaC\0\0\0\x22", "a FLAC file"),
        (b"II*\0\x08\0\0\0", "unsupported file format: TIFF; convert"),
        (
            b"\0\0\0\x20ftypavif\0\0\0\0",
            "unsupported file format: AVIF; convert",
        ),
        ("ein Bär".as_bytes(), "found text"),
    ] {
        let message = decode_image(content).unwrap_err().to_string();
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[test]
fn missing_files_and_folders_give_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = load_image(&folder.path().join("none.png"))
        .unwrap_err()
        .to_string();
    assert!(missing.contains("none.png: cannot be read"), "{missing}");
    let error = load_image(folder.path()).unwrap_err().to_string();
    assert!(error.contains("folder"), "{error}");
}

/// A PNG file that promises an image of that size.
fn promise(width: u32, height: u32) -> Vec<u8> {
    let mut file = png(&plain(1, 1, [0; 3]));
    file[16..20].copy_from_slice(&width.to_be_bytes());
    file[20..24].copy_from_slice(&height.to_be_bytes());
    let mut crc = u32::MAX;
    for &byte in &file[12..29] {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    file[29..33].copy_from_slice(&(!crc).to_be_bytes());
    file
}

#[test]
fn bombs_are_refused_by_their_size() {
    assert_eq!(
        decode_image(&promise(1, 1)).expect("a pixel"),
        plain(1, 1, [0; 3])
    );
    for (width, height) in [(60_000, 60_000), (i32::MAX as u32, i32::MAX as u32)] {
        let error = decode_image(&promise(width, height)).unwrap_err();
        let refused = matches!(
            error,
            MediaError::Image(PreprocessError::TooLarge { .. }) | MediaError::Damaged { .. }
        );
        assert!(refused, "{error}");
    }
    let message = decode_image(&promise(60_000, 60_000))
        .unwrap_err()
        .to_string();
    assert!(message.contains("60000x60000"), "{message}");
}
