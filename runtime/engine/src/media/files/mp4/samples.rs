//! Position and time of the samples of a track: the tables of ISO/IEC 14496-12, sections 8.6 to
//! 8.8. Each table is an iterator over its bytes, so counts that exceed it cost nothing.

use super::boxes::{boxes, find, long, version, word};
use crate::media::files::budget;
use crate::media::files::error::MediaError;
use crate::media::files::pieces::Pieces;

/// A coded frame, or a packet of sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    /// Position in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// Time at which it is shown, in units of the track.
    pub time: i64,
    /// Duration in units of the track.
    pub duration: u32,
}

/// Maximum number of samples of a track: 9 hours at 60 frames per second.
const MAX_SAMPLES: usize = 2_000_000;

fn damaged(message: impl ToString) -> MediaError {
    MediaError::damaged("MP4", message)
}

/// Collects samples and checks them.
pub(super) struct Samples {
    pub list: Vec<Sample>,
    /// Decoding time of the next sample.
    next_time: i64,
    /// Length of the file.
    end: u64,
}

impl Samples {
    pub fn new(end: u64) -> Self {
        Self {
            list: Vec::new(),
            next_time: 0,
            end,
        }
    }

    /// Adds the next sample; `shift` is the time from its decoding until it is shown.
    fn add(&mut self, offset: u64, len: u32, duration: u32, shift: i32) -> Result<(), MediaError> {
        let is_inside = offset
            .checked_add(len.into())
            .is_some_and(|end| end <= self.end);
        if !is_inside {
            let message = format!(
                "it ends after {} bytes, sample {} lies at bytes {offset} to {}",
                self.end,
                self.list.len(),
                offset.saturating_add(len.into())
            );
            return Err(MediaError::truncated("MP4", message));
        }
        if self.list.len() == MAX_SAMPLES {
            let message = format!("a track has more than {MAX_SAMPLES} samples");
            return Err(damaged(message));
        }
        if self.list.len() == self.list.capacity() {
            // The list doubles when it grows.
            budget::check((3 * self.list.len() * size_of::<Sample>()) as u64)?;
        }
        self.list.push(Sample {
            offset,
            len,
            time: self.next_time.saturating_add(shift.into()),
            duration,
        });
        self.next_time = self.next_time.saturating_add(duration.into());
        Ok(())
    }

    /// Adds the samples of the tables in an `stbl` box.
    pub fn add_tables(&mut self, tables: &[u8]) -> Result<(), MediaError> {
        let mut sizes = Sizes::new(tables).ok_or_else(|| damaged("a track has no sample sizes"))?;
        let mut durations = Runs::new(tables, b"stts");
        let mut shifts = Runs::new(tables, b"ctts");
        let mut chunks = Chunks::new(tables);
        for index in 0..sizes.count {
            let len = sizes.next();
            let len = len.ok_or_else(|| damaged(format!("sample {index} has no size")))?;
            let offset = chunks.place(len);
            let offset = offset.ok_or_else(|| damaged(format!("sample {index} has no place")))?;
            let duration = durations.next();
            let duration =
                duration.ok_or_else(|| damaged(format!("sample {index} has no time")))?;
            let shift = shifts.next().unwrap_or(0).cast_signed();
            self.add(offset, len, duration, shift)?;
        }
        Ok(())
    }

    /// Adds the samples of track `id` in a fragment: the content of a `moof` box at `position`.
    pub fn add_fragment(
        &mut self,
        id: u32,
        defaults: Defaults,
        (position, fragment): (u64, &[u8]),
    ) -> Result<(), MediaError> {
        for (_, content) in boxes(fragment).filter(|(name, _)| name == b"traf") {
            let incomplete = || damaged("the index of a fragment is incomplete");
            let header = find(content, &[b"tfhd"]).ok_or_else(incomplete)?;
            let header = FragmentHeader::parse(header, defaults).ok_or_else(incomplete)?;
            if header.id != id {
                continue;
            }
            if let Some(time) = find(content, &[b"tfdt"]).and_then(decode_time) {
                self.next_time = i64::try_from(time).unwrap_or(i64::MAX);
            }
            let base = header.base.unwrap_or(position);
            let mut offset = base;
            for (_, run) in boxes(content).filter(|(name, _)| name == b"trun") {
                self.add_run(run, header.defaults, base, &mut offset)?;
            }
        }
        Ok(())
    }

