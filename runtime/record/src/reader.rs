//! Opens a record (`.bpk`): one burnpack file with packed weights, configuration, tokenizer and
//! template, mapped into memory.
//!
//! The reader trusts nothing in the file: the header carries a hash of its own, and names, types,
//! shapes and offsets of the tensors are checked against each other, the file's size and, before
//! a model is filled, against what the model needs. The tensors' own hashes cost a pass over the
//! whole file and are checked on demand ([`Record::verify`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{AllocationProperty, DType};
use burn_store::BurnpackStore;
use bytes::Bytes;
use edge_lmm_models::ModelError;
use edge_lmm_models::families::Registry;
use edge_lmm_models::weights::WeightSpec;
use edge_lmm_ops::{KernelBackend, stage};
use serde::Deserialize;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::map::FileMap;
use crate::schema::{CHECKSUMS, FORMAT_VERSION, INFO_KEY, RecordInfo, TEMPLATE_KEY, TOKENIZER_KEY};
use crate::skeleton::Skeleton;
use crate::{bundle, stand_in};

const MAGIC: u32 = 0x4255_524E;
const BURNPACK_VERSION: u16 = 1;
/// Magic, version, length of the metadata.
pub(crate) const PREAMBLE: usize = 10;
pub(crate) const ALIGNMENT: usize = 256;
const MAX_METADATA: usize = 100 << 20;
const CBOR_DEPTH: usize = 64;

/// Error of opening or reading a record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The file cannot be read.
    #[error("cannot open {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file cannot be kept in memory.
    #[error(
        "the {bytes} bytes of {path} cannot be locked in memory ({source}): raise the limit \
         (`ulimit -l unlimited`, or LimitMEMLOCK=infinity in a systemd unit)"
    )]
    Lock {
        /// The file.
        path: PathBuf,
        /// Bytes to lock.
        bytes: usize,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A program with a record inside that is not whole.
    #[error("{path}: {source}")]
    Bundle {
        /// The file.
        path: PathBuf,
        /// Description of the error.
        source: bundle::BundleError,
    },
    /// Not a burnpack file.
    #[error(
        "{path} is not a record: expected a burnpack file (.bpk), as edge-lmm-convert writes it; \
         {found}"
    )]
    NotARecord {
        /// The file.
        path: PathBuf,
        /// Format that the file seems to have.
        found: String,
    },
    /// A burnpack file or record of another version.
    #[error(
        "{path} has {what} version {found}, this program reads version {expected}; \
         use a matching edge-lmm or convert the checkpoint again"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Kind of version: of the file format or of the record.
        what: &'static str,
        /// In the file.
        found: u32,
        /// Readable here.
        expected: u32,
    },
    /// The file contradicts itself.
    #[error(
        "{path} is damaged or truncated: {reason}; copy it again or convert the checkpoint again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Description of the error.
        reason: String,
    },
    /// The record is whole but not what its model needs.
    #[error("{path} does not fit its model: {reason}")]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Description of the error.
        reason: String,
    },
    /// The configuration describes no model.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// A tensor of the record.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorEntry {
    /// Element type: f32, or u8 for packed weights.
    pub dtype: DType,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// First byte, from the start of the file.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
}

/// An open record.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    bytes: Bytes,
    info: RecordInfo,
    tokenizer: String,
    template: Option<String>,
    tensors: BTreeMap<String, TensorEntry>,
    /// Mapping that holds `bytes`, if they are a file's.
    map: Option<Arc<FileMap>>,
    bundle: Option<bundle::Place>,
}

/// A mapping as the owner of bytes.
struct Shared(Arc<FileMap>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Deserialize)]
struct Metadata {
    tensors: BTreeMap<String, Descriptor>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Descriptor {
    dtype: DType,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Record {
    /// Maps and checks a record file, or the record inside a bundle (a program with a record
    /// appended), which is compared with its checksum.
    ///
    /// # Errors
    /// If it cannot be read, is no record, is of another version or contradicts itself.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, RecordError> {
        let record = Self::open_unverified(path)?;
        record.verify_bundle()?;
        Ok(record)
    }

    /// Opens a record like [`Self::open`], without reading the whole record of a bundle for its
    /// checksum.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_unverified(path: impl AsRef<Path>) -> Result<Self, RecordError> {
        let path = path.as_ref();
        let io = |source| RecordError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(io)?;
        let place = bundle::locate(&mut file).map_err(|error| RecordError::Bundle {
            path: path.to_owned(),
            source: error,
        })?;
        let (offset, length) = match &place {
            Some(place) => (place.offset, place.length),
            None => (0, file.metadata().map_err(io)?.len()),
        };
        let map = Arc::new(FileMap::of_range(&file, offset, length).map_err(io)?);
        let mut record = Self::from_bytes(Bytes::from_owner(Shared(map.clone())), path)?;
        record.map = Some(map);
        record.bundle = place;
        Ok(record)
    }

