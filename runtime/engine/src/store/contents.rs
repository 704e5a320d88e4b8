//! The bodies of entries: encoder outputs, and prefixes of conversations.
//!
//! Numbers are little-endian. Layouts and tokens are lists that begin with their length in four
//! bytes; the keys and values at the end have the form of
//! [`StoredKeys`](edge_lmm_ops::StoredKeys).

use edge_lmm_models::layout::{Layout, Piece, Position, Run};
use edge_lmm_models::reduce::ReductionStep;
use edge_lmm_ops::StoredKeys;

use super::entry::EntryError;
use crate::features::{MediumKey, MediumPlace};
use crate::session::PastToken;

/// Positions beyond this one are invalid; far beyond any context.
const MAX_POSITION: u32 = 1 << 30;

/// Encoder output of a medium.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Features {
    pub place: MediumPlace,
    /// Columns of all features.
    pub width: usize,
    /// `[tokens, width]`
    pub features: Vec<f32>,
    /// Index of a layer and features of the same shape.
    pub deep: Vec<(usize, Vec<f32>)>,
}

/// First tokens of a conversation, with their keys and values.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prefix<'a> {
    /// Places of the media among the tokens.
    pub media: Vec<(MediumKey, MediumPlace)>,
    pub tokens: Vec<PastToken>,
    /// See [`LanguageModel::is_long`](edge_lmm_models::language::LanguageModel::is_long).
    pub long: bool,
    /// Keys and values in the form of [`StoredKeys`], of as many positions as tokens.
    pub keys: &'a [u8],
}

impl Features {
    /// Returns the bytes of the body.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_place(&mut bytes, &self.place);
        put_u32(&mut bytes, self.width);
        put_floats(&mut bytes, &self.features);
        put_u32(&mut bytes, self.deep.len());
        for (layer, features) in &self.deep {
            put_u32(&mut bytes, *layer);
            put_floats(&mut bytes, features);
        }
        bytes
    }

    /// Reads a body.
    ///
    /// # Errors
    /// If it has another form.
    pub fn parse(body: &[u8]) -> Result<Self, EntryError> {
        let mut reader = Reader(body);
        let place = reader.place()?;
        let width = reader.length()?;
        let elements = place.layout.tokens().checked_mul(width);
        let elements = elements.ok_or(EntryError::Damaged("its features are too large"))?;
        let features = reader.floats(elements)?;
        let deep = reader.list(|reader| Ok((reader.length()?, reader.floats(elements)?)))?;
        reader.end()?;
        Ok(Self {
            place,
            width,
            features,
            deep,
        })
    }
}

impl<'a> Prefix<'a> {
    /// Returns the bytes of the body before the keys and values.
    pub fn head(media: &[(MediumKey, MediumPlace)], tokens: &[PastToken], long: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_u32(&mut bytes, media.len());
        for (key, place) in media {
            bytes.extend(key.to_le_bytes());
            put_place(&mut bytes, place);
        }
        put_u32(&mut bytes, tokens.len());
        tokens.iter().for_each(|token| put_token(&mut bytes, token));
        bytes.push(long.into());
        bytes
    }

    /// Reads a body.
    ///
    /// # Errors
    /// If it has another form.
    pub fn parse(body: &'a [u8]) -> Result<Self, EntryError> {
        let mut reader = Reader(body);
        let media = reader.list(|reader| Ok((reader.u128()?, reader.place()?)))?;
        let tokens = reader.list(Reader::token)?;
        let long = reader.flag()?;
        let keys = reader.0;
        let (stored, _) = StoredKeys::parse(keys)
            .map_err(|_| EntryError::Damaged("its keys and values have another form"))?;
        if stored.len != tokens.len() {
            return Err(EntryError::Damaged("tokens and positions differ in number"));
        }
        let known = |key| media.iter().any(|(medium, _)| *medium == key);
        if !tokens.iter().filter_map(|token| token.medium).all(known) {
            return Err(EntryError::Damaged("a medium has no layout"));
        }
        Ok(Self {
            media,
            tokens,
            long,
            keys,
        })
    }
}

fn put_u32(bytes: &mut Vec<u8>, number: usize) {
    // Contexts and models are far smaller; a reader rejects the larger number.
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    bytes.extend(number.to_le_bytes());
}

fn put_floats(bytes: &mut Vec<u8>, floats: &[f32]) {
    bytes.extend(floats.iter().flat_map(|x| x.to_le_bytes()));
}

fn put_position(bytes: &mut Vec<u8>, position: &Position) {
    bytes.extend(position.iter().flat_map(|x| x.to_le_bytes()));
}

fn put_place(bytes: &mut Vec<u8>, place: &MediumPlace) {
    put_layout(bytes, &place.layout);
    put_u32(bytes, place.steps.len());
    for step in &place.steps {
        put_u32(bytes, step.number());
        put_u32(bytes, step.tokens);
    }
}

fn put_layout(bytes: &mut Vec<u8>, layout: &Layout) {
    put_u32(bytes, layout.pieces().len());
    for piece in layout.pieces() {
        match piece {
            Piece::Text(text) => {
                bytes.push(0);
                put_u32(bytes, text.len());
                bytes.extend(text.as_bytes());
            }
            Piece::Run(run) => {
                bytes.push(1);
                bytes.push(run.is_bidirectional().into());
                bytes.extend(run.extent().to_le_bytes());
                put_u32(bytes, run.len());
                let offsets = run.offsets().iter();
                offsets.for_each(|offset| put_position(bytes, offset));
            }
        }
    }
}

fn put_token(bytes: &mut Vec<u8>, token: &PastToken) {
    bytes.extend(token.id.to_le_bytes());
    bytes.push(token.medium.is_some().into());
    bytes.extend(token.medium.unwrap_or_default().to_le_bytes());
    put_position(bytes, &token.position);
    bytes.extend(token.next.to_le_bytes());
}

