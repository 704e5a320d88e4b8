//! GGUF files that `llama-gguf-split` divided into parts.
//!
//! Part 1 of 3 is `NAME-00001-of-00003.gguf` and has the metadata of the model; all parts have tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edge_lmm_record::FileMap;

use super::super::error::{Result, SourceError, malformed};
use super::super::file::{SourceFile, file_name};
use super::super::map;
use super::header::Header;
use super::value::Value;

/// Index of a part, from 0.
const NUMBER: &str = "split.no";
/// Number of parts.
const COUNT: &str = "split.count";
/// Number of tensors in all parts.
const TENSORS: &str = "split.tensors.count";
/// Maximum number of parts that a name can state.
const MAX_PARTS: usize = 99_999;

/// A file, or a part of one.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) map: Arc<FileMap>,
}

impl Part {
    fn open(path: &Path) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            map: Arc::new(map::open(path)?),
        })
    }

    fn header(&self) -> Result<Header<'_>> {
        Header::parse(&self.map, &self.path.display().to_string())
    }

    pub(super) fn source(&self) -> SourceFile {
        SourceFile::new(&self.path, self.map.clone())
    }
}

/// Opens a file. For a part of a split file, opens all parts, which must lie in the same folder.
///
/// # Errors
/// If a part is missing or the name of a part does not state its number.
pub(super) fn open(path: &Path) -> Result<Vec<Part>> {
    let part = Part::open(path)?;
    let header = part.header()?;
    let count = header.size(COUNT)?.unwrap_or(0);
    if count <= 1 {
        drop(header);
        return Ok(vec![part]);
    }
    let number = header.size(NUMBER)?.unwrap_or(0);
    let stem = stem(path, number, count)?;
    let paths: Vec<PathBuf> = (0..count)
        .map(|number| path.with_file_name(part_name(&stem, number, count)))
        .collect();
    if let Some(missing) = paths.iter().find(|path| !path.exists()) {
        return Err(SourceError::MissingFile {
            path: missing.clone(),
            needed_for: format!(
                "{} is one of {count} parts of a model; put all of them into one folder",
                file_name(path)
            ),
        });
    }
    paths.iter().map(|path| Part::open(path)).collect()
}

fn part_name(stem: &str, number: usize, count: usize) -> String {
    format!("{stem}-{:05}-of-{count:05}.gguf", number + 1)
}

/// Returns the name of a part without its number.
fn stem(path: &Path, number: usize, count: usize) -> Result<String> {
    let name = file_name(path);
    let stem = name
        .len()
        .checked_sub(part_name("", 0, count).len())
        .and_then(|length| name.get(..length))
        .filter(|stem| {
            number < count && count <= MAX_PARTS && part_name(stem, number, count) == name
        });
    stem.map(str::to_owned).ok_or_else(|| {
        malformed(
            path.display().to_string(),
            format!("{NUMBER} {number} and {COUNT} {count}"),
            "those that the name states (NAME-00001-of-00003.gguf for the first of three); use the \
             names of the download, or join the parts with llama-gguf-split --merge",
        )
    })
}

/// Returns the header of a file, or the header of all parts of a split file together.
///
/// # Errors
/// If a header is invalid or the parts do not belong together.
pub(super) fn header(parts: &[Part]) -> Result<Header<'_>> {
    let mut whole = parts[0].header()?;
    if parts.len() == 1 {
        return Ok(whole);
    }
    for (number, part) in parts.iter().enumerate() {
        let header = part.header()?;
        check(&whole, &header, (number, parts.len()))?;
        for (name, mut entry) in header.tensors {
            entry.part = number;
            if whole.tensors.insert(name, entry).is_some() && number > 0 {
                return Err(malformed(
                    header.file,
                    format!("the tensor {name}, which another part has, too"),
                    "each name once; the parts do not belong together",
                ));
            }
        }
    }
    let stated = whole.size(TENSORS)?;
    if let Some(stated) = stated.filter(|&stated| stated != whole.tensors.len()) {
        return Err(malformed(
            whole.file,
            format!("{} tensors in all parts", whole.tensors.len()),
            format!("{stated} ({TENSORS}); the parts do not belong together"),
        ));
    }
    Ok(whole)
}

/// Checks that a part has its place in the split file and metadata that agree with the first part.
fn check(first: &Header<'_>, part: &Header<'_>, (number, count): (usize, usize)) -> Result<()> {
    for (key, expected) in [(NUMBER, number), (COUNT, count)] {
        let found = part.size(key)?;
        if found != Some(expected) {
            let found = found.map_or("no value".to_owned(), |found| found.to_string());
            return Err(malformed(
                &*part.file,
                format!("{found} in {key}"),
                format!("{expected}, as the name states; the parts do not belong together"),
            ));
        }
    }
    match differing(&first.metadata, &part.metadata) {
        None => Ok(()),
        Some(key) => Err(malformed(
            &*part.file,
            format!("another {key} than in {}", first.file),
            "the same in all parts; the parts do not belong together",
        )),
    }
}

/// Returns a key that both parts have with different values.
fn differing<'a>(
    first: &BTreeMap<&str, Value<'_>>,
    part: &BTreeMap<&'a str, Value<'_>>,
) -> Option<&'a str> {
    let differs = |key: &str, value| first.get(key).is_some_and(|stated| stated != value);
    (part.iter())
        .find(|&(&key, value)| key != NUMBER && differs(key, value))
        .map(|(&key, _)| key)
}
