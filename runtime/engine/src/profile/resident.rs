//! Part of mapped weights that is in memory.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};

/// Bit of an entry of `/proc/self/pagemap` that marks a page in memory.
const PRESENT: u64 = 1 << 63;

/// Returns how many bytes of ranges of this process's memory, given by address and length, are on
/// pages that it has mapped; `None` if the system does not tell.
pub(super) fn resident_bytes(ranges: &[(usize, usize)]) -> Option<u64> {
    let page = page_size()?;
    let mut pagemap = File::open("/proc/self/pagemap").ok()?;
    let mut sum = 0;
    for &(address, len) in ranges.iter().filter(|(_, len)| *len > 0) {
        let (start, end) = (address as u64, (address + len) as u64);
        let (first, last) = (start / page, (end - 1) / page);
        let mut entries = vec![0; 8 * (last - first + 1) as usize];
        pagemap.seek(SeekFrom::Start(8 * first)).ok()?;
        pagemap.read_exact(&mut entries).ok()?;
        for (number, entry) in (first..).zip(entries.chunks_exact(8)) {
            let entry = u64::from_le_bytes(entry.try_into().ok()?);
            if entry & PRESENT != 0 {
                let (from, to) = (number * page, (number + 1) * page);
                sum += to.min(end) - from.max(start);
            }
        }
    }
    Some(sum)
}

/// Reads the page size from the auxiliary vector.
fn page_size() -> Option<u64> {
    const AT_PAGESZ: usize = 6;
    const WORD: usize = size_of::<usize>();
    let words = fs::read("/proc/self/auxv").ok()?;
    let word = |bytes: &[u8]| bytes.try_into().map(usize::from_ne_bytes).ok();
    let mut pairs = words.chunks_exact(2 * WORD);
    pairs.find_map(|pair| {
        let (key, value) = (word(&pair[..WORD])?, word(&pair[WORD..])?);
        (key == AT_PAGESZ && value > 0).then_some(value as u64)
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn touched_memory_is_resident() {
        assert!(page_size().is_some_and(|size| size.is_power_of_two()));
        let bytes = vec![1u8; 100_000];
        let range = (bytes.as_ptr().addr(), bytes.len());
        // Sandboxes may hide the file.
        if let Some(resident) = resident_bytes(&[range, (0, 0)]) {
            assert_eq!(resident, 100_000);
        }
    }
}
