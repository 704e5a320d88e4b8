//! Memory limit of media decoding.
//!
//! Small files can announce gigabytes, so every large allocation is compared with a limit before it
//! is made: half of the memory that this process can allocate ([`Memory::usable`]). The other half
//! is left to the model's caches and activations. Without information from the system, only the
//! fixed limits of each kind of media apply.
//!
//! [`Memory::usable`]: crate::health::Memory::usable

use crate::health::System;

use super::error::MediaError;
use crate::media::medium::Media;

/// Allocations up to this size are not checked.
const SMALL: u64 = 16 << 20;

/// Returns the bytes that may be allocated now.
pub(super) fn limit() -> u64 {
    of(&System::default())
}

fn of(system: &System) -> u64 {
    let half = system.memory().map(|memory| memory.usable() / 2);
    half.map_or(u64::MAX, |half| half.max(SMALL))
}

/// The memory that the media of one request may take together: as much as one of them alone.
#[derive(Debug)]
pub struct MediaBudget(u64);

impl MediaBudget {
    /// Half of the memory that this process can still have.
    pub fn new() -> Self {
        Self(limit())
    }

    /// Counts a medium.
    ///
    /// # Errors
    /// [`MediaError::Memory`] if the media exceed the budget.
    pub fn hold(&mut self, medium: &Media) -> Result<(), MediaError> {
        let needed = medium.bytes() as u64;
        self.0 = self.0.checked_sub(needed).ok_or(MediaError::Memory {
            needed,
            limit: self.0,
        })?;
        Ok(())
    }
}

impl Default for MediaBudget {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns `true` if an allocation is compared with the limit.
pub(super) fn is_large(bytes: u64) -> bool {
    bytes > SMALL
}

/// Checks that `bytes` may be allocated.
///
/// # Errors
/// [`MediaError::Memory`] if they exceed the limit.
pub(super) fn check(bytes: u64) -> Result<(), MediaError> {
    if !is_large(bytes) {
        return Ok(());
    }
    match limit() {
        limit if bytes > limit => Err(MediaError::Memory {
            needed: bytes,
            limit,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_usable_memory_may_be_taken() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("proc")).unwrap();
        let meminfo = "MemTotal: 4194304 kB\nMemAvailable: 2097152 kB\n";
        std::fs::write(root.path().join("proc/meminfo"), meminfo).unwrap();
        assert_eq!(of(&System::at(root.path())), 1 << 30);
    }

    #[test]
    fn systems_that_do_not_tell_have_no_budget() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(of(&System::at(root.path())), u64::MAX);
    }

    #[test]
    fn more_than_the_machine_has_is_refused() {
        assert!(check(SMALL).is_ok());
        assert!(matches!(
            check(u64::MAX - 1),
            Err(MediaError::Memory { .. })
        ));
    }
}
