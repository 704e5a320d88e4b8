//! Conversion of decoder panics into errors.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use super::error::MediaError;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a decoder. Decoders may panic on damaged files; the panic message goes to the debug log
/// instead of standard error, and the caller gets [`MediaError::Decoder`].
pub(super) fn guarded<T>(decode: impl FnOnce() -> Result<T, MediaError>) -> Result<T, MediaError> {
    log_panics();
    let outer = GUARDED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(decode));
    GUARDED.set(outer);
    result.unwrap_or_else(|payload| Err(MediaError::Decoder(message(payload.as_ref()))))
}

/// Installs, once, a panic hook that is silent within [`guarded`].
fn log_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if GUARDED.get() {
                log::debug!("a media decoder panicked: {info}");
            } else {
                report(info);
            }
        }));
    });
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned());
    text.unwrap_or_default().replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_errors() {
        let error = guarded::<()>(|| panic!("index out\nof bounds")).unwrap_err();
        let message = error.to_string();
        assert!(message.ends_with("(index out of bounds)"), "{message}");
        assert_eq!(guarded(|| Ok(1)).unwrap(), 1);
    }
}
