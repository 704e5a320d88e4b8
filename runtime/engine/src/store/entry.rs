//! The frame of an entry: origin, key and checksum around a body.
//!
//! All numbers are little-endian:
//!
//! | bytes | content |
//! |---|---|
//! | 8 | `edgelmmc` |
//! | 4 | version of this format |
//! | 4 | kind: 1 encoder output, 2 prefix of a conversation |
//! | 16 | key: hash of the medium and its options, or of the tokens |
//! | 16 | hash of the model's record |
//! | 8 | bytes of the body |
//! | 2 | bytes of the next field |
//! | | program and device that computed the entry, as text |
//! | | body (`contents.rs`) |
//! | 8 | xxh3 of all bytes before |

use std::io::{self, Write};
use std::ops::Range;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::contents::{Features, Prefix, Reader};

const MAGIC: [u8; 8] = *b"edgelmmc";
/// Version of frame and bodies.
const VERSION: u32 = 1;
/// Bytes of the checksum.
const CHECKSUM: usize = 8;
/// Largest description of program and device, in bytes.
const MAX_MAKER: usize = 1024;

/// Reason why an entry cannot be used.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryError {
    /// The file begins otherwise.
    #[error("it is not a cache file of edge-lmm")]
    NotAnEntry,
    /// Another version of the format.
    #[error("it has version {found} of the cache format, this program reads version {VERSION}")]
    Version {
        /// In the file.
        found: u32,
    },
    /// The content contradicts itself.
    #[error("it is damaged or truncated: {0}")]
    Damaged(&'static str),
    /// Computed with another model.
    #[error("it belongs to another model")]
    OtherModel,
    /// Computed by another program or on another device, so that its numbers may differ.
    #[error("it was computed by {found}, this is {own}")]
    OtherMaker {
        /// In the file.
        found: String,
        /// This program and its device.
        own: String,
    },
    /// It holds another result than its name says.
    #[error("it holds something else than expected")]
    OtherContent,
}

/// Kind of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Encoder output of a medium.
    Features = 1,
    /// Tokens with their keys and values.
    Prefix = 2,
}

/// Model, program and device that results are computed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Hash that identifies the record.
    pub model: u128,
    /// Program and device.
    pub maker: String,
}

impl Origin {
    /// Describes this program on a device with the given fingerprint.
    pub fn new(model: u128, fingerprint: &str) -> Self {
        let mut maker = format!("edge-lmm {} on {fingerprint}", env!("CARGO_PKG_VERSION"));
        maker.retain(|c| c.is_ascii() && !c.is_ascii_control());
        maker.truncate(MAX_MAKER);
        Self { model, maker }
    }
}

/// Positions of the parts of an entry whose frame was checked.
struct Frame {
    kind: u32,
    key: u128,
    origin: Origin,
    body: Range<usize>,
}

/// Checks magic, version, lengths and checksum.
fn frame(bytes: &[u8]) -> Result<Frame, EntryError> {
    let mut reader = Reader(bytes);
    if reader.take(MAGIC.len()) != Ok(&MAGIC) {
        return Err(EntryError::NotAnEntry);
    }
    let version = reader.u32()?;
    if version != VERSION {
        return Err(EntryError::Version { found: version });
    }
    let kind = reader.u32()?;
    let (key, model, body) = (reader.u128()?, reader.u128()?, reader.u64()?);
    let maker = reader.u16()?;
    let maker = reader.take(usize::from(maker))?;
    let start = bytes.len() - reader.0.len();
    let end = usize::try_from(body)
        .ok()
        .and_then(|body| body.checked_add(start));
    let length = end.and_then(|end| end.checked_add(CHECKSUM));
    let (Some(end), true) = (end, length == Some(bytes.len())) else {
        return Err(EntryError::Damaged("its length is wrong"));
    };
    if xxh3_64(&bytes[..end]).to_le_bytes() != bytes[end..] {
        return Err(EntryError::Damaged("it differs from its checksum"));
    }
    let is_text = |bytes: &[u8]| bytes.iter().all(|&byte| (b' '..=b'~').contains(&byte));
    let maker = match std::str::from_utf8(maker) {
        Ok(text) if is_text(maker) && maker.len() <= MAX_MAKER => text.to_owned(),
        _ => return Err(EntryError::Damaged("its origin is not text")),
    };
    Ok(Frame {
        kind,
        key,
        origin: Origin { model, maker },
        body: start..end,
    })
}

