//! Bundles: a program and a record in one file.
//!
//! ```text
//! the program                    as it was built
//! zeros                          up to a multiple of 64 KiB, the largest page of AArch64 systems
//! the record                     mapped from here
//! trailer, 64 bytes              numbers little endian:
//!      0  magic "EDGELMMB"
//!      8  u32 version, 1
//!     12  u32 zero
//!     16  u64 length of the program
//!     24  u64 offset of the record
//!     32  u64 length of the record
//!     40  u64 xxh3 of the record
//!     48  u64 zero
//!     56  u64 xxh3 of the 56 bytes before
//! ```
//! The loader of an executable ignores data after the program, so the file can be run. Tools that
//! rewrite executables (`strip`, `upx`) remove the record.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::output::{Output, OutputError};

/// The record begins at a multiple of this.
pub const ALIGNMENT: u64 = 64 << 10;

const MAGIC: [u8; 8] = *b"EDGELMMB";
const VERSION: u32 = 1;
const TRAILER: u64 = 64;
/// The first bytes of a burnpack file.
const RECORD_MAGIC: [u8; 4] = 0x4255_524E_u32.to_le_bytes();

/// Position of the record in a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Bytes of the program.
    pub program: u64,
    /// First byte of the record.
    pub offset: u64,
    /// Bytes of the record.
    pub length: u64,
    /// xxh3 of the record.
    pub hash: u64,
}

/// The error returned when a bundle cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The trailer is inconsistent or the bundle is truncated.
    #[error("the bundle is damaged or truncated: {0}; copy it again")]
    Damaged(String),
    /// The bundle cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The bundle was made by a later version of this program.
    #[error("the bundle has version {0}, this program reads version {VERSION}")]
    Version(u32),
}

impl Place {
    fn trailer(&self) -> [u8; TRAILER as usize] {
        let mut bytes = [0; TRAILER as usize];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let fields = [self.program, self.offset, self.length, self.hash];
        for (slot, field) in bytes[16..48].chunks_exact_mut(8).zip(fields) {
            slot.copy_from_slice(&field.to_le_bytes());
        }
        let hash = xxh3_64(&bytes[..56]);
        bytes[56..].copy_from_slice(&hash.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8; TRAILER as usize], file_len: u64) -> Result<Self, BundleError> {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        if xxh3_64(&bytes[..56]) != word(56) {
            return Err(BundleError::Damaged(
                "the checksum of its last 64 bytes is wrong".to_owned(),
            ));
        }
        let version = word(8) as u32;
        if version != VERSION {
            return Err(BundleError::Version(version));
        }
        let place = Self {
            program: word(16),
            offset: word(24),
            length: word(32),
            hash: word(40),
        };
        let end = place
            .offset
            .checked_add(place.length)
            .and_then(|end| end.checked_add(TRAILER));
        if end != Some(file_len)
            || !place.offset.is_multiple_of(ALIGNMENT)
            || place.program > place.offset
        {
            return Err(BundleError::Damaged(format!(
                "it is {file_len} bytes long, but its trailer describes a record of {} bytes at {}",
                place.length, place.offset
            )));
        }
        Ok(place)
    }
}

/// Locates the record in a file; `None` if the file is not a bundle.
///
/// The record is not read: compare [`Place::hash`] with the mapped data.
///
/// # Errors
/// If the file cannot be read, or is a truncated or modified bundle.
pub fn locate(file: &mut File) -> Result<Option<Place>, BundleError> {
    let io = |source| BundleError::Io {
        path: PathBuf::from("the bundle"),
        source,
    };
    let file_len = file.metadata().map_err(io)?.len();
    if file_len < TRAILER || !file.metadata().map_err(io)?.is_file() {
        return Ok(None);
    }
    let mut trailer = [0; TRAILER as usize];
    read_at(file, file_len - TRAILER, &mut trailer).map_err(io)?;
    if trailer[..8] == MAGIC {
        return Place::parse(&trailer, file_len).map(Some);
    }
    match elf_len(file, file_len).map_err(io)? {
        Some(program) if follows_record(file, program, file_len).map_err(io)? => {
            Err(BundleError::Damaged(
                "a record follows the program, but the end of the file is missing".to_owned(),
            ))
        }
        _ => Ok(None),
    }
}

