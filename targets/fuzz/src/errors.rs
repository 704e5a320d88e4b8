//! What is promised of error messages.

use std::fmt::Display;

/// Longest message: one that repeats its input would fill logs and replies.
const MAX_LEN: usize = 4096;

/// Checks that a message can be shown as one line.
///
/// # Panics
/// If it cannot.
pub fn check(error: &impl Display) {
    let message = error.to_string();
    assert!(!message.is_empty(), "an error without a message");
    assert!(!message.contains('\n'), "several lines: {message:?}");
    assert!(message.len() <= MAX_LEN, "too long: {message:?}");
}
