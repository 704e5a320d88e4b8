//! OpenAI's interface over HTTP.
//!
//! One thread runs all connections ([`connections`]); requests are parsed and their media decoded on
//! threads of their own, and answered by the engine that the other protocols use as well.

mod access;
mod answer;
mod body;
mod connections;
mod events;
pub mod fetch;
mod options;
mod page;
mod reply;
mod routes;
#[cfg(feature = "fuzz")]
pub mod scripted;
mod timed;

pub use options::HttpOptions;