    /// Compares the record of a bundle with its checksum; reads the whole record. Does nothing for
    /// other records.
    ///
    /// # Errors
    /// If it differs.
    pub fn verify_bundle(&self) -> Result<(), RecordError> {
        let _stage = stage::top("load");
        match &self.bundle {
            Some(place) if xxh3_64(&self.bytes) != place.hash => Err(RecordError::Damaged {
                path: self.path.clone(),
                reason: "the record in the bundle differs from its checksum".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Reads the whole file now, instead of when a weight is first used.
    pub fn prefault(&self) {
        let _stage = stage::top("load");
        if let Some(map) = &self.map {
            map.prefault();
        }
    }

    /// Keeps the record in memory, even if other programs need room.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn lock(&self) -> Result<(), RecordError> {
        let locked = self.map.as_ref().map_or(Ok(()), |map| map.lock());
        locked.map_err(|source| RecordError::Lock {
            path: self.path.clone(),
            bytes: self.bytes.len(),
            source,
        })
    }

    /// Opens a record that is part of the program; messages call it `name`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_static(bytes: &'static [u8], name: &str) -> Result<Self, RecordError> {
        Self::from_bytes(Bytes::from_static(bytes), Path::new(name))
    }

    /// Opens a record in memory; messages call it `path`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_bytes(bytes: Bytes, path: &Path) -> Result<Self, RecordError> {
        let _stage = stage::top("load");
        let bytes = aligned(bytes);
        let damaged = |reason: String| RecordError::Damaged {
            path: path.to_owned(),
            reason,
        };
        let metadata_len = preamble(&bytes, path)?;
        let header_len = PREAMBLE + metadata_len;
        let Some(header) = bytes.get(..header_len) else {
            return Err(damaged(format!(
                "its header has {header_len} bytes, the file only {}",
                bytes.len()
            )));
        };
        let metadata: Metadata =
            ciborium::de::from_reader_with_recursion_limit(&header[PREAMBLE..], CBOR_DEPTH)
                .map_err(|error| damaged(format!("its header cannot be read ({error})")))?;
        let data_start = header_len.next_multiple_of(ALIGNMENT);
        let tensors = check_tensors(metadata.tensors, data_start, bytes.len()).map_err(damaged)?;
        let mut texts = metadata.metadata;
        let info = parse_info(texts.remove(INFO_KEY), path)?;
        check_header_hash(header, &bytes, &tensors).map_err(damaged)?;
        let tokenizer = texts
            .remove(TOKENIZER_KEY)
            .ok_or_else(|| damaged("it has no tokenizer".to_owned()))?;
        Ok(Self {
            path: path.to_owned(),
            bytes,
            info,
            tokenizer,
            template: texts.remove(TEMPLATE_KEY),
            tensors,
            map: None,
            bundle: None,
        })
    }

    /// Returns the path that the record was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the description of the model.
    pub fn info(&self) -> &RecordInfo {
        &self.info
    }

    /// Returns the text of `tokenizer.json`.
    pub fn tokenizer(&self) -> &str {
        &self.tokenizer
    }

    /// Returns the chat template.
    pub fn template(&self) -> Option<&str> {
        self.template.as_deref()
    }

    /// Returns all tensors with their names, except [`CHECKSUMS`].
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorEntry)> {
        self.tensors
            .iter()
            .filter(|(name, _)| *name != CHECKSUMS)
            .map(|(name, entry)| (name.as_str(), entry))
    }

    /// Returns the bytes of a tensor.
    pub fn bytes_of(&self, name: &str) -> Option<&[u8]> {
        let entry = self.tensors.get(name)?;
        self.bytes.get(entry.offset..entry.offset + entry.len)
    }

    /// Returns the size of the whole file in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns `true` if the file is empty; an open record never is.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns a hash that identifies the model: that of the hashes of the header and all tensors,
    /// which are not read.
    pub fn identity(&self) -> u128 {
        let sums = &self.tensors[CHECKSUMS];
        xxh3_128(&self.bytes[sums.offset..][..sums.len])
    }

