//! Detection of panics of the project's own code, which its guards would convert into errors.
//!
//! A decoder or tokenizer may panic on damaged input: the project catches such panics and reports
//! an error. Its own code must not panic, so panics are distinguished by their source file.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use edge_lmm::media::decode_image;
use edge_lmm_models::prompt::TextProcessor;

static FOUND: Mutex<Option<String>> = Mutex::new(None);
static WATCHING: AtomicBool = AtomicBool::new(false);

/// Makes panics of the project's own code abort the process.
pub fn abort() {
    install(|message| {
        eprintln!("{message}");
        std::process::abort();
    });
}

/// Runs `work`; concurrent calls are serialized.
///
/// # Errors
/// The message of a panic of the project's own code, on any thread, or of one that `work` did not
/// catch.
pub fn catch(work: impl FnOnce()) -> Result<(), String> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    install(|message| {
        if WATCHING.load(Ordering::SeqCst) {
            lock(&FOUND).get_or_insert(message);
        }
    });
    WATCHING.store(true, Ordering::SeqCst);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    WATCHING.store(false, Ordering::SeqCst);
    match (lock(&FOUND).take(), result) {
        (Some(message), _) => Err(message),
        (None, Err(_)) => Err("a library panicked".to_owned()),
        (None, Ok(())) => Ok(()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls `found` for each panic of the project's own code; only the first call has an effect.
fn install(found: fn(String)) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // The guards install their hooks on first use. This hook must come after them.
        let _ = decode_image(b"\x89PNG\r\n\x1a\n");
        let _ = TextProcessor::new("", None);
        #[cfg(feature = "desk")]
        crate::desk::install_guard();
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if info.location().is_some_and(|place| is_own(place.file())) {
                found(info.to_string());
            }
            previous(info);
        }));
    });
}

/// Returns `true` if a source file belongs to the project: paths of libraries are absolute.
fn is_own(file: &str) -> bool {
    !file.starts_with('/')
}
