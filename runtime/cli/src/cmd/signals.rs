//! Signals: what they end, and what they interrupt.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(unix)]
use std::sync::{Mutex, PoisonError};

/// The conversation that Ctrl-C interrupts instead of ending the program.
#[cfg(unix)]
static CONVERSATION: Mutex<Option<Interrupts>> = Mutex::new(None);

/// Counts how often Ctrl-C was pressed since the last [`reset`](Self::reset).
#[derive(Debug, Clone, Default)]
pub struct Interrupts(Arc<AtomicUsize>);

impl Interrupts {
    /// From now on Ctrl-C counts here, and ends the program only when it is pressed twice.
    pub fn watch() -> Self {
        let interrupts = Self::default();
        #[cfg(unix)]
        {
            let mut conversation = CONVERSATION.lock().unwrap_or_else(PoisonError::into_inner);
            *conversation = Some(interrupts.clone());
        }
        interrupts
    }

    /// Whether Ctrl-C was pressed.
    pub fn pressed(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// Starts counting again.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// Starts the thread that waits for signals. A signal that ends the program removes unfinished
/// output files first.
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
            // No output is finished any more while the guard lives.
            let (left, _guard) = edge_lmm::output::abandon_all();
            for file in left {
                eprintln!("cannot remove {}; remove it by hand", file.display());
            }
            // The program ends as the signal would have ended it, so that its parent can tell.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    });
    Ok(())
}

/// Counts Ctrl-C; whether a conversation goes on.
#[cfg(unix)]
fn interrupts_conversation() -> bool {
    let conversation = CONVERSATION.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(interrupts) = &*conversation else {
        return false;
    };
    if interrupts.0.fetch_add(1, Ordering::Relaxed) > 0 {
        return false;
    }
    eprintln!("\ninterrupted; press Ctrl-C again or type /quit to leave");
    true
}

/// Signals keep their usual effect.
#[cfg(not(unix))]
pub fn install() -> std::io::Result<()> {
    Ok(())
}