/// Returns `true` if a record starts at the first aligned position after the program.
fn follows_record(file: &mut File, program: u64, file_len: u64) -> io::Result<bool> {
    let offset = program.next_multiple_of(ALIGNMENT);
    if file_len < offset + RECORD_MAGIC.len() as u64 {
        // Truncated within the padding, which is at most 64 KiB of zeros.
        let mut rest = vec![0; (file_len - program) as usize];
        read_at(file, program, &mut rest)?;
        return Ok(rest.len() >= 16 && rest.iter().all(|&byte| byte == 0));
    }
    let mut magic = [0; 4];
    read_at(file, offset, &mut magic)?;
    Ok(magic == RECORD_MAGIC)
}

/// Returns the length of a 64-bit little-endian ELF program, which ends with its section headers.
/// Returns `None` for other files.
fn elf_len(file: &mut File, file_len: u64) -> io::Result<Option<u64>> {
    let mut header = [0; 64];
    if file_len < 64 {
        return Ok(None);
    }
    read_at(file, 0, &mut header)?;
    if header[..6] != [0x7F, b'E', b'L', b'F', 2, 1] {
        return Ok(None);
    }
    let mut start = [0; 8];
    start.copy_from_slice(&header[40..48]);
    let half = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let end = u64::from_le_bytes(start).checked_add(half(58) * half(60));
    Ok(end.filter(|&end| end != 0 && end < file_len))
}

fn read_at(file: &mut File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}

fn at(path: &Path) -> impl Fn(io::Error) -> BundleError {
    let path = path.to_owned();
    move |source| BundleError::Io {
        path: path.clone(),
        source,
    }
}

/// Writes the program with the record appended, as an executable file. A program that is a bundle
/// already gives its program only.
///
/// # Errors
/// If a file cannot be read or written, or the output is one of the inputs.
pub fn write(program: &Path, record: &Path, mut output: Output) -> Result<Place, BundleError> {
    output.check_inputs([program, record].into_iter())?;
    let mut source = File::open(program).map_err(at(program))?;
    let program_len = match locate(&mut source)? {
        Some(place) => place.program,
        None => source.metadata().map_err(at(program))?.len(),
    };
    let mut record_file = File::open(record).map_err(at(record))?;
    let written = write_to(output.file(), source, program_len, &mut record_file);
    let place = written.map_err(|error| output.io(error))?;
    output.finish()?;
    Ok(place)
}

fn write_to(
    out: &mut File,
    mut program: File,
    program_len: u64,
    record: &mut File,
) -> io::Result<Place> {
    program.seek(SeekFrom::Start(0))?;
    io::copy(&mut program.take(program_len), out)?;
    let place = append(out, program_len, record)?;
    make_executable(out)?;
    Ok(place)
}

/// Appends padding, record and trailer to a program of `program` bytes.
fn append(out: &mut File, program: u64, record: &mut File) -> io::Result<Place> {
    let offset = program.next_multiple_of(ALIGNMENT);
    out.set_len(offset)?;
    out.seek(SeekFrom::Start(offset))?;
    let mut hasher = Xxh3::new();
    let mut buffer = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        let n = record.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        out.write_all(&buffer[..n])?;
        length += n as u64;
    }
    let place = Place {
        program,
        offset,
        length,
        hash: hasher.digest(),
    };
    out.write_all(&place.trailer())?;
    Ok(place)
}

