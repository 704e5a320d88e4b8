//! Removes unfinished files when a signal ends the program.

use std::io::IsTerminal;
use std::process;

use edge_lmm::output::abandon_all;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

/// Makes SIGINT, SIGTERM and SIGHUP remove unfinished files and end the program with status 128 +
/// the signal number, as shells do. Signals that were ignored at startup (`nohup`) stay ignored.
pub fn install() {
    let ignored = ignored_signals();
    let wanted = [SIGINT, SIGTERM, SIGHUP]
        .into_iter()
        .filter(|signal| ignored >> (signal - 1) & 1 == 0);
    match Signals::new(wanted) {
        Ok(mut signals) => {
            std::thread::spawn(move || {
                if let Some(signal) = signals.forever().next() {
                    end(signal);
                }
            });
        }
        Err(error) => log::debug!("signals are not handled: {error}"),
    }
}

fn end(signal: i32) -> ! {
    let (left, _guard) = abandon_all();
    // Moves below the progress bar.
    let start = if std::io::stderr().is_terminal() {
        "\n"
    } else {
        ""
    };
    let name = signal_name(signal).unwrap_or("a signal");
    eprintln!("{start}error: interrupted by {name}; no file was written");
    for part in left {
        eprintln!("cannot remove {}; remove it by hand", part.display());
    }
    process::exit(128 + signal)
}

/// Returns the signals that this process ignores as a bit mask, or 0 if `/proc` is unavailable.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
