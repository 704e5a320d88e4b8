//! Qwen2-VL's processors.

use edge_lmm_models::preprocess::qwen2_vl::{PixelRange, Processors, smart_resize};
use edge_lmm_models::preprocess::{PreprocessError, RgbImage};
use serde_json::json;

use crate::fixtures::{self, checksum_of_floats, compare, floats, noise, rows, sizes};

/// Both sides compute in 32 bits in the same order; only the printed sums are looser.
const TOLERANCE: f32 = 1e-6;

#[test]
fn equals_the_goldens() {
    for checkpoint in ["qwen2vl-tiny", "qwen25vl-tiny"] {
        let file = fixtures::json(&format!("{checkpoint}/preprocessor_config.json"));
        let images = Processors::QWEN2_VL
            .images(Some(&file))
            .expect("configuration");
        let videos = Processors::QWEN2_VL
            .videos(Some(&file))
            .expect("configuration");
        for (sample, tensors) in fixtures::goldens(checkpoint) {
            let media = fixtures::images(checkpoint, &sample);
            let patches = match &media[..] {
                [image] => images.image(image),
                frames => videos.video(frames),
            }
            .expect("patches");
            let grid: Vec<f32> = patches.grid.iter().map(|&n| n as f32).collect();
            assert_eq!(tensors["grid_thw"], grid);
            let head = &tensors["pixel_values_head"];
            let context = format!("{checkpoint}, sample {}", sample["id"]);
            compare(
                &patches.pixel_values,
                head,
                &sample["pixel_values"],
                TOLERANCE,
                &context,
            );
        }
    }
}

#[test]
fn equals_the_reference_to_the_bit() {
    let limits = json!({"min_pixels": 3136, "max_pixels": 200704});
    let config = Processors::QWEN2_VL
        .images(Some(&limits))
        .expect("configuration");
    for (seed, row) in rows("qwen2_vl").iter().enumerate() {
        let [width, height] = sizes(&row["size"]);
        let frames = row["frames"].as_u64().expect("frames") as usize;
        let media: Vec<_> = (0..frames.max(1))
            .map(|i| noise(seed * 16 + i, width, height))
            .collect();
        let patches = match frames {
            0 => config.image(&media[0]),
            _ => config.video(&media),
        }
        .expect("patches");
        assert_eq!(patches.grid, sizes(&row["grid"]), "{row}");
        let head = floats(&row["head"]);
        assert_eq!(patches.pixel_values[..head.len()], head, "{row}");
        assert_eq!(
            checksum_of_floats(&patches.pixel_values),
            row["checksum"],
            "{row}"
        );
    }
}

#[test]
fn smart_resize_equals_the_reference() {
    let mut refused = 0;
    for row in rows("smart_resize") {
        let numbers: [usize; 5] = sizes(&row.as_array().expect("row")[..5].to_vec().into());
        let [height, width, factor, min, max] = numbers;
        match (smart_resize(height, width, factor, min, max), &row[5]) {
            (Err(PreprocessError::AspectRatio { .. }), serde_json::Value::Null) => refused += 1,
            (found, expected) => {
                let [h, w] = sizes(expected);
                assert_eq!(found, Ok((h, w)), "{row}");
            }
        }
    }
    assert!(refused > 0, "no row with unequal sides");
}

#[test]
fn unequal_sides_are_refused_with_their_numbers() {
    let config = Processors::QWEN2_VL.images(None).expect("defaults");
    let long = RgbImage::new(20_000, 10, vec![0; 600_000]).expect("image");
    let error = config.image(&long).unwrap_err().to_string();
    assert!(
        error.contains("20000x10") && error.contains("2000.0") && error.contains("200:"),
        "{error}"
    );
}

#[test]
fn one_pixel_fills_the_smallest_grid() {
    let dot = RgbImage::new(1, 1, vec![255; 3]).expect("image");
    let patches = Processors::QWEN2_VL
        .images(None)
        .expect("defaults")
        .image(&dot)
        .expect("patches");
    assert_eq!(patches.grid, [1, 4, 4]);
    assert_eq!(patches.pixel_values.len(), 16 * 1176);
}

#[test]
fn limits_are_read_in_all_spellings() {
    let range = PixelRange {
        min: 784,
        max: 7840,
    };
    for file in [
        json!({"min_pixels": 784, "max_pixels": 7840}),
        json!({"size": {"min_pixels": 784, "max_pixels": 7840}}),
        json!({"size": {"shortest_edge": 784, "longest_edge": 7840}}),
        json!({"min_pixels": 784, "max_pixels": 7840, "size": {"shortest_edge": 1, "longest_edge": 2}}),
        json!({"min_pixels": null, "max_pixels": 7840, "size": {"shortest_edge": 784}}),
        json!({"size": {"shortest_edge": 784, "longest_edge": 7840, "min_pixels": 1, "max_pixels": 2}}),
    ] {
        let images = Processors::QWEN2_VL
            .images(Some(&file))
            .expect("configuration");
        let videos = Processors::QWEN2_VL
            .videos(Some(&file))
            .expect("configuration");
        assert_eq!((images.pixels, videos.pixels), (range, range), "{file}");
    }
    let images = Processors::QWEN2_VL.images(None).expect("defaults");
    assert_eq!(
        images.pixels,
        PixelRange {
            min: 3136,
            max: 1_003_520
        }
    );
    let videos = Processors::QWEN2_VL.videos(None).expect("defaults");
    assert_eq!(
        videos.pixels,
        PixelRange {
            min: 100_352,
            max: 602_112
        }
    );
}

