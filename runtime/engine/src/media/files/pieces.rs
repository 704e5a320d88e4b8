//! Bounds-checked parsing of bytes.

/// A cursor over bytes.
pub(super) struct Pieces<'a>(pub &'a [u8]);

impl<'a> Pieces<'a> {
    /// Takes the next `len` bytes; returns `None` and takes nothing if there are fewer.
    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (piece, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(piece)
    }

    /// Takes the next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// Takes the next byte.
    pub fn byte(&mut self) -> Option<u8> {
        self.array().map(|[b]| b)
    }
}

/// Reads the little-endian integer of four bytes at `offset`.
pub(super) fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

/// Takes the next chunk of a RIFF file and returns its name and data; `None` if it is incomplete.
pub(super) fn riff_chunk<'a>(pieces: &mut Pieces<'a>) -> Option<(&'a [u8; 4], &'a [u8])> {
    let mut ahead = Pieces(pieces.0);
    let name = ahead.take(4)?.try_into().ok()?;
    let len = usize::try_from(u32::from_le_bytes(ahead.array()?)).ok()?;
    let data = ahead.take(len)?;
    // Chunks start at even offsets. Some writers omit the padding; no name starts with a zero.
    if len % 2 == 1 && ahead.0.first() == Some(&0) {
        ahead.byte();
    }
    pieces.0 = ahead.0;
    Some((name, data))
}

/// Takes the next chunk of a PNG file and returns its name and data; `None` if it is incomplete.
pub(super) fn png_chunk<'a>(pieces: &mut Pieces<'a>) -> Option<(&'a [u8; 4], &'a [u8])> {
    let mut ahead = Pieces(pieces.0);
    let len = usize::try_from(u32::from_be_bytes(ahead.array()?)).ok()?;
    let name = ahead.take(4)?.try_into().ok()?;
    let data = ahead.take(len)?;
    ahead.take(4)?;
    pieces.0 = ahead.0;
    Some((name, data))
}
