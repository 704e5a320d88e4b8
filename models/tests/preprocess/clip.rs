//! The processors of CLIP and BLIP.

use edge_lmm_models::preprocess::clip::{PreprocessConfig, Target};
use edge_lmm_models::preprocess::{PreprocessError, RgbImage};
use serde_json::json;

use crate::fixtures::{self, checksum_of_floats, compare, floats, noise, rows, sizes};

#[test]
fn equal_the_goldens() {
    for checkpoint in ["llava-tiny", "blip2-tiny"] {
        let file = fixtures::json(&format!("{checkpoint}/preprocessor_config.json"));
        let config = PreprocessConfig::parse(&file).expect("configuration");
        for (sample, tensors) in fixtures::goldens(checkpoint) {
            let image = &fixtures::images(checkpoint, &sample)[0];
            let values = config.image(image).expect("values").values;
            let context = format!("{checkpoint}, sample {}", sample["id"]);
            let head = &tensors["pixel_values_head"];
            // Both sides compute in 32 bits in the same order.
            compare(&values, head, &sample["pixel_values"], 1e-6, &context);
        }
    }
}

#[test]
fn equal_the_reference_to_the_bit() {
    for row in rows("clip") {
        let config = PreprocessConfig::parse(&row["config"]).expect("configuration");
        let [width, height] = sizes(&row["size"]);
        let seeds = [(112, 112), (97, 150), (300, 201), (40, 37)];
        let seed = seeds.iter().position(|&size| size == (width, height));
        let image = noise(seed.expect("a known size"), width, height);
        let values = config.image(&image).expect("values");
        assert_eq!(
            [3, values.height, values.width],
            sizes(&row["shape"]),
            "{row}"
        );
        let head = floats(&row["head"]);
        assert_eq!(values.values[..head.len()], head, "{row}");
        assert_eq!(checksum_of_floats(&values.values), row["checksum"], "{row}");
    }
}

#[test]
fn long_images_are_resized_before_they_are_cropped() {
    let config = json!({"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}});
    let config = PreprocessConfig::parse(&config).expect("configuration");
    let long = RgbImage::new(20_000, 10, vec![9; 600_000]).expect("image");
    assert_eq!(
        config.image(&long).expect("values").values.len(),
        3 * 28 * 28
    );
    let dot = RgbImage::new(1, 1, vec![9; 3]).expect("image");
    assert_eq!(
        config.image(&dot).expect("values").values.len(),
        3 * 28 * 28
    );
    let longest = RgbImage::new(10_000_000, 1, vec![9; 30_000_000]).expect("image");
    let error = config.image(&longest).unwrap_err();
    assert!(matches!(error, PreprocessError::TooLarge { .. }), "{error}");
}

#[test]
fn sizes_are_read_in_all_spellings() {
    let square = Target::Exact {
        height: 9,
        width: 9,
    };
    for (file, target, crop) in [
        (json!({}), Target::ShortestEdge(224), Some((224, 224))),
        (
            json!({"size": 9, "crop_size": 8}),
            Target::ShortestEdge(9),
            Some((8, 8)),
        ),
        (
            json!({"size": {"height": 9, "width": 9}, "do_center_crop": false}),
            square,
            None,
        ),
        (
            json!({"size": 9, "image_processor_type": "BlipImageProcessorFast"}),
            square,
            None,
        ),
        (
            json!({"size": [9, 9], "crop_size": {"height": 8, "width": 7}}),
            square,
            Some((8, 7)),
        ),
        (
            json!({"size": {"shortest_edge": 9, "longest_edge": 20, "height": null}}),
            Target::Bounded(9, 20),
            Some((224, 224)),
        ),
    ] {
        let config = PreprocessConfig::parse(&file).expect("configuration");
        assert_eq!((config.target, config.crop), (Some(target), crop), "{file}");
    }
}

#[test]
fn unusable_configurations_are_refused() {
    for (file, word) in [
        (json!({"size": {"shortest_edge": 0}}), "0 pixels"),
        (json!({"crop_size": 1_000_000}), "1000000 pixels"),
        (json!({"resample": 0}), "resample"),
        (json!({"do_rescale": false}), "do_rescale"),
        (json!({"image_std": [0, 1, 1]}), "image_std"),
        (json!({"size": "large"}), "size is"),
        (json!({"size": {"longest_edge": 9}}), "longest_edge"),
        (
            json!({"crop_size": {"shortest_edge": 9, "longest_edge": 9}}),
            "crop_size",
        ),
        (json!({"do_normalize": false}), "do_normalize"),
        (json!({"image_mean": [0.5, 0.5]}), "image_mean"),
        (json!({"rescale_factor": "1/255"}), "rescale_factor"),
        (
            json!({"image_processor_type": "SiglipImageProcessor"}),
            "SiglipImageProcessor",
        ),
        (json!(null), "null"),
    ] {
        let error = PreprocessConfig::parse(&file).expect_err(word).to_string();
        assert!(error.contains(word), "{error} does not name {word}");
    }
}

/// By hand: 40x10 becomes 36x9 without a limit, but 20 allow a shorter side of 5 only.
#[test]
fn the_longer_side_is_limited() {
    let size = |longest: usize| {
        let file = json!({"size": {"shortest_edge": 9, "longest_edge": longest},
            "do_center_crop": false});
        let config = PreprocessConfig::parse(&file).expect("configuration");
        let values = config.image(&noise(1, 40, 10)).expect("values");
        (values.width, values.height)
    };
    assert_eq!(size(36), (36, 9));
    assert_eq!(size(20), (20, 5));
}

/// The reference pads with the mean color, cut to 8 bits, before it resizes.
#[test]
fn llava_pads_to_a_square() {
    let file = json!({"image_processor_type": "LlavaImageProcessor", "do_pad": true,
        "size": {"shortest_edge": 4}, "crop_size": 4, "image_mean": 0.5, "image_std": 0.5});
    let config = PreprocessConfig::parse(&file).expect("configuration");
    let mean = (127.0 / 255.0 - 0.5) / 0.5;
    let wide = RgbImage::new(4, 1, vec![255; 12]).expect("image");
    let values = config.image(&wide).expect("values").values;
    let rows: Vec<f32> = values.chunks(4).map(|row| row[0]).collect();
    for (row, expected) in rows[..4].iter().zip([mean, 1.0, mean, mean]) {
        assert!((row - expected).abs() < 1e-6, "{rows:?}");
    }
    let high = RgbImage::new(2, 4, vec![255; 24]).expect("image");
    let values = config.image(&high).expect("values").values;
    for (value, expected) in values[..4].iter().zip([mean, 1.0, 1.0, mean]) {
        assert!((value - expected).abs() < 1e-6, "{values:?}");
    }
    let other = json!({"image_processor_type": "CLIPImageProcessor", "do_pad": true});
    assert!(!PreprocessConfig::parse(&other).expect("configuration").pad);
}
