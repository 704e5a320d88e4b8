//! Files inside requests: base64, or `data:` URLs of it (RFC 2397).

use data_encoding::{BASE64, BASE64_NOPAD, DecodeError};

/// Why a file inside a request cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InlineError {
    /// A `data:` URL of another encoding.
    #[error("{place} is a data: URL without base64: expected data:image/png;base64,...")]
    DataUrl {
        /// Place of the text in the request.
        place: String,
    },
    /// Text that is not base64.
    #[error("invalid base64 in {place}: {source}")]
    Base64 {
        /// Place of the text in the request.
        place: String,
        /// The error of the decoder.
        source: DecodeError,
    },
}

/// Returns `true` if a text begins like a `data:` URL.
pub(super) fn is_data_url(text: &str) -> bool {
    text.get(..5)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}

/// Decodes base64, with or without line breaks and padding, possibly as a `data:` URL. `place`
/// names the text in errors.
pub(super) fn inline_bytes(text: &str, place: &str) -> Result<Vec<u8>, InlineError> {
    let place = || place.to_owned();
    let base64 = match is_data_url(text).then(|| text.split_once(',')) {
        None => text,
        Some(Some((header, data))) if header.to_ascii_lowercase().ends_with(";base64") => data,
        Some(_) => return Err(InlineError::DataUrl { place: place() }),
    };
    let base64: Vec<u8> = base64
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let encoding = match base64.ends_with(b"=") {
        true => BASE64,
        false => BASE64_NOPAD,
    };
    encoding
        .decode(&base64)
        .map_err(|source| InlineError::Base64 {
            place: place(),
            source,
        })
}
