//! Sounds.

use edge_lmm::media::load_audio;

use crate::fixtures::{files, path, stem, temporary};

/// Largest difference of MP3 decoders of full accuracy (ISO/IEC 11172-4). Decoders of ADPCM differ
/// in how they round. All else is exact.
fn tolerance(name: &str) -> f32 {
    if name.starts_with("mp3") {
        1.0 / 16_384.0
    } else if name.ends_with("adpcm") {
        1.0 / 1024.0
    } else {
        0.0
    }
}

#[test]
fn equal_libsndfile() {
    let rates = std::fs::read(path("expected/sounds.json")).expect("rates");
    let rates: serde_json::Value = serde_json::from_slice(&rates).expect("rates");
    for file in files("sounds") {
        let name = stem(&file);
        let audio = load_audio(&file).expect(name);
        assert_eq!(
            Some(u64::from(audio.sample_rate)),
            rates[name].as_u64(),
            "{name}"
        );
        let expected = std::fs::read(path(&format!("expected/{name}.f32"))).expect(name);
        let expected = expected.chunks_exact(4);
        let expected = expected.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        assert_eq!(audio.samples.len(), expected.len(), "{name}");
        let differences = audio
            .samples
            .iter()
            .zip(expected)
            .map(|(a, b)| (a - b).abs());
        let worst = differences.fold(0.0, f32::max);
        assert!(worst <= tolerance(name), "{name} differs by {worst:e}");
    }
}

/// A WAV file with one chunk of each kind.
fn wav(tag: u16, channels: u16, rate: u32, bits: u16, data: &[u8]) -> Vec<u8> {
    let mut file = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0".to_vec();
    file.extend(tag.to_le_bytes());
    file.extend(channels.to_le_bytes());
    file.extend(rate.to_le_bytes());
    file.extend((rate * u32::from(channels) * u32::from(bits / 8)).to_le_bytes());
    file.extend((channels * (bits / 8)).to_le_bytes());
    file.extend(bits.to_le_bytes());
    file.extend(b"data");
    file.extend((data.len() as u32).to_le_bytes());
    file.extend(data);
    file
}

#[test]
fn integers_are_divided_by_powers_of_two() {
    let samples = [i16::MIN, -1, 0, 1, 12_345, i16::MAX];
    let data: Vec<u8> = samples.iter().flat_map(|v| v.to_le_bytes()).collect();
    let (_folder, file) = temporary("a.wav", &wav(1, 1, 16_000, 16, &data));
    let expected: Vec<f32> = samples.iter().map(|&v| f32::from(v) / 32_768.0).collect();
    assert_eq!(load_audio(&file).expect("a sound").samples, expected);
}

#[test]
fn unfinished_recordings_are_read_to_their_end() {
    let mut content = wav(1, 1, 8_000, 16, &[0, 64, 0, 32]);
    for length in [0, u32::MAX, 0x8000_0000 - 44] {
        content[40..44].copy_from_slice(&length.to_le_bytes());
        let (_folder, file) = temporary("a.wav", &content);
        assert_eq!(load_audio(&file).expect("a sound").samples, [0.5, 0.25]);
    }
}

#[test]
fn lengths_of_64_bits_are_read() {
    let mut content = wav(1, 1, 8_000, 16, &[0, 64, 0, 32]);
    content[..4].copy_from_slice(b"RF64");
    content[40..44].copy_from_slice(&[255; 4]);
    let mut ds64 = b"ds64\x1c\0\0\0".to_vec();
    for value in [0, 4, 2, 0u64] {
        ds64.extend(value.to_le_bytes());
    }
    ds64.truncate(36);
    content.splice(12..12, ds64);
    content.extend(b"LIST\x04\0\0\0INFO");
    let (_folder, file) = temporary("a.wav", &content);
    assert_eq!(load_audio(&file).expect("a sound").samples, [0.5, 0.25]);
}

