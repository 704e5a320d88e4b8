//! Files that a failed or partial download leaves under the name of the wanted one.

/// Bytes from which [`describe`] can tell.
pub const HEAD: usize = 64;

/// Describes a file that holds something else than its name promises because it was never
/// downloaded: a Git LFS pointer, a web page, or nothing. `head` is the start of the file, at least
/// [`HEAD`] bytes of it where it has as many.
pub fn describe(head: &[u8]) -> Option<&'static str> {
    if head.is_empty() {
        return Some("an empty file");
    }
    if head.starts_with(b"version https://git-lfs.github.com/spec/")
        || head.starts_with(b"version https://hawser.github.com/spec/")
    {
        return Some(
            "a Git LFS pointer; fetch the file that it stands for with git lfs pull, or download \
             it again",
        );
    }
    let text = head
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(head)
        .trim_ascii_start();
    let starts = |tag: &[u8]| {
        text.get(..tag.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(tag))
    };
    if starts(b"<!doctype html") || starts(b"<html") {
        return Some(
            "an HTML page, as a failed download leaves it; download the file again (a login or an \
             accepted license may be needed)",
        );
    }
    if starts(b"<?xml") {
        return Some("an XML document, as a failed download leaves it; download the file again");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_ins_are_told_from_content() {
        for (head, word) in [
            (&b""[..], "empty"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:",
                "Git LFS",
            ),
            (b"\xef\xbb\xbf\r\n<!DOCTYPE HTML>", "HTML"),
            (b"<html lang=\"en\">", "HTML"),
            (b"<?xml version=\"1.0\"?><Error>", "XML"),
        ] {
            let found = describe(head).unwrap_or_default();
            assert!(found.contains(word), "{found:?} for {head:?}");
        }
        for head in [
            &b"{}"[..],
            b"GGUF\x03",
            b"version 1",
            b"{% if html %}",
            b"<",
        ] {
            assert_eq!(describe(head), None);
        }
    }
}
