//! Files and expected values.

use std::path::{Path, PathBuf};

use edge_lmm_models::preprocess::RgbImage;

/// A file of `data`.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/media/data")
        .join(name)
}

/// All files of a folder of `data`, by name.
pub fn files(folder: &str) -> Vec<PathBuf> {
    let entries = path(folder).read_dir().expect(folder);
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect(folder).path()).collect();
    files.sort();
    assert!(files.len() > 5, "{folder} holds only {} files", files.len());
    files
}

/// The part of a file's name before the first dot.
pub fn stem(file: &Path) -> &str {
    let name = file
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a name");
    name.split('.').next().expect("a stem")
}

/// Pixels that the reference reads from an image, with frames side by side.
pub fn expected_image(name: &str) -> RgbImage {
    let file = path(&format!("expected/{name}.png"));
    let image = image::open(file).expect(name).into_rgb8();
    let (width, height) = (image.width() as usize, image.height() as usize);
    RgbImage::new(width, height, image.into_raw()).expect(name)
}

/// Frames of this width that the reference reads from a video.
pub fn expected_frames(name: &str, width: usize) -> Vec<RgbImage> {
    let strip = expected_image(name);
    let cut = |i: usize| {
        let rows = (0..strip.height()).map(|y| &strip.row(y)[i * width * 3..(i + 1) * width * 3]);
        RgbImage::new(width, strip.height(), rows.collect::<Vec<_>>().concat()).expect(name)
    };
    (0..strip.width() / width).map(cut).collect()
}

/// Largest difference of two images of one size.
pub fn difference(a: &RgbImage, b: &RgbImage) -> u8 {
    assert_eq!((a.width(), a.height()), (b.width(), b.height()));
    let pairs = a.pixels().iter().zip(b.pixels());
    pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

/// Writes a file into a folder of its own.
pub fn temporary(name: &str, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join(name);
    std::fs::write(&file, content).expect("a file");
    (folder, file)
}

/// An image of one color.
pub fn plain(width: usize, height: usize, color: [u8; 3]) -> RgbImage {
    RgbImage::new(width, height, color.repeat(width * height)).expect("an image")
}

/// An image as a PNG file.
pub fn png(image: &RgbImage) -> Vec<u8> {
    let (width, height) = (image.width() as u32, image.height() as u32);
    let buffer = image::RgbImage::from_raw(width, height, image.pixels().to_vec());
    let mut file = std::io::Cursor::new(Vec::new());
    buffer
        .expect("an image")
        .write_to(&mut file, image::ImageFormat::Png)
        .expect("a file");
    file.into_inner()
}