#[test]
fn other_chunks_may_come_first() {
    // One of odd length, with its padding and, against the rules, without.
    for padding in [&b"\0"[..], b""] {
        let mut content = wav(1, 1, 8_000, 16, &[0, 64, 0, 32]);
        let list = [&b"LIST\x05\0\0\0INFOx"[..], padding].concat();
        content.splice(36..36, list);
        let (_folder, file) = temporary("a.wav", &content);
        assert_eq!(load_audio(&file).expect("a sound").samples, [0.5, 0.25]);
    }
}

#[test]
fn an_empty_recording_has_no_samples() {
    let mut content = wav(1, 1, 8_000, 16, &[]);
    content.extend(b"LIST\x04\0\0\0INFO");
    let size = (content.len() - 8) as u32;
    content[4..8].copy_from_slice(&size.to_le_bytes());
    let (_folder, file) = temporary("a.wav", &content);
    let message = load_audio(&file).unwrap_err().to_string();
    assert!(message.contains("no samples"), "{message}");
}

#[test]
fn samples_may_leave_bits_of_their_bytes_unused() {
    for (bits, data) in [(20, &[0, 0, 64][..]), (12, &[0, 64]), (24, &[0, 0, 64])] {
        let mut content = wav(1, 1, 8_000, bits, data);
        content[32] = data.len() as u8;
        let (_folder, file) = temporary("a.wav", &content);
        assert_eq!(load_audio(&file).expect("a sound").samples, [0.5], "{bits}");
    }
}

#[test]
fn zeros_and_tags_may_precede_a_sound() {
    let tag = b"ID3\x04\0\0\0\0\0\x04abcd";
    for (name, prefix) in [
        ("mp3_mono.mp3", &[0; 5000][..]),
        ("mp3_mono.mp3", &[tag.as_slice(), &[0; 77]].concat()),
        ("mp3_mono.mp3", &[tag.as_slice(), tag].concat()),
        ("flac_16.flac", tag),
        ("wav_pcm_16.wav", tag),
    ] {
        let original = path(&format!("sounds/{name}"));
        let content = [prefix, &std::fs::read(&original).expect(name)].concat();
        let (_folder, file) = temporary(name, &content);
        assert_eq!(
            load_audio(&file).expect(name),
            load_audio(&original).expect(name)
        );
    }
}

