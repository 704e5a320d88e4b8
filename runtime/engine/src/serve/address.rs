//! Files at addresses that requests name.

/// A reader of files at `http:` and `https:` addresses. The library has none of its own.
pub trait AddressReader: std::fmt::Debug + Send + Sync {
    /// Returns the content of an address.
    ///
    /// # Errors
    /// If the address is not allowed or cannot be read.
    fn read(&self, address: &str) -> Result<Vec<u8>, AddressError>;
}

/// The error returned when an address cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The address is not allowed; the reason.
    #[error("{0}")]
    Refused(String),
    /// The server of the address failed; the reason.
    #[error("{0}")]
    Failed(String),
}

/// Returns `true` if a text begins like an address on the web.
#[cfg(feature = "http")]
pub(super) fn is_address(text: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| {
        let start = text.get(..scheme.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    })
}
