//! Results in files: encoder outputs and prefixes of conversations that later processes use again.
//!
//! A [`Store`] is a folder of entries that [`Engine::use_store`](crate::Engine::use_store) fills and
//! reads; a snapshot ([`Session::save_snapshot`](crate::Session::save_snapshot)) is one entry in a
//! file that the user names. An entry is used only by the model that it was computed with, on the
//! kind of device and with the version of the program that computed it, so that an answer is the
//! same as without it.

mod contents;
mod entry;
mod folder;

pub(crate) use contents::{Features, Prefix};
pub use entry::{EntryError, check_entry};
pub(crate) use entry::{Kind, Origin, write};
pub use folder::{DEFAULT_LIMIT, Store, StoreError};
pub(crate) use folder::{FileError, read};
