//! Images resized to the bit as Pillow and torchvision do it.

use edge_lmm_models::preprocess::resize::{resize, resize_torchvision};
use edge_lmm_models::preprocess::{Filter, PreprocessError, RgbImage};
use proptest::prelude::*;

use crate::fixtures::{checksum, noise, rows, sizes};

type Resize = fn(&RgbImage, usize, usize, Filter) -> Result<RgbImage, PreprocessError>;

fn torchvision(
    image: &RgbImage,
    width: usize,
    height: usize,
    _bicubic: Filter,
) -> Result<RgbImage, PreprocessError> {
    resize_torchvision(image, width, height)
}

fn matches_reference(reference: &str, resize: Resize) {
    let mut checked = 0;
    for (i, row) in rows("resize").iter().enumerate() {
        let Some(expected) = row[reference].as_str() else {
            continue; // Filters and sizes that the reference has no answer for.
        };
        let ([width, height], [new_width, new_height]) = (sizes(&row["from"]), sizes(&row["to"]));
        let filter = match row["filter"].as_str() {
            Some("bilinear") => Filter::Bilinear,
            _ => Filter::Bicubic,
        };
        // Each size comes twice, once per filter.
        let image = noise(i / 2, width, height);
        let resized = resize(&image, new_width, new_height, filter).expect("resized");
        assert_eq!((resized.width(), resized.height()), (new_width, new_height));
        let head: Vec<u8> =
            serde_json::from_value(row[format!("{reference}_head")].clone()).expect("first bytes");
        assert_eq!(resized.pixels()[..head.len()], head, "{row}");
        assert_eq!(
            checksum(resized.pixels().iter().copied()),
            expected,
            "{row}"
        );
        checked += 1;
    }
    assert!(checked > 90, "only {checked} rows");
}

#[test]
fn equals_pillow() {
    matches_reference("pillow", resize);
}

#[test]
fn equals_torchvision() {
    matches_reference("torchvision", torchvision);
}

#[test]
fn refuses_impossible_sizes() {
    let image = noise(1, 4, 3);
    for (width, height) in [(0, 3), (3, 0), (usize::MAX, 2), (1 << 20, 1 << 20)] {
        for resize in [resize, torchvision] {
            let error = resize(&image, width, height, Filter::Bicubic).unwrap_err();
            let expected = if width * height.min(1) == 0 {
                PreprocessError::Empty { width, height }
            } else {
                PreprocessError::TooLarge { width, height }
            };
            assert_eq!(error, expected);
        }
    }
}

#[test]
fn refuses_images_that_are_none() {
    assert_eq!(
        RgbImage::new(0, 5, Vec::new()).unwrap_err(),
        PreprocessError::Empty {
            width: 0,
            height: 5
        }
    );
    let error = RgbImage::new(2, 2, vec![0; 11]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "11 bytes for an image of 2x2 RGB pixels, expected 12"
    );
    assert!(RgbImage::new(usize::MAX, usize::MAX, Vec::new()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Weights sum to one, so a plain image stays plain: to one step, as the rounding errors of
    /// up to four 22-bit weights (of 14-bit weights: up to 4 * 255 / 2^15) do not reach it.
    #[test]
    fn keeps_plain_images(
        from in (1..40usize, 1..40usize),
        to in (1..80usize, 1..80usize),
        color: [u8; 3],
        bicubic: bool,
    ) {
        let filter = if bicubic { Filter::Bicubic } else { Filter::Bilinear };
        let image = RgbImage::new(from.0, from.1, color.repeat(from.0 * from.1)).unwrap();
        for resize in [resize, torchvision] {
            let resized = resize(&image, to.0, to.1, filter).unwrap();
            for pixel in resized.pixels().chunks_exact(3) {
                for (&found, &expected) in pixel.iter().zip(&color) {
                    prop_assert!(found.abs_diff(expected) <= 1);
                }
            }
        }
    }
}
