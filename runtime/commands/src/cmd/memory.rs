//! Options for the memory of a record, and memory checks of requests.

use clap::Args;
use edge_lmm::RequestEstimator;
use edge_lmm::memory::Fit;
use edge_lmm::{AnyEngine, Device, MediaInput, Record, Request};

/// Visual tokens from which the cost of a request is reported.
const LARGE_REQUEST: usize = 1024;

/// Options for the mapping of the record.
#[derive(Debug, Clone, Args)]
pub struct MemoryOptions {
    /// Read the whole record at startup instead of on demand
    #[arg(long)]
    prefault: bool,
    /// Lock the record in memory, so that it is not evicted
    #[arg(long)]
    mlock: bool,
    /// Start even if memory is too small for the model
    #[arg(long)]
    ignore_memory: bool,
}

impl MemoryOptions {
    /// Loads the model of a record, if it fits into the memory that the device has.
    pub fn load(&self, record: &Record, device: Device) -> anyhow::Result<AnyEngine> {
        let engine = match self.ignore_memory {
            true => device.load(record)?,
            false => {
                let (engine, fit) = device.load_checked(record, self.mlock)?;
                if fit == Fit::OneStageAtATime {
                    log::warn!(
                        "{} does not fit into memory as a whole: encoder and language model take \
                         turns and are read from the disk again",
                        record.path().display()
                    );
                }
                engine
            }
        };
        // Nothing is read as a whole before it is known to fit.
        record.verify_bundle()?;
        if self.prefault {
            record.prefault();
        }
        if self.mlock {
            record.lock()?;
        }
        Ok(engine)
    }

    /// Returns the estimator that checks whether a request fits into memory; `None` if
    /// `--ignore-memory` turns the check off.
    pub fn request_estimator(&self, engine: &AnyEngine) -> Option<RequestEstimator> {
        (!self.ignore_memory).then(|| RequestEstimator::new(engine.clone()))
    }

    /// Prepares the check of requests.
    pub fn request_check(&self, engine: &AnyEngine) -> RequestCheck {
        RequestCheck {
            estimator: RequestEstimator::new(engine.clone()),
            ignore_memory: self.ignore_memory,
        }
    }
}

/// Checks what a request costs before its encoders run.
pub struct RequestCheck {
    estimator: RequestEstimator,
    ignore_memory: bool,
}

impl RequestCheck {
    /// Refuses a request that cannot fit into memory and passes a note about a large one on.
    pub fn run(
        &self,
        request: &Request<'_>,
        prompt_tokens: usize,
        media: &[MediaInput],
        note: impl FnOnce(&str),
    ) -> anyhow::Result<()> {
        let estimator = &self.estimator;
        let estimate = estimator.estimate(request, media, prompt_tokens);
        if !self.ignore_memory {
            estimator.check(&estimate)?;
        }
        let tokens: usize = media.iter().map(MediaInput::tokens).sum();
        if tokens >= LARGE_REQUEST {
            let time = estimator
                .encoding_time(&estimate)
                .map_or(String::new(), |time| {
                    format!(
                        ", whose encoding takes about {:.0} s on this machine",
                        time.as_secs_f64()
                    )
                });
            note(&format!(
                "note: the media have {tokens} tokens{time}; --image-tokens MIN..MAX makes images \
                 smaller, --frames N uses fewer frames of a video"
            ));
        }
        Ok(())
    }
}
