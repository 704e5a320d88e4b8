//! Fuzz targets for images, videos and audio.

use edge_lmm::media::{FrameSelection, Video, decode_image, kind, load_audio, load_video};
use edge_lmm_models::preprocess::RgbImage;

use crate::memory_file::MemoryFile;
use crate::mutate::Form;
use crate::{Target, data, errors};

const IMAGES: &str = "runtime/engine/tests/media/data/images";
const VIDEOS: &str = "runtime/engine/tests/media/data/videos";
const SOUNDS: &str = "runtime/engine/tests/media/data/sounds";

/// Still images.
pub const IMAGE: Target = Target {
    name: "image",
    form: Form::Words(&[
        b"\x89PNG\r\n\x1a\n",
        b"IHDR",
        b"IDAT",
        b"PLTE",
        b"tRNS",
        b"eXIf",
        b"iCCP",
        b"IEND",
        b"\xff\xd8",
        b"\xff\xc0",
        b"\xff\xc2",
        b"\xff\xc4",
        b"\xff\xda",
        b"\xff\xdb",
        b"\xff\xdd",
        b"\xff\xe1",
        b"\xff\xee",
        b"\xff\xd9",
        b"Exif\0\0",
        b"Adobe",
        b"RIFF",
        b"WEBP",
        b"VP8 ",
        b"VP8L",
        b"VP8X",
        b"ALPH",
        b"BM",
        b"GIF89a",
        b"\x2c",
        b"\x3b",
    ]),
    seeds: || data::files(IMAGES, &["png", "jpg", "webp", "gif", "bmp"], 2000),
    run: |input| match decode_image(input) {
        Ok(image) => check_image(&image),
        Err(error) => errors::check(&error),
    },
};

/// GIF, PNG and WebP as videos.
pub const ANIMATION: Target = Target {
    name: "animation",
    form: Form::Words(&[
        b"acTL",
        b"fcTL",
        b"fdAT",
        b"IDAT",
        b"IHDR",
        b"IEND",
        b"GIF89a",
        b"\x21\xf9\x04",
        b"\x2c",
        b"\x3b",
        b"NETSCAPE2.0",
        b"RIFF",
        b"WEBP",
        b"VP8X",
        b"ANIM",
        b"ANMF",
        b"ALPH",
        b"VP8 ",
        b"VP8L",
    ]),
    seeds: || {
        let all = data::files(IMAGES, &["png", "webp", "gif"], 6000);
        let is_animated = |file: &Vec<u8>| {
            let holds = |word: &[u8]| file.windows(word.len()).any(|bytes| bytes == word);
            holds(b"acTL") || holds(b"ANMF") || file.starts_with(b"GIF")
        };
        all.into_iter().filter(is_animated).collect()
    },
    run: check_video,
};

/// Uncompressed video.
pub const Y4M: Target = Target {
    name: "y4m",
    form: Form::Words(&[
        b"YUV4MPEG2",
        b"FRAME\n",
        b" W",
        b" H",
        b" F25:1",
        b" F0:0",
        b" Ip",
        b" A1:1",
        b" C420",
        b" C420jpeg",
        b" C422",
        b" C444",
        b" Cmono",
        b" XCOLORRANGE=FULL",
        b"\n",
        b"18446744073709551615",
        b"4294967296",
    ]),
    seeds: || {
        let video = |header: &str, frame: usize| {
            let frame = [b"FRAME\n".to_vec(), (0..frame as u8).collect()].concat();
            [
                format!("YUV4MPEG2 {header}\n").into_bytes(),
                frame.repeat(3),
            ]
            .concat()
        };
        vec![
            video("W4 H4 F25:1 Ip A1:1 C420jpeg", 24),
            video("W3 H5 F0:0 C422", 35),
            video("W2 H2 F30000:1001 C444 XCOLORRANGE=FULL", 12),
            video("W5 H1 Cmono", 5),
        ]
    },
    run: check_video,
};

