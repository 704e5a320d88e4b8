//! The bytes that a single token adds to the text.
//!
//! Decoders of `tokenizers` work on whole texts; a token may end inside a character. Three rules
//! cover the tokenizers of supported models: byte-level BPE writes each byte as a printable
//! character, SentencePiece writes blanks as `▁` and bytes of unknown characters as `<0x0A>`.

use std::collections::HashMap;

use tokenizers::{DecoderWrapper, Tokenizer};

/// The blank of SentencePiece.
const BLANK: char = '▁';

/// The rules by which tokens of a tokenizer stand for bytes.
#[derive(Debug, Clone)]
pub(crate) struct TokenBytes {
    /// Byte of each character, in byte-level vocabularies.
    bytes: Option<HashMap<char, u8>>,
}

impl TokenBytes {
    /// Finds the rules in the decoder of a tokenizer.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let is_byte_level = tokenizer.get_decoder().is_some_and(has_byte_level);
        Self {
            bytes: is_byte_level.then(byte_characters),
        }
    }

    /// Returns the bytes of the token `text` of the vocabulary, which is not an added token.
    pub fn of(&self, text: &str) -> Vec<u8> {
        if let Some(bytes) = &self.bytes {
            let mut out = Vec::with_capacity(text.len());
            for c in text.chars() {
                match bytes.get(&c) {
                    Some(byte) => out.push(*byte),
                    None => out.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
                }
            }
            return out;
        }
        let hex = text
            .strip_prefix("<0x")
            .and_then(|rest| rest.strip_suffix('>'));
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => vec![byte],
            None => text.replace(BLANK, " ").into_bytes(),
        }
    }
}

fn has_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(has_byte_level),
        _ => false,
    }
}

/// The characters by which byte-level BPE writes bytes, as in GPT-2: printable ones of Latin-1
/// stand for themselves, the others for those from U+0100 on.
fn byte_characters() -> HashMap<char, u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100;
    (0..=u8::MAX)
        .map(|byte| {
            let c = match is_printable(byte) {
                true => char::from(byte),
                false => {
                    next += 1;
                    char::from_u32(next - 1).unwrap_or_default()
                }
            };
            (c, byte)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_of_byte_level_vocabularies_are_bytes() {
        let level = TokenBytes {
            bytes: Some(byte_characters()),
        };
        assert_eq!(level.of("Ġcat"), b" cat");
        assert_eq!(level.of("Ċ"), b"\n");
        assert_eq!(level.of("Ã¤"), "ä".as_bytes());
        assert_eq!(byte_characters().len(), 256);
    }

    #[test]
    fn blanks_and_bytes_of_sentencepiece() {
        let pieces = TokenBytes { bytes: None };
        assert_eq!(pieces.of("▁cat"), b" cat");
        assert_eq!(pieces.of("<0x0A>"), b"\n");
        assert_eq!(pieces.of("<0xE4>"), [0xE4]);
    }
}
