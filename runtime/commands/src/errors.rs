//! Errors as the command shows them: the library's message and the options that help.

use std::error::Error;
use std::io::ErrorKind;

use edge_lmm::memory::{MemoryError, Subject};
use edge_lmm::output::OutputError;
use edge_lmm::{
    DeviceError, EngineError, MediaError, ModelError, PreprocessError, RecordError, one_line,
};

use crate::models;

/// Formats an error on one line, with the options of this command that may help.
pub fn message(error: &anyhow::Error) -> String {
    let mut line = one_line(error.as_ref());
    if let Some(remark) = error.chain().find_map(remark) {
        line = format!("{line}; {remark}");
    }
    let options = error.chain().map(options).find(|found| !found.is_empty());
    match options {
        Some(options) => format!("{line} ({})", options.join(", ")),
        None => line,
    }
}

/// Returns a remark about the names of models for a record that does not exist.
fn remark(error: &(dyn Error + 'static)) -> Option<String> {
    let record = match error.downcast_ref() {
        Some(EngineError::Record(record)) => record,
        _ => error.downcast_ref::<RecordError>()?,
    };
    match record {
        RecordError::Io { path, source } if source.kind() == ErrorKind::NotFound => {
            models::remark(path)
        }
        _ => None,
    }
}

/// Returns the options that may resolve an error.
fn options(error: &(dyn Error + 'static)) -> &'static [&'static str] {
    if let Some(error) = error.downcast_ref() {
        engine(error)
    } else if let Some(error) = error.downcast_ref() {
        media(error)
    } else if let Some(error) = error.downcast_ref() {
        model(error)
    } else if let Some(error) = error.downcast_ref() {
        record(error)
    } else if let Some(error) = error.downcast_ref() {
        device(error)
    } else if let Some(error) = error.downcast_ref() {
        memory(error)
    } else if let Some(OutputError::Exists { .. }) = error.downcast_ref() {
        &["--force"]
    } else {
        &[]
    }
}

fn engine(error: &EngineError) -> &'static [&'static str] {
    match error {
        EngineError::Record(error) => record(error),
        EngineError::Model(error) => model(error),
        EngineError::Media(error) => media(error),
        EngineError::Device(error) => device(error),
        EngineError::DoesNotFit(error) => memory(error),
        EngineError::Memory(_) => &["--max-tokens", "--image-tokens", "--frames"],
        EngineError::TooLong { .. } => &["--image-tokens", "--frames"],
        EngineError::NotANumber(_) => &["edge-lmm inspect --verify"],
        _ => &[],
    }
}

fn record(error: &RecordError) -> &'static [&'static str] {
    match error {
        RecordError::Lock { .. } => &["--mlock"],
        RecordError::Model(error) => model(error),
        _ => &[],
    }
}

fn model(error: &ModelError) -> &'static [&'static str] {
    match error {
        ModelError::Preprocess(PreprocessError::TooManyTokens { .. }) => {
            &["--image-tokens", "--frames"]
        }
        ModelError::FixedImageTokens => &["--image-tokens"],
        ModelError::NoPanAndScan => &["--pan-and-scan"],
        ModelError::ControlTokens(_) | ModelError::Placeholders { .. } => &["--parse-special"],
        ModelError::GenerationConfig { .. } => &["--ignore-generation-config"],
        _ => &[],
    }
}

fn media(error: &MediaError) -> &'static [&'static str] {
    match error {
        MediaError::File { error, .. } => media(error),
        MediaError::Decoding(error) => media(error),
        MediaError::TooManyFrames { .. } | MediaError::Memory { .. } => &["--frames"],
        _ => &[],
    }
}

fn device(error: &DeviceError) -> &'static [&'static str] {
    match error {
        DeviceError::None => &[],
        _ => &["--device cpu"],
    }
}

fn memory(error: &MemoryError) -> &'static [&'static str] {
    match error.subject {
        Subject::Request => &[
            "--image-tokens",
            "--frames",
            "--max-tokens",
            "--ignore-memory",
        ],
        _ => &["--ignore-memory"],
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn options_follow_the_message() {
        let error = anyhow::Error::new(EngineError::Model(ModelError::FixedImageTokens));
        assert!(message(&error).ends_with(" (--image-tokens)"));
        let frames = MediaError::File {
            path: "a.gif".into(),
            error: Box::new(MediaError::TooManyFrames {
                frames: 9999,
                width: 1,
                height: 1,
            }),
        };
        let error = Err::<(), _>(frames).context("question 1").unwrap_err();
        assert!(message(&error).ends_with(" (--frames)"));
        assert_eq!(
            message(&anyhow::anyhow!("no option helps")),
            "no option helps"
        );
    }
}