#[test]
fn tokens_limit_the_grid() {
    let config = Processors::QWEN2_VL.images(None).expect("defaults");
    let image = noise(3, 640, 480);
    for (tokens, smallest, largest) in [((4, 16), 4, 16), ((300, 2000), 300, 2000)] {
        let [_, h, w] = config
            .with_tokens(Some(tokens))
            .image(&image)
            .expect("patches")
            .grid;
        assert!(
            (smallest..=largest).contains(&(h * w / 4)),
            "{h}x{w} for {tokens:?}"
        );
    }
    assert_eq!(config.with_tokens(None), config);
}

#[test]
fn unusable_configurations_are_refused() {
    for (file, word) in [
        (json!({"patch_size": 0}), "patch_size"),
        (json!({"merge_size": 1_000_000}), "merge_size"),
        (json!({"temporal_patch_size": 0}), "temporal_patch_size"),
        (json!({"min_pixels": 10, "max_pixels": 5}), "max_pixels"),
        (json!({"image_std": [1, 1, 0]}), "image_std"),
        (json!({"image_mean": [1e39, 1, 0]}), "image_mean"),
        (json!({"rescale_factor": 0}), "rescale_factor"),
        (json!({"resample": 1}), "resample"),
        (json!({"resample": 2}), "resample"),
        (json!({"do_normalize": false}), "do_normalize"),
        (json!({"patch_size": "large"}), "large"),
        (json!({"size": 224}), "size is 224"),
        (json!({"size": {"height": 224, "width": 224}}), "height"),
        (json!({"size": {"shortest_edge": 3136}}), "shortest_edge"),
        (json!({"resample": "bicubic"}), "resample"),
        (json!({"image_mean": [0.5]}), "image_mean"),
        (json!([1]), "[1]"),
    ] {
        let error = Processors::QWEN2_VL
            .images(Some(&file))
            .expect_err(word)
            .to_string();
        assert!(error.contains(word), "{error} does not name {word}");
    }
}

#[test]
fn absurd_limits_are_refused() {
    let image = noise(4, 30, 20);
    for file in [
        json!({"min_pixels": 1u64 << 50, "max_pixels": 1u64 << 60}),
        json!({"min_pixels": u64::MAX, "max_pixels": u64::MAX}),
    ] {
        let config = Processors::QWEN2_VL
            .images(Some(&file))
            .expect("configuration");
        let error = config.image(&image).unwrap_err();
        assert!(matches!(error, PreprocessError::TooLarge { .. }), "{error}");
    }
    let config = Processors::QWEN2_VL
        .images(Some(&json!({"min_pixels": 0, "max_pixels": 0})))
        .expect("configuration");
    assert_eq!(config.image(&image).expect("patches").grid, [1, 2, 2]);
    let config = Processors::QWEN2_VL
        .images(Some(&json!({"min_pixels": 0})))
        .expect("configuration");
    let error = config.image(&noise(5, 300, 7)).unwrap_err();
    assert!(
        matches!(error, PreprocessError::ResizedAway { .. }),
        "{error}"
    );
}

#[test]
fn videos_need_frames_of_one_size() {
    let config = Processors::QWEN2_VL.images(None).expect("defaults");
    assert_eq!(config.video(&[]).unwrap_err(), PreprocessError::NoFrames);
    let error = config
        .video(&[noise(1, 40, 30), noise(2, 30, 40)])
        .unwrap_err();
    assert!(
        matches!(error, PreprocessError::FrameSize { index: 1, .. }),
        "{error}"
    );
}

/// By hand: 100 tokens of 28x28 pixels, of which nine tenths are used, make 70560 pixels; for 4
/// frames in patches of 2, each gets half of that.
#[test]
fn frames_share_the_tokens_of_a_video() {
    let file = json!({"size": {"shortest_edge": 3136, "longest_edge": 100_000},
        "cap_pixels_per_frame": true, "max_video_tokens": 100});
    let config = Processors::QWEN2_VL
        .videos(Some(&file))
        .expect("configuration");
    let grid = |count| {
        let frames: Vec<_> = (0..count).map(|i| noise(i, 280, 280)).collect();
        config.video(&frames).expect("patches").grid
    };
    assert_eq!(grid(2), [1, 18, 18]);
    assert_eq!(grid(4), [2, 12, 12]);
    // 1.05 times the lower limit is the least.
    assert_eq!(grid(200), [100, 4, 4]);
}