/// Checks an entry and returns the range of its body. Without a `key`, any key is accepted.
///
/// # Errors
/// If it is damaged, of another origin or kind, or has another key.
pub(crate) fn parse(
    bytes: &[u8],
    origin: &Origin,
    kind: Kind,
    key: Option<u128>,
) -> Result<Range<usize>, EntryError> {
    let frame = frame(bytes)?;
    if frame.origin.model != origin.model {
        return Err(EntryError::OtherModel);
    }
    if frame.origin != *origin {
        return Err(EntryError::OtherMaker {
            found: frame.origin.maker,
            own: origin.maker.clone(),
        });
    }
    if frame.kind != kind as u32 || key.is_some_and(|key| key != frame.key) {
        return Err(EntryError::OtherContent);
    }
    Ok(frame.body)
}

/// Checks frame and body of an entry of any model.
///
/// # Errors
/// If it is damaged or of another version.
pub fn check_entry(bytes: &[u8]) -> Result<(), EntryError> {
    let frame = frame(bytes)?;
    let body = &bytes[frame.body];
    match frame.kind {
        kind if kind == Kind::Features as u32 => Features::parse(body).map(|_| ()),
        kind if kind == Kind::Prefix as u32 => Prefix::parse(body).map(|_| ()),
        _ => Err(EntryError::OtherContent),
    }
}

/// Returns the bytes of an entry with a body of that size.
pub(super) fn size(origin: &Origin, body: usize) -> u64 {
    let frame = MAGIC.len() + 4 + 4 + 16 + 16 + 8 + 2 + CHECKSUM;
    (frame + origin.maker.len() + body) as u64
}

/// Writes an entry. `write_body` writes `body` bytes.
///
/// # Errors
/// If `out` or `write_body` fails, or the body has another length.
pub(crate) fn write(
    out: &mut dyn Write,
    origin: &Origin,
    kind: Kind,
    key: u128,
    body: usize,
    write_body: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = Hashing {
        out: io::BufWriter::with_capacity(1 << 16, out),
        hasher: Xxh3::new(),
        written: 0,
    };
    out.write_all(&MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(&(kind as u32).to_le_bytes())?;
    out.write_all(&key.to_le_bytes())?;
    out.write_all(&origin.model.to_le_bytes())?;
    out.write_all(&(body as u64).to_le_bytes())?;
    let maker = origin.maker.as_bytes();
    // `Origin` limits its length.
    out.write_all(&(maker.len() as u16).to_le_bytes())?;
    out.write_all(maker)?;
    let before = out.written;
    write_body(&mut out)?;
    if out.written - before != body {
        return Err(io::Error::other("the body has another length"));
    }
    let checksum = out.hasher.digest();
    out.write_all(&checksum.to_le_bytes())?;
    out.flush()
}

/// A writer that computes the checksum.
struct Hashing<W> {
    out: W,
    hasher: Xxh3,
    written: usize,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.written += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin::new(7, "cpu test")
    }

    /// An entry without a valid body.
    fn entry(body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let write_body = |out: &mut dyn Write| out.write_all(body);
        write(
            &mut bytes,
            &origin(),
            Kind::Prefix,
            5,
            body.len(),
            write_body,
        )
        .expect("written");
        assert_eq!(bytes.len() as u64, size(&origin(), body.len()));
        bytes
    }

    #[test]
    fn an_entry_is_read_back() {
        let bytes = entry(b"body");
        let body = parse(&bytes, &origin(), Kind::Prefix, Some(5)).expect("an entry");
        assert_eq!(&bytes[body], b"body");
        assert!(parse(&bytes, &origin(), Kind::Prefix, None).is_ok());
    }

    /// Every flipped bit and every shorter or longer file is detected.
    #[test]
    fn damage_is_detected() {
        let bytes = entry(b"body");
        for bit in 0..8 * bytes.len() {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let found = parse(&damaged, &origin(), Kind::Prefix, Some(5));
            assert!(found.is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(frame(&bytes[..len]).is_err(), "{len} bytes");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(frame(&longer).is_err());
    }

    #[test]
    fn other_origins_are_told() {
        let bytes = entry(b"body");
        let other = Origin {
            model: 8,
            ..origin()
        };
        let found = parse(&bytes, &other, Kind::Prefix, None);
        assert_eq!(found, Err(EntryError::OtherModel));
        let found = parse(&bytes, &Origin::new(7, "gpu"), Kind::Prefix, None);
        assert!(matches!(found, Err(EntryError::OtherMaker { .. })));
        for (kind, key) in [(Kind::Features, 5), (Kind::Prefix, 6)] {
            let found = parse(&bytes, &origin(), kind, Some(key));
            assert_eq!(found, Err(EntryError::OtherContent));
        }
    }

    #[test]
    fn a_body_of_another_length_is_not_written() {
        let write_body = |out: &mut dyn Write| out.write_all(b"short");
        let written = write(&mut Vec::new(), &origin(), Kind::Prefix, 5, 9, write_body);
        assert!(written.is_err());
    }
}