/// MP4: the index, H.264 and AAC.
pub const MP4: Target = Target {
    name: "mp4",
    form: Form::Words(&[
        b"ftyp",
        b"moov",
        b"trak",
        b"tkhd",
        b"mdia",
        b"mdhd",
        b"hdlr",
        b"vide",
        b"soun",
        b"stbl",
        b"stsd",
        b"avc1",
        b"avcC",
        b"colr",
        b"mp4a",
        b"esds",
        b"stts",
        b"ctts",
        b"stsc",
        b"stsz",
        b"stco",
        b"co64",
        b"elst",
        b"mvex",
        b"trex",
        b"moof",
        b"tfhd",
        b"tfdt",
        b"trun",
        b"mdat",
        b"\0\0\0\x01",
        b"\xff\xff\xff\xff",
        b"\x67",
        b"\x68",
        b"\x65",
        b"\x41",
    ]),
    seeds: || data::files(VIDEOS, &["mp4"], 5000),
    run: |input| {
        check_video(input);
        check_sound(input);
    },
};

/// Audio: WAV, AIFF, FLAC and MP3.
pub const SOUND: Target = Target {
    name: "sound",
    form: Form::Words(&[
        b"RIFF",
        b"RF64",
        b"BW64",
        b"WAVE",
        b"fmt ",
        b"data",
        b"ds64",
        b"fact",
        b"LIST",
        b"\xff\xff\xff\xff",
        b"\x01\0",
        b"\x02\0",
        b"\x03\0",
        b"\x06\0",
        b"\x07\0",
        b"\x11\0",
        b"\x55\0",
        b"\xfe\xff",
        b"FORM",
        b"AIFF",
        b"AIFC",
        b"COMM",
        b"SSND",
        b"sowt",
        b"NONE",
        b"fLaC",
        b"\xff\xf8",
        b"ID3",
        b"\xff\xfb",
        b"\xff\xf3",
        b"Xing",
        b"Info",
    ]),
    seeds: || data::files(SOUNDS, &["wav", "aiff", "flac", "mp3"], 5000),
    run: check_sound,
};

fn check_image(image: &RgbImage) {
    assert!(image.width() > 0 && image.height() > 0);
    assert_eq!(image.pixels().len(), image.width() * image.height() * 3);
}

fn check_sound(input: &[u8]) {
    match load_audio(&MemoryFile::new(input).path()) {
        Ok(sound) => {
            assert!(!sound.samples.is_empty() && sound.sample_rate > 0);
            assert!(sound.samples.iter().all(|sample| sample.is_finite()));
        }
        Err(error) => errors::check(&error),
    }
}

/// Reads all frames, and a selection of two, which must be among all.
fn check_video(input: &[u8]) {
    let file = MemoryFile::new(input);
    if let Err(error) = kind(&file.path()) {
        errors::check(&error);
    }
    let load = |selection| -> Option<Video> {
        let video = load_video(&file.path(), selection);
        video.map_err(|error| errors::check(&error)).ok()
    };
    let few = load(FrameSelection::Uniform(2));
    for video in few.iter().chain(&load(FrameSelection::All)) {
        let first = video.frames.first().expect("a frame");
        for frame in &video.frames {
            check_image(frame);
            assert_eq!(
                (frame.width(), frame.height()),
                (first.width(), first.height())
            );
        }
        assert!(video.frames_per_second > 0.0 && video.frames_per_second.is_finite());
    }
    if let (Some(few), Some(all)) = (few, load(FrameSelection::All)) {
        let total = all.frames.len();
        let wanted = if total > 2 {
            vec![0, total / 2]
        } else {
            (0..total).collect()
        };
        assert_eq!(few.frames.len(), wanted.len());
        assert!(
            few.frames
                .iter()
                .zip(wanted)
                .all(|(frame, at)| *frame == all.frames[at])
        );
    }
}
