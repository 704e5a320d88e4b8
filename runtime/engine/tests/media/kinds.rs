//! Tests of the detection of media kinds.

use edge_lmm::media::{MediaKind, kind};

use crate::fixtures::{files, path, plain, png, stem, temporary};

#[test]
fn are_told_by_content() {
    for file in files("images") {
        let moving = stem(&file).ends_with("_moving");
        let expected = if moving {
            MediaKind::Video
        } else {
            MediaKind::Image
        };
        assert_eq!(kind(&file).expect("a kind"), expected, "{}", file.display());
        let (_folder, renamed) = temporary("media.bin", &std::fs::read(&file).expect("file"));
        assert_eq!(
            kind(&renamed).expect("a kind"),
            expected,
            "{}",
            file.display()
        );
    }
    for file in files("sounds") {
        assert_eq!(
            kind(&file).expect("a kind"),
            MediaKind::Audio,
            "{}",
            file.display()
        );
    }
    assert_eq!(kind(&path("images")).expect("a kind"), MediaKind::Video);
}

#[test]
fn strips_are_told_by_their_name() {
    for (name, expected) in [
        ("a.strip4.png", MediaKind::Video),
        ("a.b.strip12.png", MediaKind::Video),
        ("a.strip.png", MediaKind::Image),
        ("a.strip0.png", MediaKind::Image),
        ("a.strip+4.png", MediaKind::Image),
        ("strip4.png", MediaKind::Image),
    ] {
        let (_folder, file) = temporary(name, &png(&plain(12, 2, [9; 3])));
        assert_eq!(kind(&file).expect("a kind"), expected, "{name}");
    }
}

#[test]
fn known_formats_have_kinds_even_if_they_cannot_be_read() {
    for (content, expected) in [
        (&b"YUV4MPEG2 W2 H2\n"[..], MediaKind::Video),
        (b"\0\0\0\x18ftypmp42", MediaKind::Video),
        (b"\0\0\0\x18ftypM4A ", MediaKind::Audio),
        (b"\0\0\0\x18ftypheic", MediaKind::Image),
        (b"\x1a\x45\xdf\xa3", MediaKind::Video),
        (b"RIFF\0\0\0\0AVI LIST", MediaKind::Video),
        (b"OggS", MediaKind::Audio),
        (b"ID3\x03\0\0\0", MediaKind::Audio),
        (b"\xff\xfb\x90\x64", MediaKind::Audio),
    ] {
        let (_folder, file) = temporary("media", content);
        assert_eq!(kind(&file).expect("a kind"), expected, "{content:x?}");
    }
}

#[test]
fn everything_else_is_refused() {
    for content in [
        &b""[..],
        b"id,media_path,question\n",
        b"\xff\xfe\0\0",
        b"BM",
        &[0; 80],
    ] {
        let (_folder, file) = temporary("media.png", content);
        let message = kind(&file).unwrap_err().to_string();
        assert!(
            message.contains("not an image, video or audio file: found "),
            "{message}"
        );
    }
}