#[test]
fn unsupported_formats_are_named() {
    let ogg = |codec: &[u8]| [b"OggS".as_slice(), &[0; 24], codec].concat();
    for (content, format) in [
        (ogg(b"OpusHead"), "Ogg Opus"),
        (ogg(b"\x01vorbis"), "Ogg Vorbis"),
        (b"\xff\xf1\x50\x80\x43\xff\xfc".to_vec(), "AAC (ADTS)"),
        (b"\xff\xfd\x90\x64".to_vec(), "layer I or II"),
        (b"RIFX\0\0\0\x24WAVEfmt ".to_vec(), "big-endian WAV"),
        (b"caff\0\x01\0\0".to_vec(), "CAF"),
        (b"#!AMR\n".to_vec(), "AMR"),
    ] {
        let (_folder, file) = temporary("sound", &content);
        let message = load_audio(&file).unwrap_err().to_string();
        for part in ["unsupported file format", format, "ffmpeg -i"] {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }
}

#[test]
fn cover_images_do_not_matter() {
    let original = path("sounds/mp3_mono.mp3");
    let image = [b"\0image/png\0\x03\0".as_slice(), &[7; 300_000]].concat();
    let mut content = b"ID3\x03\0\0".to_vec();
    // Sizes of tags have 7 bits per byte.
    let len = image.len() + 10;
    content.extend([21, 14, 7, 0].map(|shift| (len >> shift & 127) as u8));
    content.extend(b"APIC");
    content.extend((image.len() as u32).to_be_bytes());
    content.extend([0, 0]);
    content.extend(image);
    content.extend(std::fs::read(&original).expect("file"));
    let (_folder, file) = temporary("song.mp3", &content);
    assert_eq!(
        load_audio(&file).expect("a sound"),
        load_audio(&original).expect("a sound")
    );
}

/// Decoders take the memory for a text before they read it.
#[test]
fn texts_that_announce_gigabytes_take_no_memory() {
    let lie = u32::MAX.to_le_bytes();
    let read = |name: &str| std::fs::read(path(&format!("sounds/{name}"))).expect(name);
    // FLAC: a comment block with an empty vendor and one comment.
    let mut flac = read("flac_16.flac");
    let comments = [&[0; 4][..], &1u32.to_le_bytes(), &lie].concat();
    let header = [4, 0, 0, comments.len() as u8];
    let end_of_info = 4 + 4 + 34;
    let is_last = std::mem::take(&mut flac[4]) & 0x80;
    let block = [&[header[0] | is_last], &header[1..], &comments].concat();
    flac.splice(end_of_info..end_of_info, block);
    // WAV: a list with a title.
    let mut wav = read("wav_ima_adpcm.wav");
    let list = [&b"LIST\x10\0\0\0INFOINAM"[..], &lie, b"abcd"].concat();
    wav.splice(12..12, list);
    let len = (wav.len() - 8) as u32;
    wav[4..8].copy_from_slice(&len.to_le_bytes());
    for (name, content) in [("flac_16.flac", flac), ("wav_ima_adpcm.wav", wav)] {
        let (_folder, file) = temporary(name, &content);
        let expected = load_audio(&path(&format!("sounds/{name}"))).expect(name);
        assert_eq!(load_audio(&file).expect(name), expected, "{name}");
    }
    // MP3 that is not one: a FLAC with a comment of 4 GB behind an empty tag and a zero.
    let hidden = [
        &b"ID3\x04\0\0\0\0\0\0\0fLaC\x04\0\x49\x11\0\0\0\0\0\0\0COMM\xff\xf3"[..],
        &lie,
    ]
    .concat();
    let (_folder, file) = temporary("hidden.mp3", &hidden);
    load_audio(&file).unwrap_err();
    // MP3: a tag of 256 MiB.
    let mp3 = [b"ID3\x04\0\0\x7f\x7f\x7f\x7f", &read("mp3_mono.mp3")[..]].concat();
    let (_folder, file) = temporary("tag.mp3", &mp3);
    let error = load_audio(&file).unwrap_err().to_string();
    assert!(error.contains("truncated"), "{error}");
}

#[test]
fn errors_say_what_is_wrong() {
    let nan = f32::NAN.to_le_bytes();
    for (content, part) in [
        (wav(1, 1, 16_000, 16, &[]), "no samples"),
        (wav(1, 0, 16_000, 16, &[0; 4]), "0 channels"),
        (wav(1, 1, 0, 16, &[0; 4]), "at 0 samples per second"),
        (wav(49, 1, 16_000, 4, &[0; 4]), "4-bit samples of format 49"),
        (wav(3, 1, 16_000, 32, &nan), "sample 0 is NaN"),
        (
            b"RIFF\0\0\0\0WAVEdata\x02\0\0\0\0\0".to_vec(),
            "precedes the fmt chunk",
        ),
        (b"OggS\0\x02\0\0".to_vec(), "unsupported file format: Ogg;"),
        (b"GIF89a".to_vec(), "a GIF file"),
        (b"la la la".to_vec(), "found text"),
        (b"fLaC\0\0\0\x22".to_vec(), "FLAC file is truncated"),
        (b"ID3\x04\0\0\0\0\0\0".to_vec(), "damaged MP3"),
    ] {
        let (_folder, file) = temporary("a.wav", &content);
        let message = load_audio(&file).expect_err(part).to_string();
        assert!(message.contains(part), "{message:?} lacks {part:?}");
        assert!(message.contains("a.wav: "), "{message:?} lacks the file");
    }
}
