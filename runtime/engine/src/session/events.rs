//! Events of a request on their way to the caller.

use std::ops::ControlFlow;

use edge_lmm_models::monitor::Progress;

use crate::request::Event;

/// Receives the events of a request; a break cancels it.
pub(super) type OnEvent<'a> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'a;

/// Turns the progress of a stage into events.
pub(super) fn report(
    stage: &'static str,
    on_event: &mut OnEvent<'_>,
) -> impl FnMut(Progress) -> ControlFlow<()> {
    move |Progress { done, total }| on_event(Event::Progress { stage, done, total })
}
