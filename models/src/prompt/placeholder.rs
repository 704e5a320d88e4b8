//! Placeholder tokens of media in a prompt.

use crate::error::ModelError;
use crate::model::{MediaInput, Span};

/// Replaces every placeholder token by as many as its image, video or audio clip has tokens.
///
/// # Errors
/// If the numbers of placeholders and media differ.
pub(crate) fn expand_placeholders(
    ids: &[u32],
    is_placeholder: impl Fn(u32) -> bool,
    media: &[MediaInput],
) -> Result<(Vec<u32>, Vec<Span>), ModelError> {
    let found = ids.iter().filter(|&&id| is_placeholder(id)).count();
    if found != media.len() {
        return Err(ModelError::Prompt(format!(
            "found {found} placeholder tokens for images, videos and audio, expected {}; \
             with --parse-special, the question must not contain placeholder tokens",
            media.len()
        )));
    }
    let (mut expanded, mut spans) = (Vec::with_capacity(ids.len()), Vec::new());
    for &id in ids {
        if is_placeholder(id) {
            let medium = spans.len();
            spans.push(Span {
                start: expanded.len(),
                len: media[medium].tokens,
                medium,
            });
            expanded.extend(std::iter::repeat_n(id, media[medium].tokens));
        } else {
            expanded.push(id);
        }
    }
    Ok((expanded, spans))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MediaKind;

    #[test]
    fn every_medium_needs_its_place() {
        let media = [MediaInput {
            kind: MediaKind::Image,
            values: Vec::new(),
            shape: vec![0, 0],
            grid: [1, 2, 2],
            time_step: 1,
            tokens: 1,
        }];
        let error = expand_placeholders(&[1, 2], |id| id == 9, &media).unwrap_err();
        assert!(
            error.to_string().contains("found 0 placeholder tokens"),
            "{error}"
        );
    }
}
