//! The HD transform of Phi-3-Vision.

use edge_lmm_models::preprocess::phi3_vision::PreprocessConfig;
use edge_lmm_models::preprocess::{PreprocessError, RgbImage};
use serde_json::json;

use crate::fixtures::{self, compare, noise, sizes};

/// Values are up to 2.7, so that the view of the whole can be off by as much as
/// `interpolate::TOLERANCE` times 2.7; crops are exact.
const TOLERANCE: f32 = 4e-6;

#[test]
fn equals_the_goldens() {
    let file = fixtures::json("phi35v-tiny/preprocessor_config.json");
    let config = PreprocessConfig::parse(&file).expect("configuration");
    for (sample, tensors) in fixtures::goldens("phi35v-tiny") {
        let image = &fixtures::images("phi35v-tiny", &sample)[0];
        let crops = config.image(image).expect("crops");
        let [height, width] = sizes(&sample["image_sizes"][0]);
        assert_eq!(crops.grid.map(|n| n * crops.side), [height, width]);
        let context = format!("sample {}", sample["id"]);
        let values = crops.padded(config.num_crops);
        let head = &tensors["pixel_values_head"];
        compare(&values, head, &sample["pixel_values"], TOLERANCE, &context);
    }
}

#[test]
fn upright_images_have_more_rows_than_columns() {
    let config = json!({"num_crops": 6, "tiny_crop_size": 28});
    let config = PreprocessConfig::parse(&config).expect("configuration");
    let (lying, upright) = (noise(1, 90, 50), noise(1, 50, 90));
    let crops = config.image(&lying).expect("crops");
    assert_eq!((crops.grid, crops.count()), ([2, 3], 7));
    assert_eq!(crops.pixel_values.len(), 7 * 3 * 28 * 28);
    assert_eq!(config.image(&upright).expect("crops").grid, [3, 2]);
}

#[test]
fn what_is_missing_is_white() {
    // 20x10 becomes 28x14 of 28x28, seven white rows above and below.
    let config = json!({"tiny_crop_size": 28, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]});
    let config = PreprocessConfig::parse(&config).expect("configuration");
    let black = RgbImage::new(20, 10, vec![0; 600]).expect("image");
    let crops = config.image(&black).expect("crops");
    assert_eq!(crops.grid, [1, 1]);
    for (i, value) in crops.pixel_values[3 * 28 * 28..].iter().enumerate() {
        let y = i / 28 % 28;
        let expected = if (7..21).contains(&y) { 0.0 } else { 1.0 };
        assert_eq!(*value, expected, "row {y}");
    }
}

#[test]
fn images_of_any_shape_work_or_are_refused() {
    let config = PreprocessConfig::parse(&json!({"num_crops": 16})).expect("configuration");
    let dot = RgbImage::new(1, 1, vec![7; 3]).expect("image");
    assert_eq!(config.image(&dot).expect("crops").grid, [4, 4]);
    let long = RgbImage::new(20_000, 10, vec![7; 600_000]).expect("image");
    assert_eq!(config.image(&long).expect("crops").grid, [1, 16]);
    let longer = RgbImage::new(20_000, 1, vec![7; 60_000]).expect("image");
    let error = config.image(&longer).unwrap_err();
    assert!(
        matches!(error, PreprocessError::ResizedAway { .. }),
        "{error}"
    );
}

#[test]
fn unusable_configurations_are_refused() {
    for (file, word) in [
        (json!({"num_crops": 0}), "num_crops"),
        (json!({"num_crops": 1_000_000}), "num_crops"),
        (json!({"tiny_crop_size": 0}), "crop size"),
        (json!({"image_std": [1, 1, -1]}), "image_std"),
        (json!({"rescale_factor": 1}), "rescale_factor"),
        (json!({"do_normalize": false}), "do_normalize"),
        (json!({"resample": 3}), "resample"),
        (json!({"do_resize": false}), "do_resize"),
        (
            json!({"image_mean": null, "image_std": [1, 1]}),
            "image_std",
        ),
        (json!("x"), "\"x\""),
    ] {
        let error = PreprocessConfig::parse(&file).expect_err(word).to_string();
        assert!(error.contains(word), "{error} does not name {word}");
    }
}
