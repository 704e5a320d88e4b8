//! Errors as exceptions, with the texts of the command line.

use edge_lmm::{EngineError, one_line};
use pyo3::PyErr;

mod exceptions {
    pyo3::import_exception!(edge_lmm._errors, DeviceError);
    pyo3::import_exception!(edge_lmm._errors, Error);
    pyo3::import_exception!(edge_lmm._errors, InputError);
    pyo3::import_exception!(edge_lmm._errors, OutOfMemoryError);
    pyo3::import_exception!(edge_lmm._errors, PromptTooLongError);
    pyo3::import_exception!(edge_lmm._errors, RecordError);
}

pub use exceptions::{Error, InputError};

/// Converts an error of the engine.
pub fn engine_error(error: EngineError) -> PyErr {
    let text = one_line(&error);
    match error {
        EngineError::Record(_) => exceptions::RecordError::new_err(text),
        EngineError::Media(_) => InputError::new_err(text),
        EngineError::Device(_) => exceptions::DeviceError::new_err(text),
        EngineError::DoesNotFit(_) | EngineError::Memory(_) => {
            exceptions::OutOfMemoryError::new_err(text)
        }
        EngineError::TooLong { .. }
        | EngineError::TextTooLong { .. }
        | EngineError::ContextFull { .. } => exceptions::PromptTooLongError::new_err(text),
        _ => Error::new_err(text),
    }
}

/// Converts an error of an argument: a setting, an image, a sound.
pub fn input_error(error: impl std::error::Error + 'static) -> PyErr {
    InputError::new_err(one_line(&error))
}