    /// Compares every tensor with its hash; reads the whole file.
    ///
    /// # Errors
    /// Names the first tensor that differs.
    pub fn verify(&self) -> Result<(), RecordError> {
        let sums = &self.tensors[CHECKSUMS];
        let sums = &self.bytes[sums.offset..sums.offset + sums.len];
        let expected = sums.chunks_exact(8).skip(1);
        for ((name, entry), expected) in self.tensors().zip(expected) {
            let data = &self.bytes[entry.offset..entry.offset + entry.len];
            if xxh3_64(data).to_le_bytes() != expected {
                return Err(RecordError::Damaged {
                    path: self.path.clone(),
                    reason: format!("the weight {name} differs from its checksum"),
                });
            }
        }
        Ok(())
    }

    /// Builds the model that the record describes, its weights declared but not filled, and checks
    /// that the record has every one of them; the weights in the order of their declaration.
    ///
    /// # Errors
    /// If the configuration makes no model, or a weight is missing or of another shape.
    pub fn skeleton<B: KernelBackend>(
        &self,
        registry: &Registry<B>,
        device: &B::Device,
    ) -> Result<Skeleton<B>, RecordError> {
        let (model, specs) = self.info.skeleton(registry, device)?;
        self.check_weights(&specs)?;
        Ok((model, specs))
    }

    /// Returns the weights for burn modules, borrowed from the mapping.
    pub fn store(&self) -> BurnpackStore {
        let shared = burn::tensor::Bytes::from_shared(self.bytes.clone(), AllocationProperty::File);
        BurnpackStore::from_bytes(Some(shared)).zero_copy(true)
    }

    /// Checks that the record has every weight of a model in the right form and nothing else.
    ///
    /// # Errors
    /// Names the first weight that is missing, superfluous or of another type or shape.
    pub fn check_weights(&self, specs: &[WeightSpec]) -> Result<(), RecordError> {
        let unfit = |reason: String| RecordError::Unfit {
            path: self.path.clone(),
            reason,
        };
        for spec in specs {
            let entry = self
                .tensors
                .get(&spec.name)
                .ok_or_else(|| unfit(format!("the weight {} is missing", spec.name)))?;
            let (dtype, shape) = self.info.stored(spec);
            if entry.dtype != dtype || entry.shape != shape {
                return Err(unfit(format!(
                    "the weight {} is {:?} {:?}, expected {dtype:?} {shape:?}",
                    spec.name, entry.dtype, entry.shape
                )));
            }
        }
        let known: std::collections::BTreeSet<&str> =
            specs.iter().map(|spec| spec.name.as_str()).collect();
        match self.tensors().find(|(name, _)| !known.contains(name)) {
            Some((name, _)) => Err(unfit(format!(
                "it has a weight {name} that the model lacks"
            ))),
            None => Ok(()),
        }
    }
}

/// Returns bytes that are aligned for reading weights in place. A mapping is aligned already; data
/// linked into a program is copied if it is not.
fn aligned(bytes: Bytes) -> Bytes {
    if bytes.as_ptr().addr().is_multiple_of(ALIGNMENT) {
        return bytes;
    }
    let mut copy: Vec<u8> = Vec::with_capacity(bytes.len() + ALIGNMENT);
    let padding = copy.as_ptr().addr().next_multiple_of(ALIGNMENT) - copy.as_ptr().addr();
    copy.resize(padding, 0);
    copy.extend_from_slice(&bytes);
    Bytes::from(copy).slice(padding..)
}

/// Checks magic and version; the length of the metadata.
fn preamble(bytes: &[u8], path: &Path) -> Result<usize, RecordError> {
    let not_a_record = |found: String| RecordError::NotARecord {
        path: path.to_owned(),
        found,
    };
    let Some(preamble) = bytes.first_chunk::<PREAMBLE>() else {
        return Err(not_a_record(format!("it has {} bytes", bytes.len())));
    };
    let [m0, m1, m2, m3, v0, v1, l0, l1, l2, l3] = *preamble;
    if u32::from_le_bytes([m0, m1, m2, m3]) != MAGIC {
        return Err(not_a_record(describe_start(bytes)));
    }
    let version = u16::from_le_bytes([v0, v1]);
    if version != BURNPACK_VERSION {
        return Err(RecordError::Version {
            path: path.to_owned(),
            what: "burnpack",
            found: version.into(),
            expected: BURNPACK_VERSION.into(),
        });
    }
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if len > MAX_METADATA {
        return Err(RecordError::Damaged {
            path: path.to_owned(),
            reason: format!("its header claims {len} bytes, more than {MAX_METADATA}"),
        });
    }
    Ok(len)
}

