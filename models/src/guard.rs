//! Runs libraries on input that is not trusted: a panic becomes an error, and deep recursion has
//! a stack of known size.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::thread;

/// Enough for the deepest template that [`crate::prompt::chat_template`] accepts, in builds without
/// optimization too. The pages that are not touched take no memory.
const STACK: usize = 256 << 20;

thread_local! {
    /// `true` if a panic on this thread is reported as an error and must not be printed.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`.
///
/// # Errors
/// The message of its panic.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CAUGHT.get() {
                previous(info);
            }
        }));
    });
    let before = CAUGHT.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    CAUGHT.set(before);
    result.map_err(|panic| message(&*panic))
}

/// Runs `work` on a thread with a large stack.
///
/// # Errors
/// The message of its panic, or why there is no thread.
pub(crate) fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    thread::scope(|scope| {
        thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, || catch(work))
            .map_err(|error| format!("cannot start a thread: {error}"))?
            .join()
            .unwrap_or_else(|panic| Err(message(&*panic)))
    })
}

/// Returns the first line of a panic's message.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("unknown");
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error() {
        assert_eq!(catch(|| 1), Ok(1));
        let error = catch(|| panic!("broken\nsecond line")).unwrap_err();
        assert_eq!(error, "broken");
        let error = on_large_stack(|| panic!("number {}", 7)).unwrap_err();
        assert_eq!(error, "number 7");
    }
}
