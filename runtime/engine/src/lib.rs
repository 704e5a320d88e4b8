//! Runs large multimodal models: images, video and sound in, text out.
//!
//! A model is one file, a [`Record`], which the converter `edge-lmm-convert` makes of a checkpoint.
//! A [`Device`] loads it as an engine, from which sessions are opened: conversations that keep their
//! state and answer [`Request`]s. An answer is streamed as [`Event`]s, can be canceled at any
//! layer or token, and brings the time and memory of each stage ([`Timing`]) if the request asks
//! for it.
//!
//! ```
//! use std::ops::ControlFlow;
//!
//! use edge_lmm::{Device, Event, Media, Record, Request, demo, user_message};
//!
//! // Record::open("qwen2-vl-2b.bpk") for a file.
//! let record = Record::from_static(demo::RECORD, "the demo's record")?;
//! let mut session = Device::Cpu.load(&record)?.session();
//!
//! // Media::open("cat.jpg") for a file; Media::image(image) for the pixels of a camera.
//! let media = [Media::image(edge_lmm::media::decode_image(demo::IMAGE)?)];
//! let messages = [user_message(&media, "list the shapes.")];
//! let request = Request {
//!     media: &media,
//!     max_tokens: 16,
//!     timing: true,
//!     ..Request::new(&messages)
//! };
//! let answer = session.answer(&request, |event| {
//!     if let Event::Text(text) = event {
//!         print!("{text}");
//!     }
//!     ControlFlow::Continue(())
//! })?;
//! assert!(answer.timing.stage("vision").is_some());
//! println!("\n{}", answer.timing);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The folder `examples` has programs that stream, profile, time a module of their own, and chat
//! about images that arrive in a folder.
//!
//! # Features
//! | feature | what |
//! |---|---|
//! | `files` (default) | [`media`] from files: images, animations, Y4M, WAV, FLAC, MP3, ... |
//! | `h264` (default) | video in MP4; builds OpenH264, which requires a C++ compiler |
//! | `camera` | cameras of Video4Linux in [`watch`] |
//! | `constraints` | answers that follow a JSON schema, a regular expression or a grammar ([`Constraint`]) |
//! | `serve` | requests and replies of a server as JSON |
//! | `experiments` | question sets, captured stages as files, [`experiment`]s, measurements of the kernels |
//! | `profiler` | [`profile`]s of any burn module |
//! | `cuda`, `vulkan` | GPUs |
//!
//! # Backends
//! [`Device`], [`AnyEngine`] and [`AnySession`] choose the backend at run time. [`Engine`] and
//! [`Session`] are generic over it ([`Cpu`], `Cuda`, `Vulkan`), and a session gives more there: an
//! iterator over tokens, single steps, logits, snapshots and forks.

mod any_device;
mod any_generation;
pub mod chat;
mod columns;
mod constraint;
pub mod cost;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;
#[cfg(feature = "experiments")]
pub mod dump;
mod engine;
pub mod environment;
mod error;
pub mod estimate;
#[cfg(feature = "experiments")]
pub mod experiment;
mod features;
pub mod generation;
pub mod health;
mod loaded;
#[cfg(feature = "experiments")]
pub mod manifest;
pub mod media;
pub mod memory;
#[cfg(feature = "experiments")]
pub mod metric;
mod one_line;
pub mod processors;
pub mod profile;
pub mod report;
mod request;
mod request_estimate;
pub mod sampler;
#[cfg(test)]
mod schema;
#[cfg(feature = "serve")]
pub mod serve;
mod session;
pub mod statistics;
mod stop;
pub mod store;
pub mod target;
pub mod timing;
pub mod tokens;
mod tool_calls;
pub mod units;
#[cfg(feature = "files")]
pub mod watch;

pub use any_device::{AnyEngine, AnySession};
pub use any_generation::AnyGeneration;
pub use constraint::{Constraint, ConstraintError};
pub use device::{Device, DeviceError, Devices};
pub use edge_lmm_models::language::OutputRows;
pub use edge_lmm_models::layout;
pub use edge_lmm_models::media::{AudioPadding, MediaInput, MediaKind, MediaOptions};
pub use edge_lmm_models::preprocess::{PreprocessError, RgbImage};
pub use edge_lmm_models::prompt::{Content, Message, Role, Tool, ToolCall, ToolSyntax};
pub use edge_lmm_models::reduce;
pub use edge_lmm_models::{ModelError, demo};
pub use edge_lmm_ops::KernelBackend;
#[cfg(feature = "profiler")]
pub use edge_lmm_ops::profiled::Profiled;
pub use edge_lmm_record as record;
pub use edge_lmm_record::{Record, RecordError, output};
pub use edge_lmm_targets as targets;
pub use engine::Engine;
pub use error::EngineError;
#[cfg(feature = "files")]
pub use media::MediaError;
pub use media::{Media, user_message};
pub use one_line::one_line;
pub use processors::LogitsProcessor;
#[cfg(feature = "profiler")]
pub use profile::Profiler;
pub use request::{Answer, Event, FinishReason, Request};
pub use request_estimate::RequestEstimator;
pub use sampler::Sampling;
pub use session::{
    Generation, Logits, Prefilled, ReusedFrom, ScoredToken, Session, Snapshot, SnapshotError,
    Speculation, SpeculationCounts, Token, TokenLogprobs, UnknownSpeculation,
};
pub use stop::StopFilter;
pub use store::Store;
pub use timing::{Recording, Stage, Timing};
pub use tool_calls::{AnswerPart, ToolCalls};

/// The CPU backend: burn-ndarray's storage under our kernels.
pub type Cpu = burn_ndarray::NdArray<f32, i64, i8>;
#[cfg(feature = "cuda")]
pub use edge_lmm_ops::cube::Cuda;
#[cfg(feature = "vulkan")]
pub use edge_lmm_ops::cube::Vulkan;

/// Sets the number of threads that all models of this process compute with; by default, one per
/// core.
pub fn set_threads(threads: std::num::NonZeroUsize) {
    edge_lmm_kernels::pool::set_global_threads(threads);
}
