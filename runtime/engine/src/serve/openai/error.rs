//! Errors in OpenAI's form.

use edge_lmm_models::ModelError;
use serde_json::{Value, json};

use crate::media::MediaError;
use crate::sampler::SamplingError;
use crate::serve::{AddressError, InlineError, StopError};
use crate::{ConstraintError, EngineError, one_line};

/// State of a queue that has no place left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Requests that would have been answered before.
    pub position: usize,
    /// Seconds after which another attempt is worthwhile.
    pub retry_after: u64,
}

/// An error reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// Status code of HTTP.
    pub status: u16,
    /// Machine-readable reason.
    pub code: &'static str,
    /// Field of the request that is at fault.
    pub param: Option<String>,
    /// The reason, on one line.
    pub message: String,
    /// State of the queue, for status 429.
    pub waiting: Option<Waiting>,
}

impl ApiError {
    /// Creates an error without a field.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            param: None,
            message: message.into(),
            waiting: None,
        }
    }

    /// Creates an error of a field of the request (status 400).
    pub fn field(param: &str, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.to_owned()),
            ..Self::new(400, "invalid_value", message)
        }
    }

    /// Creates an error of a field whose function is not supported (status 400).
    pub fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self {
            code: "unsupported_parameter",
            ..Self::field(param, message)
        }
    }

    /// Creates the error of a full queue.
    pub fn full(waiting: Waiting) -> Self {
        let Waiting {
            position,
            retry_after,
        } = waiting;
        Self {
            waiting: Some(waiting),
            ..Self::new(
                429,
                "queue_full",
                format!(
                    "the queue is full: {position} requests are ahead; try again in {retry_after} s"
                ),
            )
        }
    }

    /// Returns the name that OpenAI's interface gives to this class of errors.
    pub fn class(&self) -> &'static str {
        match self.status {
            401 => "authentication_error",
            403 | 421 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// Returns the body of the reply.
    pub fn body(&self) -> Value {
        let mut error = json!({
            "message": self.message,
            "type": self.class(),
            "param": self.param,
            "code": self.code,
        });
        if let Some(waiting) = self.waiting {
            error["position"] = waiting.position.into();
            error["retry_after"] = waiting.retry_after.into();
        }
        json!({ "error": error })
    }
}

impl From<&EngineError> for ApiError {
    fn from(error: &EngineError) -> Self {
        if let EngineError::Constraint(error) = error {
            return constraint(error);
        }
        let (status, code) = match error {
            EngineError::TooLong { .. }
            | EngineError::TextTooLong { .. }
            | EngineError::ContextFull { .. } => (400, "context_length_exceeded"),
            EngineError::DoesNotFit(_) => (400, "insufficient_memory"),
            EngineError::Model(ModelError::Compute(_)) => (500, "device_failure"),
            EngineError::Model(_) | EngineError::Media(_) => (400, "invalid_value"),
            _ => (500, "device_failure"),
        };
        Self::new(status, code, one_line(error))
    }
}

impl From<SamplingError> for ApiError {
    fn from(error: SamplingError) -> Self {
        Self::field(error.name, error.to_string())
    }
}

impl From<StopError> for ApiError {
    fn from(error: StopError) -> Self {
        Self::field("stop", error.to_string())
    }
}

/// Errors of the form that the answer should have.
fn constraint(error: &ConstraintError) -> ApiError {
    let param = match error {
        // Tools have a grammar, too.
        ConstraintError::Invalid {
            kind: "grammar", ..
        } => None,
        _ => Some("response_format".to_owned()),
    };
    let code = match error {
        ConstraintError::Tokenizer | ConstraintError::NoEndToken | ConstraintError::NotBuilt => {
            "unsupported_parameter"
        }
        _ => "invalid_value",
    };
    ApiError {
        param,
        ..ApiError::new(400, code, one_line(error))
    }
}

/// Errors of a medium of the request, with its place.
pub(super) fn of_medium(place: &str, error: &MediaError) -> ApiError {
    let message = one_line(error);
    let named = match message.contains(place) {
        true => message,
        false => format!("{place}: {message}"),
    };
    ApiError::field(place, named)
}

pub(super) fn of_inline(place: &str, error: &InlineError) -> ApiError {
    ApiError::field(place, one_line(error))
}

pub(super) fn of_address(place: &str, error: &AddressError) -> ApiError {
    let code = match error {
        AddressError::Refused(_) => "address_refused",
        AddressError::Failed(_) => "address_unreadable",
    };
    ApiError {
        code,
        ..ApiError::field(place, format!("{place}: {error}"))
    }
}
