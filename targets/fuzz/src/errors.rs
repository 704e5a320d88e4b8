//! Requirements for error messages.

/// Maximum length of an error message in a reply: one that repeats its request could fill the
/// connection.
const MAX_LEN: usize = 9000;

/// Checks that an error has a message.
///
/// # Panics
/// If it has none.
pub fn check(error: &impl ToString) {
    assert!(
        !error.to_string().trim().is_empty(),
        "an error without a message"
    );
}

/// Checks that a message is one line of limited length.
///
/// # Panics
/// If it is not.
pub fn check_line(message: &str) {
    check(&message);
    assert!(
        !message.contains(char::is_control),
        "control characters: {message:?}"
    );
    assert!(message.len() <= MAX_LEN, "too long: {message:?}");
}
