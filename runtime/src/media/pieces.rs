//! Walking through bytes without running over their end.

/// Bytes that are taken one piece after the other.
pub(super) struct Pieces<'a>(pub &'a [u8]);

impl<'a> Pieces<'a> {
    /// The next `len` bytes; `None`, and nothing taken, if there are fewer.
    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (piece, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(piece)
    }

    /// The next byte.
    pub fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }
}

/// The next chunk of a RIFF file: its name and its data, complete.
pub(super) fn riff_chunk<'a>(pieces: &mut Pieces<'a>) -> Option<(&'a [u8; 4], &'a [u8])> {
    let name = pieces.take(4)?.try_into().ok()?;
    let len = u32::from_le_bytes(pieces.take(4)?.try_into().ok()?);
    let len = usize::try_from(len).ok()?;
    let data = pieces.take(len)?;
    // Chunks begin at even offsets; the last one may lack its padding.
    let _ = pieces.take(len % 2);
    Some((name, data))
}
