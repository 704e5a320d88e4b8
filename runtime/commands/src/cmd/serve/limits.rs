//! Limits on the total resources of all clients.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// A number of bytes that can be reserved.
#[derive(Debug, Clone)]
pub struct Budget(Arc<AtomicUsize>);

impl Budget {
    /// Creates a budget of `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// Reserves `bytes`; `None` if fewer are left.
    pub fn reserve(&self, bytes: usize) -> Option<Reservation> {
        let take = |left: usize| left.checked_sub(bytes);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .ok()
            .map(|_| Reservation {
                budget: self.clone(),
                bytes,
            })
    }
}

/// Bytes of a [`Budget`] that return to it on drop.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    bytes: usize,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// A semaphore for decoded media.
#[derive(Debug, Clone)]
pub struct Permits(Arc<(Mutex<usize>, Condvar)>);

impl Permits {
    /// Creates a semaphore with `count` permits.
    pub fn new(count: usize) -> Self {
        Self(Arc::new((Mutex::new(count), Condvar::new())))
    }

    /// Waits for a permit.
    pub fn acquire(&self) -> Permit {
        let (count, freed) = &*self.0;
        let count = count.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = freed
            .wait_while(count, |count| *count == 0)
            .unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        Permit(self.clone())
    }
}

/// A permit that returns on drop.
#[derive(Debug)]
pub struct Permit(Permits);

impl Drop for Permit {
    fn drop(&mut self) {
        let (count, freed) = &*self.0.0;
        *count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn reservations_return_on_drop() {
        let budget = Budget::new(10);
        let first = budget.reserve(6).expect("there is enough");
        assert!(budget.reserve(5).is_none());
        drop(first);
        assert!(budget.reserve(10).is_some());
    }

    #[test]
    fn a_permit_is_waited_for() {
        let permits = Permits::new(1);
        let permit = permits.acquire();
        let waiting = {
            let permits = permits.clone();
            std::thread::spawn(move || drop(permits.acquire()))
        };
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        drop(permit);
        waiting.join().expect("the permit is free");
    }
}
