//! Windows of token ids, from a text or from a file of NumPy.

use std::path::Path;
use std::str::FromStr;

use edge_lmm::one_line;
use tokenizers::Tokenizer;

/// The error of reading windows.
#[derive(Debug, thiserror::Error)]
pub enum WindowsError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The text cannot be tokenized.
    #[error("cannot tokenize {path}: {reason}")]
    Text {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// The text is shorter than a window.
    #[error(
        "{path} has {tokens} tokens, expected at least the {window} of a window: use a longer text \
         or shorter windows"
    )]
    Short {
        /// The file.
        path: String,
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of a window.
        window: usize,
    },
    /// Windows of fewer than four tokens.
    #[error("a window has {0} tokens, expected at least 4: its second half is scored")]
    Window(usize),
    /// Not a file of ids.
    #[error(
        "{path} has {found}, expected a NumPy file (.npy) of integers with one window per row, in \
         C order"
    )]
    Ids {
        /// The file.
        path: String,
        /// Description of its content.
        found: String,
    },
}

/// Windows of equal length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows(Vec<Vec<u32>>);

impl Windows {
    /// Cuts a text file into windows of `window` tokens. Each begins with the token that the
    /// tokenizer puts before a text, if there is one. A shorter rest is left out.
    ///
    /// # Errors
    /// If the file cannot be read or tokenized, or is shorter than a window.
    pub fn of_text(path: &Path, tokenizer: &str, window: usize) -> Result<Self, WindowsError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| WindowsError::Io {
            path: name.clone(),
            source,
        })?;
        let encode = || {
            let tokenizer = Tokenizer::from_str(tokenizer)?;
            let ids = tokenizer.encode_fast(&*text, false)?.get_ids().to_vec();
            let empty = tokenizer.encode_fast("", true)?;
            Ok((ids, empty.get_ids().first().copied()))
        };
        let (ids, begin) = encode().map_err(|error: tokenizers::Error| WindowsError::Text {
            path: name.clone(),
            reason: one_line(&*error),
        })?;
        check_length(window)?;
        let step = window - usize::from(begin.is_some());
        let rows = ids.chunks_exact(step);
        let rows = rows.map(|row| begin.iter().chain(row).copied().collect());
        match rows.collect::<Vec<_>>() {
            rows if rows.is_empty() => Err(WindowsError::Short {
                path: name,
                tokens: ids.len(),
                window,
            }),
            rows => Ok(Self(rows)),
        }
    }

    /// Reads the rows of a two-dimensional array of integers in NumPy's file format.
    ///
    /// # Errors
    /// If the file cannot be read or holds something else.
    pub fn of_numpy(path: &Path) -> Result<Self, WindowsError> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| WindowsError::Io {
            path: name.clone(),
            source,
        })?;
        let rows = numpy_rows(&bytes).map_err(|found| WindowsError::Ids { path: name, found })?;
        check_length(rows.first().map_or(0, Vec::len))?;
        Ok(Self(rows))
    }

    /// Keeps the first `count` windows.
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        self.0.truncate(count);
        self
    }

    /// Returns the number of scored positions.
    pub fn positions(&self) -> usize {
        let scored = |row: &Vec<u32>| row.len() - 1 - row.len() / 2;
        self.0.iter().map(scored).sum()
    }

    /// Returns the windows.
    pub fn rows(&self) -> &[Vec<u32>] {
        &self.0
    }

    /// Returns the number of tokens of a window.
    pub fn window(&self) -> usize {
        self.0.first().map_or(0, Vec::len)
    }
}

fn check_length(window: usize) -> Result<(), WindowsError> {
    match window {
        0..4 => Err(WindowsError::Window(window)),
        _ => Ok(()),
    }
}

/// Reads the rows of an array, or describes what was found instead. The format is described in
/// `numpy.lib.format`.
fn numpy_rows(bytes: &[u8]) -> Result<Vec<Vec<u32>>, String> {
    let other = || "another format".to_owned();
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or_else(other)?;
    let (version, rest) = rest.split_first_chunk::<2>().ok_or_else(other)?;
    let (length, rest) = match version[0] {
        1 => {
            let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(other)?;
            (u16::from_le_bytes(*length) as usize, rest)
        }
        _ => {
            let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(other)?;
            (u32::from_le_bytes(*length) as usize, rest)
        }
    };
    let (header, data) = rest.split_at_checked(length).ok_or_else(other)?;
    let header = String::from_utf8_lossy(header);
    let [kind, order, shape] = ["descr", "fortran_order", "shape"].map(|key| field(&header, key));
    let shape = shape.trim_matches(['(', ')']);
    let dims: Vec<usize> = (shape.split(','))
        .filter_map(|dim| dim.trim().parse().ok())
        .collect();
    let [rows, columns] = dims[..] else {
        return Err(format!("an array of shape ({shape})"));
    };
    if order != "False" {
        return Err("an array in Fortran order".to_owned());
    }
    let size = match kind.trim_matches('\'') {
        "<i4" | "<u4" => 4,
        "<i8" | "<u8" => 8,
        kind => return Err(format!("elements of type {kind}")),
    };
    let expected = rows.checked_mul(columns).and_then(|n| n.checked_mul(size));
    if expected != Some(data.len()) || columns == 0 {
        return Err(format!(
            "{} bytes of an array of {rows} x {columns}",
            data.len()
        ));
    }
    let id = |element: &[u8]| {
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(element);
        let id = u64::from_le_bytes(wide);
        u32::try_from(id).map_err(|_| "an id below 0 or beyond 32 bits".to_owned())
    };
    data.chunks_exact(columns * size)
        .map(|row| row.chunks_exact(size).map(id).collect())
        .collect()
}

/// Returns the text of a value in the header, a dictionary of Python.
fn field<'a>(header: &'a str, key: &str) -> &'a str {
    let Some((_, rest)) = header.split_once(&format!("'{key}':")) else {
        return "";
    };
    let rest = rest.trim_start();
    let end = match rest.starts_with('(') {
        true => rest.find(')').map_or(rest.len(), |end| end + 1),
        false => rest.find([',', '}']).unwrap_or(rest.len()),
    };
    rest[..end].trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, ids: &[i32]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        bytes
    }

    #[test]
    fn arrays_of_numpy_are_read() {
        let header = "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 4), }   \n";
        let rows = numpy_rows(&file(header, &[1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(rows, Ok(vec![vec![1, 2, 3, 4], vec![5, 6, 7, 8]]));
    }

    #[test]
    fn other_arrays_are_described() {
        let header = |kind: &str, order: &str, shape: &str| {
            format!("{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}")
        };
        for (header, ids, word) in [
            (header("<f4", "False", "(1, 4)"), vec![0; 4], "<f4"),
            (header("<i4", "True", "(1, 4)"), vec![0; 4], "Fortran"),
            (header("<i4", "False", "(4,)"), vec![0; 4], "shape"),
            (header("<i4", "False", "(2, 4)"), vec![0; 4], "16 bytes"),
            (header("<i8", "False", "(1, 2)"), vec![-1; 4], "below 0"),
        ] {
            let found = numpy_rows(&file(&header, &ids)).unwrap_err();
            assert!(found.contains(word), "{found}");
        }
        assert_eq!(numpy_rows(b"text"), Err("another format".to_owned()));
    }
}
