//! OpenAI's HTTP interface: bodies of `/v1/chat/completions` and `/v1/completions`, as far as one
//! model on one device can answer them. `docs/serving.md` lists the fields.
//!
//! [`Ask`] is a checked request, [`Replies`] writes its answer, [`ApiError`] is what the client gets
//! instead.

mod ask;
mod error;
mod media;
mod message;
mod reply;
mod tools;
mod wire;

pub use ask::{Ask, Endpoint};
pub use error::{ApiError, Waiting};
pub use reply::Replies;