/// The bytes that are not read yet.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], EntryError> {
        let parts = self.0.split_at_checked(count);
        let (taken, rest) = parts.ok_or(EntryError::Damaged("it ends early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], EntryError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub fn u16(&mut self) -> Result<u16, EntryError> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, EntryError> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, EntryError> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn u128(&mut self) -> Result<u128, EntryError> {
        self.array().map(u128::from_le_bytes)
    }

    fn length(&mut self) -> Result<usize, EntryError> {
        Ok(self.u32()? as usize)
    }

    fn flag(&mut self) -> Result<bool, EntryError> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(EntryError::Damaged("a flag is neither 0 nor 1")),
        }
    }

    /// Reads a list. Memory grows with the items that are there, not with the stated length.
    fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, EntryError>,
    ) -> Result<Vec<T>, EntryError> {
        let mut list = Vec::new();
        for _ in 0..self.length()? {
            list.push(item(self)?);
        }
        Ok(list)
    }

    fn floats(&mut self, count: usize) -> Result<Vec<f32>, EntryError> {
        let bytes = count.checked_mul(4).map(|bytes| self.take(bytes));
        let bytes = bytes.ok_or(EntryError::Damaged("its features are too large"))??;
        let words = bytes.chunks_exact(4).map(|w| [w[0], w[1], w[2], w[3]]);
        Ok(words.map(f32::from_le_bytes).collect())
    }

    fn position(&mut self) -> Result<Position, EntryError> {
        Ok([self.index()?, self.index()?, self.index()?])
    }

    fn index(&mut self) -> Result<u32, EntryError> {
        match self.u32()? {
            index if index <= MAX_POSITION => Ok(index),
            _ => Err(EntryError::Damaged("a position is too large")),
        }
    }

    fn place(&mut self) -> Result<MediumPlace, EntryError> {
        Ok(MediumPlace {
            layout: self.layout()?,
            steps: self.list(|reader| {
                let (number, tokens) = (reader.length()?, reader.length()?);
                ReductionStep::from_number(number, tokens)
                    .ok_or(EntryError::Damaged("it has an unknown method of reduction"))
            })?,
        })
    }

    fn layout(&mut self) -> Result<Layout, EntryError> {
        self.list(Self::piece).map(Layout::new)
    }

    fn piece(&mut self) -> Result<Piece, EntryError> {
        if !self.flag()? {
            let length = self.length()?;
            let text = std::str::from_utf8(self.take(length)?);
            let text = text.map_err(|_| EntryError::Damaged("a text is not UTF-8"))?;
            return Ok(Piece::Text(text.to_owned()));
        }
        let (bidirectional, extent) = (self.flag()?, self.index()?);
        let run = Run::from_offsets(self.list(Self::position)?, extent);
        Ok(Piece::Run(match bidirectional {
            true => run.bidirectional(),
            false => run,
        }))
    }

    fn token(&mut self) -> Result<PastToken, EntryError> {
        let id = self.u32()?;
        let medium = self.flag()?.then_some(self.u128()?);
        Ok(PastToken {
            id,
            medium,
            position: self.position()?,
            next: self.index()?,
        })
    }

    fn end(&self) -> Result<(), EntryError> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(EntryError::Damaged("bytes follow its end")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> MediumPlace {
        let layout = Layout::new(vec![
            Piece::Text("<frame> 1.0 s".to_owned()),
            Piece::Run(Run::grid([1, 2, 3], 1).keep(&[1, 5]).bidirectional()),
            Piece::Run(Run::sequence(1)),
        ]);
        let step = |number, tokens| ReductionStep::from_number(number, tokens).expect("a method");
        MediumPlace {
            layout,
            steps: vec![step(0, 6), step(3, 3)],
        }
    }

    #[test]
    fn features_are_read_back() {
        let features = Features {
            place: place(),
            width: 2,
            features: vec![1.0, f32::MIN_POSITIVE, -0.0, f32::INFINITY, 5.0, 6.0],
            deep: vec![(7, vec![0.5; 6])],
        };
        let bytes = features.bytes();
        assert_eq!(Features::parse(&bytes).expect("features"), features);
        for end in 0..bytes.len() {
            assert!(Features::parse(&bytes[..end]).is_err(), "{end} bytes");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(Features::parse(&longer).is_err());
    }

    #[test]
    fn prefixes_are_read_back() {
        let text = PastToken {
            id: 1,
            medium: None,
            position: [0; 3],
            next: 1,
        };
        let shown = PastToken {
            id: 2,
            medium: Some(9),
            position: [1, 2, 3],
            next: 4,
        };
        let keys = StoredKeys {
            layers: 1,
            kv_heads: 1,
            head_dim: 2,
            element_bytes: 2,
            len: 2,
        };
        let (media, tokens) = ([(9, place())], [text, shown]);
        let head = Prefix::head(&media, &tokens, true);
        let body = [&head[..], &keys.header(), &[3; 16]].concat();
        let prefix = Prefix::parse(&body).expect("a prefix");
        assert_eq!(
            (&prefix.media[..], &prefix.tokens[..]),
            (&media[..], &tokens[..])
        );
        assert!(prefix.long && prefix.keys.ends_with(&[3; 16]));
        for end in 0..body.len() {
            assert!(Prefix::parse(&body[..end]).is_err(), "{end} bytes");
        }
        let without = [&Prefix::head(&[], &tokens, true)[..], prefix.keys].concat();
        let expected = EntryError::Damaged("a medium has no layout");
        assert_eq!(Prefix::parse(&without), Err(expected));
    }
}
