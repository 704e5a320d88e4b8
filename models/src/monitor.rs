//! Progress and cancellation of long computations.

use std::ops::ControlFlow;

use crate::error::ModelError;

/// Progress within one computation: an encoder's run over a medium, or a prefill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Steps that are done.
    pub done: usize,
    /// Steps in all: one per layer of a language model, two per layer of an encoder (attention and
    /// MLP), counted once per pass.
    pub total: usize,
}

/// Receives the progress of a computation and may cancel it.
///
/// Models report before every step, so that a canceled computation ends within the time of one
/// layer of a language model or a quarter of a layer of an encoder.
pub struct Monitor<'a>(&'a mut dyn FnMut(Progress) -> ControlFlow<()>);

impl<'a> Monitor<'a> {
    /// Calls `report` before every step; [`ControlFlow::Break`] cancels the computation.
    pub fn new(report: &'a mut dyn FnMut(Progress) -> ControlFlow<()>) -> Self {
        Self(report)
    }

    /// Reports that `done` of `total` steps are done.
    ///
    /// # Errors
    /// [`ModelError::Canceled`] if the computation is to stop.
    pub fn report(&mut self, done: usize, total: usize) -> Result<(), ModelError> {
        match (self.0)(Progress { done, total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(ModelError::Canceled),
        }
    }

    /// Runs `part`, whose steps begin after `before` of `total` steps.
    ///
    /// # Errors
    /// The errors of `part`.
    pub fn part<T>(
        &mut self,
        before: usize,
        total: usize,
        part: impl FnOnce(&mut Monitor<'_>) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        let report = &mut self.0;
        part(&mut Monitor(&mut |progress| {
            report(Progress {
                done: before + progress.done,
                total,
            })
        }))
    }

    /// Runs `pass` as number `index` of `passes` equal ones, whose progress is reported as a part
    /// of the whole.
    ///
    /// # Errors
    /// The errors of `pass`.
    pub fn pass<T>(
        &mut self,
        index: usize,
        passes: usize,
        pass: impl FnOnce(&mut Monitor<'_>) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        let report = &mut self.0;
        pass(&mut Monitor(&mut |progress| {
            report(Progress {
                done: index * progress.total + progress.done,
                total: passes * progress.total,
            })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_count_as_parts_of_the_whole() {
        let mut seen = Vec::new();
        let mut report = |progress: Progress| {
            seen.push((progress.done, progress.total));
            ControlFlow::Continue(())
        };
        let mut monitor = Monitor::new(&mut report);
        for pass in 0..2 {
            monitor
                .pass(pass, 2, |monitor| {
                    (0..3).try_for_each(|i| monitor.report(i, 3))
                })
                .unwrap();
        }
        assert_eq!(seen, [(0, 6), (1, 6), (2, 6), (3, 6), (4, 6), (5, 6)]);
    }

    #[test]
    fn a_break_cancels() {
        let mut report = |progress: Progress| match progress.done {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        };
        let mut monitor = Monitor::new(&mut report);
        assert!(monitor.report(0, 2).is_ok());
        assert!(matches!(monitor.report(1, 2), Err(ModelError::Canceled)));
    }
}