/// Describes the start of a file that is not a record.
fn describe_start(bytes: &[u8]) -> String {
    if let Some(found) = stand_in::describe(bytes) {
        return format!("found {found}");
    }
    let looks = match bytes {
        [b'G', b'G', b'U', b'F', ..] => "it is a GGUF file: run edge-lmm-convert on it first",
        [0x7F, b'E', b'L', b'F', ..] => "it is a program without a record inside",
        [b'P', b'K', ..] => "it is a zip archive",
        [_, _, _, _, _, _, _, _, b'{', ..] => {
            "it looks like a safetensors file: run edge-lmm-convert on its folder first"
        }
        _ => "it begins otherwise",
    };
    looks.to_owned()
}

fn parse_info(info: Option<String>, path: &Path) -> Result<RecordInfo, RecordError> {
    let Some(info) = info else {
        return Err(RecordError::NotARecord {
            path: path.to_owned(),
            found: "it is a burnpack file of another program".to_owned(),
        });
    };
    #[derive(Deserialize)]
    struct Version {
        format_version: u32,
    }
    let damaged = |error: serde_json::Error| RecordError::Damaged {
        path: path.to_owned(),
        reason: format!("what it says about its model cannot be read ({error})"),
    };
    let Version { format_version } = serde_json::from_str(&info).map_err(damaged)?;
    if format_version != FORMAT_VERSION {
        return Err(RecordError::Version {
            path: path.to_owned(),
            what: "record",
            found: format_version,
            expected: FORMAT_VERSION,
        });
    }
    serde_json::from_str(&info).map_err(damaged)
}

/// Checks every tensor's type, shape and place.
fn check_tensors(
    descriptors: BTreeMap<String, Descriptor>,
    data_start: usize,
    file_len: usize,
) -> Result<BTreeMap<String, TensorEntry>, String> {
    let mut tensors = BTreeMap::new();
    for (name, descriptor) in descriptors {
        let entry = check_tensor(&descriptor, data_start, file_len)
            .map_err(|reason| format!("tensor {name:?} {reason}"))?;
        tensors.insert(name, entry);
    }
    let mut places: Vec<(usize, usize, &str)> = tensors
        .iter()
        .map(|(name, entry)| (entry.offset, entry.offset + entry.len, name.as_str()))
        .collect();
    places.sort_unstable();
    match places.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => Err(format!(
            "tensors {:?} and {:?} overlap",
            pair[0].2, pair[1].2
        )),
        None => Ok(tensors),
    }
}

fn check_tensor(
    descriptor: &Descriptor,
    data_start: usize,
    file_len: usize,
) -> Result<TensorEntry, String> {
    let size = match descriptor.dtype {
        DType::F32 => 4,
        DType::U8 => 1,
        other => return Err(format!("has type {other:?}, expected F32 or U8")),
    };
    let (start, end) = descriptor.data_offsets;
    let len = end
        .checked_sub(start)
        .ok_or_else(|| format!("ends at {end}, before it begins at {start}"))?;
    let elements = descriptor
        .shape
        .iter()
        .try_fold(1u64, |product, &n| product.checked_mul(n));
    if elements.and_then(|n| n.checked_mul(size)) != Some(len) {
        return Err(format!("has shape {:?} but {len} bytes", descriptor.shape));
    }
    let end = usize::try_from(end)
        .ok()
        .and_then(|end| end.checked_add(data_start));
    match end {
        Some(end) if end <= file_len => {}
        _ => return Err(format!("ends beyond the file's {file_len} bytes")),
    }
    let offset = data_start + start as usize;
    if !offset.is_multiple_of(ALIGNMENT) {
        return Err(format!("begins at {offset}, not a multiple of {ALIGNMENT}"));
    }
    Ok(TensorEntry {
        dtype: descriptor.dtype,
        shape: descriptor.shape.iter().map(|&n| n as usize).collect(),
        offset,
        len: len as usize,
    })
}

/// Checks the first checksum, which is the header's.
fn check_header_hash(
    header: &[u8],
    bytes: &[u8],
    tensors: &BTreeMap<String, TensorEntry>,
) -> Result<(), String> {
    let entry = tensors
        .get(CHECKSUMS)
        .ok_or("it has no checksums".to_owned())?;
    if entry.dtype != DType::U8 || entry.len != 8 * tensors.len() {
        return Err(format!(
            "it has {} bytes of checksums for {} tensors, expected {}",
            entry.len,
            tensors.len(),
            8 * tensors.len()
        ));
    }
    let expected = &bytes[entry.offset..entry.offset + 8];
    if xxh3_64(header).to_le_bytes() != expected {
        return Err("its header differs from its checksum".to_owned());
    }
    Ok(())
}
