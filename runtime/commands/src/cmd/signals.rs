//! Handling of signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(unix)]
use std::sync::{Mutex, PoisonError};

/// Counter for Ctrl-C during a conversation, instead of ending the program, and the note about it.
#[cfg(unix)]
static CONVERSATION: Mutex<Option<(Interrupts, &str)>> = Mutex::new(None);

/// A counter of Ctrl-C since the last [`reset`](Self::reset).
#[derive(Debug, Clone, Default)]
pub struct Interrupts(Arc<AtomicUsize>);

impl Interrupts {
    /// Makes Ctrl-C increment the returned counter and print `note`; it ends the program only when
    /// pressed twice.
    pub fn watch(#[cfg_attr(not(unix), expect(unused_variables))] note: &'static str) -> Self {
        let interrupts = Self::default();
        #[cfg(unix)]
        {
            let mut conversation = CONVERSATION.lock().unwrap_or_else(PoisonError::into_inner);
            *conversation = Some((interrupts.clone(), note));
        }
        interrupts
    }

    /// Returns `true` if Ctrl-C was pressed.
    pub fn pressed(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// Resets the counter.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// Starts the thread that handles signals. A signal that ends the program removes temporary output
/// files first.
///
/// # Errors
/// If the handlers cannot be installed.
#[cfg(unix)]
pub fn install() -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if signal == SIGINT && interrupts_conversation() {
                continue;
            }
            // While the guard lives, no output is finished.
            let (left, _guard) = edge_lmm::output::abandon_all();
            for file in left {
                eprintln!("cannot remove {}; remove it by hand", file.display());
            }
            // Ends the program as the signal would have, so that the parent sees the cause.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    });
    Ok(())
}

/// Counts Ctrl-C. Returns `true` if the program continues.
#[cfg(unix)]
fn interrupts_conversation() -> bool {
    let conversation = CONVERSATION.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((interrupts, note)) = &*conversation else {
        return false;
    };
    if interrupts.0.fetch_add(1, Ordering::Relaxed) > 0 {
        return false;
    }
    eprintln!("\n{note}");
    true
}

/// Does nothing: signals keep their default effect.
#[cfg(not(unix))]
pub fn install() -> std::io::Result<()> {
    Ok(())
}
