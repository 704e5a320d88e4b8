//! Files inside a request.

use std::io::Cursor;
use std::path::Path;

use edge_lmm_models::media::MediaKind;

use super::error::{ApiError, of_address, of_inline, of_medium};
use crate::Media;
use crate::media::{MediaBudget, MediaError, Source, decode_image};
use crate::serve::Limits;
use crate::serve::address::is_address;
use crate::serve::inline::{inline_bytes, is_data_url};

/// Maximum images, videos and sounds of a request.
pub(super) const MAX_FILES: usize = 64;

/// Maximum addresses of a request.
const MAX_ADDRESSES: usize = 8;

/// An image, video or sound in base64.
#[derive(Debug)]
pub(super) struct InlineFile {
    pub kind: MediaKind,
    /// Base64, a `data:` URL or an address.
    text: String,
    /// Place in the request, for errors.
    place: String,
}

impl InlineFile {
    /// Creates a file. Without a `kind`, its media type or its first bytes tell.
    ///
    /// # Errors
    /// If the kind is unknown.
    pub fn new(kind: Option<MediaKind>, text: String, place: &str) -> Result<Self, ApiError> {
        let kind = match kind.or_else(|| media_type(&text)) {
            Some(kind) => kind,
            None => {
                let bytes = inline_bytes(&text, place).map_err(|error| of_inline(place, &error))?;
                let source = source(bytes, place);
                let kind = source.and_then(|source| source.kind());
                kind.map_err(|error| of_medium(place, &error))?
            }
        };
        Ok(Self {
            kind,
            text,
            place: place.to_owned(),
        })
    }

    /// Returns the content of the file, which may be at an address.
    fn bytes(&self, limits: &Limits) -> Result<Vec<u8>, ApiError> {
        let place = &self.place;
        match &limits.addresses {
            Some(reader) if is_address(&self.text) => {
                let content = reader.read(&self.text);
                content.map_err(|error| of_address(place, &error))
            }
            _ => inline_bytes(&self.text, place).map_err(|error| of_inline(place, &error)),
        }
    }

    fn decode(&self, limits: &Limits) -> Result<Media, ApiError> {
        let place = &self.place;
        let bytes = self.bytes(limits)?;
        let decoded = match self.kind {
            MediaKind::Image => decode_image(&bytes).map(Media::image),
            kind => source(bytes, place).and_then(|source| {
                let source = match &limits.ffmpeg {
                    Some(program) => source.with_ffmpeg(program),
                    None => source,
                };
                Media::read(&source, kind, limits.frames)
            }),
        };
        decoded.map_err(|error| of_medium(place, &error))
    }
}

/// Decodes the files of a request, within a common memory limit.
///
/// # Errors
/// The first file that is damaged, has another kind, or exceeds the limit.
pub(super) fn decode(files: &[InlineFile], limits: &Limits) -> Result<Vec<Media>, ApiError> {
    let addresses = files.iter().filter(|file| is_address(&file.text)).count();
    if addresses > MAX_ADDRESSES {
        return Err(ApiError::field(
            "messages",
            format!("the request has {addresses} addresses, at most {MAX_ADDRESSES} are accepted"),
        ));
    }
    let mut budget = MediaBudget::new();
    files
        .iter()
        .map(|file| {
            let medium = file.decode(limits)?;
            let held = budget.hold(&medium);
            held.map_err(|error| of_medium(&file.place, &error))?;
            Ok(medium)
        })
        .collect()
}

fn source(bytes: Vec<u8>, place: &str) -> Result<Source, MediaError> {
    Source::stream(Path::new(place), Cursor::new(bytes))
}

/// Returns the kind that the media type of a `data:` URL names.
fn media_type(text: &str) -> Option<MediaKind> {
    let header = is_data_url(text).then(|| text.get(5..)).flatten()?;
    match header.split(['/', ';', ',']).next()? {
        "image" => Some(MediaKind::Image),
        "video" => Some(MediaKind::Video),
        "audio" => Some(MediaKind::Audio),
        _ => None,
    }
}