#[cfg(unix)]
fn make_executable(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn make_executable(_: &File) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    const RECORD: &[u8] = b"NRUB and then weights";

    struct Files(TempDir);

    impl Files {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.0.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        }

        fn bundle(&self) -> PathBuf {
            let program = self.write("program", &elf(5000));
            let record = self.write("record", RECORD);
            let output = self.0.path().join("bundle");
            write(&program, &record, Output::create(&output, true).unwrap()).unwrap();
            output
        }
    }

    /// Returns an ELF header whose section headers end the file.
    fn elf(len: usize) -> Vec<u8> {
        let mut bytes = vec![1; len];
        bytes[..6].copy_from_slice(&[0x7F, b'E', b'L', b'F', 2, 1]);
        bytes[40..48].copy_from_slice(&((len - 128) as u64).to_le_bytes());
        bytes[58..60].copy_from_slice(&64u16.to_le_bytes());
        bytes[60..62].copy_from_slice(&2u16.to_le_bytes());
        bytes
    }

    fn find(path: &Path) -> Result<Option<Place>, BundleError> {
        locate(&mut File::open(path).unwrap())
    }

    #[test]
    fn the_record_is_found_at_a_page() {
        let files = Files::new();
        let bundle = files.bundle();
        let place = find(&bundle).unwrap().expect("a bundle");
        assert_eq!((place.program, place.offset), (5000, ALIGNMENT));
        let bytes = fs::read(&bundle).unwrap();
        assert_eq!(&bytes[..5000], &elf(5000)[..]);
        let record = &bytes[ALIGNMENT as usize..][..place.length as usize];
        assert_eq!((record, xxh3_64(record)), (RECORD, place.hash));
    }

    #[test]
    fn bundling_a_bundle_replaces_its_record() {
        let files = Files::new();
        let first = files.bundle();
        let record = files.write("other", b"NRUB another");
        let second = files.0.path().join("second");
        let output = Output::create(&second, true).unwrap();
        let place = write(&first, &record, output).unwrap();
        assert_eq!((place.program, place.length), (5000, 12));
        assert_eq!(find(&second).unwrap(), Some(place));
    }

    #[test]
    fn a_plain_program_is_no_bundle() {
        let files = Files::new();
        assert_eq!(find(&files.write("program", &elf(5000))).unwrap(), None);
        assert_eq!(find(&files.write("text", &[b' '; 100])).unwrap(), None);
        assert_eq!(find(&files.write("empty", b"")).unwrap(), None);
    }

    #[test]
    fn every_cut_is_noticed() {
        let files = Files::new();
        let bytes = fs::read(files.bundle()).unwrap();
        let page = ALIGNMENT as usize;
        let cuts = [5100, page, page + 9, bytes.len() - 1];
        for len in cuts {
            let cut = files.write("cut", &bytes[..len]);
            let found = find(&cut);
            assert!(
                matches!(found, Err(BundleError::Damaged(_))),
                "{len}: {found:?}"
            );
        }
    }

    #[test]
    fn every_changed_byte_of_the_trailer_is_noticed() {
        let files = Files::new();
        let bytes = fs::read(files.bundle()).unwrap();
        for at in bytes.len() - 64..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x40;
            let found = find(&files.write("changed", &changed));
            assert!(
                matches!(found, Err(BundleError::Damaged(_))),
                "{at}: {found:?}"
            );
        }
    }

    #[test]
    fn offsets_beyond_four_gigabytes_are_kept() {
        // A sparse program of 5 GiB: only the record is written.
        let files = Files::new();
        let path = files.0.path().join("large");
        let mut out = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let record = files.write("record", RECORD);
        let program = (5 << 30) + 1;
        let place = append(&mut out, program, &mut File::open(record).unwrap()).unwrap();
        assert_eq!(place.offset, (5 << 30) + ALIGNMENT);
        assert_eq!(find(&path).unwrap(), Some(place));
        let mut read = [0; RECORD.len()];
        read_at(&mut out, place.offset, &mut read).unwrap();
        assert_eq!(read, RECORD);
    }
}
