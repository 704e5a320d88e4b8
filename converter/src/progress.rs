//! Progress of long work before the record is written.

use std::rc::Rc;

/// Receives the name of a step, how much of it is done, and how much it is in all, in any unit.
#[derive(Clone)]
pub struct Progress(Rc<dyn Fn(&'static str, usize, usize)>);

impl Progress {
    /// Calls `report` at the start of a step and after each of its parts.
    pub fn new(report: impl Fn(&'static str, usize, usize) + 'static) -> Self {
        Self(Rc::new(report))
    }

    /// Tells nobody.
    pub fn none() -> Self {
        Self::new(|_, _, _| {})
    }

    pub(crate) fn report(&self, step: &'static str, done: usize, all: usize) {
        (self.0)(step, done, all);
    }
}
