//! Panics of the project's own code, which its guards would turn into errors.
//!
//! A decoder or tokenizer may panic on damaged input: the project catches that and reports an
//! error. Its own code may not, so that panics are told apart by the file that they come from.

use std::panic;
use std::sync::{Mutex, Once, PoisonError};

use edge_lmm::media::decode_image;
use edge_lmm_models::prompt::TextProcessor;

static FOUND: Mutex<Option<String>> = Mutex::new(None);

/// Takes note of panics from now on; with `abort`, they end the process.
pub fn watch(abort: bool) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // The guards install their hooks when they are first used. This hook must come after them.
        let _ = decode_image(b"\x89PNG\r\n\x1a\n");
        let _ = TextProcessor::new("", None);
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if info.location().is_some_and(|place| is_own(place.file())) {
                eprintln!("{info}");
                if abort {
                    std::process::abort();
                }
                *FOUND.lock().unwrap_or_else(PoisonError::into_inner) = Some(info.to_string());
            }
            previous(info);
        }));
    });
}

/// The message of a panic since the last call.
pub fn take() -> Option<String> {
    FOUND.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Whether a source file is the project's: the paths of libraries are absolute.
fn is_own(file: &str) -> bool {
    !file.starts_with('/')
}
