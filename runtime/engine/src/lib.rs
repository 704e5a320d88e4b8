//! What *runs* a model: maps its record, prepares media and prompts, drives prefill and decode,
//! and times every stage. The `edge-lmm` command (crate `edge-lmm-cli`) is a thin shell over it.

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;
pub mod dump;
mod engine;
mod error;
pub mod experiment;
mod features;
pub mod generation;
pub mod health;
mod loaded;
pub mod manifest;
pub mod media;
pub mod needs;
mod one_line;
pub mod processors;
pub mod report;
mod request;
pub mod sampler;
pub mod serve;
mod session;
mod stop;
pub mod target;
pub mod trace;

pub use device::{AnyEngine, AnySession, Device, Devices};
pub use edge_lmm_record as record;
pub use edge_lmm_record::{Record, RecordError, map, output};
pub use engine::Engine;
pub use error::EngineError;
pub use media::Media;
pub use one_line::one_line;
pub use request::{Answer, Event, FinishReason, Request};
pub use session::{Generation, Logits, Prefilled, Session, Snapshot, Token};
pub use stop::StopFilter;

/// The CPU backend: burn-ndarray's storage under our kernels.
pub type Cpu = burn_ndarray::NdArray<f32, i64, i8>;
#[cfg(feature = "cuda")]
pub use edge_lmm_ops::cube::Cuda;
#[cfg(feature = "vulkan")]
pub use edge_lmm_ops::cube::Vulkan;
