//! Names from datasets, which are not trusted.

use std::path::Path;

use anyhow::ensure;

pub use crate::hub::check_below;

/// Maximum length of the name of a medium without its extension.
const MAX_LEN: usize = 100;

/// Checks the name of a clip or an image in a table.
///
/// # Errors
/// If it contains a separator or is not a file name.
pub fn check_plain(name: &str) -> anyhow::Result<()> {
    check_below(name)?;
    ensure!(
        !name.contains('/') && name != ".",
        "the name {name:?} of a medium must not contain a separator"
    );
    Ok(())
}

/// Returns the name without folders and extension.
pub fn stem(name: &str) -> &str {
    let path = Path::new(name);
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    stem.unwrap_or_default()
}

/// Returns the extension in lower case.
pub fn extension(name: &str) -> String {
    let extension = Path::new(name).extension();
    let extension = extension.and_then(|extension| extension.to_str());
    extension.unwrap_or_default().to_ascii_lowercase()
}

/// Returns a file name, without an extension, for a medium with this name. Characters other than
/// ASCII letters, digits, `-` and `_` are replaced; a name that was changed ends with a hash of the
/// original, so that different names stay different, also where case is ignored.
pub fn file_stem(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let replaced = name.chars().map(|c| if is_plain(c) { c } else { '_' });
    let stem: String = replaced.take(MAX_LEN).collect();
    let is_lower = !name.contains(|c: char| c.is_ascii_uppercase());
    if stem == name && is_lower && !stem.is_empty() && !stem.starts_with('-') {
        return stem;
    }
    let hash = &super::checksums::sha256(name.as_bytes())[..8];
    match stem.trim_start_matches('-') {
        "" => format!("medium-{hash}"),
        stem => format!("{stem}-{hash}"),
    }
}

/// Splits a name into its words, in lower case.
pub fn words(name: &str) -> impl Iterator<Item = String> {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric());
    words.map(str::to_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for name in [
            "",
            "../a",
            "a/../b",
            "/etc/passwd",
            "a\\b",
            "c:x",
            "a\nb",
            "..",
            "a\0b",
        ] {
            assert!(check_below(name).is_err(), "{name:?}");
        }
        for name in ["a", "a/b.mp4", "./a", "a..b"] {
            assert!(check_below(name).is_ok(), "{name:?}");
        }
        assert!(check_plain("a/b").is_err());
        assert!(check_plain(".").is_err());
        assert!(check_plain("v_-aB3").is_ok());
    }

    #[test]
    fn file_names_are_plain_and_distinct() {
        assert_eq!(file_stem("image_12"), "image_12");
        let names = ["a/b", "a_b", "a.b", "A_b", "", "-rf", "ä", "aä"].map(file_stem);
        let distinct: std::collections::BTreeSet<String> =
            names.iter().map(|name| name.to_lowercase()).collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
        for name in &names {
            assert!(
                check_plain(name).is_ok() && !name.starts_with(['-', '.']),
                "{name}"
            );
        }
        assert!(file_stem(&"x".repeat(1000)).len() < 120);
    }
}