    /// Adds the samples of a `trun` box. `offset` is the end of the run before.
    fn add_run(
        &mut self,
        run: &[u8],
        defaults: Defaults,
        base: u64,
        offset: &mut u64,
    ) -> Result<(), MediaError> {
        const OFFSET: u32 = 1;
        const FIRST_FLAGS: u32 = 4;
        const DURATION: u32 = 0x100;
        const SIZE: u32 = 0x200;
        const FLAGS: u32 = 0x400;
        const SHIFT: u32 = 0x800;
        let mut pieces = Pieces(run);
        let incomplete = || damaged("a run of samples is incomplete");
        let (_, flags) = version(&mut pieces).ok_or_else(incomplete)?;
        let count = word(&mut pieces).ok_or_else(incomplete)?;
        let mut field = |flag: u32| match flags & flag {
            0 => Ok(None),
            _ => word(&mut pieces).map(Some).ok_or_else(incomplete),
        };
        if let Some(from_base) = field(OFFSET)? {
            *offset = base.saturating_add_signed(from_base.cast_signed().into());
        }
        field(FIRST_FLAGS)?;
        for _ in 0..count {
            let duration = field(DURATION)?.unwrap_or(defaults.duration);
            let len = field(SIZE)?.unwrap_or(defaults.len);
            field(FLAGS)?;
            let shift = field(SHIFT)?.unwrap_or(0).cast_signed();
            self.add(*offset, len, duration, shift)?;
            *offset = offset.saturating_add(len.into());
        }
        Ok(())
    }
}

/// Sizes of samples (`stsz`).
struct Sizes<'a> {
    pieces: Pieces<'a>,
    /// Size of all samples; 0 if they differ.
    same: u32,
    count: usize,
}

impl<'a> Sizes<'a> {
    fn new(tables: &'a [u8]) -> Option<Self> {
        let mut pieces = Pieces(find(tables, &[b"stsz"])?);
        version(&mut pieces)?;
        let (same, count) = (word(&mut pieces)?, word(&mut pieces)?);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        Some(Self {
            pieces,
            same,
            count,
        })
    }

    /// Returns the size of the next sample.
    fn next(&mut self) -> Option<u32> {
        match self.same {
            0 => word(&mut self.pieces),
            len => Some(len),
        }
    }
}

/// A table of runs of equal values: `stts` or `ctts`.
struct Runs<'a> {
    pieces: Pieces<'a>,
    left: u32,
    value: u32,
}

impl<'a> Runs<'a> {
    /// Opens a table; without one, there are no values.
    fn new(tables: &'a [u8], name: &[u8; 4]) -> Self {
        const HEADER: usize = 8;
        let table = find(tables, &[name]).unwrap_or_default();
        Self {
            pieces: Pieces(table.get(HEADER..).unwrap_or_default()),
            left: 0,
            value: 0,
        }
    }

    fn next(&mut self) -> Option<u32> {
        while self.left == 0 {
            self.left = word(&mut self.pieces)?;
            self.value = word(&mut self.pieces)?;
        }
        self.left -= 1;
        Some(self.value)
    }
}

/// Positions of chunks (`stco`, `co64`) and the number of samples in each (`stsc`).
struct Chunks<'a> {
    offsets: Pieces<'a>,
    is_long: bool,
    /// Entries after the current one: first chunk, samples per chunk, description.
    runs: Pieces<'a>,
    samples_per_chunk: u32,
    /// First chunk of the next entry, counted from 1.
    next_run: u32,
    /// Number of the current chunk, counted from 1.
    chunk: u32,
    /// Samples left in the current chunk.
    left: u32,
    position: u64,
}

impl<'a> Chunks<'a> {
    fn new(tables: &'a [u8]) -> Self {
        const HEADER: usize = 8;
        let table = |name| find(tables, &[name]).and_then(|table| table.get(HEADER..));
        let (short, wide) = (table(b"stco"), table(b"co64"));
        let mut chunks = Self {
            offsets: Pieces(short.or(wide).unwrap_or_default()),
            is_long: short.is_none(),
            runs: Pieces(table(b"stsc").unwrap_or_default()),
            samples_per_chunk: 0,
            next_run: 0,
            chunk: 0,
            left: 0,
            position: 0,
        };
        chunks.next_run = chunks.peek_run();
        chunks
    }

    /// Returns the first chunk of the next entry.
    fn peek_run(&self) -> u32 {
        word(&mut Pieces(self.runs.0)).unwrap_or(u32::MAX)
    }

    /// Returns the position of the next sample, which has `len` bytes.
    fn place(&mut self, len: u32) -> Option<u64> {
        while self.left == 0 {
            self.position = long(&mut self.offsets, u8::from(self.is_long))?;
            self.chunk += 1;
            if self.chunk == self.next_run {
                word(&mut self.runs)?;
                self.samples_per_chunk = word(&mut self.runs)?;
                word(&mut self.runs)?;
                self.next_run = self.peek_run();
            }
            self.left = self.samples_per_chunk;
        }
        self.left -= 1;
        let position = self.position;
        self.position = position.checked_add(len.into())?;
        Some(position)
    }
}

/// Values of samples whose fragment does not state them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Defaults {
    duration: u32,
    len: u32,
}

impl Defaults {
    /// Finds the defaults of track `id` in a `moov` box.
    pub fn find(movie: &[u8], id: u32) -> Self {
        let parse = |content: &[u8]| {
            let mut pieces = Pieces(content);
            version(&mut pieces)?;
            let track = word(&mut pieces)?;
            word(&mut pieces)?;
            let defaults = Self {
                duration: word(&mut pieces)?,
                len: word(&mut pieces)?,
            };
            (track == id).then_some(defaults)
        };
        let extends = find(movie, &[b"mvex"]).unwrap_or_default();
        boxes(extends)
            .filter(|(name, _)| name == b"trex")
            .find_map(|(_, content)| parse(content))
            .unwrap_or_default()
    }
}

/// Content of a `tfhd` box.
struct FragmentHeader {
    id: u32,
    /// Position to which offsets refer, if it is not that of the fragment.
    base: Option<u64>,
    defaults: Defaults,
}

impl FragmentHeader {
    fn parse(content: &[u8], defaults: Defaults) -> Option<Self> {
        const BASE: u32 = 1;
        const DESCRIPTION: u32 = 2;
        const DURATION: u32 = 8;
        const SIZE: u32 = 16;
        let mut pieces = Pieces(content);
        let (_, flags) = version(&mut pieces)?;
        let id = word(&mut pieces)?;
        let base = match flags & BASE {
            0 => None,
            _ => Some(long(&mut pieces, 1)?),
        };
        let mut field = |flag: u32, default: u32| match flags & flag {
            0 => Some(default),
            _ => word(&mut pieces),
        };
        field(DESCRIPTION, 0)?;
        let duration = field(DURATION, defaults.duration)?;
        let len = field(SIZE, defaults.len)?;
        Some(Self {
            id,
            base,
            defaults: Defaults { duration, len },
        })
    }
}

/// Returns the decoding time in a `tfdt` box.
fn decode_time(content: &[u8]) -> Option<u64> {
    let mut pieces = Pieces(content);
    let (version, _) = version(&mut pieces)?;
    long(&mut pieces, version)
}
